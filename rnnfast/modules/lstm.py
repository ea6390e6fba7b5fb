"""The LSTM module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast import ops
from rnnfast.modules.base import Recurrent


class LSTM(Recurrent):
    r"""LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None, *, memory="full", return_states=False, learn_initial_state=False, recurrent_init="uniform", forget_bias=None)

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
        proj_size: size of a projection of :math:`h_t` (Sak et al. 2014), 0 for none.
        device, dtype: of the parameters.
        memory: ``"full"`` keeps what backward needs; ``"recompute"`` keeps the states of about
            :math:`\sqrt{\text{seq\_len}}` steps only, and runs forward again in backward: the same
            gradients, up to rounding, in less memory and more time.
        return_states: whether a third result gives the states of all steps.
        learn_initial_state: whether the initial states used when none is given is learnt:
            parameters `h_0` and `c_0`, `(num_layers * D, features)`, zero at first.
        recurrent_init: ``"uniform"``, torch's, or ``"orthogonal"`` (Saxe et al. 2014): each gate's
            block of weight_hh is made orthogonal.
        forget_bias: what the forget gates' biases add up to at first (Gers et al. 2000 and
            Jozefowicz et al. 2015 take 1); ``None`` for torch's random ones.

    Inputs: input, (h_0, c_0)
        - **input**: the sequence, or a :class:`~torch.nn.utils.rnn.PackedSequence`.
        - **h_0**, **c_0**: the initial states of every layer and direction; zeros if not given.
        - **lengths** (keyword): how many steps each sequence of a padded batch has, `(batch)`
          integers from 0 to `seq_len`; all of them if not given. No work is done beyond a
          sequence's end, where output is 0; its final state is the one after its last step, or the
          initial state if it has none.

    Outputs: output, (h_n, c_n)
        - **output**: :math:`h_t` of the last layer for each `t`, both directions concatenated.
        - **h_n**, **c_n**: the final states of every layer and direction.
        - **states** (with ``return_states=True``): of each layer, pairs of :math:`h_t` and :math:`c_t` for each `t`,
          shaped like output, both directions concatenated.

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

    _torch = nn.LSTM
    _state_names = ("h_0", "c_0")
    _options = (*Recurrent._options, "forget_bias")
    forget_bias: float | None = None

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

    def __init__(self, *args, forget_bias: float | None = None, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)
        if forget_bias is not None and not self.bias:
            raise ValueError(f"forget_bias={forget_bias} needs bias=True")
        self.forget_bias = forget_bias
        self._initialize_forget_bias()

    def _initialize(self) -> None:
        super()._initialize()
        self._initialize_forget_bias()

    def _initialize_forget_bias(self) -> None:
        if self.forget_bias is None:
            return
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        with torch.no_grad():
            for _, _, bias_ih, bias_hh, *_ in self._current_weights():
                bias_ih[forget] = self.forget_bias
                bias_hh[forget] = 0

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)

    def _final_dtype(
        self, index: int, input_dtype: torch.dtype, result_dtype: torch.dtype
    ) -> torch.dtype:
        # torch's autocast lowers the product with weight_hr, and so what it gives, alone.
        return input_dtype if self.proj_size and index == 1 else result_dtype

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, ...]:
        states = hx
        if hx is not None:
            states = tuple(hx) if isinstance(hx, (tuple, list)) else ()
        return self._forward(input, hx, states, lengths)

    def _run_layer(
        self, weights: list[Tensor | None], input: Tensor, *states: Tensor, **layout
    ) -> tuple[Tensor, ...]:
        results = ops.lstm(input, *states, *weights, return_cells=self.return_states, **layout)
        return *results[:3], *(cells.to(input.dtype) for cells in results[3:])
