"""The pointwise maths of the CUDA kernels, compiled for the CPU: the same lines, another chip."""

import ctypes

import numpy as np
import pytest
import torch

DTYPES = [np.float32, np.float64]
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


@pytest.fixture(scope="module")
def call(host_library):
    library = host_library("pointwise")

    def call(function: str, inputs: list[np.ndarray], outputs: int) -> list[np.ndarray]:
        dtype = inputs[0].dtype
        assert all(x.dtype == dtype and x.shape == inputs[0].shape for x in inputs)
        results = [np.full_like(inputs[0], np.nan) for _ in range(outputs)]
        inputs = [np.ascontiguousarray(x) for x in inputs]
        name = f"{function}_{'float' if dtype == np.float32 else 'double'}"
        pointers = [
            (ctypes.c_void_p * len(a))(*(x.ctypes.data for x in a)) for a in (inputs, results)
        ]
        getattr(library, name)(ctypes.c_int64(inputs[0].size), *pointers)
        return results

    return call


def random(dtype, count: int, n: int = 20_000, scale: float = 2.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(scale * rng.standard_normal(n)).astype(dtype) for _ in range(count)]


def assert_like_torch(ours: list[np.ndarray], formula, inputs: list[np.ndarray]) -> None:
    """formula on torch tensors, in float64 the truth and in our dtype the peer."""
    truth = [t.detach().numpy() for t in formula(*(torch.from_numpy(x).double() for x in inputs))]
    peer = [t.detach().numpy() for t in formula(*(torch.from_numpy(x) for x in inputs))]
    assert len(ours) == len(truth)
    for j, (a, b, t) in enumerate(zip(ours, peer, truth, strict=True)):
        # tanh is the C library's, 2 ULP off where torch's is exact; in float64, where torch has
        # nothing wider, both are off by a few roundings.
        roundings = 1 if a.dtype == np.float32 else 8
        floor = roundings * np.finfo(a.dtype).eps * np.abs(t).max()
        error, allowed = np.abs(a - t).max(), 2 * np.abs(b - t).max() + floor
        assert error <= allowed, f"result {j}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_and_tanh_are_within_their_ulp(call, dtype):
    wide, info = WIDER[dtype], np.finfo(dtype)
    if not np.finfo(wide).eps < info.eps:
        pytest.skip("this platform's long double is no wider than double")
    magnitude = np.geomspace(info.tiny, -1.01 * np.log(info.smallest_subnormal), 100_001)
    x = np.concatenate([-magnitude, magnitude, np.linspace(-20, 20, 100_001)]).astype(dtype)
    sigmoid, tanh = call("activations", [x, np.ones_like(x)], 6)[:2]
    e = np.exp(-np.abs(x.astype(wide)))
    for ours, truth, bound in [
        (sigmoid, np.where(x < 0, e, 1) / (1 + e), 3.5),
        (tanh, np.tanh(x.astype(wide)), 3.0),  # the C library's
    ]:
        ulp = np.spacing(np.abs(truth).astype(dtype)).astype(wide)
        assert (np.abs(ours - truth) / ulp).max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_at_the_special_values(call, dtype):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30], dtype)
    sigmoid, tanh, relu, *_ = call("activations", [x, np.ones_like(x)], 6)
    np.testing.assert_array_equal(sigmoid, [0.5, 0.5, 1, 0, np.nan, 1, 0])
    np.testing.assert_array_equal(tanh, [0.0, -0.0, 1, -1, np.nan, 1, -1])
    np.testing.assert_array_equal(np.signbit(tanh[:2]), [False, True])
    np.testing.assert_array_equal(relu, np.array([0, 0, np.inf, 0, np.nan, 1e30, 0], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_and_their_gradients(call, dtype):
    inputs = random(dtype, 2)

    def formula(x, grad):
        results = []
        for activation in (torch.sigmoid, torch.tanh, torch.relu):
            leaf = x.clone().requires_grad_()
            y = activation(leaf)
            results.append((y, *torch.autograd.grad(y, leaf, grad)))
        return [y for y, _ in results] + [g for _, g in results]

    assert_like_torch(call("activations", inputs, 6), formula, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_lets_the_gradient_of_nan_through_as_torch(call, dtype):
    x = np.array([np.nan, -1, 0, 1], dtype)
    grad = np.array([2, 3, 4, 5], dtype)
    leaf = torch.from_numpy(x).requires_grad_()
    (expected,) = torch.autograd.grad(torch.relu(leaf), leaf, torch.from_numpy(grad))
    np.testing.assert_array_equal(call("activations", [x, grad], 6)[5], expected.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_lstm_forward_and_backward(call, dtype):
    inputs = random(dtype, 7)
    pre, c_prev, grad_h, grad_c = inputs[:4], *inputs[4:]

    def formula(i, f, g, o, c_prev, grad_h, grad_c):
        leaves = [x.clone().requires_grad_() for x in (i, f, g, o, c_prev)]
        i, f, o = (torch.sigmoid(leaves[j]) for j in (0, 1, 3))
        g = torch.tanh(leaves[2])
        c = f * leaves[4] + i * g
        h = o * torch.tanh(c)
        return [i, f, g, o, c, h, *torch.autograd.grad([h, c], leaves, [grad_h, grad_c])]

    forward = call("lstm", [*pre, c_prev], 6)
    backward = call("lstm_backward", [*forward[:5], c_prev, grad_h, grad_c], 5)
    assert_like_torch(forward + backward, formula, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gru_blend_forward_and_backward(call, dtype):
    inputs = random(dtype, 4)
    z, n, h_prev, grad_h = inputs

    def formula(z, n, h_prev, grad_h):
        leaves = [x.clone().requires_grad_() for x in (z, n, h_prev)]
        z, n = torch.sigmoid(leaves[0]), torch.tanh(leaves[1])
        h = (1 - z) * n + z * leaves[2]
        return [z, n, h, *torch.autograd.grad(h, leaves, grad_h)]

    forward = call("gru", [z, n, h_prev], 3)
    backward = call("gru_backward", [*forward[:2], h_prev, grad_h], 3)
    assert_like_torch(forward + backward, formula, inputs)
