"""Several recurrences at once, with the CUDA kernels compiled for the CPU (on_host/)."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import rnnfast
from rnnfast import backend, concurrent

pytestmark = pytest.mark.slow

# Of each mode: gates, states, and the cell's own op with the options that make it this mode.
MODES = {
    "LSTM": (4, 2, "lstm", {}),
    "GRU": (3, 1, "gru", {}),
    "RNN_TANH": (1, 1, "rnn", {"nonlinearity": "tanh"}),
    "RNN_RELU": (1, 1, "rnn", {"nonlinearity": "relu"}),
}
ROWS, HIDDEN = 3, 7

every_mode = pytest.mark.parametrize("mode", MODES)

ours = torch.ops.rnnfast_on_host


@pytest.fixture(autouse=True)
def on_host(host_ops, monkeypatch):
    host_ops.set_device(16, 227 * 1024, 1, 1)
    monkeypatch.setattr(concurrent, "_ops", ours)
    return host_ops


def draw(seed: int, *shape: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def recurrence(
    mode: str, seed: int, steps: int, features: int, bias: bool = True, batch_first=False
):
    """Input, initial states, weights and biases."""
    gates, num_states, *_ = MODES[mode]
    shape = (ROWS, steps, features) if batch_first else (steps, ROWS, features)
    states = [draw(seed + 1 + i, ROWS, HIDDEN) for i in range(num_states)]
    weights = [draw(seed + 3, gates * HIDDEN, features), draw(seed + 4, gates * HIDDEN, HIDDEN) / 2]
    biases = [draw(seed + 5 + i, gates * HIDDEN) if bias else None for i in (0, 1)]
    return [draw(seed, *shape), *states, *weights, *biases]


def together(mode: str, given, reverse, batch_first=False, need_input=(True,) * 3):
    """What the three ops give for each, forward, inference and gradients."""
    num_states = MODES[mode][1]
    options = {"mode": mode, "batch_first": batch_first, "reverse": reverse}
    columns = concurrent._columns(mode, [tensor for one in given for tensor in one])
    count = len(given)

    def rows(results):
        return concurrent._rows(results, len(results) // count)

    forward = rows(ours.concurrent(*columns, **options))
    inference = rows(ours.concurrent_inference(*columns, **options))
    kinds = [list(kind) for kind in zip(*forward, strict=True)]
    grads = [[torch.sin(7 * x) for x in kind] for kind in kinds[: 1 + num_states]]
    kept = kinds[1 + num_states :]
    gradients = ours.concurrent_backward(
        *grads,
        *([] if num_states == 2 else [[]]),
        *columns[:5],
        kinds[0],
        kept[0] if num_states == 2 else [],
        kept[-1] if kept else [],
        **options,
        need_input=list(need_input),
    )
    return forward, inference, rows(gradients)


def alone(mode: str, one, reverse: bool, batch_first=False):
    """The same of one recurrence by the cell's own ops, without the gradient of weight_hr."""
    _, num_states, cell, form = MODES[mode]
    layout = {"batch_first": batch_first, "reverse": reverse, **form}
    *forward, _ = getattr(ours, cell)(*one, **layout)  # without the empty states
    inference = getattr(ours, f"{cell}_inference")(*one, **layout)
    grads = [torch.sin(7 * x) for x in forward[: 1 + num_states]]
    absent = [None] if cell == "lstm" else []
    kept = [forward[0], *forward[1 + num_states :]]
    gradients = getattr(ours, f"{cell}_backward")(
        *grads, *absent, *one[: 3 + num_states], *absent, *kept, **layout
    )
    return forward, inference, gradients[:-1] if cell == "lstm" else gradients


@every_mode
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_each_has_the_bits_of_a_call_of_its_own(on_host, mode, batch_first, bias):
    given = [
        recurrence(mode, 10 * i, steps, features, bias, batch_first)
        for i, (steps, features) in enumerate([(4, 5), (3, HIDDEN), (6, HIDDEN)])
    ]
    reverse = [False, True, False]
    before = on_host.cooperative_launches()
    found = together(mode, given, reverse, batch_first)
    assert on_host.cooperative_launches() == before + 3  # one grid for each of the ops
    for i, one in enumerate(given):
        expected = alone(mode, one, reverse[i], batch_first)
        for results, wanted in zip(found, expected, strict=True):
            assert len(results[i]) == len(wanted)
            assert all(map(torch.equal, results[i], wanted))


def test_gradients_of_inputs_that_are_not_needed_are_empty():
    given = [recurrence("GRU", 10 * i, 4, 5) for i in range(3)]
    _, _, gradients = together("GRU", given, [False] * 3, need_input=[True, False, True])
    assert [row[0].numel() for row in gradients] == [4 * ROWS * 5, 0, 4 * ROWS * 5]


@pytest.mark.parametrize("multiprocessors, at_once", [(16, 5), (2, 2), (1, 1)])
def test_how_many_at_once(on_host, multiprocessors, at_once):
    like = torch.empty(1)
    on_host.set_device(multiprocessors, 227 * 1024, 1, 1)
    for backward in (False, True):
        assert ours.concurrent_at_once(like, 5, ROWS, HIDDEN, "LSTM", "fp32", backward) == at_once
        assert ours.concurrent_at_once(like.double(), 5, ROWS, 7, "LSTM", "fp32", backward) == 1
    on_host.set_device(multiprocessors, 1024, 1, 1)  # step by step
    assert ours.concurrent_at_once(like, 5, ROWS, HIDDEN, "LSTM", "fp32", False) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": []}, "input must have at least one tensor, but is empty"),
        ({"h_0": 1}, "h_0 must have 2 elements, one for each of input, but has 1"),
        ({"c_0": 0}, "c_0 must have 2 elements"),
        ({"bias_hh": 1}, "bias_hh must have 2 elements"),
        ({"reverse": [True]}, "reverse must have 2 elements"),
        ({"mode": "LSTN"}, "mode must be 'LSTM', 'GRU', 'RNN_TANH' or 'RNN_RELU', but got 'LSTN'"),
        ({"mode": "RNN_TANH"}, "c_0 must be empty unless mode is 'LSTM', but has 2 elements"),
        ({"precision": "int8"}, "precision must be"),
        ({"rows": 4}, r"h_0 must have tensors of one shape .* but got \[3, 7\] and \[4, 7\]"),
        ({"dtype": torch.float64}, "input must have tensors of one dtype and device"),
    ],
    ids=str,
)
def test_what_is_refused(change, message):
    given = [recurrence("LSTM", 10 * i, 4, 5) for i in range(2)]
    if "rows" in change:
        given[1][:3] = draw(1, 4, 4, 5), draw(2, 4, HIDDEN), draw(3, 4, HIDDEN)
    if "dtype" in change:
        given[1] = [tensor.to(change["dtype"]) for tensor in given[1]]
    names = ["input", "h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    arguments = dict(zip(names, map(list, zip(*given, strict=True)), strict=True))
    arguments |= {"mode": "LSTM", "reverse": [False, True]}
    for name, value in change.items():
        if name in names and isinstance(value, int):
            arguments[name] = arguments[name][:value]
        elif name not in ("rows", "dtype"):
            arguments[name] = value
    with pytest.raises(RuntimeError, match=f"rnnfast::concurrent_inference: {message}"):
        ours.concurrent_inference(**arguments)


# ---- the walk through layers


LAYOUTS = [
    {"num_layers": 3},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bias": False},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


def module_of(mode: str, dtype=torch.float64, **options) -> rnnfast.LSTM:
    name, _, nonlinearity = mode.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity.lower()
    torch.manual_seed(0)
    return getattr(rnnfast, name)(5, HIDDEN, dtype=dtype, **options)


def run_layers(module, input, dropout=0.0):
    """What the module computes, by concurrent.run_layers: output, then the stacked final states."""
    weights = module._current_weights()
    states = [torch.zeros(ROWS, HIDDEN, dtype=input.dtype) for _ in module._state_names]
    output, final = concurrent.run_layers(
        module.mode,
        input,
        [states] * len(weights),
        weights,
        directions=2 if module.bidirectional else 1,
        dropout=dropout,
        batch_first=module.batch_first,
        precision="fp32",
    )
    return output, *(torch.stack(kind) for kind in zip(*final, strict=True))


def input_of(module, steps: int, dtype=torch.float64) -> torch.Tensor:
    shape = (ROWS, steps, 5) if module.batch_first else (steps, ROWS, 5)
    return draw(1, *shape, dtype=dtype).requires_grad_()


def with_gradients(module, input, results):
    loss = sum(torch.sin(3 * result).sum() for result in results)
    return [*results, *torch.autograd.grad(loss, [input, *module.parameters()])]


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        atol = tolerance * (1 + float(other.detach().abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@every_mode
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("steps", [1, 47])
def test_layers_are_the_modules(mode, options, steps):
    module = module_of(mode, **options)
    input = input_of(module, steps)
    output, states = module(input)
    expected = [output, *(states if mode == "LSTM" else [states])]
    found = with_gradients(module, input, run_layers(module, input))
    assert_close(found, with_gradients(module, input, expected), 1e-12)
    with torch.no_grad():
        assert_close(run_layers(module, input), expected, 1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_modules_masks(batch_first):
    module = module_of("GRU", num_layers=3, dropout=0.4, batch_first=batch_first)
    input = input_of(module, 47)
    torch.manual_seed(3)
    expected = module(input)
    torch.manual_seed(3)
    assert_close(run_layers(module, input, dropout=0.4), expected, 1e-12)


def test_layers_advance_together(on_host):
    """Of P parts, P + layers - 1 grids, where one layer after the other takes P each."""
    module = module_of("LSTM", torch.float32, num_layers=3)
    parts = concurrent._part_count(47, 3)
    assert parts == 3
    before = on_host.cooperative_launches()
    with torch.no_grad():
        run_layers(module, input_of(module, 47, torch.float32))
    assert on_host.cooperative_launches() == before + parts + 2


def test_number_of_parts():
    counts = [concurrent._part_count(*sizes) for sizes in [(1, 2), (35, 2), (1024, 2), (1024, 4)]]
    assert counts == [1, 2, 10, 18]


def test_derivatives_of_derivatives():
    module = module_of("LSTM", num_layers=2)
    input = draw(1, 16, ROWS, 5, dtype=torch.float64)[:, :, :].requires_grad_()
    with torch.no_grad():
        small = input[:16:8].clone()
    small.requires_grad_()

    def run(x, weight):
        return torch.func.functional_call(Walk(module), {"module.weight_hh_l1": weight}, (x,))

    weight = module.weight_hh_l1.detach().clone().requires_grad_()
    assert gradcheck(run, (small, weight))
    assert gradgradcheck(run, (small, weight))


class Walk(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return run_layers(self.module, x)


@pytest.mark.parametrize("options", LAYOUTS[:4], ids=str)
def test_modules_take_it_where_it_serves(on_host, monkeypatch, options):
    module = module_of("LSTM", torch.float32, **options)
    input = input_of(module, 47, torch.float32)
    output, states = module(input)
    expected = with_gradients(module, input, [output, *states])
    monkeypatch.setattr(backend, "may_be_eager", lambda: False)
    monkeypatch.setattr(concurrent, "serves", lambda *_, **__: True)
    before = on_host.cooperative_launches()
    output, states = module(input)
    assert on_host.cooperative_launches() > before
    assert_close(with_gradients(module, input, [output, *states]), expected, 1e-5)


def test_not_where_it_does_not_serve():
    def serves(module, input):
        weights = module._current_weights()
        return concurrent.serves(
            module._cell_name(), module.mode, weights, input, ROWS,
            directions=2 if module.bidirectional else 1, precision="fp32",
        )  # fmt: skip

    class OnDevice(torch.Tensor):
        is_cuda, is_cpu = True, False

    module = module_of("LSTM", torch.float32, num_layers=2)
    input = input_of(module, 5, torch.float32).detach()
    on_device = input.as_subclass(OnDevice)
    assert not serves(module, input)
    assert not serves(module, on_device)  # the kernels were not asked for by name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "has_kernels", lambda _: True)
        assert serves(module, on_device)
        for other in ({}, {"num_layers": 2, "proj_size": 3}):
            assert not serves(module_of("LSTM", torch.float32, **other), on_device)
        assert not serves(
            module_of("GRU", torch.float32, num_layers=2, reset_after=False), on_device
        )
        assert serves(module_of("GRU", torch.float32, bidirectional=True), on_device)
        assert not serves(module.double(), on_device.double())
