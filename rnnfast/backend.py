"""Which implementation serves a module's call, kernels or torch's own operators, in what dtype."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["get_backend", "set_backend"]

_BACKENDS = ("auto", "rnnfast", "torch")
_COMPUTED_DTYPES = (torch.float32, torch.float64)
# The half types are computed in float32.
_KERNEL_DTYPES = (*_COMPUTED_DTYPES, torch.bfloat16, torch.float16)

# Whose results have the autocast dtype under autocast on the CPU, as torch's own (but not the
# LSTM's of a PackedSequence); those of the others have the dtype of the input.
_LOWERED = ("LSTM", "RNN_TANH", "RNN_RELU", "RNNCell")

_SLOW_STEPS = ("RNN_TANH", "RNN_RELU", "RNNCell", "LSTMCell")

_backend = "auto"


def set_backend(backend: str) -> None:
    """Chooses what serves the modules of this package, for the whole process.

    Args:
        backend: one of

            - ``"auto"`` (the default): this package's kernels for what they can serve (floating
              point tensors on the CPU), save single steps of RNN, RNNCell and LSTMCell that
              autograd records, where torch was measured to be faster; torch's own operators, with
              torch's results, for everything else (other devices). With
              :func:`torch.use_deterministic_algorithms` these steps are the kernels' too, for
              torch's bits may depend on the rest of the batch and on the number of threads.
            - ``"rnnfast"``: always the kernels; a call they cannot serve raises ``RuntimeError``.
            - ``"torch"``: always torch's own operators.

    ``GRU`` and ``GRUCell`` with ``reset_after=False``, which torch does not have, always run on the
    kernels.

    Raises:
        ValueError: if `backend` is none of these.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    global _backend
    _backend = backend


def get_backend() -> str:
    """The name last given to :func:`set_backend`, or ``"auto"``."""
    return _backend


def torch_is_faster(kind: str, seq_len: int, training: bool) -> bool:
    """Whether torch's operator was measured to be faster than the kernels for such a call.

    That is so while autograd records a single step of a module of which torch makes one or a few
    operators: the kernels' autograd function is in Python, and costs more than they save.

    Args:
        kind: a layer's mode, ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, or
            ``"LSTMCell"``, ``"GRUCell"`` or ``"RNNCell"``.
        seq_len: how many steps.
        training: whether autograd is recording.
    """
    return training and seq_len == 1 and kind in _SLOW_STEPS


def auto_prefers_torch(kind: str, seq_len: int) -> bool:
    """Whether torch's operator is to serve a call that the kernels could serve as well.

    Never under ``torch.compile``, which does not trace torch's operators, under autocast, whose
    lower precision the kernels need not take, and where deterministic algorithms are asked for.
    """
    return (
        _backend == "auto"
        and torch_is_faster(kind, seq_len, torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.are_deterministic_algorithms_enabled()
    )


def use_kernels(owner: str, input: object, *, required: bool = False) -> bool:
    """Whether the kernels, not torch's operators, serve this kind of input.

    Args:
        owner: the module's name, for the message.
        input: what the module was called with; of a PackedSequence, its data.
        required: torch's operators do not have what the module computes.

    Raises:
        RuntimeError: if the kernels are required or were asked for by name, and cannot serve it.
    """
    if isinstance(input, Tensor) and input.is_cpu and input.dtype in _KERNEL_DTYPES:
        return required or _backend != "torch"
    if required or _backend == "rnnfast":
        reason = "torch lacks what it computes" if required else "the backend is set to 'rnnfast'"
        raise RuntimeError(
            f"{owner} has to run on rnnfast's kernels ({reason}), which serve floating point "
            f"tensors on the CPU; got {describe(input)}"
        )
    return False


def casts(input_dtype: torch.dtype) -> bool:
    """Whether the kernels compute in another dtype than the input's, or may give one."""
    return input_dtype not in _COMPUTED_DTYPES or torch.is_autocast_enabled("cpu")


def dtypes(
    kind: str, input_dtype: torch.dtype, packed: bool = False
) -> tuple[torch.dtype, torch.dtype]:
    """In what dtype the kernels compute, and that of the results.

    Args:
        kind: as for :func:`torch_is_faster`.
        input_dtype: of the input.
        packed: whether the input is a PackedSequence.
    """
    if input_dtype == torch.float64:
        return input_dtype, input_dtype
    lowered = kind in _LOWERED and not (packed and kind == "LSTM")
    if lowered and torch.is_autocast_enabled("cpu"):
        return torch.float32, torch.get_autocast_dtype("cpu")
    return torch.float32, input_dtype


def same_kind(tensor: Tensor, input: Tensor) -> bool:
    """Whether a weight or a state may go with this input: on the CPU as it is, of the same dtype
    or, under autocast, one that autocast would cast."""
    dtype = tensor.dtype
    if dtype != input.dtype and not (
        torch.is_autocast_enabled("cpu")
        and torch.float64 not in (dtype, input.dtype)
        and dtype in _KERNEL_DTYPES
    ):
        return False
    return tensor.is_cpu


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def without_autocast() -> AbstractContextManager:
    """For the kernels and their twins, whose dtype is settled."""
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


def describe(value: object) -> str:
    """A value that was passed, in a few words, for an error message."""
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    text = f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    on_cpu = value.device.type == "cpu"
    return f"{text} under autocast" if on_cpu and torch.is_autocast_enabled("cpu") else text
