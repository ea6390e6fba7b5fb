import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import rnnfast  # noqa: F401 - which registers the operators

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


@pytest.fixture(scope="session")
def host_ops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """The ops of csrc/bindings/cuda on CPU tensors as torch.ops.rnnfast_on_host; its library."""
    made = tmp_path_factory.mktemp("bindings") / "bindings_on_host.so"
    here = Path(__file__).parent / "on_host"
    torch_dir = Path(torch.__file__).parent
    sources = [here / "bindings.cpp", here / "sequences.cpp", ROOT / "csrc/bindings/layer.cpp"]
    sources += [f for f in (ROOT / "csrc/bindings/cuda").glob("*.cpp") if f.name != "module.cpp"]
    command = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += [
        "-fvisibility=hidden",
        "-shared",
        "-fPIC",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
    ]
    command += [f"-I{here}", f"-I{ROOT / 'csrc'}", f"-isystem{torch_dir / 'include'}"]
    command += [*map(str, sources), f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-o", str(made)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    definitions = torch.library.Library("rnnfast_on_host", "DEF")
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, op = name.partition("::")
        if namespace == "rnnfast" and op.split("_")[0] in ("lstm", "gru", "rnn", "concurrent"):
            schema = getattr(torch.ops.rnnfast, op).default._schema
            definitions.define(str(schema).removeprefix("rnnfast::"))
    torch.ops.load_library(made)
    yield ctypes.CDLL(str(made))
    definitions._destroy()


@pytest.fixture(scope="module")
def half_products() -> Iterator[None]:
    """The product of half types that torch's CPU lacks."""
    products = torch.library.Library("aten", "IMPL")
    products.impl("mm.dtype", lambda a, b, dtype: a.to(dtype) @ b.to(dtype), "CPU")
    yield
    products._destroy()
