"""Several recurrences at once, on CUDA: both directions of a layer, or the layers of a stack.

Most of a step's time the blocks of a grid wait for each other, however few multiprocessors they
take. Recurrences that do not need each other therefore advance together, each on its share of them:
the directions of a bidirectional layer, and the layers of a stack as a wavefront (Appleyard et al.
2016, "Optimizing Performance of Recurrent Neural Networks on GPUs"): the sequence is cut into
parts, and while a layer works on one, the layer above works on the one before. Backward goes the
same way from the end.

Nothing here has run on a GPU; the number of parts follows from foretold times.
"""

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from rnnfast import backend, ops, reference

__all__ = ["dropout_mask", "run_layers", "serves"]

_ops = torch.ops.rnnfast

# Of each mode, its states and its twin in plain torch with the options that make it this mode.
_MODES = {
    "LSTM": (2, reference.lstm, {}),
    "GRU": (1, reference.gru, {}),
    "RNN_TANH": (1, reference.rnn, {"nonlinearity": "tanh"}),
    "RNN_RELU": (1, reference.rnn, {"nonlinearity": "relu"}),
}

# What a part costs beside its steps (launches, products of a few rows, weights read into shared
# memory), in steps: some 30 us of 3 us a step, foretold.
_PART_STEPS = 10

# Of a recurrence: input, its initial states, weight_ih, weight_hh, bias_ih and bias_hh.
Recurrence = Sequence[Tensor | None]


def serves(
    cell: str,
    mode: str,
    weights: Sequence[Sequence[Tensor | None]],
    input: Tensor,
    batch: int,
    *,
    directions: int,
    precision: str,
) -> bool:
    """Whether the device advances more than one recurrence of a module at once.

    Args:
        cell: by what name the kernels know the equations.
        mode: that of :class:`torch.nn.RNNBase`.
        weights: of each layer and direction.
        input: of the first, with at least one element.
        batch: its rows.
        directions: 1 or 2, of every layer.
        precision: as for the operators of :mod:`rnnfast.ops`.
    """
    count = 2 if directions == 2 else len(weights)
    if (
        not input.is_cuda
        or not backend.has_kernels(input)
        or count == 1
        or cell == "GRU_RESET_BEFORE"
        or len(weights[0]) > 4  # a projection
        or torch.compiler.is_compiling()
        or ops.transformed()
    ):
        return False
    tensors = (input, *(tensor for layer in weights for tensor in layer))
    sizes = (count, batch, weights[0][1].size(1))
    return all(
        _ops.concurrent_at_once(input, *sizes, mode, precision, backward) > 1
        for backward in ((False, True) if ops.records_gradient(*tensors) else (False,))
    )


def run_layers(
    mode: str,
    input: Tensor,
    initial: Sequence[Sequence[Tensor]],
    weights: Sequence[Sequence[Tensor | None]],
    *,
    directions: int,
    dropout: float,
    batch_first: bool,
    precision: str,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """All layers of a module.

    Args:
        mode: that of :class:`torch.nn.RNNBase`.
        input: `(seq_len, batch, input_size)`, or `(batch, seq_len, input_size)` with
            `batch_first`; at least one step.
        initial: of each layer and direction, the initial states, `(batch, hidden_size)`.
        weights: likewise, weight_ih, weight_hh, bias_ih and bias_hh.
        directions: 1 or 2, of every layer.
        dropout: the probability, between layers; 0 for none. The masks are those that
            :func:`torch.nn.functional.dropout` draws for each layer's whole output in turn.
        batch_first, precision: as for the operators of :mod:`rnnfast.ops`.

    Returns:
        The output of the last layer, and the final states of each layer and direction.
    """
    layout = {"mode": mode, "batch_first": batch_first, "precision": precision}
    time_dim = 1 if batch_first else 0
    layers = len(weights) // directions
    seq_len = input.size(time_dim)
    count = 1 if directions == 2 else _part_count(seq_len, layers)
    features = directions * weights[0][1].size(1)
    masks = [
        deque(dropout_mask(input, features, dropout, batch_first).tensor_split(count, time_dim))
        for _ in range(layers - 1 if dropout else 0)
    ]
    states = list(initial)
    # Of each layer the parts that it has yet to work on; at last, those of the output.
    waiting = [deque(input.tensor_split(count, time_dim)), *(deque() for _ in range(layers))]
    for turn in range(count + layers - 1):
        active = [layer for layer in range(layers) if 0 <= turn - layer < count]
        part = {layer: waiting[layer].popleft() for layer in active}
        pairs = [(layer, direction) for layer in active for direction in range(directions)]
        indices = [layer * directions + direction for layer, direction in pairs]
        results = _recurrences(
            [
                (part[layer], *states[index], *weights[index])
                for index, (layer, _) in zip(indices, pairs, strict=True)
            ],
            reverse=[direction == 1 for _, direction in pairs],
            **layout,
        )
        for index, (_, *final) in zip(indices, results, strict=True):
            states[index] = tuple(final)
        for layer, both in zip(active, _rows(results, directions), strict=True):
            output = _joined([output for output, *_ in both], -1)
            if dropout and layer + 1 < layers:
                output = output * masks[layer].popleft()
            waiting[layer + 1].append(output)
    return _joined(list(waiting[layers]), time_dim), states


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _part_count(seq_len: int, layers: int) -> int:
    """The number of parts that takes least: of P parts, P + layers - 1 turns of seq_len / P steps
    and what a part costs."""
    return max(1, round(math.sqrt(seq_len * (layers - 1) / _PART_STEPS)))


def dropout_mask(input: Tensor, features: int, p: float, batch_first: bool) -> Tensor:
    """For a sequence of the input's layout and so many features: drawn in time-major order, as
    torch does."""
    shape = input.transpose(0, 1).shape if batch_first else input.shape
    mask = torch.nn.functional.dropout(input.new_ones(*shape[:-1], features), p)
    return mask.transpose(0, 1) if batch_first else mask


def _recurrences(
    given: Sequence[Recurrence], *, mode: str, reverse: list[bool], batch_first: bool,
    precision: str,
) -> list[tuple[Tensor, ...]]:  # fmt: skip
    """Recurrences that do not need each other, of the same batch and hidden_size.

    Returns:
        Of each, output and final states.
    """
    options = {
        "mode": mode,
        "batch_first": batch_first,
        "reverse": reverse,
        "precision": precision,
    }
    flat = [tensor for recurrence in given for tensor in recurrence]
    if ops.records_gradient(*flat):
        results = _Concurrent.apply(options, *flat)
    else:
        results = _ops.concurrent_inference(*_columns(mode, flat), **options)
    return _rows(results, len(results) // len(given))


def _rows(flat: Sequence, width: int) -> list[Sequence]:
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def _columns(mode: str, flat: Sequence[Tensor | None]) -> list[list[Tensor | None]]:
    """The lists that the operators take: input, h_0, c_0, both weights, both biases."""
    num_states = _MODES[mode][0]
    columns = [list(flat[i :: num_states + 5]) for i in range(num_states + 5)]
    return columns if num_states == 2 else [*columns[:2], [], *columns[2:]]


class _Concurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, options, *flat):
        num_states = _MODES[options["mode"]][0]
        columns = _columns(options["mode"], flat)
        results = _ops.concurrent(*columns, **options)
        rows = _rows(results, len(results) // len(columns[0]))
        ctx.set_materialize_grads(False)
        kept = [(row[0], *row[1 + num_states :]) for row in rows]
        ctx.num_inputs, ctx.options = len(flat), options
        ctx.save_for_backward(*flat, *(tensor for row in kept for tensor in row))
        return tuple(tensor for row in rows for tensor in row[: 1 + num_states])

    @staticmethod
    def backward(ctx, *grad_results):
        mode, options = ctx.options["mode"], ctx.options
        num_states, twin, form = _MODES[mode]
        saved = ctx.saved_tensors
        flat, kept = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
        width = num_states + 5
        count = len(flat) // width
        needed = _rows(ctx.needs_input_grad[1:], width)
        grads = _rows(grad_results, 1 + num_states)
        if torch.is_grad_enabled() or ops.transformed():
            layout = {"batch_first": options["batch_first"], "precision": options["precision"]}
            gradients = []
            for i, inputs in enumerate(_rows(flat, width)):
                form_here = {**form, **layout, "reverse": options["reverse"][i]}
                gradients += ops.composite_gradients(twin, form_here, inputs, needed[i], grads[i])
            return None, *gradients
        columns = _columns(mode, flat)
        output, *others = [list(kept[i :: len(kept) // count]) for i in range(len(kept) // count)]
        cells = others[0] if num_states == 2 else []
        gates = others[-1] if others else []
        grad_columns = [[row[i] for row in grads] for i in range(1 + num_states)]
        gradients = _ops.concurrent_backward(
            *grad_columns,
            *([] if num_states == 2 else [[]]),
            *columns[:5],
            output,
            cells,
            gates,
            **options,
            need_input=[row[0] for row in needed],
            need_weights=any(any(row[-4:-2]) for row in needed),
            need_bias=any(any(row[-2:]) for row in needed),
        )
        result = []
        for row, need in zip(_rows(gradients, len(gradients) // count), needed, strict=True):
            if len(row) < width:
                # One gradient for both biases. Were it one tensor, too, an update in place of one
                # would change the other.
                row = (*row, row[-1].clone() if all(need[-2:]) else row[-1])
            result += [grad if wanted else None for grad, wanted in zip(row, need, strict=True)]
        return None, *result


@register_fake("rnnfast::concurrent_at_once")
def _(like, count, batch, hidden_size, mode, precision, backward):
    return 1  # so that what traces sees one recurrence to an operator
