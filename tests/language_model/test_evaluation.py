"""Loss, perplexity, bits and accuracy against what a loop over single tokens finds."""

import math

import pytest
import torch

from rnnfast.language_model import (
    Evaluation,
    LanguageModel,
    ModelConfig,
    evaluate,
    evaluate_text,
    perplexity,
)
from rnnfast.text import ContinuousBatches, InputError, OverlappingWindows, RandomWindows

V = 11
# More than two of the pieces in which a text is read, and a rest.
TOKENS = torch.randint(V, (300,), generator=torch.Generator().manual_seed(3))


def new_model(**settings) -> LanguageModel:
    """A model with weights so large that the state matters."""
    settings = {"hidden_size": (12, 8), "init_scale": 1.0, "dropout": 0.5, **settings}
    return LanguageModel(V, ModelConfig(**settings))


@torch.no_grad()
def token_by_token(model, columns, boundary=None) -> tuple[float, float]:
    """Mean loss and accuracy on columns read side by side, one step at a time, from zeros."""
    was_training = model.training
    model.eval()
    state, loss, hits = None, 0.0, 0
    for current, following in zip(columns[:-1], columns[1:], strict=True):
        if state is not None and boundary is not None:
            state = state.zeroed(current == boundary)
        logits, state = model(current[None], state)
        scores = logits[0].double().log_softmax(-1)
        loss -= scores.gather(-1, following[:, None]).sum().item()
        hits += (scores.argmax(-1) == following).sum().item()
    model.train(was_training)
    count = columns[1:].numel()
    return loss / count, hits / count


def test_perplexity_and_bits():
    evaluation = Evaluation(mean_loss=math.log(8), num_tokens=5)
    assert evaluation.perplexity == pytest.approx(8)
    assert evaluation.bits_per_token == pytest.approx(3)
    assert evaluation.accuracy is None
    assert perplexity(1e4) == Evaluation(1e4, 1).perplexity == math.inf


def test_a_model_that_knows_frequencies_only():
    model = new_model()
    counts = TOKENS[1:].bincount(minlength=V)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(counts.log())
    shares = counts / 299
    entropy = -(shares * shares.log()).sum().item()
    found = evaluate_text(model, TOKENS, accuracy=True)
    assert found.num_tokens == 299
    assert found.mean_loss == pytest.approx(entropy, rel=1e-6)
    assert found.accuracy == pytest.approx(shares.max().item())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backend": "torch"},
        {"cell": "gru", "embedding": "one_hot"},
        {"cell": "rnn", "hidden_size": 16, "softmax": "adaptive", "cutoffs": (4, 8)},
    ],
    ids=["lstm", "torch", "gru", "rnn"],
)
def test_a_text_is_read_as_one_token_after_the_other(settings):
    model = new_model(**settings)
    loss, accuracy = token_by_token(model, TOKENS[:, None])
    plain = evaluate_text(model, TOKENS)
    full = evaluate_text(model, TOKENS, accuracy=True)
    assert plain.num_tokens == full.num_tokens == 299
    assert plain.mean_loss == pytest.approx(loss, rel=1e-5)
    assert full.mean_loss == pytest.approx(loss, rel=1e-5)
    assert plain.accuracy is None
    assert full.accuracy == pytest.approx(accuracy, abs=1e-12)


def test_the_state_is_zero_where_a_document_begins():
    model = new_model()
    loss, accuracy = token_by_token(model, TOKENS[:, None], boundary=4)
    assert loss != pytest.approx(token_by_token(model, TOKENS[:, None])[0], rel=1e-3)
    found = evaluate_text(model, TOKENS, boundary=4, accuracy=True)
    assert found.mean_loss == pytest.approx(loss, rel=1e-5)
    assert found.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert evaluate_text(model, TOKENS, boundary=4).mean_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"keep_remainder": True}, {"variable_length": True}, {"boundary": 2}]
)
def test_columns_carry_their_state_over_windows_of_any_length(options):
    model = new_model()
    batches = ContinuousBatches(TOKENS, 4, 7, **options)
    rows = 1 + batches.num_tokens // 4
    columns = TOKENS.view(4, 75).t()[:rows]
    loss, accuracy = token_by_token(model, columns, options.get("boundary"))
    found = evaluate(model, batches, accuracy=True)
    assert found.num_tokens == batches.num_tokens == columns[1:].numel()
    assert found.mean_loss == pytest.approx(loss, rel=1e-5)
    assert found.accuracy == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize(
    "batches",
    [
        OverlappingWindows(TOKENS, 4, 6, stride=5, keep_remainder=True),
        RandomWindows(TOKENS, 4, 6),
    ],
    ids=["overlapping", "random"],
)
def test_separate_windows_start_from_zeros_and_count_by_their_tokens(batches):
    model = new_model()
    windows = [torch.cat([input[:1], target]) for input, target in batches]
    found = evaluate(model, batches, accuracy=True)
    parts = [(*token_by_token(model, window), window[1:].numel()) for window in windows]
    total = sum(count for _, _, count in parts)
    assert found.num_tokens == batches.num_tokens == total
    loss = sum(loss * count for loss, _, count in parts) / total
    accuracy = sum(accuracy * count for _, accuracy, count in parts) / total
    assert found.mean_loss == pytest.approx(loss, rel=1e-5)
    assert found.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert evaluate(model, batches).mean_loss == pytest.approx(loss, rel=1e-5)


def test_tokens_of_any_integer_type():
    model = new_model()
    assert evaluate_text(model, TOKENS.to(torch.uint16)) == evaluate_text(model, TOKENS)


def test_nothing_is_dropped_out_and_the_mode_is_left_alone():
    model = new_model()
    batches = ContinuousBatches(TOKENS, 4, 7)
    model.train()
    assert evaluate(model, batches) == evaluate(model, batches)
    assert model.training and model.output_dropout.training
    model.eval()
    evaluate(model, batches)
    assert not model.training
    assert not any(p.grad is not None for p in model.parameters())
    model.train()
    with pytest.raises(InputError, match="ids from 0 to 10"):
        evaluate_text(model, TOKENS + 5)
    assert model.training


def test_what_cannot_be_evaluated_is_told():
    model = new_model()
    with pytest.raises(InputError, match="the poem is too short: 1 tokens"):
        evaluate_text(model, TOKENS[:1], "the poem")
    batches = ContinuousBatches(TOKENS, 4, 7)
    batches.epoch = lambda index: iter(())
    with pytest.raises(InputError, match="batches must hold at least one window, got none"):
        evaluate(model, batches)
