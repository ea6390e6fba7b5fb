"""Training and evaluation."""

import itertools
import math

import pytest
import torch

from rnnfast.language_model import (
    Config,
    EpochResult,
    LanguageModel,
    ModelConfig,
    TrainingConfig,
    TrainingError,
    evaluate,
    evaluate_text,
    fit,
    new_optimizer,
    sequence_loss,
    train_epoch,
    train_step,
    training_batches,
    validation_batches,
)
from rnnfast.language_model import steps as steps_module
from rnnfast.language_model.config import BACKENDS
from rnnfast.language_model.objective import Objective, with_own_guesses
from rnnfast.language_model.schedule import is_finished, learning_rate
from rnnfast.text import ContinuousBatches, InputError, OverlappingWindows, RandomWindows


def new_model(corpus, config: Config) -> LanguageModel:
    return LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed)


class Recorder:
    """Keeps what it is told."""

    def __init__(self):
        self.calls = []

    def begin(self):
        self.calls.append("begin")

    def save(self, checkpoint, *, is_best):
        self.calls.append((len(checkpoint.results), checkpoint.window, is_best))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_gradient_descent_on_the_clipped_gradient(backend):
    config = ModelConfig(hidden_size=5, backend=backend)
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
        for value in (loss, *state.tensors().values()):
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
    expected = evaluate(model, one_window).perplexity
    for _ in range(2):
        trained = train_epoch(model, batches, optimizer, config.training)
        assert trained == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_lowers_the_perplexity_of_a_tiny_text(config, corpus, backend):
    config = config.replace(backend=backend, epochs=8, decay_after=8)
    model = new_model(corpus, config)
    valid = ContinuousBatches(corpus.valid, 4, 5)
    before = evaluate(model, valid).perplexity
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
    assert recorder.calls[:2] == ["begin", (0, 0, False)]
    best_so_far = math.inf
    expected = []
    for epoch in result.epochs:
        expected.append((epoch.epoch, 0, epoch.valid_loss < best_so_far))
        best_so_far = min(best_so_far, epoch.valid_loss)
    assert recorder.calls[2:] == expected
    valid = ContinuousBatches(corpus.valid, 4, 5)
    assert evaluate(model, valid).mean_loss == pytest.approx(result.best.valid_loss)
    assert evaluate_text(model, corpus.test) == result.test


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
    assert recorder.calls == ["begin", (0, 0, False)]


def test_weights_that_are_lost_are_not_recorded(config, corpus):
    config = config.replace(learning_rate=1e30, max_grad_norm=1e30)
    recorder = Recorder()
    with pytest.raises(TrainingError, match="diverged in epoch 1: perplexity .* after . windows"):
        fit(
            new_model(corpus, config),
            corpus,
            config.training,
            recorder=recorder,
            checkpoint_seconds=0,
            show_progress=False,
        )
    assert len(recorder.calls) < 5


def training_batches_of(corpus, config: Config):
    return training_batches(corpus.train, config.training, corpus.vocabulary)


def test_progress_bar_shows_perplexity_and_words_per_second(config, corpus, capsys):
    result = fit(new_model(corpus, config), corpus, config.training)
    shown = capsys.readouterr().err
    for epoch in result.epochs:
        assert f"epoch {epoch.epoch}/3: perplexity train {epoch.train_perplexity:.2f}" in shown
        assert f"valid {epoch.valid_perplexity:.2f}, {epoch.words_per_second:,.0f} words/s" in shown


def test_characters_have_bits_in_their_progress_bar(config, corpus, capsys):
    config = config.replace(level="char", epochs=1)
    corpus = config.data.load()
    result = fit(new_model(corpus, config), corpus, config.training).epochs[0]
    shown = capsys.readouterr().err
    assert f"{result.train_perplexity:.2f} ({result.train_loss / math.log(2):.3f} bits)" in shown
    assert f"{result.words_per_second:,.0f} characters/s" in shown


def test_batches_are_those_of_the_settings(config, corpus):
    def kinds(**changes):
        settings = config.replace(**changes)
        valid = validation_batches(corpus.valid, settings.training, corpus.vocabulary)
        return training_batches_of(corpus, settings), valid

    train, valid = kinds()
    assert type(train) is type(valid) is ContinuousBatches
    assert (train.batch_size, train.num_steps, train.boundary) == (4, 5, None)
    train, valid = kinds(boundary="so")
    assert train.boundary == valid.boundary == corpus.vocabulary.id_of("so")
    train, valid = kinds(batching="random")
    assert type(train) is RandomWindows and not train.carries_state
    expected = OverlappingWindows(corpus.valid, 4, 5, stride=5)
    assert type(valid) is OverlappingWindows
    for (input, _), (other, _) in zip(valid, expected, strict=True):
        assert input.equal(other)
    train, valid = kinds(batching="overlapping", stride=3, shuffle=True)
    first, again = (next(train.epoch(epoch))[0] for epoch in (0, 1))
    assert not first.equal(again)
    first, again = (next(valid.epoch(epoch))[0] for epoch in (0, 1))
    assert first.equal(again)
    with pytest.raises(InputError, match="boundary must be a token of the vocabulary.*'<doc>'"):
        kinds(boundary="<doc>")


def result_of(epoch: int, loss: float) -> EpochResult:
    return EpochResult(epoch, 1.0, 1.0, math.exp(loss), 1.0, 0.0, loss, 1.0)


def results_of(*losses: float) -> list[EpochResult]:
    return [result_of(epoch, loss) for epoch, loss in enumerate(losses, start=1)]


def test_schedules():
    def rates(**settings):
        config = TrainingConfig(learning_rate=8.0, lr_decay=0.5, decay_after=2, **settings)
        losses = (3.0, 2.0, 2.0, 2.5, 1.0)
        return [learning_rate(config, results_of(*losses[:done])) for done in range(6)]

    assert rates(schedule="constant") == [8.0] * 6
    assert rates(schedule="exponential") == [8, 8, 4, 2, 1, 0.5]
    # Neither the third loss nor the fourth is below the best before it.
    assert rates(schedule="plateau") == [8, 8, 8, 4, 2, 2]


def test_patience_ends_a_training(config, corpus):
    settings = TrainingConfig(epochs=6, patience=2)
    assert not is_finished(settings, [])
    assert not is_finished(settings, results_of(1.0, 2.0))
    assert is_finished(settings, results_of(1.0, 2.0, 3.0))
    assert not is_finished(settings, results_of(1.0, 2.0, 0.5, 0.5))
    assert is_finished(settings, results_of(6, 5, 4, 3, 2, 1))

    config = config.replace(epochs=9, decay_after=2, lr_decay=5.0, patience=1)
    result = fit(new_model(corpus, config), corpus, config.training, show_progress=False)
    assert len(result.epochs) == result.best.epoch + 1 < 9


def test_logs_are_told_each_epoch_and_closed(config, corpus):
    calls = []

    class Log:
        def write(self, result):
            calls.append(result)

        def close(self):
            calls.append("close")

    model = new_model(corpus, config)
    result = fit(model, corpus, config.training, logs=[Log()], show_progress=False)
    assert calls == [*result.epochs, "close"]
    calls.clear()
    config = config.replace(learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(TrainingError):
        fit(model, corpus, config.training, logs=[Log()], show_progress=False)
    assert calls == ["close"]


def test_accuracy_is_computed_when_asked_for(config, corpus):
    config = config.replace(epochs=1)
    settings = config.training
    result = fit(new_model(corpus, config), corpus, settings, accuracy=True, show_progress=False)
    assert 0 < result.epochs[0].valid_accuracy <= 1
    assert 0 < result.test.accuracy <= 1
    result = fit(new_model(corpus, config), corpus, settings, show_progress=False)
    assert result.epochs[0].valid_accuracy is None


def test_perplexity_counts_tokens_whatever_the_length_of_their_windows(config, corpus):
    config = config.replace(init_scale=1.0, num_steps=12, variable_length=True)
    model = new_model(corpus, config)
    batches = training_batches_of(corpus, config)
    assert len({len(input) for input, _ in batches}) > 1
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    one_window = ContinuousBatches(corpus.train, 4, len(corpus.train) // 4 - 1)
    trained = train_epoch(model, batches, optimizer, config.training)
    assert trained == pytest.approx(evaluate(model, one_window).perplexity, rel=1e-5)


def test_windows_without_carried_state_start_from_zeros(config, corpus):
    config = config.replace(init_scale=1.0, batching="overlapping", stride=3)
    model = new_model(corpus, config)
    batches = training_batches_of(corpus, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    with torch.no_grad():
        losses = [model.loss(input, target)[0].item() / 5 for input, target in batches]
    trained = train_epoch(model, batches, optimizer, config.training)
    assert math.log(trained) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_boundary_sets_the_state_to_zero(config, corpus):
    config = config.replace(init_scale=1.0, batch_size=1, boundary="the")
    model = new_model(corpus, config)
    batches = training_batches_of(corpus, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    tokens = corpus.train[: 1 + batches.num_tokens]
    state, loss = None, 0.0
    with torch.no_grad():
        for current, following in zip(tokens[:-1], tokens[1:], strict=True):
            state = None if current == batches.boundary else state
            logits, state = model(current.view(1, 1), state)
            loss -= logits.log_softmax(-1)[0, 0, following].item()
    trained = train_epoch(model, batches, optimizer, config.training)
    assert math.log(trained) == pytest.approx(loss / (len(tokens) - 1), rel=1e-5)


def test_learning_rate_follows_the_length_of_a_window(config, corpus):
    rates, lengths = [], []

    class Rates(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    config = config.replace(num_steps=12, variable_length=True)
    model = new_model(corpus, config)
    batches = training_batches_of(corpus, config)
    lengths = [len(input) for input, _ in batches]
    optimizer = Rates(model.parameters(), lr=0.3)
    train_epoch(model, batches, optimizer, config.training)
    assert rates == pytest.approx([0.3 * length / 12 for length in lengths])
    assert len(set(rates)) > 1
    assert optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_objective_is_the_loss_and_its_regularization(reduction):
    settings = TrainingConfig(
        loss_reduction=reduction,
        activation_regularization=2.0,
        temporal_activation_regularization=3.0,
    )
    model = LanguageModel(9, ModelConfig(hidden_size=6, dropout=0.4, backend="torch"), seed=2)
    input, target = torch.randint(9, (4, 3)), torch.randint(9, (4, 3))
    torch.manual_seed(5)
    window = Objective(model, settings)(input, target)
    torch.manual_seed(5)
    raw, output, state = model.hidden(input)
    loss = model.loss_of(output, target)
    change = raw[1:] - raw[:-1]
    expected = loss / 4 + 2 * (output**2).sum() / output.numel() + 3 * (change**2).mean()
    torch.testing.assert_close(window.objective, expected * (4 if reduction == "sum" else 1))
    torch.testing.assert_close(window.loss, loss)
    assert not window.loss.requires_grad
    for name, value in window.state.tensors().items():
        assert value.equal(state.tensors()[name])


def test_model_reads_its_own_guesses_where_the_teacher_is_silent():
    torch.manual_seed(3)
    model = LanguageModel(7, ModelConfig(hidden_size=6, dropout=0.4, init_scale=2.0), seed=2)
    input = torch.randint(7, (6, 50))
    reset = torch.rand(6, 50) < 0.1
    assert with_own_guesses(model, input, None, reset, 1.0).equal(input)
    mixed = with_own_guesses(model, input, None, reset, 0.6)
    assert model.training
    assert mixed[0].equal(input[0])
    # What was read is the text, or what the model finds likeliest after what was read before.
    guesses = model.eval()(mixed, None, reset)[0].argmax(-1)
    differs = mixed[1:] != input[1:]
    assert mixed[1:][differs].equal(guesses[:-1][differs])
    wrong = guesses[:-1] != input[1:]
    assert differs[wrong].float().mean().item() == pytest.approx(0.4, abs=0.1)
    # Without a teacher the text is read at the first step only.
    alone = with_own_guesses(model, input, None, None, 0.0)
    assert alone[1:].equal(model(alone)[0].argmax(-1)[:-1])


def gradient_of(parameters) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def test_randomised_truncation_has_the_gradient_of_none_in_the_mean(monkeypatch):
    """All ways to cut, weighted by their probabilities: four windows, three places to cut."""

    class Sums(torch.optim.SGD):
        """Adds up the gradients of all updates and leaves the weights alone."""

        total = 0.0

        def step(self, closure=None):
            Sums.total = Sums.total + gradient_of(self.param_groups[0]["params"])

    probability = 0.3
    config = TrainingConfig(
        batch_size=2, num_steps=3, truncation=probability, max_grad_norm=math.inf
    )
    model_config = ModelConfig(hidden_size=4, num_layers=2, init_scale=1.0)
    model = LanguageModel(6, model_config, seed=1).double()
    tokens = torch.randint(6, (26,), generator=torch.Generator().manual_seed(0))
    batches = ContinuousBatches(tokens, 2, 3)
    assert len(batches) == 4

    (input, target) = next(iter(ContinuousBatches(tokens, 2, 12)))
    model.loss(input, target)[0].backward()
    parameters = list(model.parameters())
    full = gradient_of(parameters)

    mean, total_probability, plain = 0.0, 0.0, None
    for pattern in itertools.product([False, True], repeat=3):
        monkeypatch.setattr(
            steps_module, "_cuts", lambda config, epoch, windows, p=pattern: [*p, True]
        )
        Sums.total = 0.0
        train_epoch(model, batches, Sums(parameters, lr=1.0), config)
        cuts = sum(pattern)
        weight = probability**cuts * (1 - probability) ** (3 - cuts)
        mean = mean + weight * Sums.total
        total_probability += weight
        if all(pattern):
            plain = Sums.total
    assert total_probability == pytest.approx(1)
    torch.testing.assert_close(mean, full, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(plain, full, rtol=1e-3)


def test_cuts_are_drawn_with_their_probability_and_the_same_again():
    config = TrainingConfig(truncation=0.2, seed=3)
    cuts = steps_module._cuts(config, 1, 5001)
    assert cuts == steps_module._cuts(config, 1, 5001)
    assert cuts != steps_module._cuts(config, 2, 5001)
    assert cuts[-1]
    assert sum(cuts[:-1]) / 5000 == pytest.approx(0.2, abs=0.03)
    assert all(steps_module._cuts(TrainingConfig(), 0, 100))
