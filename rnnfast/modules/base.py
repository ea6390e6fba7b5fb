"""What LSTM, GRU and RNN share: options, which calls the kernels take, the walk through layers."""

import operator
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from rnnfast import backend, concurrent, elsewhere, ops
from rnnfast._extension import eager
from rnnfast.modules.lengths import Packing
from rnnfast.prepacking import PackedLayers
from rnnfast.recompute import in_segments


class Recurrent(nn.RNNBase):
    """Base of the recurrent layers.

    Parameters, their names, order and initialisation, and the attributes are those of
    :class:`torch.nn.RNNBase`. What the kernels do not take, wrong input included, goes to the
    forward of torch's module, which serves it or raises torch's error.

    It does not derive from :class:`torch.nn.LSTM` and its kin because ``torch.compile`` refuses
    every instance of these.
    """

    # torch's module of the same name.
    _torch: type[nn.RNNBase]
    # Of each state, its name.
    _state_names: tuple[str, ...] = ("h_0",)

    # Options that torch's modules do not have, at the values that make the same module.
    _options: tuple[str, ...] = ("memory", "return_states", "learn_initial_state", "recurrent_init")
    memory: str = "full"
    return_states: bool = False
    learn_initial_state: bool = False
    recurrent_init: str = "uniform"

    # What rnnfast.prepack keeps.
    _packed_layers: PackedLayers | None = None

    def __init__(
        self,
        mode: str,
        *args,
        memory: str = "full",
        return_states: bool = False,
        learn_initial_state: bool = False,
        recurrent_init: str = "uniform",
        **kwargs,
    ) -> None:
        _check_choice("memory", memory, ("full", "recompute"))
        _check_choice("recurrent_init", recurrent_init, ("uniform", "orthogonal"))
        if return_states and memory == "recompute":
            raise ValueError(
                "return_states=True keeps the states of every step, which memory='recompute' is to "
                "avoid: only one of them can be had"
            )
        super().__init__(mode, *args, **kwargs)
        self.memory = memory
        self.return_states = return_states
        self.learn_initial_state = learn_initial_state
        self.recurrent_init = recurrent_init
        if learn_initial_state:
            like = self._current_weights()[0][0]
            for name, size in zip(self._state_names, self._state_sizes(), strict=True):
                initial = like.new_zeros(len(self._all_weights), size)
                self.register_parameter(name, nn.Parameter(initial))
        self._initialize()

    def reset_parameters(self) -> None:
        """Initialises all parameters anew, as the constructor did."""
        super().reset_parameters()
        self._initialize()

    def _initialize(self) -> None:
        """What initialisation has beyond torch's."""
        with torch.no_grad():
            if self.learn_initial_state:
                for name in self._state_names:
                    getattr(self, name).zero_()
            if self.recurrent_init == "orthogonal":
                for _, weight_hh, *_ in self._current_weights():
                    for gate in weight_hh.split(self.hidden_size):
                        # torch decomposes no matrix of a half type.
                        dtype = torch.promote_types(gate.dtype, torch.float32)
                        gate.copy_(nn.init.orthogonal_(torch.empty_like(gate, dtype=dtype)))

    def _state_sizes(self) -> tuple[int, ...]:
        """The features of each state."""
        return (self.hidden_size,)

    def _beyond_torch(self) -> bool:
        """Whether the module computes what torch's cannot."""
        return self.return_states or self.learn_initial_state

    def _beyond_cudnn(self, input: object) -> bool:
        """Whether torch's module, off the CPU, fails or keeps what is not to be kept."""
        is_packed = isinstance(input, PackedSequence)
        data = input.data if is_packed else input
        if not isinstance(data, Tensor) or backend.has_kernels(data):
            return False
        if backend.get_backend() != "auto":
            return False
        if self.memory == "recompute" and torch.is_grad_enabled():
            return True
        time = 1 if self.batch_first and data.dim() == 3 else 0
        seq_len = input.batch_sizes.numel() if is_packed else data.size(time)
        return seq_len > elsewhere.MOST_STEPS

    def _cell_name(self) -> str:
        """By what name the kernels know the equations."""
        return self.mode.partition("_")[0]

    def _run_layer(
        self, weights: list[Tensor | None], input: Tensor, *states: Tensor, **layout
    ) -> tuple[Tensor, ...]:
        """One layer in one direction: output, the final states and, with ``return_states``, what
        of all steps' states output does not tell. `layout` is batch_sizes, batch_first, reverse,
        precision and packed_weights, as for the operators."""
        raise NotImplementedError

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, ...]:
        """That of a layer with one state."""
        output, (h_n,), *every = self._forward(input, hx, None if hx is None else (hx,), lengths)
        return output, h_n, *(tuple(h for (h,) in layers) for layers in every)

    def _forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        states: tuple[Any, ...] | None,
        lengths: Tensor | Sequence[int] | None,
    ) -> tuple[Any, ...]:
        """Output, the tuple of final states and, with ``return_states``, those of all steps.

        Args:
            input, hx, lengths: as for forward.
            states: what `hx` holds; ``None`` if it was not given.
        """
        if lengths is None and backend.may_be_eager():
            results = eager.layers(self, input, states, backend.get_precision() == "bf16")
            if results is not None:
                return results
        if lengths is not None and not (isinstance(input, Tensor) and input.dim() == 3):
            raise ValueError(
                f"lengths go with a padded batch, a 3-D input; got input {backend.describe(input)}"
            )
        data = input.data if isinstance(input, PackedSequence) else input
        required = self._beyond_torch() or lengths is not None or self._beyond_cudnn(input)
        if backend.use_kernels(type(self).__name__, data, required=required):
            results = self._run(input, states, lengths)
            if results is not None:
                return results
        output, final = self._torch.forward(self, input, hx)
        if required:
            raise RuntimeError(
                f"{type(self).__name__} with {self._options_text()} or lengths cannot serve input "
                f"{backend.describe(input)} and hx {backend.describe(hx)} with weights like "
                f"{backend.describe(self._current_weights()[0][0])}"
            )
        return output, final if isinstance(final, tuple) else (final,)

    def _run(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Any, ...] | None,
        lengths: Tensor | Sequence[int] | None,
    ) -> tuple[Any, ...] | None:
        """What `_forward` returns, or ``None`` where the call is left to torch's forward."""
        is_packed = isinstance(input, PackedSequence)
        data = input.data if is_packed else input
        weights = self._current_weights()
        shape = data.shape
        batched = len(shape) == 3
        casts = backend.casts(data, in_parts=self.memory == "recompute")
        if (
            shape[-1:] != (self.input_size,)
            or (len(shape) != 2 if is_packed else len(shape) not in (2, 3))
            # Where nothing is cast, the operators check the others.
            or not backend.same_kind(weights[0][0], data)
            or (
                casts
                and not all(backend.same_kind(w, data) for w in chain(*weights) if w is not None)
            )
        ):
            return None
        batch_dim = 0 if self.batch_first else 1
        if is_packed:
            _, batch_sizes, order, restore = input
            seq_len, batch = batch_sizes.numel(), int(batch_sizes[0])
        else:
            batch_sizes = order = restore = None
            seq_len, batch = (shape[1 - batch_dim], shape[batch_dim]) if batched else (shape[0], 1)
        if seq_len == 0:
            return None
        sizes = self._state_sizes()
        if states is None and self.learn_initial_state:
            states = tuple(
                getattr(self, name).unsqueeze(1).expand(-1, batch, -1) for name in self._state_names
            )
        elif states is not None:
            if len(states) != len(sizes):
                return None
            for state, size in zip(states, sizes, strict=True):
                expected = (len(weights), batch, size)
                if not (batched or is_packed):
                    expected = (len(weights), size)
                if not (
                    isinstance(state, Tensor)
                    and state.shape == expected
                    and backend.same_kind(state, data)
                ):
                    return None
            if not (batched or is_packed):
                states = tuple(state.unsqueeze(1) for state in states)
        packing = None
        if lengths is not None:
            packing = Packing.of(lengths, seq_len, batch, self.batch_first, data.device)
            batch_sizes, order, restore = packing[:3]
            data = packing.pack(data)
        elif not (batched or is_packed):
            data = data.unsqueeze(batch_dim)
        if order is not None and states is not None:
            states = tuple(state.index_select(1, order) for state in states)

        precision = backend.product_precision(data)
        given = weights
        if casts:
            dtype, result_dtype = backend.dtypes(self.mode, data, is_packed)
            given_dtype = data.dtype if backend.has_kernels(data) else result_dtype
            data = backend.cast(data, dtype)
            states = states and [backend.cast(state, dtype) for state in states]
            weights = [[backend.cast(weight, dtype) for weight in layer] for layer in weights]
            with backend.without_autocast(data):
                output, final, every = self._run_layers(
                    data, states, weights, given, batch, batch_sizes, precision
                )
            final = [
                backend.cast(state, self._final_dtype(index, given_dtype, result_dtype))
                for index, state in enumerate(final)
            ]
        else:
            output, final, every = self._run_layers(
                data, states, weights, given, batch, batch_sizes, precision
            )

        def give_back(sequence: Tensor) -> Tensor | PackedSequence:
            if casts:
                sequence = backend.cast(sequence, result_dtype)
            if is_packed:
                return PackedSequence(sequence, *input[1:])
            if packing is not None:
                return packing.unpack(sequence, like=input)
            return sequence if batched else sequence.squeeze(batch_dim)

        if restore is not None:
            final = [state.index_select(1, restore) for state in final]
        if not (batched or is_packed):
            final = [state.squeeze(1) for state in final]
        if not self.return_states:
            return give_back(output), tuple(final)
        return (
            give_back(output),
            tuple(final),
            tuple(tuple(map(give_back, layer)) for layer in every),
        )

    def _final_dtype(self, index: int, input_dtype: torch.dtype,
                     result_dtype: torch.dtype) -> torch.dtype:  # fmt: skip
        """The dtype of a final state."""
        return result_dtype

    def _current_weights(self) -> list[list[Tensor | None]]:
        """The weights of each layer and direction: weight_ih, weight_hh, then bias_ih and bias_hh
        (``None`` without bias), then weight_hr where there is a projection.

        Looked up at each call, for they may have been replaced since the last (assignment,
        ``functional_call``, parametrizations); in the dictionary first, since ``getattr`` of a
        module costs ten times as much. As in torch, what a program has put into `_flat_weights`
        counts in their place, unless they have been replaced since.
        """
        names, parameters = self._flat_weights_names, self._parameters
        current = [parameters.get(name) for name in names]
        for index, weight in enumerate(current):
            if weight is None:
                current[index] = getattr(self, names[index])
        if any(map(operator.is_not, current, self._flat_weights)):
            pairs = zip(self._flat_weight_refs, current, strict=True)
            if not any(ref and weight is not None and ref() is not weight for ref, weight in pairs):
                current = self._flat_weights
        count = len(self._all_weights[0])
        weights = [current[start : start + count] for start in range(0, len(current), count)]
        if not self.bias:
            weights = [[*layer[:2], None, None, *layer[2:]] for layer in weights]
        return weights

    def _run_layers(
        self,
        input: Tensor,
        states: list[Tensor] | None,
        weights: list[list[Tensor | None]],
        given: list[list[Tensor | None]],
        batch: int,
        batch_sizes: Tensor | None,
        precision: str,
    ) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, ...]]]:
        """Output, final states `(num_layers * D, batch, size)`, all states of each layer; `given`
        are the weights before they were cast."""
        if states is None:
            zeros = [input.new_zeros(batch, size) for size in self._state_sizes()]
            initial = [zeros] * len(weights)
        else:
            initial = list(zip(*(state.unbind(0) for state in states), strict=True))
        batch_first = self.batch_first and batch_sizes is None
        num_states = len(self._state_names)
        directions = 2 if self.bidirectional else 1
        final, every = [], []
        in_parts = self.memory == "recompute" and torch.is_grad_enabled() and not ops.transformed()
        if (
            not in_parts
            and batch_sizes is None
            and not self.return_states
            and concurrent.serves(
                self._cell_name(),
                self.mode,
                weights,
                input,
                batch,
                directions=directions,
                precision=precision,
            )
        ):
            output, every_final = concurrent.run_layers(
                self.mode,
                input,
                initial,
                weights,
                directions=directions,
                dropout=self.dropout if self.training else 0.0,
                batch_first=batch_first,
                precision=precision,
            )
            return output, [torch.stack(layers) for layers in zip(*every_final, strict=True)], []
        packed = self._packed_layers and self._packed_layers.of(
            self._cell_name(), given, weights, precision, input, *chain(*initial)
        )
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0 and self.training:
                input = self._drop(input, batch_first)
            results = []
            for direction in range(directions):
                index = layer * directions + direction
                run = partial(in_segments, self._run_layer) if in_parts else self._run_layer
                if packed is not None and not in_parts:
                    run = partial(run, packed_weights=packed[index].id)
                output, *rest = run(
                    weights[index],
                    input,
                    *initial[index],
                    batch_sizes=batch_sizes,
                    batch_first=batch_first,
                    reverse=direction == 1,
                    precision=precision,
                )
                final.append(rest[:num_states])
                results.append((output, *rest[num_states:]))
            joined = results[0]
            if directions == 2:
                joined = tuple(torch.cat(pair, dim=-1) for pair in zip(*results, strict=True))
            input = joined[0]
            if self.return_states:
                every.append(joined)
        if len(final) == 1:
            return input, [state.unsqueeze(0) for state in final[0]], every
        return input, [torch.stack(layers) for layers in zip(*final, strict=True)], every

    def _drop(self, output: Tensor, batch_first: bool) -> Tensor:
        """Dropout between layers, with the mask that torch's modules draw from the same seed."""
        if not batch_first:
            return dropout(output, self.dropout)
        return output * concurrent.dropout_mask(output, output.size(-1), self.dropout, batch_first)

    def extra_repr(self) -> str:
        own = self._options_text()
        return f"{super().extra_repr()}, {own}" if own else super().extra_repr()

    def _options_text(self) -> str:
        """The options that are not at their defaults."""
        defaults = type(self)
        return ", ".join(
            f"{name}={getattr(self, name)!r}"
            for name in self._options
            if getattr(self, name) != getattr(defaults, name)
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
