"""Loads what is compiled.

``rnnfast._C`` registers the torch operators and binds the CPU controls; it loads in torch 2.10 and
later. ``rnnfast._eager`` makes short calls cheaper. It is bound to the torch that it was built
with: under another, or with ``RNNFAST_EAGER=0`` in the environment, :data:`eager` is ``None`` and
all calls take the long way, to the same results. ``rnnfast._cuda`` registers the operators' kernels
for CUDA; it is there where nvcc was, and is loaded when they are first asked for.
"""

import importlib
import importlib.util
import os

import torch  # first: the extensions link against the libraries that torch loads

try:
    _C = importlib.import_module("rnnfast._C")
except ImportError as error:
    if error.name is None:
        # Raised by the extension itself, which was found, loaded, and says what is wrong.
        raise
    raise ImportError(
        f"rnnfast's compiled extension cannot be loaded: {error}. Build it from the project's root "
        "with: pip install --no-build-isolation ."
    ) from error

cpu_isas = _C.cpu_isas
cpu_isa = _C.cpu_isa
set_cpu_isa = _C.set_cpu_isa
build_info = _C.build_info
kernel_access = _C._kernel_access


def _eager():
    if os.environ.get("RNNFAST_EAGER") == "0" or build_info()["torch"] != torch.__version__:
        return None
    return importlib.import_module("rnnfast._eager")


eager = _eager()


def load_cuda_kernels() -> bool:
    """Registers the operators' kernels for CUDA; whether there are any for this torch.

    Raises:
        ImportError: if they were compiled, but cannot be loaded.
    """
    spec = importlib.util.find_spec("rnnfast._cuda")
    if spec is None or torch.version.cuda is None:
        return False
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        raise ImportError(
            f"rnnfast's CUDA kernels cannot be loaded: {error}. Build them with this torch, from "
            "the project's root: pip install --no-build-isolation ."
        ) from error
    return True
