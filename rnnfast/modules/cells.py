"""The single-step modules: LSTMCell, GRUCell and RNNCell."""

from torch import Tensor, nn

from rnnfast import backend, ops
from rnnfast._extension import eager
from rnnfast.prepacking import PackedLayers


class _Cell(nn.RNNCellBase):
    """What the cells share.

    Parameters, their names, order and initialisation, and the attributes are those of
    :class:`torch.nn.RNNCellBase`. What the kernels do not take, wrong input included, goes to the
    forward of torch's module, which serves it or raises torch's error.
    """

    # torch's module of the same name.
    _torch: type[nn.RNNCellBase]
    # By what name the rule of the backend knows it.
    _kind: str
    # How many states there are.
    _num_states = 1
    # Whether the equations are ones that torch's operators do not have.
    _kernels_only = False
    # What rnnfast.prepack keeps.
    _packed_layers: PackedLayers | None = None

    def _cell_name(self) -> str:
        """By what name the kernels know the equations."""
        return self._kind.removesuffix("Cell")

    def _run_step(
        self,
        input: Tensor,
        states: tuple[Tensor, ...],
        weights: tuple[Tensor | None, ...],
        packed_weights: int,
    ) -> tuple[Tensor, ...]:
        """One step on `(1, batch, input_size)`: a sequence of one output, then the new states.
        `packed_weights` is as for the operators."""
        raise NotImplementedError

    def _run(self, input: Tensor, states: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        """The new states; or ``None`` where the call is left to torch's forward."""
        if backend.may_be_eager():
            results = eager.step(self, self._kind, input, states)
            if results is not None:
                return results
        if not backend.use_kernels(type(self).__name__, input, required=self._kernels_only):
            return None
        shape = input.shape
        # Each is looked up once, for a parametrization computes at every look.
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if (
            len(shape) not in (1, 2)
            or shape[-1] != self.input_size
            or not backend.same_kind(weights[0], input)
        ):
            return None
        size = (*shape[:-1], self.hidden_size)
        if states is None:
            states = (input.new_zeros(size),) * self._num_states
        else:
            for state in states:
                if not (
                    isinstance(state, Tensor)
                    and state.shape == size
                    and backend.same_kind(state, input)
                ):
                    return None
        batched = len(size) == 2
        given = weights
        casts = backend.casts(input)
        if casts:
            dtype, result_dtype = backend.dtypes(self._kind, input)
            input = backend.cast(input, dtype)
            states = tuple(backend.cast(state, dtype) for state in states)
            weights = tuple(backend.cast(weight, dtype) for weight in weights)
        if not batched:
            input = input.unsqueeze(0)
            states = tuple(state.unsqueeze(0) for state in states)
        packed = self._packed_layers and self._packed_layers.of(
            self._cell_name(), [given], [weights], "fp32", input, *states
        )
        packed_weights = packed[0].id if packed else 0
        with backend.without_autocast(input):
            states = self._run_step(input.unsqueeze(0), states, weights, packed_weights)[1:]
        if not batched:
            states = tuple(state.squeeze(0) for state in states)
        return tuple(backend.cast(state, result_dtype) for state in states) if casts else states


class LSTMCell(_Cell):
    r"""LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)

    One step of a long short-term memory, in place of :class:`torch.nn.LSTMCell`.

    The equations are those of :class:`rnnfast.LSTM`.

    Args:
        input_size: number of features of the input.
        hidden_size: number of features of the hidden and cell state.
        bias: whether the gates have biases.
        device, dtype: of the parameters.

    Inputs: input, (h_0, c_0)
        - **input**: the input of this step.
        - **h_0**, **c_0**: the states before it; zeros if not given.

    Outputs: (h_1, c_1)
        - **h_1**, **c_1**: the states after it.

    Shape:
        - input: `(batch, input_size)` or `(input_size)`.
        - h_0, c_0, h_1, c_1: `(batch, hidden_size)` or `(hidden_size)`.

    Attributes:
        weight_ih: `(4 * hidden_size, input_size)`, gates in the order i, f, g, o.
        weight_hh: `(4 * hidden_size, hidden_size)`.
        bias_ih, bias_hh: `(4 * hidden_size)`, or ``None``.

    Raises:
        What :class:`torch.nn.LSTMCell` raises for the same arguments and inputs; ``RuntimeError``
        if the backend ``"rnnfast"`` was asked for and cannot serve the input.
    """

    _torch = nn.LSTMCell
    _kind = "LSTMCell"
    _num_states = 2

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        states = None
        if hx is None or (isinstance(hx, (tuple, list)) and len(hx) == 2):
            states = self._run(input, hx)
        return self._torch.forward(self, input, hx) if states is None else states

    def _run_step(
        self,
        input: Tensor,
        states: tuple[Tensor, ...],
        weights: tuple[Tensor | None, ...],
        packed_weights: int,
    ) -> tuple[Tensor, ...]:
        return ops.lstm(input, *states, *weights, packed_weights=packed_weights)


class GRUCell(_Cell):
    r"""GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None, *, reset_after=True)

    One step of a gated recurrent unit, in place of :class:`torch.nn.GRUCell`.

    The equations are those of :class:`rnnfast.GRU`.

    Args:
        input_size: number of features of the input.
        hidden_size: number of features of the hidden state.
        bias: whether the gates have biases.
        device, dtype: of the parameters.
        reset_after: whether the reset gate acts after the recurrent product (torch's form) or
            before it (the original paper's, which torch does not have).

    Inputs: input, h_0
        - **input**: the input of this step.
        - **h_0**: the state before it; zeros if not given.

    Outputs: h_1
        - **h_1**: the state after it.

    Shape:
        - input: `(batch, input_size)` or `(input_size)`.
        - h_0, h_1: `(batch, hidden_size)` or `(hidden_size)`.

    Attributes:
        weight_ih: `(3 * hidden_size, input_size)`, gates in the order r, z, n.
        weight_hh: `(3 * hidden_size, hidden_size)`.
        bias_ih, bias_hh: `(3 * hidden_size)`, or ``None``.

    Raises:
        What :class:`torch.nn.GRUCell` raises for the same arguments and inputs; ``RuntimeError``
        if the backend ``"rnnfast"`` was asked for and the kernels cannot serve the input.
    """

    _torch = nn.GRUCell
    _kind = "GRUCell"
    reset_after: bool = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = reset_after

    @property
    def _kernels_only(self) -> bool:
        return not self.reset_after

    def _cell_name(self) -> str:
        return "GRU" if self.reset_after else "GRU_RESET_BEFORE"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        states = self._run(input, None if hx is None else (hx,))
        if states is not None:
            return states[0]
        new = self._torch.forward(self, input, hx)
        if not self.reset_after:
            raise RuntimeError(
                f"GRUCell with reset_after=False cannot serve input {backend.describe(input)} and "
                f"hx {backend.describe(hx)} with weights like {backend.describe(self.weight_ih)}"
            )
        return new

    def _run_step(
        self,
        input: Tensor,
        states: tuple[Tensor, ...],
        weights: tuple[Tensor | None, ...],
        packed_weights: int,
    ) -> tuple[Tensor, ...]:
        return ops.gru(
            input, *states, *weights, reset_after=self.reset_after, packed_weights=packed_weights
        )

    def extra_repr(self) -> str:
        form = "" if self.reset_after else ", reset_after=False"
        return super().extra_repr() + form


class RNNCell(_Cell):
    r"""RNNCell(input_size, hidden_size, bias=True, nonlinearity='tanh', device=None, dtype=None)

    One step of a simple recurrent network, in place of :class:`torch.nn.RNNCell`.

    The equation is that of :class:`rnnfast.RNN`.

    Args:
        input_size: number of features of the input.
        hidden_size: number of features of the hidden state.
        bias: whether there are biases.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        device, dtype: of the parameters.

    Inputs: input, h_0
        - **input**: the input of this step.
        - **h_0**: the state before it; zeros if not given.

    Outputs: h_1
        - **h_1**: the state after it.

    Shape:
        - input: `(batch, input_size)` or `(input_size)`.
        - h_0, h_1: `(batch, hidden_size)` or `(hidden_size)`.

    Attributes:
        weight_ih: `(hidden_size, input_size)`.
        weight_hh: `(hidden_size, hidden_size)`.
        bias_ih, bias_hh: `(hidden_size)`, or ``None``.

    Raises:
        What :class:`torch.nn.RNNCell` raises for the same arguments and inputs; ``RuntimeError``
        if the backend ``"rnnfast"`` was asked for and cannot serve the input.
    """

    _torch = nn.RNNCell
    _kind = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        states = None
        if self.nonlinearity in ("tanh", "relu"):
            states = self._run(input, None if hx is None else (hx,))
        return self._torch.forward(self, input, hx) if states is None else states[0]

    def _run_step(
        self,
        input: Tensor,
        states: tuple[Tensor, ...],
        weights: tuple[Tensor | None, ...],
        packed_weights: int,
    ) -> tuple[Tensor, ...]:
        return ops.rnn(
            input, *states, *weights, nonlinearity=self.nonlinearity, packed_weights=packed_weights
        )
