"""How a scenario is run on torch.nn and on rnnfast, and when the two count as the same."""

import functools
from types import ModuleType

import composite
import torch
from suite import Deviation, Scenario, map_floats
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

import rnnfast


def build(namespace: ModuleType, kind: str, *args, **kwargs) -> nn.Module:
    """The module of that namespace, with the same weights in every namespace and dtype."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        net = getattr(namespace, kind)(*args, **kwargs)
        torch.manual_seed(1)
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) / 2)
    return net


def outcome(case: Scenario, kind: str, namespace: ModuleType, dtype: torch.dtype) -> object:
    """What the scenario returns or, if it raises, the exception."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        return case.call(functools.partial(build, namespace, kind))
    except Exception as error:
        return error
    finally:
        torch.set_default_dtype(before)


@functools.cache
def expectation(case: Scenario, kind: str) -> tuple[object, object]:
    """What torch.nn does, and what is right: that, or what the composite gives in float64."""
    theirs = outcome(case, kind, nn, case.dtype)
    if kind not in case.refused:
        return theirs, theirs
    return theirs, outcome(case, kind, composite, torch.float64)


def assert_same(ours: object, right: object) -> None:
    """Tensors close as their dtype lets them be, everything else equal."""
    ours, our_structure = tree_flatten(ours)
    right, right_structure = tree_flatten(right)
    assert our_structure == right_structure, f"{our_structure}, torch: {right_structure}"
    for value, expected in zip(ours, right, strict=True):
        if isinstance(value, Deviation):
            # Each has its own float64 truth; these agree to twelve digits.
            limit = expected.value * (1 + 1e-9)
            assert value.value <= limit, f"off by {value.value:.1e}, torch: {expected.value:.1e}"
        elif isinstance(value, Tensor) and not value.is_meta:
            torch.testing.assert_close(value, expected)
        elif isinstance(value, Tensor):
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        else:
            assert value == expected, f"{value}, torch: {expected}"


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def torch_verdict(case: Scenario, kind: str) -> str:
    """What torch.nn does, in a few words."""
    theirs, _ = expectation(case, kind)
    if not isinstance(theirs, Exception):
        return "works"
    return f"raises {type(theirs).__name__}" if case.raises else f"refuses: {first_line(theirs)}"


def rnnfast_verdict(case: Scenario, kind: str, backend: str) -> str:
    """What rnnfast does, in a few words; an exception where that is not what it has to do."""
    theirs, right = expectation(case, kind)
    before = rnnfast.get_backend()
    rnnfast.set_backend(backend)
    ours = outcome(case, kind, rnnfast, case.dtype)
    rnnfast.set_backend(before)
    if case.raises:
        assert type(theirs) is case.raises, f"torch: {theirs!r}"
        assert type(ours) is case.raises, f"{ours!r}, torch: {theirs!r}"
        assert str(ours), "no message"
        return "same" if str(ours) == str(theirs) else "same type, its own words"
    if kind in case.refused_here:
        assert type(ours) is RuntimeError, f"does not refuse: {ours!r}"
        assert not isinstance(theirs, Exception), f"torch: {theirs!r}"
        return f"**differs**, refuses: {first_line(ours)}"
    for value in (right, ours):
        if isinstance(value, Exception):
            raise value
    if kind in case.refused:
        assert isinstance(theirs, Exception), "torch.nn does not refuse"
        assert_same(ours, map_floats(lambda value: value.to(case.dtype), right))
        return "works"
    assert_same(ours, right)
    measured = any(isinstance(leaf, Deviation) for leaf in tree_leaves(ours))
    return "same dtypes, at least as exact" if measured else "same"
