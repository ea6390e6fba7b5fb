"""Training and evaluation."""

import math

import pytest
import torch

from rnnfast.language_model import (
    Config,
    LanguageModel,
    TrainingConfig,
    TrainingError,
    evaluate,
    evaluate_text,
    fit,
    new_optimizer,
    perplexity,
    sequence_loss,
    train_epoch,
    train_step,
)
from rnnfast.language_model.config import BACKENDS
from rnnfast.text import ContinuousBatches, InputError


def new_model(corpus, config: Config) -> LanguageModel:
    return LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed)


class Recorder:
    """Keeps what it is told."""

    def __init__(self):
        self.calls = []

    def begin(self):
        self.calls.append("begin")

    def save(self, model, result, *, is_best):
        self.calls.append((result, is_best))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_gradient_descent_on_the_clipped_gradient(backend):
    config = Config.preset("test", hidden_size=5, backend=backend).model
    input, target = torch.randint(9, (4, 3)), torch.randint(9, (4, 3))
    for max_grad_norm in (0.01, 100.0):
        model = LanguageModel(9, config)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        expected_loss = sequence_loss(model(input)[0], target)
        expected_loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        assert 0.01 < norm < 100
        factor = min(1.0, max_grad_norm / norm)

        parameters = list(model.parameters())
        training = TrainingConfig(learning_rate=0.3, max_grad_norm=max_grad_norm)
        optimizer = new_optimizer(model, training)
        loss, state = train_step(model, parameters, optimizer, input, target, None, max_grad_norm)
        torch.testing.assert_close(loss, expected_loss.detach())
        for value in (loss, state.h, state.c):
            assert not value.requires_grad
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                p.detach(), before[name] - 0.3 * factor * gradients[name], rtol=1e-4, atol=1e-7
            )


def test_state_is_carried_through_an_epoch_and_starts_at_zero(config, corpus):
    # Large weights, so that the state matters, and a learning rate that leaves them alone.
    model = new_model(corpus, config.replace(init_scale=1.0))
    batches = ContinuousBatches(corpus.train, batch_size=4, num_steps=5)
    one_window = ContinuousBatches(corpus.train, batch_size=4, num_steps=5 * len(batches))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    expected = evaluate(model, one_window)
    for _ in range(2):
        trained = train_epoch(model, batches, optimizer, max_grad_norm=5.0)
        assert trained == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_lowers_the_perplexity_of_a_tiny_text(config, corpus, backend):
    config = config.replace(backend=backend, epochs=8, decay_after=8)
    model = new_model(corpus, config)
    valid = ContinuousBatches(corpus.valid, 4, 5)
    before = evaluate(model, valid)
    assert before == pytest.approx(len(corpus.vocabulary), rel=0.1)
    result = fit(model, corpus, config.training, show_progress=False)
    assert [epoch.epoch for epoch in result.epochs] == list(range(1, 9))
    assert result.epochs[-1].train_perplexity < 0.4 * before
    assert result.epochs[-1].valid_perplexity < 0.4 * before
    assert result.test_perplexity < 0.4 * before
    assert all(epoch.words_per_second > 0 for epoch in result.epochs)


def test_backends_give_the_same_perplexities_from_the_same_seed(config, corpus):
    results = {}
    for backend in BACKENDS:
        settings = config.replace(backend=backend, dropout=0.2, num_layers=2, seed=11)
        model = new_model(corpus, settings)
        results[backend] = fit(model, corpus, settings.training, show_progress=False)
    for ours, theirs in zip(results["rnnfast"].epochs, results["torch"].epochs, strict=True):
        assert ours.train_perplexity == pytest.approx(theirs.train_perplexity, rel=1e-3)
        assert ours.valid_perplexity == pytest.approx(theirs.valid_perplexity, rel=1e-3)
    assert results["rnnfast"].test_perplexity == pytest.approx(
        results["torch"].test_perplexity, rel=1e-3
    )


def test_fit_is_repeatable_and_depends_on_the_seed(config, corpus):
    config = config.replace(dropout=0.3)

    def train(seed):
        settings = config.replace(seed=seed)
        return fit(new_model(corpus, settings), corpus, settings.training, show_progress=False)

    first, again, other = train(1), train(1), train(2)
    assert first.test_perplexity == again.test_perplexity
    assert first.test_perplexity != other.test_perplexity


def test_learning_rate_follows_the_schedule(config, corpus):
    result = fit(new_model(corpus, config), corpus, config.training, show_progress=False)
    assert [epoch.learning_rate for epoch in result.epochs] == [1.0, 1.0, 0.5]


def test_model_ends_with_the_weights_of_its_best_epoch(config, corpus):
    # The learning rate grows until training does harm.
    config = config.replace(epochs=4, decay_after=2, lr_decay=5.0)
    model = new_model(corpus, config)
    recorder = Recorder()
    result = fit(model, corpus, config.training, recorder=recorder, show_progress=False)
    assert result.best.epoch < 4
    assert recorder.calls[0] == "begin"
    assert [epoch for epoch, _ in recorder.calls[1:]] == list(result.epochs)
    best_so_far = math.inf
    for epoch, is_best in recorder.calls[1:]:
        assert is_best == (epoch.valid_perplexity < best_so_far)
        best_so_far = min(best_so_far, epoch.valid_perplexity)
    valid = ContinuousBatches(corpus.valid, 4, 5)
    assert evaluate(model, valid) == pytest.approx(result.best.valid_perplexity)
    assert evaluate_text(model, corpus.test) == pytest.approx(result.test_perplexity)


def test_perplexity_of_a_text_is_that_of_one_step_at_a_time(config, corpus):
    model = new_model(corpus, config.replace(init_scale=1.0))
    tokens = corpus.train[:300]
    state, loss = None, 0.0
    with torch.no_grad():
        for current, following in zip(tokens[:-1], tokens[1:], strict=True):
            logits, state = model(current.view(1, 1), state)
            loss -= logits.log_softmax(-1)[0, 0, following].item()
    assert evaluate_text(model, tokens) == pytest.approx(math.exp(loss / 299), rel=1e-5)


def test_evaluation_drops_nothing_out_and_leaves_the_mode_alone(config, corpus):
    model = new_model(corpus, config.replace(dropout=0.5))
    batches = ContinuousBatches(corpus.valid, 4, 5)
    model.train()
    assert evaluate(model, batches) == evaluate(model, batches)
    assert model.training
    model.eval()
    evaluate(model, batches)
    assert not model.training


def test_perplexity_overflows_to_infinity():
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e4) == math.inf


@pytest.mark.parametrize("part", ["training", "validation"])
def test_text_too_short_is_refused_before_anything_is_written(config, corpus, part):
    size = len(corpus.valid if part == "validation" else corpus.train) // 5
    config = config.replace(batch_size=size)
    recorder = Recorder()
    with pytest.raises(InputError, match=f"the {part} text is too short.*batch_size {size}"):
        fit(new_model(corpus, config), corpus, config.training, recorder=recorder)
    assert recorder.calls == []


def test_divergence_is_told(config, corpus):
    config = config.replace(learning_rate=1e30, max_grad_norm=1e30)
    recorder = Recorder()
    with pytest.raises(TrainingError, match="diverged in epoch 1.*learning rate below 1e\\+30"):
        fit(
            new_model(corpus, config),
            corpus,
            config.training,
            recorder=recorder,
            show_progress=False,
        )
    assert recorder.calls == ["begin"]


def test_progress_bar_shows_perplexity_and_words_per_second(config, corpus, capsys):
    result = fit(new_model(corpus, config), corpus, config.training)
    shown = capsys.readouterr().err
    for epoch in result.epochs:
        assert f"epoch {epoch.epoch}/3: perplexity train {epoch.train_perplexity:.2f}" in shown
        assert f"valid {epoch.valid_perplexity:.2f}, {epoch.words_per_second:,.0f} words/s" in shown
