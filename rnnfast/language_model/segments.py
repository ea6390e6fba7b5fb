"""Rows whose state is set to zero on the way, as sequences of their own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Layer = Callable[..., tuple[Any, tuple[Tensor, ...]]]


class Segments:
    """The stretches of a window between resets, packed as one batch of shorter sequences.

    Whatever the number of resets, a layer runs once, as it would without.

    Args:
        reset: where a row's state is set to zero before that time step.

    Shape:
        - reset: ``(seq_len, batch)``, bool, with at least one time step.
    """

    def __init__(self, reset: Tensor) -> None:
        seq_len, batch = reset.shape
        opens = reset.clone()
        opens[0] = True
        # Segments are counted along each row, one row after the other.
        opens = opens.t().flatten()
        segment = opens.cumsum(0) - 1
        length = segment.bincount()
        step = torch.arange(len(segment), device=reset.device) - opens.nonzero().flatten()[segment]
        # A PackedSequence has the longest first, and all sequences' first steps, then all second.
        rank = _inverse(length.argsort(descending=True, stable=True))
        order = (step * len(length) + rank[segment]).argsort()
        # Where in the window, time step after time step, each packed step comes from.
        self._source = order % seq_len * batch + order.div(seq_len, rounding_mode="floor")
        self._place = _inverse(self._source)
        self._batch_sizes = step.bincount().cpu()
        by_row = rank[segment].view(batch, seq_len)
        self._first, self._last = by_row[:, 0], by_row[:, -1]
        self._opening = reset[0].unsqueeze(1)

    def run(
        self, layer: Layer, input: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A layer's output and its state after the last time step.

        Args:
            layer: takes a PackedSequence and the state before it, or None for zeros.
            input: what the layer reads.
            state: before the window; None for zeros.

        Shape:
            - input, output: ``(seq_len, batch, features)``.
            - state: each ``(1, batch, features)``.
        """
        packed = PackedSequence(input.flatten(0, 1)[self._source], self._batch_sizes)
        if state is not None:
            state = tuple(self._spread(tensor) for tensor in state)
        output, state = layer(packed, state)
        output = output.data[self._place].unflatten(0, input.shape[:2])
        return output, tuple(tensor[:, self._last] for tensor in state)

    def _spread(self, state: Tensor) -> Tensor:
        """A row's state, before its first segment unless that opens with a reset; zeros else."""
        segments = state.new_zeros(1, int(self._batch_sizes[0]), state.size(2))
        return segments.index_copy(1, self._first, state.masked_fill(self._opening, 0))


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse
