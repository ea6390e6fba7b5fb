"""Results in each dtype and under autocast."""

import torch
from suite import (
    DEEP,
    LAYERS,
    LSTM,
    MODULES,
    deviations,
    example,
    packed,
    scenario,
    states,
    trained,
)
from torch.utils._pytree import tree_leaves, tree_map

for dtype in (torch.float64, torch.float32):

    @scenario(f"{dtype}", "dtypes", MODULES, dtype=dtype)
    def _(make):
        net = make(8, 16)
        x = example(net)
        return trained(net, x), trained(net, x, states(net, x))


for dtype in (torch.bfloat16, torch.float16):

    @scenario(f"{dtype}", "dtypes", MODULES, dtype=torch.float32)
    def _(make, dtype=dtype):
        net = make(8, 16).to(dtype)
        x = example(net).to(dtype)
        hx = tree_map(lambda state: state.to(dtype), states(net, x))
        return deviations(net, x), deviations(net, x, hx)

    # Whether torch has an LSTM under autocast to float16 depends on the processor.
    modules = MODULES if dtype == torch.bfloat16 else MODULES[1:]

    @scenario(f"autocast to {dtype}", "dtypes", modules, dtype=torch.float32)
    def _(make, dtype=dtype):
        net = make(8, 16)
        x = example(net)
        context = torch.autocast("cpu", dtype)
        inputs = (x,), (x, states(net, x))
        return [deviations(net, *given, context=context) for given in inputs]


for name, modules, arguments in (
    ("deep and bidirectional", LAYERS, DEEP),
    ("proj_size", LSTM, {"proj_size": 8}),
):

    @scenario(f"torch.bfloat16, {name}", "dtypes", modules, dtype=torch.float32)
    def _(make, arguments=arguments):
        net = make(8, 16, **arguments).bfloat16()
        return deviations(net, example(net).bfloat16())

    @scenario(f"autocast to torch.bfloat16, {name}", "dtypes", modules, dtype=torch.float32)
    def _(make, arguments=arguments):
        net = make(8, 16, **arguments)
        return deviations(net, example(net), context=torch.autocast("cpu", torch.bfloat16))


@scenario("torch.bfloat16, PackedSequence", "dtypes", dtype=torch.float32)
def _(make):
    return deviations(make(3, 4).bfloat16(), packed(False).to(torch.bfloat16))


@scenario("autocast to torch.bfloat16, PackedSequence", "dtypes", dtype=torch.float32)
def _(make):
    return deviations(make(3, 4), packed(False), context=torch.autocast("cpu", torch.bfloat16))


@scenario("autocast, float64 input", "dtypes", MODULES)
def _(make):
    net = make(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        return [tensor.dtype for tensor in tree_leaves(net(example(net)))]
