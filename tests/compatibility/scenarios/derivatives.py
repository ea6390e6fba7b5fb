"""Derivatives of any kind, those that torch.nn lacks included, and torch.compile."""

import torch
from suite import (
    DEEP,
    LAYERS,
    LSTM,
    MODULES,
    example,
    loss,
    random,
    scenario,
    states,
    trained,
    weight_name,
)
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint


@scenario("backward in eval mode", "Derivatives", MODULES)
def _(make):
    net = make(3, 4).eval()
    return trained(net, example(net))


@scenario("no_grad and inference_mode", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    x = example(net)
    with torch.no_grad():
        quiet = net(x)
    with torch.inference_mode():
        inferred = net(x)
    return quiet, inferred, [(t.requires_grad, t.is_inference()) for t in tree_leaves(inferred)]


@scenario("retain_graph", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    total = loss(net(example(net)))
    total.backward(retain_graph=True)
    total.backward()
    return [parameter.grad for parameter in net.parameters()]


@scenario("backward(inputs=...)", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    x = example(net).requires_grad_()
    loss(net(x)).backward(inputs=[x])
    only_x = [x.grad, *(parameter.grad for parameter in net.parameters())]
    loss(net(x)).backward(inputs=[getattr(net, weight_name(net))])
    return only_x, [parameter.grad for parameter in net.parameters()]


@scenario("each output alone", "Derivatives")
def _(make):
    net = make(3, 4, num_layers=2)
    count = len(tree_leaves(net(example(net))))
    return [
        torch.autograd.grad(loss(tree_leaves(net(example(net)))[i]), list(net.parameters()))
        for i in range(count)
    ]


@scenario("gradients of h_0 and c_0 only", "Derivatives", MODULES)
def _(make):
    net = make(3, 4).requires_grad_(False)
    x = example(net)
    hx = tree_map(lambda state: state.requires_grad_(), states(net, x))
    return torch.autograd.grad(loss(net(x, hx)), tree_leaves(hx))


@scenario("truncated backpropagation through time", "Derivatives")
def _(make):
    net = make(3, 4)
    hx = None
    for piece in random(6, 2, 3).split(2):
        output, hx = net(piece, hx)
        loss(output).backward()
        hx = tree_map(Tensor.detach, hx)
    return [parameter.grad for parameter in net.parameters()]


@scenario("checkpoint", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    gradients = []
    for use_reentrant in (False, True):
        x = example(net).requires_grad_()
        loss(checkpoint(net, x, use_reentrant=use_reentrant)).backward()
        gradients.append((x.grad, [parameter.grad for parameter in net.parameters()]))
    return gradients


@scenario("saved tensor hooks: save_on_cpu", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    return trained(net, example(net), context=torch.autograd.graph.save_on_cpu())


# Like cuDNN's and torch's float32 LSTM, the kernels keep output itself for backward.
@scenario(
    "output changed in place before backward", "Derivatives", MODULES[:-1], refused_here=LAYERS
)
def _(make):
    net = make(3, 4)
    x = example(net).requires_grad_()
    tree_leaves(result := net(x))[0].mul_(2)
    return result, torch.autograd.grad(loss(result), [x, *net.parameters()])


@scenario("h_n changed in place before backward", "Derivatives")
def _(make):
    net = make(3, 4)
    x = example(net).requires_grad_()
    tree_leaves(result := net(x))[1].mul_(2)
    return result, torch.autograd.grad(loss(result), [x, *net.parameters()])


# The kernels' backward has one node for all, which keeps what any gradient, or a second one, reads.
@scenario("bias changed in place before backward", "Derivatives", MODULES, refused_here=MODULES)
def _(make):
    net = make(3, 4)
    total = loss(net(example(net)))
    with torch.no_grad():
        net.get_parameter(weight_name(net).replace("weight", "bias")).mul_(2)
    return torch.autograd.grad(total, list(net.parameters()))


@scenario(
    "input changed in place before backward, weights frozen",
    "Derivatives",
    MODULES,
    refused_here=MODULES,
)
def _(make):
    net = make(3, 4).requires_grad_(False)
    x = example(net).requires_grad_()
    total = loss(net(y := x.clone()))
    y.detach().mul_(2)
    return torch.autograd.grad(total, x)


@scenario("use_deterministic_algorithms", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    torch.use_deterministic_algorithms(True)
    try:
        return trained(net, example(net))
    finally:
        torch.use_deterministic_algorithms(False)


@scenario("gradcheck", "Derivatives", MODULES)
def _(make):
    net = make(2, 2)
    leaves = (example(net).requires_grad_(), *net.parameters())
    return gradcheck(lambda x, *_: tree_leaves(net(x)), leaves)


@scenario("gradgradcheck", "Derivatives", MODULES)
def _(make):
    net = make(2, 2)
    leaves = (example(net).requires_grad_(), *net.parameters())
    return gradgradcheck(lambda x, *_: tree_leaves(net(x)), leaves)


for dtype in (torch.float64, torch.float32):

    @scenario(f"double backward, {dtype}", "Derivatives", MODULES, dtype=dtype)
    def _(make):
        net = make(3, 4)
        x = example(net)
        hx = states(net, x)
        leaves = [leaf.requires_grad_() for leaf in (x, *tree_leaves(hx))] + [*net.parameters()]
        gradients = torch.autograd.grad(loss(net(x, hx)), leaves, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in gradients)
        return penalty, torch.autograd.grad(penalty, leaves)


@scenario("grad(is_grads_batched=True)", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    x = example(net).requires_grad_()
    output = tree_leaves(net(x))[0]
    return torch.autograd.grad(output, x, random(3, *output.shape), is_grads_batched=True)


def summed(net: nn.Module):
    """A number, as a function of weights and input."""
    return lambda weights, x: loss(tree_map(torch.sin, functional_call(net, weights, (x,))))


def values(net: nn.Module):
    """The first output, as a function of weights and input."""
    return lambda weights, x: tree_leaves(functional_call(net, weights, (x,)))[0]


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def several(net: nn.Module) -> Tensor:
    return torch.stack([example(net) for _ in range(3)])


# What of vmap torch.nn refuses.
NOT_BATCHED = ("LSTM", "GRU", "RNN", "LSTMCell")


@scenario("torch.func.grad", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    return grad(summed(net))(weights(net), example(net))


@scenario("torch.func.jacrev", "Derivatives", MODULES)
def _(make):
    net = make(3, 4)
    return jacrev(values(net))(weights(net), example(net))


@scenario("vmap over inputs", "Derivatives", MODULES, refused=NOT_BATCHED)
def _(make):
    net = make(3, 4)
    return vmap(net)(several(net))


@scenario("vmap over stacked weights: ensembles", "Derivatives", MODULES, refused=NOT_BATCHED)
def _(make):
    nets = [make(3, 4) for _ in range(3)]
    for factor, net in enumerate(nets):
        with torch.no_grad():
            getattr(net, weight_name(net)).mul_(factor)
    stacked, _ = stack_module_state(nets)
    return vmap(values(nets[0]), (0, None))(stacked, example(nets[0]))


@scenario("per-sample gradients: vmap over grad", "Derivatives", MODULES, refused=MODULES)
def _(make):
    net = make(3, 4)
    return vmap(grad(summed(net)), (None, 0))(weights(net), several(net))


for dtype, refused in ((torch.float64, ()), (torch.float32, LSTM)):

    @scenario(f"jvp, {dtype}", "Derivatives", MODULES, dtype=dtype, refused=refused)
    def _(make):
        net = make(3, 4)
        x = example(net)
        direction = {name: torch.ones_like(weight) for name, weight in weights(net).items()}
        return jvp(values(net), (weights(net), x), (direction, example(net)))

    @scenario(f"forward_ad, {dtype}", "Derivatives", MODULES, dtype=dtype, refused=refused)
    def _(make):
        net = make(3, 4)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(example(net), example(net))
            return forward_ad.unpack_dual(tree_leaves(net(dual))[0]).tangent.clone()

    @scenario(f"jacfwd, {dtype}", "Derivatives", MODULES, dtype=dtype, refused=refused)
    def _(make):
        net = make(3, 4)
        return jacfwd(values(net), argnums=1)(weights(net), example(net))

    @scenario(f"hessian, {dtype}", "Derivatives", MODULES, dtype=dtype, refused=refused)
    def _(make):
        net = make(3, 4)
        return hessian(summed(net), argnums=1)(weights(net), example(net))


def compiled(net: nn.Module, **options) -> nn.Module:
    """The module compiled; the reference as it is, which is right without."""
    if type(net).__module__ == "composite":
        return net
    torch.compiler.reset()
    return torch.compile(net, fullgraph=True, backend="aot_eager", **options)


@scenario("torch.compile(fullgraph=True)", "Derivatives", MODULES, refused=LAYERS)
def _(make):
    net = make(3, 4)
    x = example(net)
    return trained(compiled(net), x), trained(compiled(net), x, states(net, x))


@scenario("torch.compile, dynamic batch and length", "Derivatives", LAYERS, refused=LAYERS)
def _(make):
    net = make(3, 4, **DEEP)
    run = compiled(net, dynamic=True)
    return [trained(run, random(seq_len, batch, 3)) for seq_len, batch in ((5, 2), (7, 3))]
