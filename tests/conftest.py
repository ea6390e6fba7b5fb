"""What tests of any part may use: every ISA of this machine, and the kernels by name."""

from collections.abc import Iterator

import pytest
import torch

import rnnfast


def pytest_report_header() -> str:
    return (
        f"rnnfast {rnnfast.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, ISAs: {', '.join(rnnfast.cpu_isas())}"
    )


@pytest.fixture(params=rnnfast.cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each ISA that this machine has."""
    before = rnnfast.cpu_isa()
    rnnfast.set_cpu_isa(request.param)
    yield request.param
    rnnfast.set_cpu_isa(before)


@pytest.fixture
def kernels() -> Iterator[None]:
    """Modules run on the kernels, whatever `auto` would have chosen."""
    before = rnnfast.get_backend()
    rnnfast.set_backend("rnnfast")
    yield
    rnnfast.set_backend(before)
