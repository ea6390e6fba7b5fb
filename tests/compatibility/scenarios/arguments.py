"""The constructor's arguments, and the forms of input."""

import warnings

import torch
from suite import (
    CELLS,
    DEEP,
    LAYERS,
    LSTM,
    MODULES,
    example,
    is_cell,
    packed,
    random,
    scenario,
    states,
    trained,
)
from torch.nn.utils.rnn import pack_padded_sequence

for name, modules, args, kwargs in (
    ("defaults", MODULES, (), {}),
    ("num_layers", LAYERS, (), {"num_layers": 3}),
    ("bias=False", MODULES, (), {"bias": False}),
    ("batch_first", LAYERS, (), {"batch_first": True}),
    ("bidirectional", LAYERS, (), {"bidirectional": True}),
    ("nonlinearity='relu'", ("RNN", "RNNCell"), (), {"nonlinearity": "relu"}),
    ("proj_size", LSTM, (), {"proj_size": 2}),
    ("proj_size, deep and bidirectional", LSTM, (2,), {"proj_size": 3, "bidirectional": True}),
    ("all by position", ("LSTM", "GRU"), (2, False, True, 0.0, True), {}),
    ("all by position, RNN", ("RNN",), (2, "relu", False, True, 0.0, True), {}),
    ("all by position, cells", CELLS, (False,), {}),
):

    @scenario(name, "Arguments", modules)
    def _(make, args=args, kwargs=kwargs):
        net = make(3, 4, *args, **kwargs)
        x = example(net)
        return repr(net), trained(net, x), trained(net, x, states(net, x))


@scenario("device and dtype", "Arguments", MODULES)
def _(make):
    net = make(3, 4, device=torch.device("cpu"), dtype=torch.float32)
    return trained(net, example(net).float())


@scenario("parameters drawn from the same seed", "Arguments", MODULES)
def _(make):
    net = make(3, 4)
    torch.manual_seed(7)
    net.reset_parameters()
    return dict(net.named_parameters())


@scenario("dropout between layers, the same mask from the same seed", "Arguments")
def _(make):
    results = []
    for batch_first in (False, True):
        net = make(3, 4, num_layers=3, dropout=0.5, batch_first=batch_first)
        torch.manual_seed(3)
        results.append((trained(net, example(net)), trained(net.eval(), example(net))))
    return results


@scenario("dropout with one layer warns", "Arguments")
def _(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(3, 4, dropout=0.5)
    return [(warning.category, str(warning.message)) for warning in caught]


@scenario("unbatched input", "Arguments", MODULES)
def _(make):
    net = make(3, 4)
    x = random(3) if is_cell(net) else random(5, 3)
    return trained(net, x), trained(net, x, states(net, x))


@scenario("unbatched input, deep, bidirectional, batch_first", "Arguments")
def _(make):
    net = make(3, 4, **DEEP, batch_first=True)
    x = random(5, 3)
    return trained(net, x), trained(net, x, states(net, x))


@scenario("one step", "Arguments")
def _(make):
    return trained(make(3, 4), random(1, 2, 3))


@scenario("no row", "Arguments", MODULES)
def _(make):
    net = make(3, 4)
    return net(example(net)[..., :0, :])


@scenario("input and hx in any strides", "Arguments", MODULES)
def _(make):
    net = make(3, 4)
    x = example(net)
    strided = x.mT.contiguous().mT
    hx = states(net, x)
    expanded = [s[..., :1, :].expand_as(s) for s in (hx if isinstance(hx, tuple) else [hx])]
    return net(strided, tuple(expanded) if isinstance(hx, tuple) else expanded[0])


@scenario("input and hx by keyword", "Arguments", MODULES)
def _(make):
    net = make(3, 4)
    x = example(net)
    return net(hx=states(net, x), input=x)


@scenario("hx as a list", "Arguments", ("LSTM", "LSTMCell"))
def _(make):
    net = make(3, 4)
    x = example(net)
    return net(x, list(states(net, x)))


@scenario("a sequence in pieces, states carried over", "Arguments")
def _(make):
    net = make(3, 4, num_layers=2)
    x = random(6, 2, 3)
    whole = net(x)
    first, hx = net(x[:2])
    second, last = net(x[2:], hx)
    torch.testing.assert_close((torch.cat([first, second]), last), whole)
    return whole


for name, enforce_sorted, modules, kwargs in (
    ("PackedSequence", True, LAYERS, {}),
    ("PackedSequence, enforce_sorted=False: h_0 and h_n permuted", False, LAYERS, {}),
    ("PackedSequence, deep and bidirectional", False, LAYERS, DEEP),
    ("PackedSequence, proj_size", False, LSTM, {"proj_size": 2, "bidirectional": True}),
    ("PackedSequence, bias=False", False, LAYERS, {"bias": False}),
    ("PackedSequence, batch_first", False, LAYERS, {"batch_first": True}),
    ("PackedSequence, dropout", False, LAYERS, {"num_layers": 3, "dropout": 0.5}),
):

    @scenario(name, "Arguments", modules)
    def _(make, enforce_sorted=enforce_sorted, kwargs=kwargs):
        net = make(3, 4, **kwargs)
        sequence = packed(enforce_sorted)
        return trained(net, sequence), trained(net, sequence, states(net, sequence))


@scenario("PackedSequence from pack_padded_sequence, all of one length", "Arguments")
def _(make):
    sequence = pack_padded_sequence(random(2, 4, 3), [4, 4], batch_first=True)
    return trained(make(3, 4, batch_first=True), sequence)
