"""Drop-in replacements for torch.nn's recurrent modules."""

from rnnfast.modules.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.modules.gru import GRU
from rnnfast.modules.lstm import LSTM
from rnnfast.modules.rnn import RNN

__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell"]
