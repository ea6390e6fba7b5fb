"""Resets within a window, against the stretches between them run apart."""

import pytest
import torch
from torch import nn

import rnnfast
from rnnfast.language_model.segments import Segments

PATTERNS = {
    "in the middle": [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]],
    "at the beginning": [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
    "at the end": [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]],
    "everywhere": [[1, 1, 1]] * 5,
    "one step": [[0, 1, 0]],
}


def step_by_step(layer, x, state, reset):
    outputs = []
    for step, rows in zip(x, reset, strict=True):
        state = tuple(torch.where(rows.unsqueeze(1), 0.0, tensor) for tensor in state)
        output, state = layer(step.unsqueeze(0), state)
        outputs.append(output)
    return torch.cat(outputs), state


@pytest.mark.parametrize("package", [rnnfast, nn], ids=["rnnfast", "torch"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("from_zeros", [True, False])
def test_rows_start_from_zeros_where_they_are_reset(package, pattern, from_zeros):
    reset = torch.tensor(PATTERNS[pattern], dtype=torch.bool)
    layer = package.LSTM(4, 6).double()
    x = torch.randn(*reset.shape, 4, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(1, 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    given = None if from_zeros else tuple(state)
    zeros = tuple(torch.zeros_like(tensor) for tensor in state)
    expected = step_by_step(layer, x, zeros if from_zeros else state, reset)
    found = Segments(reset).run(layer, x, given)
    torch.testing.assert_close(found, expected)

    inputs = [x, *layer.parameters(), *([] if from_zeros else state)]
    gradients = []
    for output, (h, c) in (found, expected):
        loss = output.square().sum() + (h * c).sum()
        gradients.append(torch.autograd.grad(loss, inputs))
    torch.testing.assert_close(*gradients)


def test_a_state_that_is_reset_does_not_count_even_if_it_is_not_finite():
    layer = rnnfast.RNN(4, 6)
    state = torch.full((1, 2, 6), torch.nan)
    reset = torch.tensor([[True, True], [False, False]])
    output, final = Segments(reset).run(
        lambda packed, state: (lambda out, h: (out, (h,)))(*layer(packed, state[0])),
        torch.randn(2, 2, 4),
        (state,),
    )
    assert output.isfinite().all() and final[0].isfinite().all()
