r"""Inference with int8 weights: a quarter of the memory, and of what a step has to read.

Each row of a weight (of one output unit) is stored as whole numbers in [-127, 127] and one float32
scale, the row's largest magnitude over 127. Activations are rounded as they come, each row of
:math:`x_t` and :math:`h_{t-1}` to whole numbers of 16 bits (fewer where more than 516 features are
summed) with a scale of its own, so that the error is that of the weights: half a scale each. Sums
are exact; states, gates, biases and results are float32. The equations and the range of the whole
numbers stand in ``csrc/quantized.h``.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import register_fake
from torch.nn.functional import pad
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence

from rnnfast import _extension  # noqa: F401  (registers the operator)
from rnnfast.backend import describe
from rnnfast.modules import GRU, LSTM, RNN
from rnnfast.modules.lengths import Packing
from rnnfast.reference import untiled

__all__ = ["QuantizedRecurrent", "quantize_dynamic"]

_quantized_op = torch.ops.rnnfast.quantized.default
_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_SOURCES = (LSTM, GRU, RNN, nn.LSTM, nn.GRU, nn.RNN)
# Of a tile of weights, as in csrc/quantized.h.
_UNITS, _DEPTH = 16, 16


def quantize_dynamic(module: nn.Module) -> nn.Module:
    """Makes int8 inference modules of the recurrent layers in ``module``, as
    ``torch.ao.quantization.quantize_dynamic`` does, without calibration.

    Args:
        module: an LSTM, GRU or RNN of this package or of :mod:`torch.nn`, in float32 on the CPU, or
            any module that contains some.

    Returns:
        A :class:`QuantizedRecurrent`; or a copy of the model, with one in place of each. The given
        module stays as it was. Cells, and subclasses of these modules, which may have a forward of
        their own, are copied as they are. Hooks on a replaced module are not taken over.

    Raises:
        TypeError: if ``module`` is not a module.
        ValueError: if there is no recurrent layer in it, or one that cannot be quantised: not in
            float32 on the CPU, weights that are not finite, ``proj_size``, ``return_states=True``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    replaced = {
        id(layer): _quantized(name, layer)
        for name, layer in module.named_modules()
        if type_before_parametrizations(layer) in _SOURCES
    }
    if not replaced:
        raise ValueError(
            "module must be or contain an LSTM, GRU or RNN of rnnfast or torch.nn (not a subclass "
            f"of one), got {type(module).__name__}"
        )
    # What deepcopy finds in its memo it takes for the copy.
    return copy.deepcopy(module, replaced)


class QuantizedRecurrent(nn.Module):
    r"""QuantizedRecurrent(mode, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, bidirectional=False, *, reset_after=True, learn_initial_state=False)

    A stack of recurrent layers with int8 weights, for inference. :func:`quantize_dynamic` makes it
    of a float32 module; one that is constructed has weights of zero until a state is loaded.

    The call is that of the float32 module, and so are the results, but for rounding. They never
    require a gradient, even where the input does, and there is no dropout.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``.
        input_size: number of features of the input.
        hidden_size: number of features of the hidden state.
        num_layers: number of layers.
        bias: whether the gates have biases.
        batch_first: whether sequences are `(batch, seq_len, features)`; states never are.
        bidirectional: whether each layer also runs backwards in time.
        reset_after: GRU's form, see :class:`rnnfast.GRU`.
        learn_initial_state: whether there are initial states to use when none are given.

    Inputs: input, hx
        - **input**: the sequence, float32 on the CPU, or a
          :class:`~torch.nn.utils.rnn.PackedSequence`. A row (a step of a sequence) that holds an
          infinity or a NaN gives NaN in its sequence from there on.
        - **hx**: h_0, with mode ``"LSTM"`` the tuple (h_0, c_0); zeros if not given.
        - **lengths** (keyword): how many steps each sequence of a padded batch has, as for
          :class:`rnnfast.LSTM`.

    Outputs: output, hx
        - **output**: :math:`h_t` of the last layer for each `t`, both directions concatenated.
        - **hx**: h_n, with mode ``"LSTM"`` the tuple (h_n, c_n).

    Shape:
        - input: `(seq_len, batch, input_size)`, `(batch, seq_len, input_size)` with
          ``batch_first=True``, or `(seq_len, input_size)` unbatched.
        - states: `(num_layers * D, batch, hidden_size)`, without `batch` if unbatched, where `D`
          is 2 if bidirectional, else 1.
        - output: like input with `D * hidden_size` features.

    Attributes:
        weight_ih_l[k], weight_hh_l[k]: int8, in the tiles of ``csrc/quantized.h``;
            :meth:`dequantize` gives them as float32 matrices.
        scale_ih_l[k], scale_hh_l[k]: `(gates * hidden_size)`, what a one in a row stands for.
        bias_ih_l[k], bias_hh_l[k]: `(gates * hidden_size)`.
        weight_ih_l[k]_reverse and so on: those of the backward direction.

        All are buffers: ``state_dict`` has them, ``parameters()`` does not.

    Raises:
        TypeError: for an input that is not float32 on the CPU, or a module that was moved from it.
        ValueError: for arguments, shapes or lengths that do not fit.
    """  # noqa: E501

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__()
        if mode not in _GATES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, _GATES))}, got {mode!r}")
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.reset_after = reset_after
        self.learn_initial_state = learn_initial_state
        rows, directions = _GATES[mode] * hidden_size, 2 if bidirectional else 1
        # Of each layer and direction, the names of its buffers, in the order of the operator.
        self._layers = []
        for layer in range(num_layers):
            for suffix in ("", "_reverse")[:directions]:
                names = [
                    f"{kind}_l{layer}{suffix}"
                    for kind in (
                        ("weight_ih", "weight_hh", "scale_ih", "scale_hh", "bias_ih", "bias_hh")
                    )
                ]
                depths = (hidden_size * directions if layer else input_size, hidden_size)
                for name, depth in zip(names, depths, strict=False):
                    rounded = torch.zeros(rows, depth, dtype=torch.int8)
                    self.register_buffer(name, _tiles(rounded, _GATES[mode]))
                for name in names[2:]:
                    has = bias or not name.startswith("bias")
                    self.register_buffer(name, torch.zeros(rows) if has else None)
                self._layers.append(names)
        self._state_names = ("h_0", "c_0") if mode == "LSTM" else ("h_0",)
        for name in self._state_names:
            initial = torch.zeros(len(self._layers), hidden_size) if learn_initial_state else None
            self.register_buffer(name, initial)

    def dequantize(self) -> dict[str, Tensor]:
        """The state of a float32 module with the rounded weights: ``torch.nn`` and rnnfast load it.

        What such a module computes differs from this one's results by the rounding of the
        activations alone.
        """
        state = {}
        for index, names in enumerate(self._layers):
            weight_ih, weight_hh, scale_ih, scale_hh, *biases = names
            directions = 2 if self.bidirectional else 1
            input_size = self.hidden_size * directions if index >= directions else self.input_size
            for name, scale, depth in (
                (weight_ih, scale_ih, input_size),
                (weight_hh, scale_hh, self.hidden_size),
            ):
                rounded = untiled(getattr(self, name), self.hidden_size, depth)
                state[name] = rounded * getattr(self, scale).unsqueeze(1)
            state.update((name, getattr(self, name).clone()) for name in biases if self.bias)
        if self.learn_initial_state:
            state.update((name, getattr(self, name).clone()) for name in self._state_names)
        return state

    def flatten_parameters(self) -> None:
        """Nothing to do; models call it."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, Any]:
        is_packed = isinstance(input, PackedSequence)
        data = input.data if is_packed else input
        if not isinstance(data, Tensor) or data.dtype != torch.float32 or not data.is_cpu:
            raise TypeError(f"input must be a float32 tensor on the CPU, got {describe(data)}")
        weight = self.weight_ih_l0
        if not weight.is_cpu:
            raise TypeError(f"the module must be on the CPU, got weights on {weight.device}")
        dims = (2,) if is_packed else (2, 3)
        if data.dim() not in dims or data.size(-1) != self.input_size:
            raise ValueError(
                f"input must be {' or '.join(map(str, dims))}-D with input_size="
                f"{self.input_size} features, got shape {tuple(data.shape)}"
            )
        if lengths is not None and (is_packed or data.dim() != 3):
            raise ValueError(
                f"lengths go with a padded batch, a 3-D input; got input {describe(input)}"
            )
        unbatched = not is_packed and data.dim() == 2
        batch_dim = 0 if self.batch_first else 1
        if unbatched:
            data = data.unsqueeze(batch_dim)
        batch = int(input.batch_sizes[0]) if is_packed else data.size(batch_dim)
        states = self._initial_states(hx, batch, unbatched, data)
        if data.requires_grad:
            data = data.detach()

        packing = batch_sizes = order = restore = None
        if is_packed:
            _, batch_sizes, order, restore = input
        elif lengths is not None:
            seq_len = data.size(1 - batch_dim)
            packing = Packing.of(lengths, seq_len, batch, self.batch_first, data.device)
            batch_sizes, order, restore = packing[:3]
            padded, data = data, packing.pack(data)
        if order is not None:
            states = [state.index_select(1, order) for state in states]
        output, final = self._run_layers(data, states, batch_sizes)
        if restore is not None:
            final = [state.index_select(1, restore) for state in final]

        if is_packed:
            output = PackedSequence(output, *input[1:])
        elif packing is not None:
            output = packing.unpack(output, like=padded)
        elif unbatched:
            output = output.squeeze(batch_dim)
            final = [state.squeeze(1) for state in final]
        return output, final[0] if len(final) == 1 else tuple(final)

    def _initial_states(
        self, hx: Tensor | tuple[Tensor, ...] | None, batch: int, unbatched: bool, data: Tensor
    ) -> list[Tensor]:
        """The states to begin with, each `(num_layers * D, batch, hidden_size)`."""
        count, names = len(self._layers), self._state_names
        if hx is None:
            if self.learn_initial_state:
                return [getattr(self, name).unsqueeze(1).expand(-1, batch, -1) for name in names]
            return [data.new_zeros(count, batch, self.hidden_size)] * len(names)
        states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        expected = (count, self.hidden_size) if unbatched else (count, batch, self.hidden_size)
        if len(states) != len(names):
            raise ValueError(f"hx must be {' and '.join(names)}, got {len(states)} of them")
        for name, state in zip(names, states, strict=True):
            if not isinstance(state, Tensor) or state.shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {describe(state)}")
            if state.dtype != torch.float32 or not state.is_cpu:
                raise TypeError(f"{name} must be float32 on the CPU, got {describe(state)}")
        return [state.detach().unsqueeze(1) if unbatched else state.detach() for state in states]

    def _run_layers(
        self, input: Tensor, states: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        directions = 2 if self.bidirectional else 1
        final = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                initial = [state[index] for state in states]
                output, *last = _quantized_op(
                    input,
                    initial[0],
                    initial[1] if self.mode == "LSTM" else None,
                    *(self._buffers[name] for name in self._layers[index]),
                    mode=self.mode,
                    batch_sizes=batch_sizes,
                    reset_after=self.reset_after,
                    batch_first=self.batch_first and batch_sizes is None,
                    reverse=direction == 1,
                )
                outputs.append(output)
                final.append(last[: len(states)])
            input = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        if len(final) == 1:
            return input, [state.unsqueeze(0) for state in final[0]]
        return input, [torch.stack(layers) for layers in zip(*final, strict=True)]

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        # A copy would cut the weights of a float32 module to whole numbers without a word.
        wrong = [
            f"{prefix}{name} must have dtype {buffer.dtype}, got {state_dict[prefix + name].dtype}"
            for name, buffer in self._buffers.items()
            if prefix + name in state_dict and state_dict[prefix + name].dtype != buffer.dtype
        ]
        if wrong:
            error_msgs.extend(wrong)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        text = f"{self.mode!r}, {self.input_size}, {self.hidden_size}"
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "bidirectional": False,
            "reset_after": True,
            "learn_initial_state": False,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            text += f", {name}={value}" if value != default else ""
        return text


def _quantized(name: str, module: nn.RNNBase) -> QuantizedRecurrent:
    def reject(reason: str) -> None:
        raise ValueError(f"cannot quantise {name or 'module'}, a {type(module).__name__}: {reason}")

    if module.proj_size:
        reject(f"proj_size={module.proj_size} is not supported")
    if getattr(module, "return_states", False):
        reject("return_states=True is not supported")
    initial = getattr(module, "learn_initial_state", False)
    result = QuantizedRecurrent(
        module.mode,
        module.input_size,
        module.hidden_size,
        module.num_layers,
        module.bias,
        module.batch_first,
        module.bidirectional,
        reset_after=getattr(module, "reset_after", True),
        learn_initial_state=initial,
    )
    state = {}
    with torch.no_grad():
        for buffer in result._buffers:
            # Looked up by name, for parametrizations compute it. Scales come with their weight.
            if result._buffers[buffer] is None or buffer.startswith("scale"):
                continue
            value = getattr(module, buffer)
            if value.dtype != torch.float32 or not value.is_cpu:
                reject(f"{buffer} must be float32 on the CPU, got {describe(value)}")
            if not value.isfinite().all():
                reject(f"{buffer} must be finite")
            if buffer.startswith("weight"):
                rounded, state[buffer.replace("weight", "scale")] = _rounded(value)
                value = _tiles(rounded, _GATES[module.mode])
            state[buffer] = value
        result.load_state_dict(state)
    return result.train(module.training)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers in [-127, 127], int8, and the scale of each row, float32."""
    scale = weight.abs().amax(1) / 127
    # In float64, since the scale of a tiny row may be subnormal; 0 where the row is.
    quotient = weight.double() / torch.where(scale > 0, scale, 1).double().unsqueeze(1)
    return quotient.round().clamp(-127, 127).to(torch.int8), scale


def _tiles(rows: Tensor, gates: int) -> Tensor:
    """`(gates * hidden_size, depth)` in the kernels' tiles; the reverse is `untiled`."""
    by_gate = rows.unflatten(0, (gates, -1))
    _, units, depth = by_gate.shape
    by_gate = pad(by_gate, (0, -depth % _DEPTH, 0, -units % _UNITS))
    tiles = by_gate.reshape(
        gates, -(-units // _UNITS), _UNITS, -(-depth // _DEPTH) * _DEPTH // 2, 2
    )
    return tiles.permute(1, 3, 0, 2, 4).contiguous()


@register_fake("rnnfast::quantized")
def _(input, h_0, c_0, *weights, **options):
    output = input.new_empty(*input.shape[:-1], h_0.size(1))
    return output, input.new_empty(h_0.shape), input.new_empty(0 if c_0 is None else c_0.shape)
