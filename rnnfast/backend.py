"""Which implementation serves a module's call: the kernels or torch's own operators."""

import torch
from torch import Tensor

__all__ = ["get_backend", "set_backend"]

_BACKENDS = ("auto", "rnnfast", "torch")
_KERNEL_DTYPES = (torch.float32, torch.float64)

_SLOW_STEPS = ("RNN_TANH", "RNN_RELU", "RNNCell", "LSTMCell")

_backend = "auto"


def set_backend(backend: str) -> None:
    """Chooses what serves the modules of this package, for the whole process.

    Args:
        backend: one of

            - ``"auto"`` (the default): this package's kernels for what they can serve (float32 and
              float64 tensors on the CPU, outside autocast), save shapes where torch was measured
              to be faster; torch's own operators, with torch's results, for everything else
              (other devices and dtypes, autocast, ``PackedSequence``, ``proj_size``).
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


def torch_is_faster(
    kind: str,
    dtype: torch.dtype,
    batch: int,
    seq_len: int,
    input_size: int,
    hidden_size: int,
    training: bool,
) -> bool:
    """Whether torch's operator was measured to be faster than the kernels at this shape.

    That is so

    - while autograd records a single step of a module of which torch makes one or a few
      operators: the kernels' autograd function is in Python, and costs more than they save;
    - for a float32 LSTM (oneDNN in torch) with many rows whose weights, shared by the threads,
      are about as large as a core's cache, up to several times that: by 0 to 7 percent.

    Args:
        kind: a layer's mode, ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, or
            ``"LSTMCell"``, ``"GRUCell"`` or ``"RNNCell"``.
        dtype, batch, seq_len, input_size, hidden_size: of one layer.
        training: whether autograd is recording.
    """
    if seq_len == 1:
        return training and kind in _SLOW_STEPS
    if kind != "LSTM" or dtype != torch.float32 or batch < 16:
        return False
    threads = torch.get_num_threads()
    share = 4 * hidden_size * (input_size + hidden_size) * dtype.itemsize / threads
    return (0.5e6 if threads == 1 else 0.8e6) <= share < 8e6


def auto_prefers_torch(
    kind: str,
    dtype: torch.dtype,
    batch: int,
    seq_len: int,
    input_size: int,
    hidden_size: int,
) -> bool:
    """Whether torch's operator is to serve a call that the kernels could serve as well.

    Never under ``torch.compile``, which does not trace torch's operators.
    """
    return (
        _backend == "auto"
        and not torch.compiler.is_compiling()
        and torch_is_faster(
            kind, dtype, batch, seq_len, input_size, hidden_size, torch.is_grad_enabled()
        )
    )


def use_kernels(owner: str, input: object, *, proj_size: int = 0, required: bool = False) -> bool:
    """Whether the kernels, not torch's operators, serve this kind of input.

    Args:
        owner: the module's name, for the message.
        input: what the module was called with.
        proj_size: the module's.
        required: torch's operators do not have what the module computes.

    Raises:
        RuntimeError: if the kernels are required or were asked for by name, and cannot serve it.
    """
    if (
        not proj_size
        and isinstance(input, Tensor)
        and input.is_cpu
        and input.dtype in _KERNEL_DTYPES
        and not torch.is_autocast_enabled("cpu")
    ):
        return required or _backend != "torch"
    if required or _backend == "rnnfast":
        reason = "torch lacks its equations" if required else "the backend is set to 'rnnfast'"
        projected = f" with proj_size={proj_size}" if proj_size else ""
        raise RuntimeError(
            f"{owner} has to run on rnnfast's kernels ({reason}), which serve float32 and float64 "
            "tensors on the CPU, outside autocast and without proj_size; "
            f"got {describe(input)}{projected}"
        )
    return False


def describe(value: object) -> str:
    """A value that was passed, in a few words, for an error message."""
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    text = f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{text} under autocast" if torch.is_autocast_enabled(value.device.type) else text
