"""Training by truncated back-propagation through time, with the tutorial's schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..optim import ClippedSGD
from ..text import ContinuousBatches, Corpus
from .config import TrainingConfig
from .evaluation import evaluate, evaluate_text, perplexity
from .model import LanguageModel, State
from .progress import EpochProgress


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says why."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave.

    Attributes:
        epoch: the epoch, counted from 1.
        learning_rate: learning rate of the epoch.
        train_perplexity: perplexity on the training text, of each window before its update.
        valid_perplexity: perplexity on the validation text after the epoch.
        words_per_second: tokens trained on per second, validation not counted.
    """

    epoch: int
    learning_rate: float
    train_perplexity: float
    valid_perplexity: float
    words_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        epochs: one result for each epoch.
        test_perplexity: perplexity on the test text, of the weights that validate best.
    """

    epochs: tuple[EpochResult, ...]
    test_perplexity: float

    @property
    def best(self) -> EpochResult:
        """The epoch with the lowest validation perplexity."""
        return min(self.epochs, key=lambda result: result.valid_perplexity)


class Recorder(Protocol):
    """Keeps what a training makes, as :class:`~rnnfast.language_model.Run` does."""

    def begin(self) -> None:
        """Called before the first step, once all input has proved usable."""
        ...

    def save(self, model: LanguageModel, result: EpochResult, *, is_best: bool) -> None:
        """Called after each epoch."""
        ...


def new_optimizer(model: LanguageModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """Gradient descent at the first learning rate, for :func:`train_step`.

    Backend ``rnnfast`` takes :class:`~rnnfast.optim.ClippedSGD` and makes the embedding's gradient
    sparse, which leaves the tokens alone that a window does not have; ``torch`` takes torch's SGD.
    """
    if model.config.backend == "torch":
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    model.embedding.sparse = True
    return ClippedSGD(model.parameters(), config.learning_rate, config.max_grad_norm)


def train_step(
    model: LanguageModel,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    input: Tensor,
    target: Tensor,
    state: State | None,
    max_grad_norm: float,
) -> tuple[Tensor, State]:
    """One update on one window.

    Args:
        model: the model, in training mode.
        parameters: its parameters, as a list that is made once and not at each step.
        optimizer: an optimizer of those parameters, see :func:`new_optimizer`.
        input, target: ids ``(num_steps, batch_size)``, int64.
        state: the state before the window; zeros if None.
        max_grad_norm: the gradient of all weights together is scaled down to this norm, unless the
            optimizer is a :class:`~rnnfast.optim.ClippedSGD`, which does so itself.

    Returns:
        The loss before the update (see :func:`sequence_loss`), a scalar, and the state after the
        window; no gradient flows through either.
    """
    loss, state = model.loss(input, target, state)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if not isinstance(optimizer, ClippedSGD):
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return loss.detach(), state.detach()


def train_epoch(
    model: LanguageModel,
    batches: ContinuousBatches,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    progress: Callable[[int, Tensor], None] | None = None,
) -> float:
    """One pass over the training text, from a state of zeros.

    Args:
        model: the model.
        batches: the training text.
        optimizer: an optimizer of the model's parameters.
        max_grad_norm: the gradient of all weights together is scaled down to this norm.
        progress: called after each window with the number of windows done and the sum of their
            losses, a scalar tensor that the next window adds to.

    Returns:
        Perplexity on the training text, of each window before its update.
    """
    model.train()
    parameters = list(model.parameters())
    loss_sum = torch.zeros((), dtype=torch.float64)
    state = None
    for done, (input, target) in enumerate(batches, start=1):
        loss, state = train_step(model, parameters, optimizer, input, target, state, max_grad_norm)
        loss_sum += loss
        if progress is not None:
            progress(done, loss_sum)
    return perplexity(loss_sum.item() / (len(batches) * batches.num_steps))


def fit(
    model: LanguageModel,
    corpus: Corpus,
    config: TrainingConfig,
    *,
    recorder: Recorder | None = None,
    show_progress: bool = True,
) -> TrainingResult:
    """Train a model by stochastic gradient descent and leave it with its best weights.

    Each epoch reads the training text once, in windows whose state is carried on, and then
    evaluates on the validation text with the same ``batch_size`` and ``num_steps``. At the end the
    weights of the best epoch are put back and evaluated on the test text, read as one column.

    Args:
        model: the model, which is changed.
        corpus: the text.
        config: how to train. Its seed seeds torch's generator, for the dropout.
        recorder: keeps checkpoints, for example a :class:`~rnnfast.language_model.Run`.
        show_progress: whether to show a progress bar for each epoch, on stderr.

    Raises:
        InputError: a part of the text is too short for a batch; found before anything else is done.
        TrainingError: the loss became infinite or not a number.
    """
    size, steps = config.batch_size, config.num_steps
    train = ContinuousBatches(corpus.train, size, steps, name="the training text")
    valid = ContinuousBatches(corpus.valid, size, steps, name="the validation text")
    ContinuousBatches(corpus.test, 1, 1, name="the test text")
    if recorder is not None:
        recorder.begin()

    torch.manual_seed(config.seed)
    optimizer = new_optimizer(model, config)
    results: list[EpochResult] = []
    best_perplexity = math.inf
    best_weights: dict[str, Tensor] = {}
    for epoch in range(config.epochs):
        learning_rate = config.learning_rate_at(epoch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        title = f"epoch {epoch + 1}/{config.epochs}"
        with EpochProgress(title, len(train), steps, size, show=show_progress) as progress:
            train_perplexity = train_epoch(
                model, train, optimizer, config.max_grad_norm, progress.update
            )
            valid_perplexity = evaluate(model, valid)
            progress.finish(train_perplexity, valid_perplexity)
        if not (math.isfinite(train_perplexity) and math.isfinite(valid_perplexity)):
            raise TrainingError(
                f"training diverged in epoch {epoch + 1}: perplexity {train_perplexity} on the "
                f"training text, {valid_perplexity} on the validation text; "
                f"a learning rate below {learning_rate:g} may help"
            )
        result = EpochResult(
            epoch + 1,
            learning_rate,
            train_perplexity,
            valid_perplexity,
            progress.words_per_second,
        )
        results.append(result)
        is_best = valid_perplexity < best_perplexity
        if is_best:
            best_perplexity = valid_perplexity
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        if recorder is not None:
            recorder.save(model, result, is_best=is_best)
    model.load_state_dict(best_weights)
    return TrainingResult(tuple(results), evaluate_text(model, corpus.test))
