"""sigmoid and tanh of the kernels: error in ULP on dense grids, and the values that must be exact.

Truth is NumPy's in a wider type: float64 for float32, long double for float64. An error of one ULP
is the distance between the truth, rounded, and the next value of the dtype.
"""

import numpy as np
import pytest

from rnnfast import _C

# The bounds that csrc/cpu/activations.h states.
ULP_BOUND = {np.float32: 3.0, np.float64: 4.0}
# In float32 tanh is held closer: torch's own is within 0.51 ULP.
FLOAT_TANH_BOUND = 1.1
WIDER = {np.float32: np.float64, np.float64: np.longdouble}

pytestmark = pytest.mark.usefixtures("isa")
every_dtype = pytest.mark.parametrize("dtype", ULP_BOUND, ids=lambda dtype: dtype.__name__)
every_activation = pytest.mark.parametrize("name", ["sigmoid", "tanh"])


def truth(name: str, x: np.ndarray) -> np.ndarray:
    wide = x.astype(WIDER[x.dtype.type])
    if name == "tanh":
        return np.tanh(wide)
    # Of the two forms that which neither overflows nor cancels.
    e = np.exp(-np.abs(wide))
    return np.where(wide < 0, e, 1) / (1 + e)


def ulp_error(name: str, x: np.ndarray) -> np.ndarray:
    expected = truth(name, x)
    ulp = np.spacing(np.abs(expected.astype(x.dtype)))
    return np.abs(_C.activation(name, x).astype(expected.dtype) - expected) / ulp


def every_exponent(dtype: type, mantissas: int) -> np.ndarray:
    """Both signs of that many random mantissas for each exponent of the dtype, subnormals too."""
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    generator = np.random.default_rng(0)
    mantissa = 1 + generator.random((len(exponents), mantissas))
    x = np.ldexp(mantissa.astype(dtype), exponents[:, None].astype(np.int32)).ravel()
    return np.concatenate([-x, x])


def dense_grid(dtype: type) -> np.ndarray:
    """Where the functions are neither linear nor constant: 20 covers tanh, 800 all tails."""
    return np.concatenate(
        [np.linspace(-limit, limit, 500_001, dtype=dtype) for limit in (1, 20, 120, 800)]
    )


@pytest.fixture(autouse=True)
def wide_truth(request):
    """float64 can be judged only where long double is longer."""
    if "dtype" in request.fixturenames:
        dtype = request.getfixturevalue("dtype")
        if np.finfo(WIDER[dtype]).nmant < np.finfo(dtype).nmant + 8:
            pytest.skip("long double is no wider than float64 on this platform")


@every_dtype
@every_activation
def test_error_in_ulp(name, dtype):
    for x in (every_exponent(dtype, 500), dense_grid(dtype)):
        error = ulp_error(name, x)
        worst = np.argmax(error)
        bound = FLOAT_TANH_BOUND if (name, dtype) == ("tanh", np.float32) else ULP_BOUND[dtype]
        assert error[worst] <= bound, f"{error[worst]} ULP at {x[worst]!r}"


@every_dtype
def test_exact_values(dtype):
    inf, nan = dtype(np.inf), dtype(np.nan)

    def bits(name: str, *x: float) -> bytes:
        return _C.activation(name, np.array(x, dtype)).tobytes()

    def exactly(*x: float) -> bytes:
        return np.array(x, dtype).tobytes()

    assert bits("sigmoid", 0.0, -0.0, inf, -inf) == exactly(0.5, 0.5, 1, 0)
    assert bits("tanh", 0.0, -0.0, inf, -inf) == exactly(0.0, -0.0, 1, -1)
    largest = np.finfo(dtype).max
    assert bits("sigmoid", largest, -largest) == exactly(1, 0)
    assert bits("tanh", largest, -largest) == exactly(1, -1)
    for name in ("sigmoid", "tanh"):
        assert np.isnan(_C.activation(name, np.array([nan, -nan]))).all()


@every_dtype
def test_small_arguments_of_tanh_are_their_own_value(dtype):
    info = np.finfo(dtype)
    x = np.array([info.smallest_subnormal, info.tiny / 3, info.tiny, info.eps**2], dtype)
    for argument in (x, -x):
        assert np.array_equal(_C.activation("tanh", argument), argument)


@every_dtype
@every_activation
def test_range_symmetry_and_tails(name, dtype):
    x = np.sort(np.concatenate([every_exponent(dtype, 50), dense_grid(dtype)]))
    y = _C.activation(name, x)
    low = 0 if name == "sigmoid" else -1
    assert y.min() >= low and y.max() <= 1
    if name == "tanh":
        assert np.array_equal(_C.activation(name, -x), -y)
    # In the tails, where steps of the argument are coarse against the function's change.
    info = np.finfo(dtype)
    saturated = -np.log(info.eps) + 2
    assert np.all(y[x > saturated] == 1)
    if name == "tanh":
        assert np.all(y[x < -saturated] == -1)
    else:
        assert np.all(y[x < np.log(info.smallest_subnormal) - 1] == 0)
    integers = np.arange(-800, 801).astype(dtype)
    assert np.all(np.diff(_C.activation(name, integers)) >= 0)


@every_dtype
@every_activation
def test_a_value_does_not_depend_on_its_place(name, dtype):
    """Full vectors and the rest at the end give the same bits, whatever stands beside."""
    x = np.linspace(-9, 9, 67, dtype=dtype)
    whole = _C.activation(name, x)
    for count in (1, 2, 3, 7, 8, 9, 15, 16, 17, 33):
        assert np.array_equal(_C.activation(name, x[:count]), whole[:count])
    beside = np.full(67, np.nan, dtype)
    beside[5] = x[5]
    assert _C.activation(name, beside)[5] == whole[5]


def test_errors():
    x = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="'sigmoid' or 'tanh'.*'relu'"):
        _C.activation("relu", x)
    with pytest.raises(TypeError, match="float32 or float64.*int64"):
        _C.activation("tanh", x.astype(np.int64))
