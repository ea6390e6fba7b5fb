"""Methods and attributes, and what is done to modules."""

import copy
import io
import os
import pickle
import tempfile

import torch
from suite import (
    AUTO,
    LSTM,
    MODULES,
    example,
    is_cell,
    loss,
    packed,
    random,
    scenario,
    states,
    trained,
    weight_name,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune, stateless

import rnnfast


@scenario("parameters: names, order, shapes", "Module", MODULES)
def _(make):
    nets = [make(3, 4)]
    if not is_cell(nets[0]):
        nets.append(make(3, 4, num_layers=2, bidirectional=True, bias=False))
    return [[(name, p.shape) for name, p in net.named_parameters()] for net in nets]


@scenario("public attributes", "Module", MODULES)
def _(make):
    net = make(3, 4)
    names = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    names += ("bidirectional", "proj_size", "nonlinearity", "training")
    return {name: getattr(net, name, None) for name in names}


@scenario("instance of RNNBase or RNNCellBase", "Module", MODULES)
def _(make):
    net = make(3, 4)
    return isinstance(net, nn.RNNBase), isinstance(net, nn.RNNCellBase)


@scenario("all_weights", "Module")
def _(make):
    net = make(3, 4, num_layers=2, bidirectional=True)
    assert all(isinstance(w, nn.Parameter) for weights in net.all_weights for w in weights)
    return net.all_weights


@scenario("extra_repr", "Module")
def _(make):
    return make(3, 4).extra_repr(), make(3, 4, 2, bias=False, bidirectional=True).extra_repr()


@scenario("get_expected_hidden_size", "Module")
def _(make):
    net = make(3, 4, num_layers=2, batch_first=True)
    sequence = packed(True)
    return (
        net.get_expected_hidden_size(random(5, 2, 3), None),
        net.get_expected_hidden_size(sequence.data, sequence.batch_sizes),
    )


@scenario("get_expected_cell_size", "Module", LSTM)
def _(make):
    return make(3, 4, proj_size=2).get_expected_cell_size(random(5, 2, 3), None)


@scenario("check_forward_args, check_input, check_hidden_size", "Module")
def _(make):
    net = make(3, 4)
    x = example(net)
    hx = states(net, x)
    net.check_input(x, None)
    net.check_forward_args(x, hx, None)
    net.check_hidden_size(hx[0] if isinstance(hx, tuple) else hx, (1, 2, 4))


@scenario("permute_hidden", "Module")
def _(make):
    net = make(3, 4)
    return net.permute_hidden(states(net, random(5, 3, 3)), torch.tensor([2, 0, 1]))


@scenario("flatten_parameters", "Module")
def _(make):
    net = make(3, 4)
    before = trained(net, random(5, 2, 3))
    assert net.flatten_parameters() is None
    return before, trained(net, random(5, 2, 3))


@scenario("deepcopy", "Module", MODULES)
def _(make):
    net = make(3, 4)
    twin = copy.deepcopy(net)
    nn.init.zeros_(getattr(twin, weight_name(twin)))
    x = example(net)
    return net(x), twin(x)


@scenario("pickle", "Module", MODULES)
def _(make):
    net = make(3, 4)
    return trained(pickle.loads(pickle.dumps(net)), example(net))


def saved(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """What torch.load makes of what torch.save made of it."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@scenario("state_dict through torch.save and torch.load, to and from torch.nn", "Module", MODULES)
def _(make):
    net, other = make(3, 4), getattr(nn, type(make(3, 4)).__name__)(3, 4)
    other.load_state_dict(saved(net.state_dict()))
    x = example(net)
    torch.testing.assert_close(other(x), net(x))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    net.load_state_dict(saved(other.state_dict()))
    return net.state_dict(), trained(net, x)


@scenario("load_state_dict(assign=True)", "Module", MODULES)
def _(make):
    net = make(3, 4)
    result = net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}, assign=True)
    return result.missing_keys, result.unexpected_keys, trained(net, example(net))


@scenario("load_state_dict, keys that do not match", "Module", MODULES)
def _(make):
    result = make(3, 4).load_state_dict({"weight": torch.zeros(1)}, strict=False)
    return result.missing_keys, result.unexpected_keys


@scenario("share_memory", "Module", MODULES)
def _(make):
    net = make(3, 4).share_memory()
    return [p.is_shared() for p in net.parameters()], trained(net, example(net))


@scenario("to, half, bfloat16, float, double", "Module", MODULES)
def _(make):
    net = make(3, 4)
    half, bfloat16 = (
        [(p.dtype, p) for p in copy.deepcopy(net).to(dtype).parameters()]
        for dtype in (torch.half, torch.bfloat16)
    )
    double = net.half().bfloat16().float().double()
    return half, bfloat16, [p.dtype for p in double.parameters()], trained(net, example(net))


@scenario("meta device: forward, and to_empty", "Module", MODULES, backends=AUTO)
def _(make):
    net = make(3, 4, device="meta")
    abstract = net(example(net).to("meta"))
    net.to_empty(device="cpu")
    net.load_state_dict(make(3, 4).state_dict())
    return abstract, trained(net, example(net))


@scenario("torch.nn.utils.skip_init", "Module", MODULES[3:])
def _(make):
    net = nn.utils.skip_init(type(make(3, 4)), 3, 4)
    net.load_state_dict(make(3, 4).state_dict())
    return trained(net, example(net))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


@scenario("parametrize", "Module", MODULES)
def _(make):
    net = make(3, 4)
    name = weight_name(net)
    parametrize.register_parametrization(net, name, Doubled())
    with torch.no_grad():
        net.parametrizations[name].original.add_(0.5)
    x = example(net)
    during = trained(net, x)
    with parametrize.cached():
        cached = net(x)
    parametrize.remove_parametrizations(net, name)
    return during, cached, trained(net, x)


@scenario("weight_norm, parametrized", "Module", MODULES)
def _(make):
    net = make(3, 4)
    parametrizations.weight_norm(net, weight_name(net))
    with torch.no_grad():
        getattr(net.parametrizations, weight_name(net)).original0.mul_(2)
    return trained(net, example(net))


@scenario("weight_norm, the older hook", "Module", MODULES)
def _(make):
    net = make(3, 4)
    nn.utils.weight_norm(net, weight_name(net))
    with torch.no_grad():
        getattr(net, weight_name(net) + "_g").mul_(2)
    return trained(net, example(net))


@scenario("prune", "Module", MODULES)
def _(make):
    net = make(3, 4)
    prune.l1_unstructured(net, weight_name(net), amount=0.5)
    return trained(net, example(net))


@scenario("torch.func.functional_call", "Module", MODULES)
def _(make):
    net = make(3, 4)
    x = example(net)
    weights = {k: (2 * p).detach().requires_grad_() for k, p in net.named_parameters()}
    result = functional_call(net, weights, (x,))
    return result, torch.autograd.grad(loss(result), list(weights.values())), net(x)


@scenario("torch.nn.utils.stateless.functional_call", "Module", MODULES)
def _(make):
    net = make(3, 4)
    x = example(net)
    weights = {weight_name(net): torch.zeros_like(getattr(net, weight_name(net)))}
    return stateless.functional_call(net, weights, (x,)), net(x)


@scenario("a Parameter assigned in place of a weight", "Module", MODULES)
def _(make):
    net = make(3, 4)
    before = net(example(net))
    setattr(net, weight_name(net), nn.Parameter(getattr(net, weight_name(net)).detach() * 2))
    return before, trained(net, example(net))


@scenario("a plain tensor in place of a weight (weight drop)", "Module", MODULES)
def _(make):
    net = make(3, 4)
    raw = getattr(net, weight_name(net))
    delattr(net, weight_name(net))
    net.raw = nn.Parameter(raw.detach())
    setattr(net, weight_name(net), net.raw * 2)
    return trained(net, example(net))


@scenario("a weight's data replaced", "Module", MODULES)
def _(make):
    net = make(3, 4)
    weight = getattr(net, weight_name(net))
    weight.data = weight.data * 2
    return trained(net, example(net))


@scenario("a weight tied between two modules", "Module", MODULES)
def _(make):
    one, two = make(3, 4), make(3, 4)
    setattr(two, weight_name(two), getattr(one, weight_name(one)))
    nets = nn.ModuleList([one, two])
    result = one(example(one)), two(example(two))
    return result, torch.autograd.grad(loss(result), list(nets.parameters()))


@scenario("requires_grad=False on some weights, on all", "Module", MODULES)
def _(make):
    net = make(3, 4)
    getattr(net, weight_name(net)).requires_grad_(False)
    x = example(net)
    some = trained(net, x)
    net.requires_grad_(False)
    return some, trained(net, x), [t.requires_grad for t in (net(x)[0], net(x)[-1][0])]


@scenario("forward hooks", "Module", MODULES)
def _(make):
    net = make(3, 4)
    seen = []
    net.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
    net.register_forward_hook(lambda _, args, result: seen.append((args, result)))
    net.register_forward_hook(lambda _, args, result: (result, "changed"))
    return trained(net, example(net)), seen


@scenario("backward hooks", "Module", MODULES)
def _(make):
    net = make(3, 4)
    seen = []
    net.register_full_backward_pre_hook(lambda _, grads: seen.append(grads))
    net.register_full_backward_hook(lambda _, grads_in, grads_out: seen.append(grads_in))
    return trained(net, example(net)), seen


@scenario("hooks and retain_grad on tensors", "Module", MODULES)
def _(make):
    net = make(3, 4)
    seen = []
    getattr(net, weight_name(net)).register_hook(seen.append)
    result = net(example(net))
    output = result if isinstance(result, Tensor) else result[0]
    output.retain_grad()
    loss(result).backward()
    return seen, output.grad


@scenario("a subclass with its own forward", "Module", MODULES)
def _(make):
    class Residual(type(make(3, 3))):
        def forward(self, input, hx=None):
            result = super().forward(input, hx)
            return input + (result if isinstance(result, Tensor) else result[0])

    net = Residual(3, 3)
    net.load_state_dict(make(3, 3).state_dict())
    return trained(net, example(net))


@scenario("steps of an optimizer", "Module", MODULES)
def _(make):
    net = make(3, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    x = example(net)
    for _ in range(3):
        optimizer.zero_grad()
        loss(net(x)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return dict(net.named_parameters())


def ddp_gradients(rank: int, backend: str, folder: str, net: nn.Module, x: Tensor, sums) -> None:
    """One of two processes: half of the batch each."""
    torch.set_num_threads(1)
    rnnfast.set_backend(backend)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
    parallel(x[:, rank : rank + 1])[0].sum().backward()
    if rank == 0:
        for total, parameter in zip(sums, parallel.parameters(), strict=True):
            total.copy_(2 * parameter.grad)
    torch.distributed.destroy_process_group()
    # Not through the interpreter's end, at which gloo's threads hang or abort now and then.
    os._exit(0)


@scenario("DistributedDataParallel with two gloo processes", "Module", LSTM, backends=("rnnfast",))
def _(make):
    net = make(3, 4, num_layers=2)
    x = random(5, 2, 3)
    sums = [torch.zeros_like(parameter).share_memory_() for parameter in net.parameters()]
    with tempfile.TemporaryDirectory() as folder:
        args = (rnnfast.get_backend(), folder, net, x, [total.detach() for total in sums])
        torch.multiprocessing.spawn(ddp_gradients, args, nprocs=2)
    alone = torch.autograd.grad(net(x)[0].sum(), list(net.parameters()))
    torch.testing.assert_close(sums, list(alone))
    return sums
