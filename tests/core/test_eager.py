"""The short way from modules to kernels gives the bits of the long one, and knows its limits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rnnfast
from rnnfast import backend
from rnnfast._extension import eager

if eager is None:
    pytest.skip("rnnfast._eager was built for another torch, or is off", allow_module_level=True)

BATCH, SEQ_LEN, INPUT, HIDDEN = 3, 5, 4, 6

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: rnnfast.LSTM(INPUT, HIDDEN),
    "LSTM_without_bias": lambda: rnnfast.LSTM(INPUT, HIDDEN, bias=False),
    "LSTM_deep": lambda: rnnfast.LSTM(INPUT, HIDDEN, 3, batch_first=True, bidirectional=True),
    "LSTM_double": lambda: rnnfast.LSTM(INPUT, HIDDEN, dtype=torch.float64),
    "GRU": lambda: rnnfast.GRU(INPUT, HIDDEN, 2),
    "GRU_reset_before": lambda: rnnfast.GRU(INPUT, HIDDEN, reset_after=False),
    "RNN": lambda: rnnfast.RNN(INPUT, HIDDEN, bidirectional=True),
    "RNN_relu": lambda: rnnfast.RNN(INPUT, HIDDEN, nonlinearity="relu", batch_first=True),
}
CELLS: dict[str, Callable[[], nn.Module]] = {
    "LSTMCell": lambda: rnnfast.LSTMCell(INPUT, HIDDEN),
    "GRUCell": lambda: rnnfast.GRUCell(INPUT, HIDDEN, bias=False),
    "GRUCell_reset_before": lambda: rnnfast.GRUCell(INPUT, HIDDEN, reset_after=False),
    "RNNCell": lambda: rnnfast.RNNCell(INPUT, HIDDEN),
    "RNNCell_relu": lambda: rnnfast.RNNCell(INPUT, HIDDEN, nonlinearity="relu"),
}
EVERY = {**LAYERS, **CELLS}
every_module = pytest.mark.parametrize("name", EVERY)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return EVERY[name]()


def example(module: nn.Module) -> Tensor:
    dtype = module.weight_ih_l0.dtype if isinstance(module, nn.RNNBase) else torch.float32
    if not isinstance(module, nn.RNNBase):
        return torch.randn(BATCH, INPUT, dtype=dtype)
    shape = (BATCH, SEQ_LEN) if module.batch_first else (SEQ_LEN, BATCH)
    return torch.randn(*shape, INPUT, dtype=dtype)


def states_for(module: nn.Module, given: bool) -> tuple[Tensor, ...] | Tensor | None:
    if not given:
        return None
    layers = isinstance(module, nn.RNNBase)
    dtype = module.weight_ih_l0.dtype if layers else torch.float32
    shape = (BATCH, HIDDEN)
    if layers:
        shape = (module.num_layers * (2 if module.bidirectional else 1), *shape)
    count = 2 if type(module).__name__.startswith("LSTM") else 1
    states = tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(count))
    return states if count == 2 else states[0]


def short_way(module: nn.Module, input: object, hx: object = None) -> object:
    """What the short way returns; None where it leaves the call to the long one."""
    states = hx if hx is None or isinstance(hx, tuple) else (hx,)
    if isinstance(module, nn.RNNBase):
        return eager.layers(module, input, states, False)
    return eager.step(module, module._kind, input, states)


@pytest.mark.parametrize("given", [False, True])
@every_module
def test_the_same_bits_as_the_long_way(name, given, monkeypatch):
    module = build(name)
    x = example(module).requires_grad_()
    hx = states_for(module, given)
    inputs = [x, *tree_leaves(hx), *module.parameters()]
    inputs = [tensor for tensor in inputs if tensor is not None]

    def run() -> list[Tensor]:
        with torch.inference_mode():
            inferred = tree_leaves(module(x, hx))
        results = tree_leaves(module(x, hx))
        weighted = sum((i + 1) * result.sin().sum() for i, result in enumerate(results))
        return [*inferred, *results, *torch.autograd.grad(weighted, inputs)]

    assert short_way(module, x, hx) is not None
    short = run()
    monkeypatch.setattr(backend, "may_be_eager", lambda: False)
    long = run()
    assert len(short) == len(long)
    for a, b in zip(short, long, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        assert torch.equal(a, b)


@every_module
def test_nothing_is_recorded_where_nothing_needs_a_gradient(name):
    module = build(name).requires_grad_(False)
    assert not any(result.requires_grad for result in tree_leaves(module(example(module))))


class _Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "context",
    [_Function, _Dispatch, lambda: torch.autocast("cpu"), torch.autograd.forward_ad.dual_level],
    ids=["function mode", "dispatch mode", "autocast", "forward mode"],
)
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_whatever_watches_operators_sees_them(name, context):
    module = build(name)
    x = example(module)
    assert short_way(module, x) is not None
    with context():
        assert short_way(module, x) is None


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_transforms_take_the_long_way(name):
    module = build(name)
    ways = []

    def function(x: Tensor) -> Tensor:
        ways.append(short_way(module, x))
        return x.sum()

    torch.func.grad(function)(example(module))
    torch.func.vmap(function)(example(module).unsqueeze(0))
    assert ways == [None, None]


class _Tensor(Tensor):
    pass


@pytest.mark.parametrize("name", ["LSTM", "RNN", "LSTMCell", "RNNCell"])
def test_other_kinds_of_input_take_the_long_way(name):
    module = build(name)
    x = example(module)
    hx = states_for(module, True)
    assert short_way(module, x, hx) is not None
    states = hx if isinstance(hx, tuple) else (hx,)
    for other in (
        None,
        [x],
        x.bfloat16(),
        x.double(),
        x.to("meta"),
        x.as_subclass(_Tensor),
        x[0],
        x[:0],
        x[..., :2],
        torch.stack((x, x), -1)[..., 0],  # strided features
        x.to_sparse(),
        torch._neg_view(x),
    ):
        assert short_way(module, other) is None
    for other in (
        states[:-1],
        (*states, states[0]),
        list(states),
        tuple(state.double() for state in states),
        tuple(state[..., :-1] for state in states),
        tuple(torch.stack((state, state), -1)[..., 0] for state in states),
        (None,) * len(states),
        tuple(torch._neg_view(state.detach()) for state in states),
    ):
        if isinstance(module, nn.RNNBase):
            assert eager.layers(module, x, other, False) is None
        else:
            assert eager.step(module, module._kind, x, other) is None


@pytest.mark.parametrize(
    "options",
    [
        {"memory": "recompute"},
        {"return_states": True},
        {"learn_initial_state": True},
        {"proj_size": 2},
        {"dtype": torch.bfloat16},
        {"num_layers": 2, "dropout": 0.5},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_options_take_the_long_way(options):
    module = rnnfast.LSTM(INPUT, HIDDEN, **options)
    x = torch.randn(SEQ_LEN, BATCH, INPUT)
    assert short_way(module, x) is None
    if "dropout" in options:
        assert short_way(module.eval(), x) is not None


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_weights_that_are_not_plain_parameters_take_the_long_way(name):
    module = build(name)
    x = example(module)
    weight = "weight_hh_l0" if isinstance(module, nn.RNNBase) else "weight_hh"
    expected = tree_leaves(module(x))
    torch.nn.utils.parametrizations.weight_norm(module, weight)
    assert short_way(module, x) is None
    for result, value in zip(tree_leaves(module(x)), expected, strict=True):
        torch.testing.assert_close(result, value)


def test_the_profiler_sees_it():
    module, x = build("LSTM"), torch.randn(SEQ_LEN, BATCH, INPUT)
    with torch.no_grad(), torch.profiler.profile() as profile:
        module(x)
    assert "rnnfast::layers" in {event.key for event in profile.key_averages()}


_FALLBACK = """
import torch, rnnfast
from rnnfast import _extension
assert (_extension.eager is None) == {off}
torch.manual_seed(0)
for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"):
    module = getattr(rnnfast, name)(4, 6)
    x = torch.randn(5, 3, 4, requires_grad=True) if "Cell" not in name else torch.randn(3, 4, requires_grad=True)
    results = torch.utils._pytree.tree_leaves(module(x))
    first = torch.autograd.grad(sum(r.sin().sum() for r in results), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sin().sum(), [x, *module.parameters()])
    print(name, [[v.hex() for v in t.flatten().tolist()] for t in (*results, first, *second)])
"""  # noqa: E501


def test_without_it_results_are_the_same(run_python):
    """As in a torch that it was not built with: modules take the long way, autograd's function is
    the one in Python."""
    outputs = [
        run_python(_FALLBACK.format(off=value == "0"), RNNFAST_EAGER=value) for value in ("0", "1")
    ]
    assert outputs[0] and outputs[0] == outputs[1]
