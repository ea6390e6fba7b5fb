"""Dropout over time, of words and of recurrent weights."""

import pytest
import torch
from torch import nn

import rnnfast
from rnnfast.language_model.dropout import EmbeddingDropout, LockedDropout, drop_connect

LAYERS = [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN, nn.LSTM, nn.GRU, nn.RNN]


def is_share(count: int, trials: int, p: float) -> bool:
    """Whether a count is within five standard deviations of what is expected."""
    return abs(count - p * trials) < 5 * (p * (1 - p) * trials) ** 0.5


def test_a_locked_unit_is_dropped_in_all_time_steps_or_in_none():
    x = torch.rand(5, 30, 40) + 1
    dropped = LockedDropout(0.3)(x)
    gone = dropped == 0
    assert gone.equal(gone[:1].expand_as(gone))
    assert is_share(gone[0].sum(), 30 * 40, 0.3)
    torch.testing.assert_close(dropped[~gone], x[~gone] / 0.7)
    # Each sequence has its own mask.
    assert not gone[0, 0].equal(gone[0, 1])


def test_a_word_is_dropped_wherever_it_stands_or_nowhere():
    input = torch.randint(400, (50, 40))
    vectors = torch.rand(50, 40, 3) + 1
    dropped = EmbeddingDropout(400, 0.25)(vectors, input)
    gone = (dropped == 0).all(-1)
    assert gone.equal((dropped == 0).any(-1))
    torch.testing.assert_close(dropped[~gone], vectors[~gone] / 0.75)
    assert not set(input[gone].tolist()) & set(input[~gone].tolist())
    assert is_share(len(input[gone].unique()), len(input.unique()), 0.25)


def test_embedding_dropout_is_dropout_of_the_matrix_rows():
    embedding = nn.Embedding(9, 4)
    input = torch.randint(9, (6, 3))
    torch.manual_seed(1)
    dropped = EmbeddingDropout(9, 0.5)(embedding(input), input)
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones(9), 0.5)
    torch.testing.assert_close(
        dropped, nn.functional.embedding(input, embedding.weight * mask.unsqueeze(1))
    )


@pytest.mark.parametrize("training,p", [(False, 0.5), (True, 0.0)])
def test_nothing_is_dropped_in_evaluation_or_with_probability_zero(training, p):
    x, input = torch.randn(4, 3, 2), torch.randint(7, (4, 3))
    assert LockedDropout(p).train(training)(x) is x
    assert EmbeddingDropout(7, p).train(training)(x, input) is x


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__module__ + "." + kind.__name__)
def test_drop_connect_runs_the_layer_with_weights_dropped(kind):
    layer, twin = kind(5, 40).double(), kind(5, 40).double()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    torch.manual_seed(4)
    run = drop_connect(layer, 0.4)
    torch.manual_seed(4)
    mask = nn.functional.dropout(torch.ones_like(layer.weight_hh_l0), 0.4)
    assert is_share((mask == 0).sum(), mask.numel(), 0.4)
    with torch.no_grad():
        twin.weight_hh_l0 *= mask

    expected, _ = twin(x)
    expected.square().sum().backward()
    first, _ = run(x, None)
    second, _ = run(x, None)
    torch.testing.assert_close(first, expected)
    assert second.equal(first)
    first.square().sum().backward()
    torch.testing.assert_close(layer.weight_ih_l0.grad, twin.weight_ih_l0.grad)
    # By the chain rule, what was dropped gets no gradient and what stayed a scaled one.
    torch.testing.assert_close(layer.weight_hh_l0.grad, twin.weight_hh_l0.grad * mask)

    # Afterwards the layer has its own weight.
    assert isinstance(layer.weight_hh_l0, nn.Parameter)
    assert not layer(x)[0].allclose(expected)
    assert layer.state_dict().keys() == twin.state_dict().keys()
