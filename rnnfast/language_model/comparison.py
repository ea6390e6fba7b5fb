"""How much faster one backend trains than another, on the same job."""

import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from ..text import ContinuousBatches, Corpus, InputError
from .config import BACKENDS, Config
from .model import LanguageModel, State
from .optimizers import new_optimizer
from .steps import train_step


@dataclass(frozen=True)
class BackendComparison:
    """Training speed of the ``rnnfast`` backend against the ``torch`` backend.

    Attributes:
        ratios: words per second of rnnfast divided by those of torch, one for each pair of
            neighbouring measurements.
        words_per_second: median of each backend.
        mean_loss: mean loss of each backend in nats per token over all steps, untimed ones too:
            without dropout the two do the same job, so they agree up to rounding.
        threads: threads that torch used, the same for both.
    """

    ratios: tuple[float, ...]
    words_per_second: dict[str, float]
    mean_loss: dict[str, float]
    threads: int

    @property
    def ratio(self) -> float:
        """Median of :attr:`ratios`."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of :attr:`ratios`: half of them lie between."""
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third

    def __str__(self) -> str:
        low, high = self.spread
        speeds = ", ".join(f"{b} {self.words_per_second[b]:,.0f}" for b in BACKENDS)
        return (
            f"rnnfast / torch: {self.ratio:.2f} "
            f"(median of {len(self.ratios)} pairs, half of them {low:.2f} to {high:.2f}); "
            f"words per second: {speeds}; {self.threads} threads"
        )


def compare_backends(
    corpus: Corpus, config: Config, *, pairs: int = 12, steps: int = 10
) -> BackendComparison:
    """Train both backends in turn from the same weights on the same windows of text.

    A few steps of one backend are timed, then the same steps of the other, and so on, so that
    whatever else the machine does falls on both. Who goes first alternates. The first pair warms
    up and is not counted.

    Args:
        corpus: the text.
        config: the model and how it is trained; its ``backend`` is not looked at.
        pairs: number of pairs that count, at least 2.
        steps: updates in each measurement, at least 1.

    Raises:
        InputError: a value is out of range, or the training text is too short for a batch.
    """
    if pairs < 2 or steps < 1:
        raise InputError(f"pairs must be at least 2 and steps 1, got {pairs} and {steps}")
    training = config.training
    batches = ContinuousBatches(
        corpus.train, training.batch_size, training.num_steps, name="the training text"
    )
    trainers = {backend: _Trainer(backend, corpus, config, batches) for backend in BACKENDS}
    seconds: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for pair in range(pairs + 1):
        for backend in BACKENDS if pair % 2 else reversed(BACKENDS):
            elapsed = trainers[backend].run(steps)
            if pair > 0:
                seconds[backend].append(elapsed)
    words = steps * training.num_steps * training.batch_size
    ours, theirs = (seconds[backend] for backend in BACKENDS)
    return BackendComparison(
        ratios=tuple(t / o for o, t in zip(ours, theirs, strict=True)),
        words_per_second={b: words / statistics.median(seconds[b]) for b in BACKENDS},
        mean_loss={b: trainers[b].mean_loss for b in BACKENDS},
        threads=torch.get_num_threads(),
    )


class _Trainer:
    """One backend's model, its optimizer, and its place in the text."""

    def __init__(
        self, backend: str, corpus: Corpus, config: Config, batches: ContinuousBatches
    ) -> None:
        training = config.training
        model_config = config.replace(backend=backend).model
        self.model = LanguageModel(len(corpus.vocabulary), model_config, seed=training.seed)
        self.model.train()
        self.parameters = list(self.model.parameters())
        self.optimizer = new_optimizer(self.model, training)
        self.max_grad_norm = training.max_grad_norm
        self.windows = itertools.cycle(batches)
        self.state: State | None = None
        self.losses: list[float] = []
        self.num_steps = training.num_steps

    def run(self, steps: int) -> float:
        """Seconds that ``steps`` updates took."""
        losses = []
        start = time.perf_counter()
        for input, target in itertools.islice(self.windows, steps):
            loss, self.state = train_step(
                self.model,
                self.parameters,
                self.optimizer,
                input,
                target,
                self.state,
                self.max_grad_norm,
            )
            losses.append(loss)
        elapsed = time.perf_counter() - start
        self.losses.extend(loss.item() for loss in losses)
        return elapsed

    @property
    def mean_loss(self) -> float:
        return statistics.fmean(self.losses) / self.num_steps
