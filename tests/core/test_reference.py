"""The plain-torch specification agrees with torch.nn, and its second GRU form with the paper's."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnnfast import reference

SEQ_LEN, BATCH, INPUT_SIZE, HIDDEN_SIZE, PROJ_SIZE = 5, 3, 4, 6, 2

LAYERS = {
    "lstm": (nn.LSTM, {}),
    "lstm_projected": (nn.LSTM, {"proj_size": PROJ_SIZE}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)
with_and_without_bias = pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
# Of torch.nn there is no twin for the second form of the GRU.
FORMS = [
    ("lstm", {}),
    ("lstm_projected", {}),
    ("gru", {}),
    ("gru", {"reset_after": False}),
    ("rnn_tanh", {}),
    ("rnn_relu", {}),
]
every_form = pytest.mark.parametrize(
    ("layer", "form"),
    FORMS,
    ids=["lstm", "lstm_projected", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu"],
)
LENGTHS = {
    "distinct": [6, 4, 3, 1],
    "ties": [5, 5, 2, 2, 2, 1],
    "equal": [3, 3, 3],
    "single_row": [4],
    "single_steps": [1, 1],
}
all_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


def build(layer: str, **options) -> nn.RNNBase:
    torch.manual_seed(0)
    kind, own = LAYERS[layer]
    return kind(INPUT_SIZE, HIDDEN_SIZE, dtype=torch.float64, **own, **options)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def draw_states(module: nn.RNNBase, batch: int) -> list[Tensor]:
    """Initial states of one layer in one direction."""
    torch.manual_seed(1)
    h_0 = random(batch, module.proj_size or HIDDEN_SIZE)
    return [h_0, random(batch, HIDDEN_SIZE)] if module.mode == "LSTM" else [h_0]


def weights_of(module: nn.RNNBase, reverse: bool = False) -> dict[str, Tensor]:
    """The weights of the first layer in one direction, by the names of the reference."""
    suffix = "_l0_reverse" if reverse else "_l0"
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return {
        name: getattr(module, name + suffix) for name in names if hasattr(module, name + suffix)
    }


def run_reference(
    layer: str, input: Tensor, states: list[Tensor], weights: dict[str, Tensor], **options
) -> tuple[Tensor, ...]:
    """All that the reference of a layer returns."""
    if layer == "rnn_relu":
        options["nonlinearity"] = "relu"
    return getattr(reference, layer.split("_")[0])(input, *states, **weights, **options)


def both_directions(
    layer: str, module: nn.RNNBase, input: Tensor, states: list[Tensor], **layout
) -> list[Tensor]:
    """What a bidirectional layer of torch.nn returns, by the reference: output, final states."""
    directions = [
        run_reference(layer, input, states, weights_of(module, reverse), reverse=reverse, **layout)
        for reverse in (False, True)
    ]
    output, *final = list(zip(*directions, strict=True))[: 1 + len(states)]
    return [torch.cat(output, dim=-1), *(torch.stack(state) for state in final)]


def of_torch(module: nn.RNNBase, input, states: list[Tensor]) -> list[Tensor]:
    """What torch's bidirectional layer returns, both directions from the same states."""
    h_0, *c_0 = [state.expand(2, -1, -1) for state in states]
    output, final = module(input, (h_0, *c_0) if c_0 else h_0)
    output = output if isinstance(output, Tensor) else output.data
    return [output, *(final if c_0 else (final,))]


def assert_same_with_gradients(
    ours: list[Tensor], theirs: list[Tensor], inputs: list[Tensor]
) -> None:
    """Results and, along a random direction through all of them, the gradients of `inputs`."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    cotangents = [torch.randn_like(result) for result in ours]
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, cotangents, retain_graph=True),
        torch.autograd.grad(theirs, inputs, cotangents),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
@with_and_without_bias
@every_layer
def test_agrees_with_torch_both_ways(layer, bias, batch_first):
    module = build(layer, bias=bias, batch_first=batch_first, bidirectional=True)
    states = draw_states(module, BATCH)
    input = random(*((BATCH, SEQ_LEN) if batch_first else (SEQ_LEN, BATCH)), INPUT_SIZE)
    inputs = [tensor.requires_grad_() for tensor in (input, *states)] + list(module.parameters())
    ours = both_directions(layer, module, input, states, batch_first=batch_first)
    assert_same_with_gradients(ours, of_torch(module, input, states), inputs)


@all_lengths
@with_and_without_bias
@every_layer
def test_packed_agrees_with_torch_both_ways(layer, bias, lengths):
    module = build(layer, bias=bias, bidirectional=True)
    states = draw_states(module, len(lengths))
    padded = random(max(lengths), len(lengths), INPUT_SIZE)
    inputs = [tensor.requires_grad_() for tensor in (padded, *states)] + list(module.parameters())
    packed = pack_padded_sequence(padded, torch.tensor(lengths))
    ours = both_directions(layer, module, packed.data, states, batch_sizes=packed.batch_sizes)
    assert_same_with_gradients(ours, of_torch(module, packed, states), inputs)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
@every_form
def test_packed_rows_are_those_of_each_row_alone(layer, form, reverse):
    """In every tensor returned, those kept for backward included; rows of length 0 come last."""
    module = build(layer)
    lengths = [4, 2, 2, 0]
    states = draw_states(module, len(lengths))
    weights = weights_of(module)
    rows = [random(length, 1, INPUT_SIZE) for length in lengths]
    batch_sizes = torch.tensor([sum(length > t for length in lengths) for t in range(max(lengths))])

    def pack(sequences: list[Tensor]) -> Tensor:
        return torch.cat(
            [row[t] for t in range(max(lengths)) for row in sequences if t < row.size(0)]
        )

    results = run_reference(
        layer, pack(rows), states, weights, batch_sizes=batch_sizes, reverse=reverse, **form
    )
    alone = [
        run_reference(
            layer, row, [state[[index]] for state in states], weights, reverse=reverse, **form
        )
        for index, row in enumerate(rows)
    ]
    final = range(1, 1 + len(states))
    for *_, nothing in (results, *alone):
        assert nothing.shape == (0,)
    columns = zip(*(every[:-1] for every in (results, *alone)), strict=True)
    for index, (result, *by_row) in enumerate(columns):
        expected = torch.cat(by_row) if index in final else pack(by_row)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)
    for index in final:
        assert torch.equal(results[index][-1], states[index - 1][-1])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@every_form
def test_differentiable_twice_and_forwards(layer, form, packed):
    module = build(layer)
    states = draw_states(module, BATCH)
    weights = weights_of(module)
    input = random(3, INPUT_SIZE) if packed else random(2, BATCH, INPUT_SIZE)
    layout = {"batch_sizes": torch.tensor([2, 1])} if packed else {}

    def function(input: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        first = tensors[: len(states)]
        given = dict(zip(weights, tensors[len(states) :], strict=True))
        return run_reference(layer, input, first, given, **layout, **form)

    inputs = [input, *states, *(weight.detach() for weight in weights.values())]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    checks = {"check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, **checks)


def test_gru_that_resets_before_is_the_papers():
    """Cho et al. 2014, equations 5 to 8 with biases, one number at a time."""
    module = build("gru")
    weight_ih, weight_hh, bias_ih, bias_hh = (w.tolist() for w in module.all_weights[0])
    (h_0,) = draw_states(module, BATCH)
    x = random(SEQ_LEN, BATCH, INPUT_SIZE)

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

    output, h_n, *_ = reference.gru(x, h_0, *module.all_weights[0], reset_after=False)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(h_n, expected[-1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@every_layer
def test_no_step_leaves_the_state(layer, packed):
    module = build(layer)
    states = draw_states(module, BATCH)
    input = random(*((0,) if packed else (0, BATCH)), INPUT_SIZE)
    layout = {"batch_sizes": torch.tensor([], dtype=torch.int64)} if packed else {}
    results = run_reference(layer, input, states, weights_of(module), **layout)
    final = results[1 : 1 + len(states)]
    assert results[0].shape == (*input.shape[:-1], states[0].size(-1))
    for state, initial in zip(final, states, strict=True):
        assert torch.equal(state, initial)


@pytest.mark.parametrize("batch", [BATCH - 1, BATCH + 1])
@every_layer
def test_states_of_another_batch_are_refused(layer, batch):
    module = build(layer)
    input = random(SEQ_LEN, BATCH, INPUT_SIZE)
    with pytest.raises(RuntimeError, match="must match the size"):
        run_reference(layer, input, draw_states(module, batch), weights_of(module))
