"""The ISA that was asked for is the one that runs; an extension that does not load says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnfast
from rnnfast import _C, ops

PACKAGE = Path(rnnfast.__file__).parent
ISAS = ["baseline", "avx2", "avx512"]


def run_python(
    code: str, directory: Path = PACKAGE.parent, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program with the package that lies in that directory."""
    variables = {key: value for key, value in os.environ.items() if key != "RNNFAST_ISA"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env=variables | environment | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_isas_are_listed_weakest_first():
    isas = rnnfast.cpu_isas()
    assert isas == [isa for isa in ISAS if isa in isas]
    assert isas[0] == "baseline"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_the_forced_isa_is_the_one_that_ran(cell, gates, dtype, isa):
    """By what each ISA's own code counted, forward and backward."""
    assert rnnfast.cpu_isa() == isa
    states = [torch.randn(2, 5, dtype=dtype) for _ in range(2 if cell == "lstm" else 1)]
    weights = [torch.randn(gates * 5, n, dtype=dtype, requires_grad=True) for n in (3, 5)]
    before = _C.kernel_calls()
    output = getattr(ops, cell)(torch.randn(4, 2, 3, dtype=dtype), *states, *weights)[0]
    forward = _C.kernel_calls()
    output.sum().backward()
    after = _C.kernel_calls()
    for name in rnnfast.cpu_isas():
        assert forward[name] - before[name] == (name == isa)
        assert after[name] - forward[name] == (name == isa)


def test_isas_agree_but_are_not_the_same_code(isa):
    """Vectors of another width are summed alike, but without fused multiply-add not to the bit."""
    torch.manual_seed(0)
    module = rnnfast.LSTM(100, 70)
    x = torch.randn(9, 3, 100)
    output = module(x)[0]
    rnnfast.set_cpu_isa("baseline")
    torch.testing.assert_close(output, module(x)[0], rtol=0, atol=2e-6)


def test_unknown_isa():
    before = rnnfast.cpu_isa()
    with pytest.raises(ValueError, match="baseline.*'sse9'"):
        rnnfast.set_cpu_isa("sse9")
    assert rnnfast.cpu_isa() == before


@pytest.mark.parametrize("cap", ISAS)
def test_the_environment_caps_the_choice(cap):
    result = run_python("import rnnfast; print(rnnfast.cpu_isa())", RNNFAST_ISA=cap)
    allowed = ISAS[: ISAS.index(cap) + 1]
    assert result.stdout.strip() == [isa for isa in rnnfast.cpu_isas() if isa in allowed][-1]


def test_without_a_cap_the_strongest_is_chosen():
    result = run_python("import rnnfast; print(rnnfast.cpu_isa())")
    assert result.stdout.strip() == rnnfast.cpu_isas()[-1]


def test_an_unknown_cap_is_an_error_that_names_the_variable():
    result = run_python("import rnnfast", RNNFAST_ISA="sse9")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and "RNNFAST_ISA" in last and "sse9" in last
    assert "pip install" not in last


def test_build_info():
    info = rnnfast.build_info()
    assert info["version"] == rnnfast.__version__
    assert info["cpu_isas"] == rnnfast.cpu_isas()
    assert info["compiler"]


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_an_extension_that_does_not_load_is_one_clear_error(tmp_path, broken):
    copied = tmp_path / "rnnfast"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    if broken:
        (copied / Path(_C.__file__).name).write_bytes(b"not a shared library")
    # An editable install would find the checkout's extension for the copy.
    only_here = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]"
    )
    result = run_python(f"{only_here}; import rnnfast", tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: rnnfast's compiled extension cannot be loaded")
    assert "pip install --no-build-isolation ." in last
    assert "direct cause" in result.stderr
