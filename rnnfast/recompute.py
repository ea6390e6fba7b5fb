r"""Training that keeps little for backward: forward again, segment by segment.

Forward keeps its output and, of every segment of about :math:`\sqrt{T}` steps, the states before
it. Backward walks the segments from the last to the first, runs each forward again, which gives the
same bits, and then backward as usual. Memory beside input and output grows with :math:`\sqrt{T}`;
time, by one more forward (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
Under ``torch.compile`` a layer is one segment: of several layers, one at a time is in memory.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["in_segments"]

# Steps up to which a sequence is one segment: each packs the weights anew.
_ONE_SEGMENT = 32


def in_segments(
    layer: Callable[..., tuple[Tensor, ...]],
    weights: list[Tensor | None],
    input: Tensor,
    *states: Tensor,
    batch_sizes: Tensor | None = None,
    batch_first: bool = False,
    reverse: bool = False,
    precision: str = "fp32",
) -> tuple[Tensor, ...]:
    """One layer in one direction, with what it computes but states dropped until backward.

    Args:
        layer: takes the arguments that follow; returns output, then the final states.
        weights: of the layer.
        input, states, batch_sizes, batch_first, reverse, precision: as for the operators of
            :mod:`rnnfast.ops`.

    Returns:
        What `layer` would return for the whole sequence.

    Raises:
        RuntimeError: in backward, if an argument was changed in place after forward.
    """
    layer = partial(layer, weights, batch_first=batch_first, reverse=reverse, precision=precision)
    fixed = [tensor for tensor in (*weights, input, *states) if tensor is not None]
    if not any(tensor.requires_grad for tensor in fixed):  # there will be no backward
        return layer(input, *states, batch_sizes=batch_sizes)
    versions = _versions(fixed)

    def run(part: Tensor, sizes: Tensor | None, *states: Tensor) -> tuple[Tensor, ...]:
        if _versions(fixed) != versions:
            raise RuntimeError(
                "a weight, the input or an initial state, needed for gradient computation, has "
                "been modified by an inplace operation between forward and backward"
            )
        return layer(part, *states, batch_sizes=sizes)

    dim = 1 if batch_first else 0
    seq_len = input.size(dim) if batch_sizes is None else batch_sizes.numel()
    # Equal parts: a last segment of one step might be summed in another order. A graph for any
    # length cannot be cut up: there, the sequence is one segment.
    count = 1
    if not torch.compiler.is_compiling():
        count = max(1, math.ceil(seq_len / max(_ONE_SEGMENT, math.isqrt(seq_len))))
    if batch_sizes is None:
        segments = [(part, None) for part in input.tensor_split(count, dim)]
    else:
        sizes = batch_sizes.tensor_split(count)
        rows = [int(part.sum()) for part in sizes]
        segments = list(zip(input.split(rows), sizes, strict=True))
    outputs = []
    for part, sizes in reversed(segments) if reverse else segments:
        output, *states = checkpoint(
            run, part, sizes, *states, use_reentrant=False, preserve_rng_state=False
        )
        outputs.append(output)
    return torch.cat(outputs[::-1] if reverse else outputs, dim), *states


def _versions(tensors: list[Tensor]) -> list[int]:
    """What autograd counts changes in place by."""
    return [] if torch.compiler.is_compiling() else [tensor._version for tensor in tensors]
