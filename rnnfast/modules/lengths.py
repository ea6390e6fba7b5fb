"""Sequences of unequal length inside one padded tensor."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Packing"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Packing(NamedTuple):
    """How the rows of a padded tensor are packed, as in a PackedSequence.

    Unlike a :class:`~torch.nn.utils.rnn.PackedSequence`, it knows the padded tensor it came from,
    and a sequence may have no step at all: such rows are in `sorted_indices`, after all others.
    """

    batch_sizes: Tensor
    sorted_indices: Tensor
    unsorted_indices: Tensor
    # Of each packed row, its index in the padded tensor, time and batch flattened.
    rows: Tensor

    @classmethod
    def of(cls, lengths: Tensor | Sequence[int], seq_len: int, batch: int,
           batch_first: bool, device: torch.device) -> "Packing":  # fmt: skip
        """For tensors on that device; batch_sizes stays on the CPU.

        Raises ValueError for lengths that do not fit `(batch)` sequences of `seq_len` steps.
        """
        try:
            lengths = torch.as_tensor(lengths)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"lengths must be {batch} integers, got {lengths!r}") from error
        # A list without elements becomes a tensor of floats.
        if lengths.dim() != 1 or (lengths.numel() and lengths.dtype not in _INTEGERS):
            raise ValueError(
                f"lengths must be {batch} integers, got a {lengths.dtype} tensor of shape "
                f"{tuple(lengths.shape)}"
            )
        lengths = lengths.to("cpu", torch.int64)
        if lengths.numel() != batch:
            raise ValueError(f"lengths must be {batch} integers, got {lengths.numel()}")
        lengths, order = lengths.sort(descending=True, stable=True)
        shortest, longest = (lengths[-1].item(), lengths[0].item()) if batch else (0, 0)
        if torch.compiler.is_compiling():
            # A graph cannot branch on values, but check them when it runs.
            torch._check(shortest >= 0, lambda: "lengths must be at least 0")
            torch._check(longest <= seq_len, lambda: "lengths must be at most seq_len")
        elif not 0 <= shortest <= longest <= seq_len:
            raise ValueError(
                f"lengths must be from 0 to seq_len ({seq_len}), got {shortest} to {longest}"
            )
        time = torch.arange(longest)
        takes_part = lengths > time.unsqueeze(1)
        step, position = takes_part.nonzero(as_tuple=True)
        row = order[position]
        rows = row * seq_len + step if batch_first else step * batch + row
        indices = (index.to(device) for index in (order, order.argsort(), rows))
        return cls(takes_part.sum(1), *indices)

    def pack(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self.rows)

    def unpack(self, packed: Tensor, like: Tensor) -> Tensor:
        """The padded tensor, of the layout of `like`; zero beyond each sequence's end."""
        shape = (*like.shape[:2], packed.size(-1))
        zeros = packed.new_zeros(shape[0] * shape[1], shape[2])
        return zeros.index_copy(0, self.rows, packed).view(shape)
