"""`make gpu`: one line where there is no GPU; else build, tests and benchmarks, whatever fails."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A Python that says yes to there being a GPU, tells what it was given, and fails at tests.
PYTHON = """#!/bin/sh
case "$*" in -c*) exit 0 ;; esac
echo "given $*"
case "$*" in *"-m pytest"*) exit 1 ;; esac
"""
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on PATH")


def make_gpu(
    tmp_path: Path, python: str, target: str = "gpu", **others: str
) -> subprocess.CompletedProcess:
    tools = {"python-for-gpu": python, "nvcc": "#!/bin/sh\n", **others}
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["make", "-s", target, "GPU_PYTHON=python-for-gpu"]
    environment = {**os.environ, "PATH": path, "OUT": str(tmp_path / "out")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_without_a_gpu_it_says_so(tmp_path):
    result = make_gpu(tmp_path, "#!/bin/sh\nexit 1\n")
    assert result.returncode != 0
    (line,) = result.stdout.splitlines()
    assert line.startswith("make gpu: needs a GPU, nvcc on PATH and a CUDA build of torch")
    assert not (tmp_path / "out").exists()


def test_a_test_that_fails_leaves_the_benchmarks_to_run(tmp_path):
    result = make_gpu(tmp_path, PYTHON)
    assert result.returncode != 0
    assert result.stdout.splitlines()[-1] == "make gpu: failed: tests"
    logs = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.log")}
    assert logs.keys() == {"build", "tests", "layers", "steps"}
    assert logs["build"].startswith("given setup.py build_ext --inplace")
    assert "-m cuda tests/cuda" in logs["tests"]
    for log, script in (("layers", "gpu"), ("steps", "gpu_language_model_step")):
        lines = logs[log].splitlines()
        for line, backend in zip(lines, ("rnnfast", "auto"), strict=True):
            assert f"benchmarks/{script}.py --backend {backend}" in line
            assert f"--output {tmp_path / 'out' / script}_{backend}.csv" in line


def test_what_hangs_is_ended(tmp_path):
    """By a `timeout` with less patience than it is asked for."""
    hangs = PYTHON.replace("exit 1", "exec sleep 60")
    soon = f'#!/bin/sh\nshift 3\nexec {shutil.which("timeout")} 3 "$@"\n'
    result = make_gpu(tmp_path, hangs, timeout=soon)
    assert result.stdout.splitlines()[-1] == "make gpu: failed: tests"
    assert len((tmp_path / "out" / "steps.log").read_text().splitlines()) == 2


def test_a_sanitizer_that_finds_something_is_named(tmp_path):
    sanitizer = '#!/bin/sh\necho "given $*"\ncase "$*" in *racecheck*) exit 1 ;; esac\n'
    result = make_gpu(tmp_path, PYTHON, "gpu-sanitize", **{"compute-sanitizer": sanitizer})
    assert result.returncode != 0
    assert result.stdout.splitlines()[-1] == "make gpu-sanitize: failed: racecheck"
    for tool in ("memcheck", "racecheck"):
        log = (tmp_path / "out" / f"{tool}.log").read_text()
        assert log.startswith(f"given --tool {tool} --error-exitcode 1 python-for-gpu -m pytest")
