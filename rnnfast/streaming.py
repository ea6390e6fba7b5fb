"""Step by step with the state kept inside: what an audio or a control loop needs."""

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from rnnfast._extension import _C
from rnnfast.backend import describe

__all__ = ["Stream", "stream"]

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_DTYPES = (torch.float32, torch.float64)


def stream(
    module: nn.RNNBase, batch: int | None = 1, *, embedding: Tensor | None = None
) -> "Stream":
    """Makes a :class:`Stream` of a recurrent module, whose arguments these are."""
    return Stream(module, batch, embedding=embedding)


class Stream:
    """Runs a recurrent module one time step at a call and keeps the state from call to call.

    Over a sequence it gives what rnnfast's module gives, to the bit, in a fraction of the time that
    a call of the module takes for each step: weights are packed once, a step allocates nothing, and
    it is inference only (no dropout, nothing is recorded for backward).

    Args:
        module: an LSTM, GRU or RNN of rnnfast or of torch.nn, on the CPU, float32 or float64, not
            bidirectional. The stream has a copy of its weights: see :meth:`refresh`.
        batch: how many rows; ``None`` for unbatched steps.
        embedding: ``None``, or the weight of an :class:`torch.nn.Embedding` in front of the module,
            `(num_embeddings, input_size)`: a step then takes ids. Its product with the first
            layer's weight_ih is computed once, for all ids, and is kept in place of that weight: a
            step reads one row of it, to the same bits. For characters rather than for words.

    Attributes:
        module: the module it was made of.
        batch: as given.

    Raises:
        TypeError: if `module` is no such module or a weight has another dtype.
        ValueError: if `module` is bidirectional, a weight is not on the CPU or does not have the
            shape that the module's sizes say, `batch` is not positive, or `embedding` has no rows.

    A stream serves one thread at a time. It computes on up to :func:`torch.get_num_threads`
    threads, on one where a step is too short to be shared, always to the same bits.
    """

    def __init__(
        self, module: nn.RNNBase, batch: int | None = 1, *, embedding: Tensor | None = None
    ) -> None:
        mode = getattr(module, "mode", None)
        if not isinstance(module, nn.RNNBase) or mode not in _GATES:
            raise TypeError(
                "module must be an LSTM, GRU or RNN of rnnfast or torch.nn, "
                f"got a {type(module).__name__}"
            )
        if module.bidirectional:
            raise ValueError(
                "module must not be bidirectional: what runs backwards begins with the last step, "
                "which a stream does not have"
            )
        if batch is not None and (type(batch) is not int or batch < 1):
            raise ValueError(f"batch must be a positive integer or None, got {batch!r}")
        dtype = module.weight_ih_l0.dtype
        if dtype not in _DTYPES:
            raise TypeError(f"module must be float32 or float64, got weights of {dtype}")
        if embedding is not None:
            rows = embedding.size(0) if isinstance(embedding, Tensor) and embedding.dim() else 0
            _check("embedding", embedding, dtype, (rows, module.input_size))
            if rows == 0:
                raise ValueError("embedding must have a row at least, got none")
        self.module = module
        self.batch = batch
        self._embedding = embedding
        hidden_size, proj_size, layers = module.hidden_size, module.proj_size, module.num_layers
        size = proj_size or hidden_size
        reset_before = mode == "GRU" and not getattr(module, "reset_after", True)
        self._options = {
            "cell": "GRU_RESET_BEFORE" if reset_before else mode,
            "float64": dtype == torch.float64,
            "batch": batch or 1,
            "input_size": module.input_size,
            "hidden_size": hidden_size,
            "proj_size": proj_size,
        }
        # Of each layer's weights, in the order of the native side, the name and the shape; None
        # for what the layer has not.
        rows = _GATES[mode] * hidden_size
        bias = (rows,) if module.bias else None
        projection = (proj_size, hidden_size) if proj_size else None
        self._weights = []
        for layer in range(layers):
            shapes = {
                "weight_ih": (rows, size if layer else module.input_size),
                "weight_hh": (rows, size),
                "bias_ih": bias,
                "bias_hh": bias,
                "weight_hr": projection,
            }
            self._weights.append(
                [shape and (f"{name}_l{layer}", shape) for name, shape in shapes.items()]
            )

        self._dtype = dtype
        batched = () if batch is None else (batch,)
        state_sizes = (size, hidden_size) if mode == "LSTM" else (size,)
        # In-place changes of a tensor made under inference mode would be refused outside it.
        with torch.inference_mode(False):
            if embedding is None:
                self._input = self._zeros(*batched, module.input_size)
            else:
                self._input = torch.zeros(batched, dtype=torch.int64, device="cpu")
            self._output = self._zeros(*batched, size)
            self._states = [self._zeros(layers, *batched, features) for features in state_sizes]
        self._shape, self._input_dtype = self._input.shape, self._input.dtype
        self._written = [self._output]
        self.refresh()
        self.reset()

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device="cpu")

    def step(self, x: Tensor) -> Tensor:
        """One time step of every row.

        Args:
            x: the input :math:`x_t`; with an embedding, the row's id in it, int64.

        Returns:
            The last layer's :math:`h_t`. It is the same tensor at every step, and the next step
            overwrites it: ``clone()`` what is to be kept.

        Shape:
            - x: `(batch, input_size)`, or `(input_size)` unbatched; with an embedding `(batch)`,
              or `()` unbatched.
            - output: `(batch, hidden_size)`, or `(hidden_size)` unbatched; `proj_size` in place of
              `hidden_size` where there is a projection.

        Raises:
            TypeError: if `x` is no tensor or has another dtype than the weights, or than int64
                with an embedding.
            ValueError: if it has another shape or is not a dense tensor on the CPU.
            IndexError: if an id is not in the embedding.
            RuntimeError: if another thread is in a step of this stream.
        """
        if not (
            type(x) is Tensor
            and x.dtype is self._input_dtype
            and x.shape == self._shape
            and x.is_cpu
            and x.is_contiguous()
            and not x.is_neg()
        ):
            x = _copy("x", x, self._input)
        self._step(x.data_ptr())
        # Autograd then refuses a backward that needs what an earlier step has left here.
        increment_version(self._written)
        return self._output

    @property
    def state(self) -> Tensor | tuple[Tensor, Tensor]:
        """A copy of the state: `h_n`, or `(h_n, c_n)` of an LSTM, as the module returns it.

        Shape:
            - h_n: `(num_layers, batch, hidden_size)`, or `(num_layers, hidden_size)` unbatched;
              `proj_size` in place of `hidden_size` where there is a projection.
            - c_n: the same, always with `hidden_size`.
        """
        copies = tuple(state.clone() for state in self._states)
        return copies if len(copies) == 2 else copies[0]

    def set_state(self, hx: Tensor | tuple[Tensor, Tensor]) -> None:
        """Goes on from a state, of which a copy is made.

        Args:
            hx: `h_0`, or `(h_0, c_0)` for an LSTM, as :attr:`state` gives it.

        Raises:
            TypeError: if it is no tensor, or for an LSTM no pair of tensors, of the stream's dtype.
            ValueError: if a shape is another one, or a tensor is not on the CPU.
        """
        states = (hx,) if len(self._states) == 1 else hx
        if not isinstance(states, (tuple, list)) or len(states) != len(self._states):
            raise TypeError(f"hx must be a pair (h_0, c_0), got {describe(hx)}")
        names = ("h_0", "c_0")[: len(states)]
        # All are checked before the first is changed.
        copies = [
            _copy(name, state, torch.empty_like(own))
            for name, state, own in zip(names, states, self._states, strict=True)
        ]
        for state, copy in zip(self._states, copies, strict=True):
            state.copy_(copy)

    def reset(self) -> None:
        """Goes back to the initial state: zeros, or what a module with ``learn_initial_state`` has
        learnt."""
        for state, initial in zip(self._states, self._initial, strict=True):
            state.copy_(initial)

    def refresh(self) -> None:
        """Takes over the module's weights, and the embedding, as they are now; the state stays.

        A stream does not see what happens to the module's weights after it was made (an optimizer's
        step, ``load_state_dict``) before this is called.

        Raises:
            TypeError, ValueError: as the constructor, if weights have been replaced by others.
        """
        layers = [[named and self._weight(*named) for named in layer] for layer in self._weights]
        initial = [torch.zeros((), dtype=self._dtype, device="cpu")] * len(self._states)
        if getattr(self.module, "learn_initial_state", False):
            names = ("h_0", "c_0")
            initial = [
                self._weight(name, (len(layers), state.shape[-1])).clone()
                for name, state in zip(names, self._states, strict=False)
            ]
            if self.batch is not None:
                initial = [state.unsqueeze(1) for state in initial]
        embedding = self._embedding
        if embedding is not None:
            _check(
                "embedding", embedding, self._dtype, (embedding.shape[0], self.module.input_size)
            )
            embedding = embedding.detach().contiguous()
        self._native = _C.Stream(
            **self._options,
            weights=[[0 if w is None else w.data_ptr() for w in layer] for layer in layers],
            embedding=0 if embedding is None else embedding.data_ptr(),
            num_embeddings=0 if embedding is None else embedding.size(0),
            h=self._states[0].data_ptr(),
            c=self._states[1].data_ptr() if len(self._states) == 2 else 0,
            output=self._output.data_ptr(),
        )
        self._step = self._native.step
        self._initial = initial

    def _weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A weight as it is now, checked, contiguous."""
        weight = getattr(self.module, name)
        _check(name, weight, self._dtype, shape)
        return weight.detach().contiguous()


def _copy(name: str, source: object, to: Tensor) -> Tensor:
    """What came under this name, checked to be like `to`, copied there."""
    _check(name, source, to.dtype, to.shape)
    with torch.no_grad():
        return to.copy_(source)


def _check(name: str, value: object, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    is_tensor = isinstance(value, Tensor)
    if is_tensor and value.dtype == dtype:
        if value.shape == shape and value.is_cpu and value.layout is torch.strided:
            return
        error = ValueError
    else:
        error = TypeError
    sparse = f" ({value.layout})" if is_tensor and value.layout is not torch.strided else ""
    raise error(
        f"{name} must be a dense {dtype} tensor of shape {tuple(shape)} on the CPU, "
        f"got {describe(value)}{sparse}"
    )
