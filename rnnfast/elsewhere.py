"""The operators of :mod:`rnnfast.ops` on devices for which there are no kernels.

Where torch has the operator it runs (on a GPU, cuDNN's), one layer in one direction to a call. It
is given at most 65,535 steps at once, above which cuDNN fails. What torch lacks (the cells of every
step, the GRU that resets before the product) is left to the loops of :mod:`rnnfast.reference`,
which are right and slow.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["MOST_STEPS", "by_torch", "by_twin"]

# In one call of cuDNN.
MOST_STEPS = 65_535


def by_torch(
    mode: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor | None, ...],
    batch_sizes: Tensor | None,
    batch_first: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """One layer in one direction by torch's operator.

    Args:
        mode: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        input, batch_sizes, batch_first, reverse: as for the operators; with at least one element.
        states: one or two, `(batch, features)`.
        weights: weight_ih, weight_hh, bias_ih, bias_hh and, where there is a projection, weight_hr.

    Returns:
        output, then the final states.
    """
    weight_ih, weight_hh, bias_ih, bias_hh, *weight_hr = weights
    biases = [bias for bias in (bias_ih, bias_hh) if bias is not None]
    if len(biases) == 1:  # torch's has both or none
        biases = [torch.zeros_like(biases[0]) if b is None else b for b in (bias_ih, bias_hh)]
    parameters = [weight_ih, weight_hh, *biases, *(w for w in weight_hr if w is not None)]
    # has_biases, num_layers, dropout, train, bidirectional; cuDNN has no backward but of training.
    options = (bool(biases), 1, 0.0, torch.is_grad_enabled(), False)
    run = getattr(torch, mode)
    time = 1 if batch_first and batch_sizes is None else 0

    mirror = None
    if reverse:
        mirror = _mirror(batch_sizes).to(input.device) if batch_sizes is not None else None
        input = input.flip(time) if mirror is None else input.index_select(0, mirror)
    steps = input.size(time) if batch_sizes is None else batch_sizes.numel()
    count = math.ceil(steps / MOST_STEPS)
    if batch_sizes is None:
        parts = [(part, None) for part in input.tensor_split(count, time)]
    else:
        sizes = batch_sizes.tensor_split(count)
        rows = [int(part.sum()) for part in sizes]
        parts = list(zip(input.split(rows), sizes, strict=True))
    outputs = []
    for part, sizes in parts:
        # Rows without a step in this part keep their state, and torch may not see them.
        some = slice(None) if sizes is None else slice(int(sizes[0]))
        hx = [state[some].unsqueeze(0).contiguous() for state in states]
        hx = hx if mode == "lstm" else hx[0]
        if sizes is None:
            output, *final = run(part, hx, parameters, *options, batch_first)
        else:
            output, *final = run(part, sizes, hx, parameters, *options)
        outputs.append(output)
        states = tuple(
            torch.cat((new.squeeze(0), old[new.size(1) :]))
            for new, old in zip(final, states, strict=True)
        )
    output = outputs[0] if count == 1 else torch.cat(outputs, time)
    if reverse:
        output = output.flip(time) if mirror is None else output.index_select(0, mirror)
    return output, *states


def _mirror(batch_sizes: Tensor) -> Tensor:
    """Of each packed row, where the row stands that is as far from its sequence's other end."""
    takes_part = torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)
    lengths = takes_part.sum(0)
    step, row = takes_part.nonzero(as_tuple=True)
    before = batch_sizes.cumsum(0) - batch_sizes
    return before[lengths[row] - 1 - step] + row


def by_twin(
    twin: Callable[..., tuple[Tensor, ...]], *inputs: Tensor | None, **options: object
) -> tuple[Tensor, ...]:
    """What a function of :mod:`rnnfast.reference` gives; half types are computed in float32."""
    dtype = inputs[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    inputs = tuple(None if tensor is None else tensor.to(wide) for tensor in inputs)
    return tuple(result.to(dtype) for result in twin(*inputs, **options))
