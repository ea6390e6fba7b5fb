"""The plain-torch specification agrees with torch.nn, and its second GRU form with the paper's."""

import math

import pytest
import torch
from torch import Tensor, nn

from rnnfast import reference

SEQ_LEN, BATCH, INPUT_SIZE, HIDDEN_SIZE = 5, 3, 4, 6


def double_module(build, **options) -> nn.Module:
    torch.manual_seed(0)
    return build(INPUT_SIZE, HIDDEN_SIZE, dtype=torch.float64, **options)


def inputs(batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    sizes = (BATCH, SEQ_LEN) if batch_first else (SEQ_LEN, BATCH)
    states = torch.randn(2, BATCH, HIDDEN_SIZE, dtype=torch.float64)
    return torch.randn(*sizes, INPUT_SIZE, dtype=torch.float64), *states


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"])
def test_reference_agrees_with_torch_both_ways(cell, bias, batch_first):
    options = {"bias": bias, "batch_first": batch_first, "bidirectional": True}
    if cell.startswith("RNN"):
        options["nonlinearity"] = cell[4:].lower()
    module = double_module(getattr(nn, cell[:4].rstrip("_")), **options)
    x, h, c = inputs(batch_first)
    # Both directions from the same state.
    first = (h.expand(2, -1, -1), c.expand(2, -1, -1)) if cell == "LSTM" else h.expand(2, -1, -1)
    output, final = module(x, first)
    final = final if cell == "LSTM" else (final,)

    for direction, weights in enumerate(module.all_weights):
        layout = {"batch_first": batch_first, "reverse": direction == 1}
        if cell == "LSTM":
            results = reference.lstm(x, h, c, *weights, **layout)[:3]
        elif cell == "GRU":
            results = reference.gru(x, h, *weights, **layout)[:2]
        else:
            nonlinearity = options["nonlinearity"]
            results = reference.rnn(x, h, *weights, nonlinearity=nonlinearity, **layout)
        expected = [output.chunk(2, dim=-1)[direction], *(state[direction] for state in final)]
        for result, value in zip(results, expected, strict=True):
            torch.testing.assert_close(result, value, rtol=0, atol=1e-14)


def test_gru_that_resets_before_is_the_papers():
    """Cho et al. 2014, equations 5 to 8 with biases, one number at a time."""
    module = double_module(nn.GRU)
    weight_ih, weight_hh, bias_ih, bias_hh = (w.tolist() for w in module.all_weights[0])
    x, h_0, _ = inputs(batch_first=False)

    def product(row: list[float], vector: list[float]) -> float:
        return math.fsum(a * b for a, b in zip(row, vector, strict=True))

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    expected = torch.empty(SEQ_LEN, BATCH, HIDDEN_SIZE, dtype=torch.float64)
    for row in range(BATCH):
        h = h_0[row].tolist()
        for t in range(SEQ_LEN):
            gates_x = [
                product(w, x[t, row].tolist()) + b for w, b in zip(weight_ih, bias_ih, strict=True)
            ]

            def gate(index: int, state: list[float], gates_x: list[float] = gates_x) -> float:
                return gates_x[index] + product(weight_hh[index], state) + bias_hh[index]

            units = range(HIDDEN_SIZE)
            r = [sigmoid(gate(unit, h)) for unit in units]
            z = [sigmoid(gate(HIDDEN_SIZE + unit, h)) for unit in units]
            reset = [r[unit] * h[unit] for unit in units]
            n = [math.tanh(gate(2 * HIDDEN_SIZE + unit, reset)) for unit in units]
            h = [(1 - z[unit]) * n[unit] + z[unit] * h[unit] for unit in units]
            expected[t, row] = torch.tensor(h, dtype=torch.float64)

    output, h_n, _ = reference.gru(x, h_0, *module.all_weights[0], reset_after=False)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(h_n, expected[-1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_no_step_leaves_the_state(cell):
    x, h, c = inputs(batch_first=False)
    states = (h, c) if cell == "lstm" else (h,)
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell] * HIDDEN_SIZE
    weights = [h.new_ones(gates, INPUT_SIZE), h.new_ones(gates, HIDDEN_SIZE)]
    output, *final = getattr(reference, cell)(x[:0], *states, *weights)
    assert output.shape == (0, BATCH, HIDDEN_SIZE)
    for state, initial in zip(final, states, strict=False):
        assert torch.equal(state, initial)
