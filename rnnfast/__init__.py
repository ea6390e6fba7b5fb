"""rnnfast: recurrent networks at hardware speed, drop-in for torch.nn."""

from rnnfast import loss, onnx, ops, optim, reference
from rnnfast._extension import build_info, cpu_isa, cpu_isas, set_cpu_isa
from rnnfast.backend import get_backend, get_precision, set_backend, set_precision
from rnnfast.convert import accelerate, patched, restore
from rnnfast.freed_memory import keep_freed_memory
from rnnfast.loss import LinearCrossEntropyLoss
from rnnfast.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from rnnfast.prepacking import prepack
from rnnfast.quantization import QuantizedRecurrent, quantize_dynamic
from rnnfast.streaming import Stream, stream
from rnnfast.summary import Summary, summary

__version__ = build_info()["version"]

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "LinearCrossEntropyLoss",
    "QuantizedRecurrent",
    "RNN",
    "RNNCell",
    "Stream",
    "Summary",
    "accelerate",
    "build_info",
    "cpu_isa",
    "cpu_isas",
    "get_backend",
    "get_precision",
    "keep_freed_memory",
    "loss",
    "onnx",
    "ops",
    "optim",
    "patched",
    "prepack",
    "quantize_dynamic",
    "reference",
    "restore",
    "set_backend",
    "set_cpu_isa",
    "set_precision",
    "stream",
    "summary",
]
