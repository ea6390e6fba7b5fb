"""The six modules as loops over single differentiable operations, from their equations.

Slow and independent of both torch's and our kernels; autograd, ``torch.func`` and ``torch.compile``
take it apart down to matrix products. It is the reference where torch.nn refuses.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def _step(kind: str, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """The states after one step; h_t comes first. The last one or two weights are the biases."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    gates_x, gates_h = linear(x, weight_ih, bias_ih), linear(states[0], weight_hh, bias_hh)
    if kind == "LSTM":
        i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * c.tanh(), c]
    if kind == "GRU":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = gates_x.chunk(3, dim=-1), gates_h.chunk(3, dim=-1)
        z = (z_x + z_h).sigmoid()
        return [(1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * states[0]]
    return [(gates_x + gates_h).tanh()]


class _Layers(nn.RNNBase):
    """Batched, time-major, with biases."""

    def forward(self, input: Tensor, hx: Tensor | tuple[Tensor, ...] | None = None):
        kind = self.mode.split("_")[0]
        if hx is None:
            zeros = input.new_zeros(len(self.all_weights), input.shape[1], self.hidden_size)
            hx = (zeros, zeros) if kind == "LSTM" else zeros
        initial = hx if kind == "LSTM" else (hx,)
        directions = 2 if self.bidirectional else 1
        finals, outputs = [], []
        for index, weights in enumerate(self.all_weights):
            states = [state[index] for state in initial]
            steps, reverse = input.unbind(0), index % directions == 1
            hidden = []
            for x in reversed(steps) if reverse else steps:
                states = _step(kind, x, states, weights)
                hidden.append(states[0])
            outputs.append(torch.stack(hidden[::-1] if reverse else hidden))
            finals.append(states)
            if len(outputs) == directions:
                input, outputs = torch.cat(outputs, dim=-1), []
        final = tuple(torch.stack(states) for states in zip(*finals, strict=True))
        return input, final if kind == "LSTM" else final[0]


class LSTM(_Layers):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)


class GRU(_Layers):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__("GRU", *args, **kwargs)


class RNN(_Layers):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__("RNN_TANH", *args, **kwargs)


class _Cell(nn.RNNCellBase):
    """With biases."""

    def _advance(self, kind: str, input: Tensor, states: list[Tensor]) -> list[Tensor]:
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        return _step(kind, input, states, weights)

    def _zeros(self, input: Tensor) -> Tensor:
        return input.new_zeros(*input.shape[:-1], self.hidden_size)


class LSTMCell(_Cell):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, bias=True, num_chunks=4, **kwargs)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None):
        states = [self._zeros(input)] * 2 if hx is None else list(hx)
        return tuple(self._advance("LSTM", input, states))


class GRUCell(_Cell):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, bias=True, num_chunks=3, **kwargs)

    def forward(self, input: Tensor, hx: Tensor | None = None):
        return self._advance("GRU", input, [self._zeros(input) if hx is None else hx])[0]


class RNNCell(_Cell):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, bias=True, num_chunks=1, **kwargs)

    def forward(self, input: Tensor, hx: Tensor | None = None):
        return self._advance("RNN", input, [self._zeros(input) if hx is None else hx])[0]
