"""The CUDA step kernels and their launchers, compiled for the CPU (on_host/cuda_runtime.h).

This shows that indices, tails, strides, barriers, aliasing and maths are right; it is no run on a
GPU and says nothing of one.
"""

import ctypes

import pytest
import torch
from on_host_checks import assert_like_torch, random, read_struct
from torch.autograd import grad

pytestmark = pytest.mark.slow

# Around the tiles: 32 rows, 8 units, 32 of k.
SIZES = [(1, 1), (2, 7), (3, 8), (31, 9), (32, 32), (5, 31), (2, 100), (65, 17), (33, 33)]
CASES = [(torch.float32, *size) for size in SIZES] + [(torch.float64, *size) for size in SIZES[-3:]]
SUCCESS, INVALID_VALUE, INVALID_CONFIGURATION = 0, 1, 9


STRUCTS = {
    "lstm_step": read_struct("lstm_step_cuda.h", "LstmStepCuda"),
    "lstm_step_backward": read_struct("lstm_step_cuda.h", "LstmStepBackwardCuda"),
    "gru_step": read_struct("gru_step_cuda.h", "GruStepCuda"),
    "gru_step_backward": read_struct("gru_step_cuda.h", "GruStepBackwardCuda"),
    "gru_reset_backward": read_struct("gru_step_cuda.h", "GruStepBackwardCuda"),
    "rnn_step": read_struct("rnn_step_cuda.h", "RnnStepCuda"),
    "rnn_step_backward": read_struct("rnn_step_cuda.h", "RnnStepBackwardCuda"),
}


@pytest.fixture(scope="module")
def launch(host_library):
    library = host_library("steps")

    def launch(launcher: str, dtype: torch.dtype, **values) -> int:
        args = STRUCTS[launcher]()
        fields = {name for name, _ in args._fields_}
        for name, value in values.items():
            assert name in fields, name
            if isinstance(value, torch.Tensor):
                assert value.dtype == dtype and value.stride(-1) == 1
                setattr(args, name, value.data_ptr())
                if f"{name}_row" in fields:
                    setattr(args, f"{name}_row", value.stride(0))
                else:
                    assert value.is_contiguous(), name
            else:
                setattr(args, name, value)
        name = f"{launcher}_{'float' if dtype == torch.float32 else 'double'}"
        return getattr(library, name)(ctypes.byref(args))

    return launch


def strided(x: torch.Tensor) -> torch.Tensor:
    """A copy whose rows lie apart, with NaN between and behind them."""
    room = torch.full((x.shape[0] + 1, x.shape[1] + 3), torch.nan, dtype=x.dtype)
    room[:-1, :-3] = x
    return room[:-1, :-3]


def output(batch: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return strided(torch.full((batch, width), torch.nan, dtype=dtype))


def assert_margin_untouched(*views: torch.Tensor) -> None:
    for view in views:
        room = view._base
        assert room[-1].isnan().all() and room[:, -3:].isnan().all()


# ---- plain torch: one step, and the gradients that the backward launchers and their caller give


def lstm_forward(gates_x, h_prev, c_prev, weight_hh):
    i, f, g, o = (gates_x + h_prev @ weight_hh.T).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c_prev + i * g
    return {"h": o * c.tanh(), "c": c, "gates": torch.cat([i, f, g, o], 1)}


def gru_forward(gates_x, gates_h_bias, h_prev, weight_hh, reset_after):
    """gates_h_bias is bias_hh by row, so that its gradient is that of the hidden half."""
    weights, biases = weight_hh.chunk(3), gates_h_bias.chunk(3, 1)
    x_r, x_z, x_n = gates_x.chunk(3, 1)
    r = (x_r + h_prev @ weights[0].T + biases[0]).sigmoid()
    z = (x_z + h_prev @ weights[1].T + biases[1]).sigmoid()
    if reset_after:
        fourth = h_prev @ weights[2].T + biases[2]
        n = (x_n + r * fourth).tanh()
    else:
        fourth = r * h_prev
        n = (x_n + fourth @ weights[2].T + biases[2]).tanh()
    return {"h": (1 - z) * n + z * h_prev, "gates": torch.cat([r, z, n, fourth], 1)}


def rnn_forward(gates_x, h_prev, weight_hh, relu):
    pre = gates_x + h_prev @ weight_hh.T
    return {"h": pre.relu() if relu else pre.tanh()}


def lstm_reference(grad_output, grad_h, grad_c, **inputs):
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    out = lstm_forward(**leaves)
    wanted = [leaves[name] for name in ("gates_x", "c_prev", "h_prev")]
    grads = grad([out["h"], out["c"]], wanted, [grad_output + grad_h, grad_c])
    return out | dict(zip(["grad_gates", "grad_c", "grad_h_prev"], grads, strict=True))


def gru_reference(grad_output, grad_h, bias_hh, reset_after, **inputs):
    inputs["gates_h_bias"] = bias_hh.expand(grad_h.shape[0], -1)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    out = gru_forward(**leaves, reset_after=reset_after)
    wanted = [leaves[name] for name in ("gates_x", "gates_h_bias", "h_prev")]
    grads = grad(out["h"], wanted, grad_output + grad_h)
    return out | dict(zip(["grad_gates_x", "grad_gates_h", "grad_h_prev"], grads, strict=True))


def rnn_reference(grad_output, grad_h, relu, **inputs):
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    out = rnn_forward(**leaves, relu=relu)
    grads = grad(out["h"], [leaves["gates_x"], leaves["h_prev"]], grad_output + grad_h)
    return out | dict(zip(["grad_gates", "grad_h_prev"], grads, strict=True))


def test_the_plain_torch_steps_are_those_of_torch_nn():
    x, h, c = (torch.randn(5, 6, dtype=torch.float64) for _ in range(3))
    lstm, gru = torch.nn.LSTMCell(6, 6).double(), torch.nn.GRUCell(6, 6).double()
    gates_x = x @ lstm.weight_ih.T + lstm.bias_ih + lstm.bias_hh
    ours = lstm_forward(gates_x, h, c, lstm.weight_hh)
    torch.testing.assert_close((ours["h"], ours["c"]), lstm(x, (h, c)))
    gates_x = x @ gru.weight_ih.T + gru.bias_ih
    ours = gru_forward(gates_x, gru.bias_hh.expand(5, -1), h, gru.weight_hh, reset_after=True)
    torch.testing.assert_close(ours["h"], gru(x, h))
    for relu in (False, True):
        rnn = torch.nn.RNNCell(6, 6, nonlinearity="relu" if relu else "tanh").double()
        gates_x = x @ rnn.weight_ih.T + rnn.bias_ih + rnn.bias_hh
        torch.testing.assert_close(rnn_forward(gates_x, h, rnn.weight_hh, relu)["h"], rnn(x, h))


# ---- parity


@pytest.mark.parametrize("dtype, batch, hidden", CASES)
def test_lstm(launch, dtype, batch, hidden):
    n_h, n_4h = (batch, hidden), (batch, 4 * hidden)
    inputs = random(
        dtype, gates_x=n_4h, h_prev=n_h, c_prev=n_h, weight_hh=(4 * hidden, hidden),
        grad_output=n_h, grad_h=n_h, grad_c=n_h,
    )  # fmt: skip
    sizes = {"batch": batch, "hidden_size": hidden}
    names = ("gates_x", "h_prev", "c_prev")
    rows = {name: strided(inputs[name]) for name in names}
    h, c, gates = (output(batch, width, dtype) for width in (hidden, hidden, 4 * hidden))
    weight_hh = inputs["weight_hh"]
    assert not launch(
        "lstm_step", dtype, **sizes, **rows, weight_hh=weight_hh, h=h, c=c, gates=gates
    )
    assert_margin_untouched(h, c, gates)

    grad_c, grad_gates = inputs["grad_c"].clone(), output(batch, 4 * hidden, dtype)
    assert not launch(
        "lstm_step_backward", dtype, **sizes, gates=gates, c=c, c_prev=rows["c_prev"],
        grad_output=strided(inputs["grad_output"]), grad_h=inputs["grad_h"],
        grad_c=grad_c, grad_gates=grad_gates,
    )  # fmt: skip
    assert_margin_untouched(grad_gates)
    ours = {"h": h, "c": c, "gates": gates, "grad_gates": grad_gates, "grad_c": grad_c}
    ours["grad_h_prev"] = grad_gates @ weight_hh
    assert_like_torch(ours, lstm_reference, inputs)


@pytest.mark.parametrize("reset_after", [True, False], ids=["reset_after", "reset_before"])
@pytest.mark.parametrize("dtype, batch, hidden", CASES)
def test_gru(launch, dtype, reset_after, batch, hidden):
    n_h, n_3h = (batch, hidden), (batch, 3 * hidden)
    inputs = random(
        dtype, gates_x=n_3h, h_prev=n_h, weight_hh=(3 * hidden, hidden), bias_hh=(3 * hidden,),
        grad_output=n_h, grad_h=n_h,
    )  # fmt: skip
    sizes = {"batch": batch, "hidden_size": hidden, "reset_after": int(reset_after)}
    h_prev, weight_hh = strided(inputs["h_prev"]), inputs["weight_hh"]
    h, gates = output(batch, hidden, dtype), output(batch, 4 * hidden, dtype)
    assert not launch(
        "gru_step", dtype, **sizes, gates_x=strided(inputs["gates_x"]), h_prev=h_prev,
        weight_hh=weight_hh, bias_hh=inputs["bias_hh"], h=h, gates=gates,
    )  # fmt: skip
    assert_margin_untouched(h, gates)

    grad_x, grad_hidden = output(batch, 3 * hidden, dtype), output(batch, 3 * hidden, dtype)
    grad_h_prev = inputs["grad_h"].clone()  # in place of grad_h, as the contract allows
    backward = {
        **sizes, "gates": gates, "h_prev": h_prev, "grad_output": strided(inputs["grad_output"]),
        "grad_h": grad_h_prev, "grad_gates_x": grad_x, "grad_h_prev": grad_h_prev,
    }  # fmt: skip
    if reset_after:
        assert not launch("gru_step_backward", dtype, **backward, grad_gates_h=grad_hidden)
        assert_margin_untouched(grad_hidden)
        grad_h_prev = grad_h_prev + grad_hidden @ weight_hh
    else:
        assert not launch("gru_step_backward", dtype, **backward)
        backward["grad_reset_h"] = grad_x[:, 2 * hidden :] @ weight_hh[2 * hidden :]
        assert not launch("gru_reset_backward", dtype, **backward)
        grad_h_prev = grad_h_prev + grad_x[:, : 2 * hidden] @ weight_hh[: 2 * hidden]
        grad_hidden = grad_x
    assert_margin_untouched(grad_x)
    ours = {"h": h, "gates": gates, "grad_gates_x": grad_x, "grad_gates_h": grad_hidden}
    ours["grad_h_prev"] = grad_h_prev
    assert_like_torch(ours, lambda **x: gru_reference(**x, reset_after=reset_after), inputs)


@pytest.mark.parametrize("relu", [False, True], ids=["tanh", "relu"])
@pytest.mark.parametrize("dtype, batch, hidden", CASES)
def test_rnn(launch, dtype, relu, batch, hidden):
    n_h = (batch, hidden)
    inputs = random(
        dtype, gates_x=n_h, h_prev=n_h, weight_hh=(hidden, hidden), grad_output=n_h, grad_h=n_h
    )
    sizes = {"batch": batch, "hidden_size": hidden, "relu": int(relu)}
    weight_hh, h, grad_gates = inputs["weight_hh"], *(output(*n_h, dtype) for _ in range(2))
    rows = {name: strided(inputs[name]) for name in ("gates_x", "h_prev")}
    assert not launch("rnn_step", dtype, **sizes, **rows, weight_hh=weight_hh, h=h)
    assert not launch(
        "rnn_step_backward", dtype, **sizes, h=h, grad_output=strided(inputs["grad_output"]),
        grad_h=inputs["grad_h"], grad_gates=grad_gates,
    )  # fmt: skip
    assert_margin_untouched(h, grad_gates)
    ours = {"h": h, "grad_gates": grad_gates, "grad_h_prev": grad_gates @ weight_hh}
    assert_like_torch(ours, lambda **x: rnn_reference(**x, relu=relu), inputs)


# ---- what the contract promises besides


@pytest.fixture
def lstm_inputs():
    n, h = 40, 37
    return random(
        torch.float32, gates_x=(n, 4 * h), h_prev=(n, h), c_prev=(n, h), weight_hh=(4 * h, h)
    )


def lstm_step(launch, gates_x, h_prev, c_prev, weight_hh, **changes):
    batch, hidden = h_prev.shape
    out = {"h": torch.empty_like(h_prev), "c": torch.empty_like(c_prev)} | changes
    rows = {"gates_x": gates_x, "h_prev": h_prev, "c_prev": c_prev, "weight_hh": weight_hh}
    assert not launch("lstm_step", torch.float32, batch=batch, hidden_size=hidden, **rows, **out)
    return out["h"], out["c"]


def test_a_row_has_the_same_bits_in_any_batch(launch, lstm_inputs):
    whole = lstm_step(launch, **lstm_inputs)
    weight_hh = lstm_inputs.pop("weight_hh")
    for rows in (slice(0, 1), slice(33, 34), slice(7, 40)):
        part = lstm_step(
            launch, **{k: x[rows] for k, x in lstm_inputs.items()}, weight_hh=weight_hh
        )
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))


def test_nan_stays_in_its_row(launch, lstm_inputs):
    clean = lstm_step(launch, **lstm_inputs)
    lstm_inputs["h_prev"][33, 5] = torch.nan
    for a, b in zip(lstm_step(launch, **lstm_inputs), clean, strict=True):
        assert a[33].isnan().all()
        assert torch.equal(a[:33], b[:33]) and torch.equal(a[34:], b[34:])


def test_lstm_in_place_and_without_gates(launch, lstm_inputs):
    expected = lstm_step(launch, **lstm_inputs)
    c = lstm_inputs["c_prev"].clone()
    gates = lstm_inputs["gates_x"].clone()
    arguments = lstm_inputs | {"c_prev": c, "gates_x": gates}
    got = lstm_step(launch, **arguments, c=c, gates=gates)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    separate = torch.empty_like(gates)
    lstm_step(launch, **lstm_inputs, gates=separate)
    assert torch.equal(gates, separate)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_in_place_and_without_bias(launch, reset_after):
    n, h = 33, 9
    x = random(torch.float32, gates_x=(n, 4 * h), h_prev=(n, h), weight_hh=(3 * h, h))
    sizes = {"batch": n, "hidden_size": h, "reset_after": int(reset_after)}
    gates, in_place = torch.empty(n, 4 * h), x["gates_x"].clone()
    results = [torch.empty(n, h) for _ in range(3)]
    assert not launch("gru_step", torch.float32, **sizes, **x, h=results[0], gates=gates)
    bias_hh = torch.zeros(3 * h)
    arguments = x | {"gates_x": in_place, "gates": in_place, "bias_hh": bias_hh}
    assert not launch("gru_step", torch.float32, **sizes, **arguments, h=results[1])
    assert torch.equal(results[0], results[1]) and torch.equal(gates, in_place)
    without_gates = launch("gru_step", torch.float32, **sizes, **x, h=results[2])
    assert without_gates == (SUCCESS if reset_after else INVALID_VALUE)
    if reset_after:
        assert torch.equal(results[0], results[2])


def test_rnn_in_place(launch):
    x = random(torch.float32, gates_x=(33, 9), h_prev=(33, 9), weight_hh=(9, 9))
    sizes = {"batch": 33, "hidden_size": 9}
    h = torch.empty(33, 9)
    assert not launch("rnn_step", torch.float32, **sizes, **x, h=h)
    assert not launch("rnn_step", torch.float32, **sizes, **x, h=x["gates_x"])
    assert torch.equal(h, x["gates_x"])


def test_null_gradients_are_zero(launch):
    n, h = 3, 9
    x = {name: torch.randn(n, w) for name, w in [("gates", 4 * h), ("c", h), ("c_prev", h)]}
    sizes, zero, grad_c = {"batch": n, "hidden_size": h}, torch.zeros(n, h), torch.randn(n, h)
    results = []
    for incoming in ({}, {"grad_output": zero, "grad_h": zero}):
        out = {"grad_c": grad_c.clone(), "grad_gates": torch.empty(n, 4 * h)}
        assert not launch("lstm_step_backward", torch.float32, **sizes, **x, **incoming, **out)
        results.append(out)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("launcher", STRUCTS)
def test_sizes_that_launch_nothing(launch, launcher):
    memory = torch.empty(1)
    gates = {"gates": memory} if launcher == "gru_step" else {}

    def status(batch: int, hidden_size: int) -> int:
        sizes = {"batch": batch, "hidden_size": hidden_size}
        return launch(launcher, torch.float32, **sizes, **gates)

    assert status(0, 5) == status(5, 0) == SUCCESS
    assert status(-1, 5) == status(5, -1) == INVALID_VALUE
    assert status(2**40, 8) == status(2**62, 2**62) == INVALID_CONFIGURATION
