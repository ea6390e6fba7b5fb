"""Which implementation serves a module's call, kernels or torch's own operators, in what dtype."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from rnnfast._extension import eager, load_cuda_kernels

__all__ = ["get_backend", "get_precision", "set_backend", "set_precision"]

_BACKENDS = ("auto", "rnnfast", "torch")
_PRECISIONS = ("fp32", "bf16")
_COMPUTED_DTYPES = (torch.float32, torch.float64)
# Half types are what tensors stand in; they are computed in float32.
_KERNEL_DTYPES = (*_COMPUTED_DTYPES, torch.bfloat16, torch.float16)

# Whose results have the autocast dtype under autocast on the CPU, as torch's own (but not the
# LSTM's of a PackedSequence); those of the others have the dtype of the input. On other devices
# all have the autocast dtype.
_LOWERED = ("LSTM", "RNN_TANH", "RNN_RELU", "RNNCell")

_backend = "auto"
_cuda_kernels = False
_precision = "fp32"


def set_backend(backend: str) -> None:
    """Chooses what serves the modules of this package, for the whole process.

    Args:
        backend: one of

            - ``"auto"`` (the default): this package's kernels for what they can serve (floating
              point tensors on the CPU); torch's own operators, with torch's results, for
              everything else (other devices). What torch lacks is there composed of its operators,
              see :mod:`rnnfast.elsewhere`.
            - ``"rnnfast"``: always the kernels; a call they cannot serve raises ``RuntimeError``.
              On CUDA there are kernels for padded sequences without ``proj_size``, where this
              package was built with nvcc. They are compiled and tested on the CPU, but have not yet
              run on a GPU, so nothing but this name chooses them.
            - ``"torch"``: always torch's own operators.

    ``GRU`` and ``GRUCell`` with ``reset_after=False``, which torch does not have, run on the
    kernels on the CPU whatever is set.

    Raises:
        ValueError: if `backend` is none of these.
        ImportError: if there are kernels for CUDA, but they cannot be loaded.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    global _backend, _cuda_kernels
    if backend == "rnnfast" and not _cuda_kernels:
        _cuda_kernels = load_cuda_kernels()
    _backend = backend


def get_backend() -> str:
    """The name last given to :func:`set_backend`, or ``"auto"``."""
    return _backend


def set_precision(precision: str) -> None:
    """Chooses how float32 modules of this package multiply matrices, for the whole process.

    Args:
        precision: one of

            - ``"fp32"`` (the default): in float32.
            - ``"bf16"``: where the CPU can multiply bfloat16 (AVX512-BF16), both operands of every
              matrix product (weights, input, hidden states, gradients) are rounded to bfloat16, to
              nearest even, and the products are added up in float32. Weights, states, gates, cells,
              biases and activations stay float32, as do all tensors outside. Outputs
              and gradients differ from those in float32 by some thousandths of their largest
              element. A single step, and a CPU without such products, compute in float32.

    Backward uses the precision its forward ran with. Modules in bfloat16, or under autocast to
    bfloat16 on the CPU, take such products whatever is set here; those in float16 and
    float64 never. Cells take single steps.

    Raises:
        ValueError: if `precision` is none of these.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    global _precision
    _precision = precision


def get_precision() -> str:
    """The name last given to :func:`set_precision`, or ``"fp32"``."""
    return _precision


@contextmanager
def precision(name: str) -> Iterator[None]:
    """:func:`set_precision` for what runs inside; afterwards the precision is what it was before.

    Meanwhile it is that of the whole process, other threads included. A backward pass need not
    run inside.

    Args:
        name: ``"fp32"`` or ``"bf16"``.

    Raises:
        ValueError: if `name` is neither.
    """
    before = _precision
    set_precision(name)
    try:
        yield
    finally:
        set_precision(before)


def has_kernels(tensor: Tensor) -> bool:
    """Whether there are kernels for the device that a tensor is on, or were asked for there."""
    return tensor.is_cpu or (tensor.is_cuda and _cuda_kernels and _backend == "rnnfast")


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype of autocast where a tensor is, or None if it is off."""
    kind = "cpu" if tensor.is_cpu else tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # meta has none, and torch refuses
        return None
    return torch.get_autocast_dtype(kind)


@torch.compiler.assume_constant_result  # torch.compile cannot ask: it takes what is set meanwhile
def _cudnn_allows_tf32() -> bool:
    # By its name for recurrent layers: allow_tf32 raises an error where convolutions differ.
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


def product_precision(input: Tensor) -> str:
    """The operators' `precision` for a module's call with such input."""
    dtype = input.dtype
    if dtype == torch.float32:
        if _precision == "bf16":
            return "bf16"
        dtype = _autocast_dtype(input) or dtype
    if dtype == torch.bfloat16:
        return "bf16"
    if input.is_cuda and dtype == torch.float16:
        return "fp16"
    if input.is_cuda and dtype == torch.float32 and _cudnn_allows_tf32():
        return "tf32"
    return "fp32"


def may_be_eager() -> bool:
    """Whether a call may take the short way of ``rnnfast._eager``, if it is of the common kind."""
    return eager is not None and _backend != "torch" and not torch.compiler.is_compiling()


def use_kernels(owner: str, input: object, *, required: bool = False) -> bool:
    """Whether the operators of :mod:`rnnfast.ops`, not torch's module, serve this kind of input.

    Args:
        owner: the module's name, for the message.
        input: what the module was called with; of a PackedSequence, its data.
        required: torch's module does not have what this one computes.

    Raises:
        RuntimeError: if the kernels are required or were asked for by name, and cannot serve it.
    """
    if isinstance(input, Tensor) and input.dtype in _KERNEL_DTYPES:
        if has_kernels(input):
            return required or _backend != "torch"
        if required and _backend != "rnnfast":
            return True
    if required or _backend == "rnnfast":
        reason = "torch lacks what it computes" if required else "the backend is set to 'rnnfast'"
        raise RuntimeError(
            f"{owner} has to run on rnnfast's kernels ({reason}), which serve floating point "
            f"tensors on the CPU, and on CUDA where they were compiled; got {describe(input)}"
        )
    return False


def casts(input: Tensor, in_parts: bool = False) -> bool:
    """Whether tensors are cast for the operators: half types where these do not read them, and
    under autocast.

    Args:
        input: the input, or its data.
        in_parts: each call of an operator is for a part of the sequence, and rounds its states only
            where they are cast after all of them.
    """
    half = input.dtype not in _COMPUTED_DTYPES and has_kernels(input)
    return (half and (in_parts or not input.is_cpu)) or _autocast_dtype(input) is not None


def dtypes(kind: str, input: Tensor, packed: bool = False) -> tuple[torch.dtype, torch.dtype]:
    """In what dtype the operators compute, and that of the results.

    Args:
        kind: a layer's mode, ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, or a cell's
            class.
        input: the input, or its data.
        packed: whether the input is a PackedSequence.
    """
    if input.dtype == torch.float64:
        return input.dtype, input.dtype
    lower = _autocast_dtype(input)
    if not has_kernels(input):
        return lower or input.dtype, lower or input.dtype
    lowered = not input.is_cpu or (kind in _LOWERED and not (packed and kind == "LSTM"))
    return torch.float32, lower if lowered and lower else input.dtype


def same_kind(tensor: Tensor, input: Tensor) -> bool:
    """Whether a weight or a state may go with this input: on its device, of the same dtype or,
    under autocast, one that autocast would cast."""
    dtype = tensor.dtype
    if dtype != input.dtype and not (
        _autocast_dtype(input)
        and torch.float64 not in (dtype, input.dtype)
        and dtype in _KERNEL_DTYPES
    ):
        return False
    return tensor.device == input.device


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def without_autocast(input: Tensor) -> AbstractContextManager:
    """For the operators on such input, whose dtype is settled."""
    if _autocast_dtype(input) is not None:
        return torch.autocast(input.device.type, enabled=False)
    return nullcontext()


def describe(value: object) -> str:
    """A value that was passed, in a few words, for an error message."""
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    text = f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{text} under autocast" if _autocast_dtype(value) else text
