"""A process that keeps what it frees pays for its pages once."""

import ctypes
from types import SimpleNamespace

import pytest

import rnnfast

# Of a block that is freed and asked for again, which may find it elsewhere for some times.
FAULTS = """
import resource, rnnfast, torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(10_000_000).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = min(faults() for _ in range(3))
assert rnnfast.keep_freed_memory()
print(returned, min(faults() for _ in range(20)))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt"
)
def test_memory_that_is_kept_costs_no_page_faults(run_python):
    returned, kept = map(int, run_python(FAULTS).split())
    assert kept < 10 < returned


def test_another_c_library_says_no(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert rnnfast.keep_freed_memory() is False
