"""Every .cu file compiles without a warning and without register spills. Needs nvcc, no GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles(source: Path, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    command = [nvcc, "-std=c++17", f"-I{CSRC}", "-c", "-gencode", "arch=compute_90,code=sm_90"]
    command += ["--Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    command += ["--ptxas-options=-v", str(source), "-o", str(tmp_path / "object.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    kernels = re.findall(r"Compiling entry function '(\w+)'", log)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert kernels and len(spills) >= len(kernels), log
    assert set(spills) == {("0", "0")}, log
