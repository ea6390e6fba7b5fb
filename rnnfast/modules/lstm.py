"""The LSTM module."""

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast import ops
from rnnfast.modules.base import Recurrent


class LSTM(Recurrent):
    r"""LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None)

    A stack of long short-term memory layers, in place of :class:`torch.nn.LSTM`.

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    where :math:`x_t` is the input or, above the first layer, the output of the layer below after
    dropout. Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    Args:
        input_size: number of features of the input.
        hidden_size: number of features of the hidden and cell state.
        num_layers: number of layers.
        bias: whether the gates have biases.
        batch_first: whether sequences are `(batch, seq_len, features)`; states never are.
        dropout: probability with which an output of any layer but the last is zeroed in training.
        bidirectional: whether each layer also runs backwards in time.
        proj_size: size of a projection of :math:`h_t`, 0 for none (served by torch's operators).
        device, dtype: of the parameters.

    Inputs: input, (h_0, c_0)
        - **input**: the sequence, or a :class:`~torch.nn.utils.rnn.PackedSequence` (served by
          torch's operators).
        - **h_0**, **c_0**: the initial states of every layer and direction; zeros if not given.

    Outputs: output, (h_n, c_n)
        - **output**: :math:`h_t` of the last layer for each `t`, both directions concatenated.
        - **h_n**, **c_n**: the final states of every layer and direction.

    Shape:
        - input: `(seq_len, batch, input_size)`, `(batch, seq_len, input_size)` with
          ``batch_first=True``, or `(seq_len, input_size)` unbatched.
        - h_0, c_0, h_n, c_n: `(num_layers * D, batch, hidden_size)`, without `batch` if unbatched,
          where `D` is 2 if bidirectional, else 1. Layer by layer, forwards before backwards.
        - output: like input with `D * hidden_size` features.

    Attributes:
        weight_ih_l[k]: `(4 * hidden_size, input_size)`, above the first layer
            `(4 * hidden_size, D * hidden_size)`, gates in the order i, f, g, o.
        weight_hh_l[k]: `(4 * hidden_size, hidden_size)`.
        bias_ih_l[k], bias_hh_l[k]: `(4 * hidden_size)`.
        weight_ih_l[k]_reverse and so on: those of the backward direction.

        All are initialised from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})`,
        :math:`k = 1 / \text{hidden\_size}`.

    Raises:
        What :class:`torch.nn.LSTM` raises for the same arguments and inputs; ``RuntimeError`` if
        the backend ``"rnnfast"`` was asked for and cannot serve the input.
    """  # noqa: E501

    _num_states = 2

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        result = None
        if hx is None or (isinstance(hx, (tuple, list)) and len(hx) == 2):
            result = self._run(input, hx)
        if result is None:
            return nn.LSTM.forward(self, input, hx)
        output, h_n, c_n = result
        return output, (h_n, c_n)

    def _run_layer(
        self, input: Tensor, states: list[Tensor], weights: list[Tensor], reverse: bool
    ) -> tuple[Tensor, ...]:
        return ops.lstm(input, *states, *weights, batch_first=self.batch_first, reverse=reverse)
