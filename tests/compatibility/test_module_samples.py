"""torch's own samples pass, and its error cases fail, on rnnfast's kernels."""

import pytest
import torch
from module_samples import DTYPES, check_error_case, check_sample, error_cases, samples
from suite import MODULES

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.parametrize("dtype", DTYPES, ids=str),
    pytest.mark.parametrize("kind", MODULES),
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_samples(kind: str, dtype: torch.dtype, training: bool):
    found = samples(kind, dtype, training)
    assert found
    for sample in found:
        check_sample(kind, sample, dtype, training)


def test_error_cases(kind: str, dtype: torch.dtype):
    found = error_cases(kind, dtype)
    assert found
    for case in found:
        check_error_case(kind, case)
