"""torch's own samples of the six modules, from its wheel, on torch.nn and on rnnfast.

``torch.testing._internal.common_modules.module_db`` is what torch tests its modules with. It
imports the package expecttest.
"""

import functools
import re
from types import ModuleType

import torch
from suite import trained
from torch import nn
from verdicts import assert_same

import rnnfast

DTYPES = (torch.float32, torch.float64)


@functools.cache
def module_info(kind: str):
    # Not at the top: it takes seconds and freezes torch.backends' flags.
    from torch.testing._internal.common_modules import module_db

    return next(info for info in module_db if info.module_cls is getattr(nn, kind))


def samples(kind: str, dtype: torch.dtype, training: bool) -> list:
    """Constructor and forward arguments, with those that hold a PackedSequence."""
    torch.manual_seed(0)
    info = module_info(kind)
    assert dtype in info.dtypes
    return list(
        info.module_inputs_func(
            info,
            device="cpu",
            dtype=dtype,
            requires_grad=True,
            training=training,
            with_packed_sequence=True,
        )
    )


def error_cases(kind: str, dtype: torch.dtype) -> list:
    """Arguments that raise, with what they raise."""
    torch.manual_seed(0)
    info = module_info(kind)
    return info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=True
    )


def check_sample(kind: str, sample, dtype: torch.dtype, training: bool) -> None:
    """Outputs, states and gradients are torch's, with torch's weights."""
    arguments, inputs = sample.constructor_input, sample.forward_input
    assert not inputs.kwargs
    theirs, ours = (
        getattr(package, kind)(*arguments.args, **arguments.kwargs).to(dtype).train(training)
        for package in (nn, rnnfast)
    )
    ours.load_state_dict(theirs.state_dict())
    assert_same(trained(ours, *inputs.args), trained(theirs, *inputs.args))


def raised(package: ModuleType, kind: str, case) -> Exception:
    """What construction or, if it is not to fail, the call raises."""
    sample = case.module_error_input
    arguments, inputs = sample.constructor_input, sample.forward_input
    try:
        net = getattr(package, kind)(*arguments.args, **arguments.kwargs)
    except Exception as error:
        assert case.error_on.name == "CONSTRUCTION_ERROR"
        return error
    assert case.error_on.name == "FORWARD_ERROR"
    try:
        net(*inputs.args, **inputs.kwargs)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def check_error_case(kind: str, case) -> None:
    """The exception is of torch's type, and its message what torch's test expects."""
    theirs, ours = (raised(package, kind, case) for package in (nn, rnnfast))
    assert type(ours) is type(theirs)
    assert isinstance(ours, case.error_type)
    assert re.search(case.error_regex, str(ours))
