"""rnnfast: recurrent networks at hardware speed, drop-in for torch.nn."""

from rnnfast import onnx, ops, reference
from rnnfast._extension import build_info, cpu_isa, cpu_isas, set_cpu_isa
from rnnfast.backend import get_backend, set_backend
from rnnfast.convert import accelerate, patched, restore
from rnnfast.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__version__ = build_info()["version"]

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNCell",
    "accelerate",
    "build_info",
    "cpu_isa",
    "cpu_isas",
    "get_backend",
    "onnx",
    "ops",
    "patched",
    "reference",
    "restore",
    "set_backend",
    "set_cpu_isa",
]
