import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """Compiles on_host/<name>.cpp with g++ into a shared library and loads it."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the CUDA sources for the CPU")

    def build(name: str) -> ctypes.CDLL:
        here = Path(__file__).parent / "on_host"
        library = tmp_path_factory.mktemp(name) / f"{name}_on_host.so"
        command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]
        # #pragma unroll is nvcc's own.
        command += ["-Wno-unknown-pragmas", "-shared", "-fPIC"]
        command += [
            f"-I{here}",
            f"-I{ROOT / 'csrc'}",
            str(here / f"{name}.cpp"),
            "-o",
            str(library),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return ctypes.CDLL(str(library))

    return build
