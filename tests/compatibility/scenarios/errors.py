"""Misuse: the exception is of the type that torch raises."""

import torch
from suite import (
    AUTO,
    CELLS,
    LAYERS,
    LSTM,
    MODULES,
    example,
    loss,
    packed,
    random,
    scenario,
    weight_name,
)
from torch import nn


def given(input, hx=None, c_0=None, *, to=None, hx_to=None, **arguments):
    """A call with an input and states of these shapes (c_0: like h_0), moved `to` something."""

    def call(make):
        net = make(3, 4, **arguments)
        args = [random(*input).to(to)]
        if hx is not None:
            h, c = (torch.zeros(shape).to(hx_to) for shape in (hx, c_0 or hx))
            args.append((h, c) if "LSTM" in type(net).__name__ else h)
        return net(*args)

    return call


def passing(*args):
    return lambda make: make(3, 4)(*args)


def with_arguments(*args, **kwargs):
    return lambda make: make(*args, **kwargs)


RNNS = ("GRU", "RNN")
x = torch.zeros(5, 2, 3, dtype=torch.float64)
state = torch.zeros(1, 2, 4, dtype=torch.float64)

for name, modules, raises, call in (
    ("hidden_size=0", LAYERS, ValueError, with_arguments(3, 0)),
    ("hidden_size=-1", LAYERS, ValueError, with_arguments(3, -1)),
    ("hidden_size=-1, cells", CELLS, RuntimeError, with_arguments(3, -1)),
    ("hidden_size=4.0", LAYERS, TypeError, with_arguments(3, 4.0)),
    ("no hidden_size", MODULES, TypeError, with_arguments(3)),
    ("input_size=0", LAYERS, ValueError, with_arguments(0, 4)),
    ("input_size=-1, cells", CELLS, RuntimeError, with_arguments(-1, 4)),
    ("num_layers=0", LAYERS, ValueError, with_arguments(3, 4, 0)),
    ("dropout=1.5", LAYERS, ValueError, with_arguments(3, 4, dropout=1.5)),
    ("dropout=True", LAYERS, ValueError, with_arguments(3, 4, dropout=True)),
    ("dropout='0.5'", LAYERS, ValueError, with_arguments(3, 4, dropout="0.5")),
    ("bias=1", LAYERS, TypeError, with_arguments(3, 4, bias=1)),
    ("batch_first=1", LAYERS, TypeError, with_arguments(3, 4, batch_first=1)),
    ("proj_size=-1", LSTM, ValueError, with_arguments(3, 4, proj_size=-1)),
    ("proj_size=hidden_size", LSTM, ValueError, with_arguments(3, 4, proj_size=4)),
    ("proj_size of a GRU or RNN", RNNS, ValueError, with_arguments(3, 4, proj_size=2)),
    ("nonlinearity='sin'", ("RNN",), ValueError, with_arguments(3, 4, nonlinearity="sin")),
    ("an argument that is not there", MODULES, TypeError, with_arguments(3, 4, layers=2)),
    ("a device that is not there", MODULES, RuntimeError, with_arguments(3, 4, device="tpu9")),
    ("dtype=torch.int64", MODULES, RuntimeError, with_arguments(3, 4, dtype=torch.int64)),
    ("nonlinearity='sin', cell", ("RNNCell",), RuntimeError, given((2, 3), nonlinearity="sin")),
    ("input: size", LAYERS, RuntimeError, given((5, 2, 7))),
    ("input: size, unbatched", LAYERS, RuntimeError, given((5, 7))),
    ("input: size, cells", CELLS, RuntimeError, given((2, 7))),
    ("input: 0-D", MODULES, ValueError, given(())),
    ("input: 1-D", LAYERS, ValueError, given((3,))),
    ("input: 4-D", LAYERS, ValueError, given((1, 5, 2, 3))),
    ("input: 3-D, cells", CELLS, ValueError, given((5, 2, 3))),
    ("input: no step", LAYERS, RuntimeError, given((0, 2, 3))),
    ("input: no step, batch_first", LAYERS, RuntimeError, given((2, 0, 3), batch_first=True)),
    ("input: no step, unbatched", LAYERS, RuntimeError, given((0, 3))),
    ("input: float32 to float64", LAYERS, ValueError, given((5, 2, 3), to=torch.float32)),
    ("input: float32 to float64, cells", CELLS, RuntimeError, given((2, 3), to=torch.float32)),
    ("input: half to float64", LAYERS, ValueError, given((5, 2, 3), to=torch.half)),
    ("input: half to float64, cells", CELLS, RuntimeError, given((2, 3), to=torch.half)),
    ("input: integers", LAYERS, ValueError, given((5, 2, 3), to=torch.int64)),
    ("input: integers, cells", CELLS, RuntimeError, given((2, 3), to=torch.int64)),
    ("input: complex", LAYERS, ValueError, given((5, 2, 3), to=torch.cfloat)),
    ("input: another device", LAYERS, RuntimeError, given((5, 2, 3), to="meta")),
    ("weights: another device", LAYERS, RuntimeError, given((5, 2, 3), device="meta")),
    ("input: none", MODULES, TypeError, passing()),
    ("input: None", MODULES, AttributeError, passing(None)),
    ("input: a list", MODULES, AttributeError, passing([[0.0, 0.0, 0.0]])),
    ("hx: number of layers", LAYERS, RuntimeError, given((5, 2, 3), (2, 2, 4))),
    ("hx: batch", LAYERS, RuntimeError, given((5, 2, 3), (1, 3, 4))),
    ("hx: batch, cells", CELLS, RuntimeError, given((2, 3), (3, 4))),
    ("hx: size", LAYERS, RuntimeError, given((5, 2, 3), (1, 2, 5))),
    ("hx: size, cells", CELLS, RuntimeError, given((2, 3), (2, 5))),
    ("hx: size of c_0", LSTM, RuntimeError, given((5, 2, 3), (1, 2, 4), (1, 2, 5))),
    ("hx: h_0 not projected", LSTM, RuntimeError, given((5, 2, 3), (1, 2, 4), proj_size=2)),
    ("hx: 2-D to batched input", LAYERS, RuntimeError, given((5, 2, 3), (1, 4))),
    ("hx: 3-D to unbatched input", LAYERS, RuntimeError, given((5, 3), (1, 1, 4))),
    ("hx: 4-D, cells", CELLS, ValueError, given((2, 3), (2, 1, 1, 4))),
    ("hx: float32", LAYERS, RuntimeError, given((5, 2, 3), (1, 2, 4), hx_to=torch.float32)),
    ("hx: float32, cells", CELLS, RuntimeError, given((2, 3), (2, 4), hx_to=torch.float32)),
    ("hx: another device", LAYERS, RuntimeError, given((5, 2, 3), (1, 2, 4), hx_to="meta")),
    ("hx: one tensor for a pair", LSTM, IndexError, passing(x, state)),
    ("hx: one tensor for a pair, cell", ("LSTMCell",), TypeError, passing(x[0], state[0])),
    ("hx: three tensors", LSTM, RuntimeError, passing(x, (state, state, state))),
    ("hx: (None, None)", LSTM, AttributeError, passing(x, (None, None))),
    ("hx: a pair for one tensor", RNNS, AttributeError, passing(x, (state, state))),
    ("hx: a number", RNNS, AttributeError, passing(x, 0.0)),
):
    scenario(name, "Errors", modules, raises=raises, backends=AUTO)(call)


def given_packed(input_size=3, hx=None, *, to=None):
    """A call with a PackedSequence of four rows, and a state of this shape."""

    def call(make):
        net = make(input_size, 4)
        args = [packed(enforce_sorted=True).to(to)]
        if hx is not None:
            h = torch.zeros(hx)
            args.append((h, h) if "LSTM" in type(net).__name__ else h)
        return net(*args)

    return call


for name, modules, raises, call in (
    ("PackedSequence: size", LAYERS, RuntimeError, given_packed(7)),
    ("PackedSequence: dtype, LSTM", LSTM, RuntimeError, given_packed(to=torch.float32)),
    ("PackedSequence: dtype, GRU and RNN", RNNS, ValueError, given_packed(to=torch.float32)),
    ("PackedSequence: batch of hx", LAYERS, RuntimeError, given_packed(hx=(1, 3, 4))),
    ("PackedSequence: size of hx", LAYERS, RuntimeError, given_packed(hx=(1, 4, 5))),
):
    scenario(name, "Errors", modules, raises=raises, backends=AUTO)(call)


@scenario("PackedSequence to a cell", "Errors", CELLS, raises=AttributeError, backends=AUTO)
def _(make):
    make(3, 4)(packed(True))


@scenario("weights: wrong shape", "Errors", MODULES, raises=RuntimeError, backends=AUTO)
def _(make):
    net = make(3, 4)
    setattr(net, weight_name(net), nn.Parameter(torch.zeros(5, 5)))
    net(example(net))


@scenario("weights: of two dtypes", "Errors", MODULES, raises=RuntimeError, backends=AUTO)
def _(make):
    net = make(3, 4)
    weight = getattr(net, weight_name(net))
    weight.data = weight.data.float()
    net(example(net))


@scenario("load_state_dict: unknown key", "Errors", MODULES, raises=RuntimeError, backends=AUTO)
def _(make):
    make(3, 4).load_state_dict({"weight": torch.zeros(1)})


@scenario("backward a second time", "Errors", MODULES, raises=RuntimeError)
def _(make):
    net = make(3, 4)
    total = loss(net(example(net)))
    total.backward()
    total.backward()


@scenario("input changed in place before backward", "Errors", MODULES, raises=RuntimeError)
def _(make):
    net = make(3, 4)
    x = example(net)
    total = loss(net(x))
    x.mul_(2)
    total.backward()


@scenario("weight changed in place before backward", "Errors", MODULES, raises=RuntimeError)
def _(make):
    net = make(3, 4)
    total = loss(net(example(net).requires_grad_()))
    with torch.no_grad():
        net.get_parameter(weight_name(net).replace("hh", "ih")).mul_(2)
    total.backward()
