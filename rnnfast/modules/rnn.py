"""The plain RNN module."""

from torch import Tensor, nn

from rnnfast import ops
from rnnfast.modules.base import Recurrent

_MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}


class RNN(Recurrent):
    r"""RNN(input_size, hidden_size, num_layers=1, nonlinearity='tanh', bias=True, batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None, *, memory="full", return_states=False, learn_initial_state=False, recurrent_init="uniform")

    A stack of simple recurrent layers, in place of :class:`torch.nn.RNN`.

    .. math::
        h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})
        \qquad \phi = \tanh \text{ or } \text{ReLU}

    where :math:`x_t` is the input or, above the first layer, the output of the layer below after
    dropout. Source: Elman 1990.

    Args:
        input_size: number of features of the input.
        hidden_size: number of features of the hidden state.
        num_layers: number of layers.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bias: whether the layers have biases.
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
        weight_ih_l[k]: `(hidden_size, input_size)`, above the first layer
            `(hidden_size, D * hidden_size)`.
        weight_hh_l[k]: `(hidden_size, hidden_size)`.
        bias_ih_l[k], bias_hh_l[k]: `(hidden_size)`.
        weight_ih_l[k]_reverse and so on: those of the backward direction.

        All are initialised from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})`,
        :math:`k = 1 / \text{hidden\_size}`.

    Raises:
        What :class:`torch.nn.RNN` raises for the same arguments and inputs; ``RuntimeError`` if
        the backend ``"rnnfast"`` was asked for and cannot serve the input.
    """  # noqa: E501

    _torch = nn.RNN

    def __init__(self, *args, **kwargs) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in tuple(_MODES):  # which asks for no hash
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(_MODES[nonlinearity], *args, **kwargs)
        self.nonlinearity = nonlinearity

    def _run_layer(
        self, weights: list[Tensor | None], input: Tensor, *states: Tensor, **layout
    ) -> tuple[Tensor, ...]:
        # The mode, as in torch: modules that old versions of torch pickled know it only by that.
        nonlinearity = "relu" if self.mode == "RNN_RELU" else "tanh"
        return ops.rnn(input, *states, *weights, nonlinearity=nonlinearity, **layout)
