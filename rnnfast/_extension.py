"""Loads the compiled extension, which registers the torch operators and binds the CPU controls."""

import importlib

import torch  # noqa: F401  (first: the extension links against the libraries that torch loads)

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
