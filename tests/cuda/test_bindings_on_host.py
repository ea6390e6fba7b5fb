"""The CUDA ops, from arguments to gradients, with their kernels compiled for the CPU (on_host/).

The same calls go to the CPU's ops. This shows that shapes, strides, products and what is kept are
right; that the extension loads and runs on a GPU is for test_on_gpu.py.
"""

import pytest
import torch

import rnnfast  # noqa: F401 - which registers the operators

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("host_ops", "half_products")]

CELLS = {"lstm": (4, 2), "gru": (3, 1), "rnn": (1, 1)}
STEPS, ROWS, INPUT, HIDDEN = 5, 3, 6, 7

ours, cpu = torch.ops.rnnfast_on_host, torch.ops.rnnfast


def arguments(
    cell, dtype=torch.float64, batch_first=False, bias=(True, True), steps=STEPS, rows=ROWS
):
    generator = torch.Generator().manual_seed(0)
    gates, num_states = CELLS[cell]

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    # Strided, as a part of something larger is.
    shape = (rows, steps) if batch_first else (steps, rows)
    input = draw(*shape, 2 * INPUT)[..., :INPUT]
    states = [draw(rows, HIDDEN) for _ in range(num_states)]
    weights = [draw(gates * HIDDEN, INPUT) / 2, draw(gates * HIDDEN, HIDDEN) / 2]
    biases = [draw(gates * HIDDEN) if given else None for given in bias]
    return [input, *states, *weights, *biases]


def everything(ops, cell, inputs, **options):
    """What forward, inference and backward give, by name."""
    layout = {key: value for key, value in options.items() if not key.startswith("need")}
    num_states = CELLS[cell][1]
    results = getattr(ops, cell)(*inputs, **layout)
    found = {f"forward {i}": value for i, value in enumerate(results)}
    inferred = getattr(ops, f"{cell}_inference")(*inputs, **layout)
    found |= {f"inference {i}": value for i, value in enumerate(inferred)}
    generator = torch.Generator().manual_seed(1)
    grads = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        for value in results[: 1 + num_states]
    ]
    no_projection = [None] if cell == "lstm" else []
    kept = [results[0], *results[1 + num_states : -1]]
    no_cells = [None] if cell == "lstm" else []
    given = inputs[: 3 + num_states]
    gradients = getattr(ops, f"{cell}_backward")(
        *grads, *no_cells, *given, *no_projection, *kept, **options
    )
    return found | {f"gradient {i}": value for i, value in enumerate(gradients)}


def assert_same(cell, inputs, tolerance, **options):
    found, expected = (everything(ops, cell, inputs, **options) for ops in (ours, cpu))
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype and found[name].is_contiguous(), name
        error = (found[name] - value).abs()
        assert not error.numel() or error.max() <= tolerance * (1 + value.abs().max()), name


FORMS = [("lstm", {}), ("gru", {}), ("gru", {"reset_after": False})]
FORMS += [("rnn", {"nonlinearity": name}) for name in ("tanh", "relu")]
every_form = pytest.mark.parametrize("cell, form", FORMS, ids=str)
# Without ReLU, whose derivative jumps: there a rounding may change a gradient altogether.
every_smooth_form = pytest.mark.parametrize("cell, form", FORMS[:-1], ids=str)


@every_form
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_like_the_cpus(cell, form, batch_first, reverse):
    layout = {"batch_first": batch_first, "reverse": reverse, **form}
    assert_same(cell, arguments(cell, batch_first=batch_first), 1e-12, **layout)


@every_smooth_form
@pytest.mark.parametrize(
    "precision, tolerance", [("fp32", 1e-5), ("tf32", 0.004), ("bf16", 0.03), ("fp16", 0.004)]
)
def test_precisions(cell, form, precision, tolerance):
    """Of products alone: the CPU's op, in float32, is as near as operands are rounded."""
    inputs = arguments(cell, torch.float32)
    found = everything(ours, cell, inputs, precision=precision, **form)
    expected = everything(cpu, cell, inputs, **form)
    differs = False
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        error = (found[name] - value).abs()
        if error.numel():
            assert error.max() <= tolerance * (1 + value.abs().max()), name
            differs = differs or bool(error.max() > 1e-4)
    # Steps that are launched one by one round nothing to TF32.
    by_steps = not form.get("reset_after", True)
    assert differs == (precision in ("bf16", "fp16") or (precision == "tf32" and not by_steps))


@every_smooth_form
@pytest.mark.parametrize("bias", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_biases(cell, form, bias, precision):
    inputs = arguments(cell, torch.float32, bias=bias)
    found = everything(ours, cell, inputs, precision=precision, **form)
    expected = everything(cpu, cell, inputs, **form)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0,
            atol=0.05 * (1 + float(value.abs().max())) if value.numel() else 0,
        )
    assert_same(cell, arguments(cell, bias=bias), 1e-12, **form)


@every_form
@pytest.mark.parametrize("steps, rows", [(0, ROWS), (STEPS, 0), (1, 1), (3, 17)])
def test_sizes(cell, form, steps, rows):
    assert_same(cell, arguments(cell, steps=steps, rows=rows), 1e-12, **form)


@every_form
@pytest.mark.parametrize("needed", ["need_input", "need_weights", "need_bias"])
def test_only_what_is_needed(cell, form, needed):
    others = {name: name == needed for name in ("need_input", "need_weights", "need_bias")}
    assert_same(cell, arguments(cell), 1e-12, **form, **others)


def test_all_cells():
    inputs = arguments("lstm")
    for found, expected in zip(ours.lstm_cells(*inputs), cpu.lstm_cells(*inputs), strict=True):
        torch.testing.assert_close(found, expected)


def test_what_is_not_served_is_refused():
    inputs = arguments("lstm")
    with pytest.raises(RuntimeError, match="lstm: weight_hr must be None on CUDA"):
        weight_hh, weight_hr = inputs[4][:, :2].contiguous(), torch.randn(2, HIDDEN).double()
        ours.lstm(inputs[0], inputs[1][:, :2], *inputs[2:4], weight_hh, None, None, weight_hr)
    with pytest.raises(RuntimeError, match="gru: batch_sizes must be None on CUDA"):
        input, *others = arguments("gru")
        sizes = torch.tensor([ROWS] * STEPS)
        ours.gru(input.reshape(-1, INPUT), *others, batch_sizes=sizes)
    with pytest.raises(RuntimeError, match="lstm_backward: grad_cells must be None on CUDA"):
        output, _, _, cells, gates, _ = ours.lstm(*inputs)
        ours.lstm_backward(output, None, None, cells, *inputs[:5], None, output, cells, gates)
    with pytest.raises(
        RuntimeError, match="precision must be 'fp32', 'tf32', 'bf16' or 'fp16', but"
    ):
        ours.rnn(*arguments("rnn", torch.float32), precision="int8")
    with pytest.raises(RuntimeError, match="precision must be 'fp32' where input has dtype Double"):
        ours.rnn(*arguments("rnn"), precision="tf32")
    with pytest.raises(RuntimeError, match="nonlinearity must be 'tanh' or 'relu', but got 'gelu'"):
        ours.rnn(*arguments("rnn"), nonlinearity="gelu")
