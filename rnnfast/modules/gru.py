"""The GRU module."""

from torch import Tensor, nn

from rnnfast import ops
from rnnfast.modules.base import Recurrent


class GRU(Recurrent):
    r"""GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None, *, memory="full", return_states=False, learn_initial_state=False, recurrent_init="uniform", reset_after=True)

    A stack of gated recurrent unit layers, in place of :class:`torch.nn.GRU`.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn}))
            && \text{reset\_after=True: torch.nn.GRU, cuDNN} \\
        n_t &= \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t \odot h_{t-1}) + b_{hn})
            && \text{reset\_after=False: the paper} \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    where :math:`x_t` is the input or, above the first layer, the output of the layer below after
    dropout. Source: Cho et al. 2014.

    Args:
        input_size: number of features of the input.
        hidden_size: number of features of the hidden state.
        num_layers: number of layers.
        bias: whether the gates have biases.
        batch_first: whether sequences are `(batch, seq_len, features)`; states never are.
        dropout: probability with which an output of any layer but the last is zeroed in training.
        bidirectional: whether each layer also runs backwards in time.
        device, dtype: of the parameters.
        memory: ``"full"`` keeps what backward needs; ``"recompute"`` keeps the states of about
            :math:`\sqrt{\text{seq\_len}}` steps only, and runs forward again in backward: the same
            gradients, up to rounding, in less memory and more time.
        return_states: whether a third result gives the states of all steps.
        learn_initial_state: whether the initial state used when none is given is learnt:
            parameter `h_0`, `(num_layers * D, features)`, zero at first.
        recurrent_init: ``"uniform"``, torch's, or ``"orthogonal"`` (Saxe et al. 2014): each gate's
            block of weight_hh is made orthogonal.
        reset_after: whether the reset gate acts after the recurrent product (torch's form) or
            before it (the original paper's, which torch does not have: a kernel on the CPU, a
            loop over time elsewhere). Keras' word.

    Inputs: input, h_0
        - **input**: the sequence, or a :class:`~torch.nn.utils.rnn.PackedSequence`.
        - **h_0**: the initial state of every layer and direction; zeros if not given.
        - **lengths** (keyword): how many steps each sequence of a padded batch has, `(batch)`
          integers from 0 to `seq_len`; all of them if not given. No work is done beyond a
          sequence's end, where output is 0; its final state is the one after its last step, or the
          initial state if it has none.

    Outputs: output, h_n
        - **output**: :math:`h_t` of the last layer for each `t`, both directions concatenated.
        - **h_n**: the final state of every layer and direction.
        - **states** (with ``return_states=True``): of each layer, :math:`h_t` for each `t`,
          shaped like output, both directions concatenated.

    Shape:
        - input: `(seq_len, batch, input_size)`, `(batch, seq_len, input_size)` with
          ``batch_first=True``, or `(seq_len, input_size)` unbatched.
        - h_0, h_n: `(num_layers * D, batch, hidden_size)`, without `batch` if unbatched, where `D`
          is 2 if bidirectional, else 1. Layer by layer, forwards before backwards.
        - output: like input with `D * hidden_size` features.

    Attributes:
        weight_ih_l[k]: `(3 * hidden_size, input_size)`, above the first layer
            `(3 * hidden_size, D * hidden_size)`, gates in the order r, z, n.
        weight_hh_l[k]: `(3 * hidden_size, hidden_size)`.
        bias_ih_l[k], bias_hh_l[k]: `(3 * hidden_size)`.
        weight_ih_l[k]_reverse and so on: those of the backward direction.

        All are initialised from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})`,
        :math:`k = 1 / \text{hidden\_size}`.

    Raises:
        What :class:`torch.nn.GRU` raises for the same arguments and inputs; ``RuntimeError`` if
        the backend ``"rnnfast"`` was asked for and the kernels cannot serve the input.
    """  # noqa: E501

    _torch = nn.GRU
    _options = (*Recurrent._options, "reset_after")
    reset_after: bool = True

    def __init__(self, *args, reset_after: bool = True, **kwargs) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)
        self.reset_after = reset_after

    def _beyond_torch(self) -> bool:
        return not self.reset_after or super()._beyond_torch()

    def _cell_name(self) -> str:
        return "GRU" if self.reset_after else "GRU_RESET_BEFORE"

    def _run_layer(
        self, weights: list[Tensor | None], input: Tensor, *states: Tensor, **layout
    ) -> tuple[Tensor, ...]:
        return ops.gru(input, *states, *weights, reset_after=self.reset_after, **layout)
