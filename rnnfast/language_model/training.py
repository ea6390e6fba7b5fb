"""Training a model on a corpus, as settings say: epochs, validation, checkpoints."""

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..text import (
    Batches,
    ContinuousBatches,
    Corpus,
    InputError,
    OverlappingWindows,
    RandomWindows,
    Vocabulary,
)
from .config import TrainingConfig
from .distributed import Processes, joined
from .evaluation import Evaluation, evaluate, evaluate_text, perplexity
from .logs import Log
from .model import LanguageModel
from .objective import Objective
from .optimizers import AveragedSGD, new_optimizer, stalls, weights_for_use
from .progress import EpochProgress
from .results import Checkpoint, EpochResult, TrainingResult, best_of
from .schedule import is_finished, learning_rate
from .state import State
from .steps import Place, device_of, train_windows

_log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says why."""


class Recorder(Protocol):
    """Keeps what a training makes, as :class:`~rnnfast.language_model.Run` does."""

    def begin(self) -> None:
        """Called before the first step, once all input has proved usable."""
        ...

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Called before the first step, every few minutes and after each epoch.

        The checkpoint's tensors are those in use: whoever keeps them copies them.

        Args:
            checkpoint: where the training stands.
            is_best: whether the best weights are others than at the call before.
        """
        ...


def training_batches(tokens: Tensor, config: TrainingConfig, vocabulary: Vocabulary) -> Batches:
    """The batches of a training text that the settings ask for.

    Args:
        tokens: ids of the text.
        config: the settings.
        vocabulary: has the settings' ``boundary``.

    Shape:
        - tokens: ``(number of tokens)``, any integer type.

    Raises:
        InputError: the text is too short, or the vocabulary has no such boundary.
    """
    name = "the training text"
    size, steps, seed = config.batch_size, config.num_steps, config.seed
    if config.batching == "random":
        return RandomWindows(tokens, size, steps, seed=seed, name=name)
    if config.batching == "overlapping":
        return OverlappingWindows(
            tokens,
            size,
            steps,
            stride=config.stride,
            shuffle=config.shuffle,
            seed=seed,
            name=name,
        )
    return ContinuousBatches(
        tokens,
        size,
        steps,
        random_offset=config.random_offset,
        variable_length=config.variable_length,
        boundary=boundary_id(config, vocabulary),
        seed=seed,
        name=name,
    )


def validation_batches(
    tokens: Tensor,
    config: TrainingConfig,
    vocabulary: Vocabulary,
    name: str = "the validation text",
) -> Batches:
    """The batches on which a training with these settings validates: nothing random about them.

    Windows that follow each other as the training's do, of ``num_steps`` steps, in order.

    Args:
        tokens, config, vocabulary: as of :func:`training_batches`.
        name: what the text is, for messages.
    """
    size, steps = config.batch_size, config.num_steps
    if config.batching == "continuous":
        boundary = boundary_id(config, vocabulary)
        return ContinuousBatches(tokens, size, steps, boundary=boundary, name=name)
    stride = config.stride if config.batching == "overlapping" else steps
    return OverlappingWindows(tokens, size, steps, stride=stride, name=name)


def fit(
    model: LanguageModel,
    corpus: Corpus,
    config: TrainingConfig,
    *,
    start: Checkpoint | None = None,
    recorder: Recorder | None = None,
    logs: Sequence[Log] = (),
    checkpoint_seconds: float = 300.0,
    accuracy: bool = False,
    show_progress: bool = True,
) -> TrainingResult:
    """Train a model and leave it with its best weights.

    Each epoch reads the training text once (see :func:`train_epoch`) and then evaluates on the
    validation text (see :func:`validation_batches`). At the end the weights of the best epoch are
    put back and evaluated on the test text, read as one column.

    Where ``torchrun`` started several processes and each calls this, each reads its share of the
    rows of every batch and all update by the mean gradient: the same training as that of one
    process, up to rounding and to what dropout draws. Rank 0 alone has progress, recorder and logs.

    Args:
        model: the model, on any device; it is changed.
        corpus: the text.
        config: how to train. Its seed seeds torch's generator, for the dropout.
        start: where to go on. The result is, bit for bit, that of a training that was not left, on
            the same machine with the same number of processes and settings (but for more epochs).
        recorder: keeps checkpoints, for example a :class:`~rnnfast.language_model.Run`.
        logs: are told the result of each epoch, those before ``start`` first, and closed.
        checkpoint_seconds: how often a checkpoint is kept within an epoch; 0: after each update.
        accuracy: whether the accuracy on the validation and test text is computed too.
        show_progress: whether to show a progress bar for each epoch, on stderr.

    Raises:
        InputError: a part of the text is too short for a batch, which is found before anything else
            is done; or the checkpoint is not of such a training, or of another text.
        TrainingError: the loss became infinite or not a number.
    """
    train = training_batches(corpus.train, config, corpus.vocabulary)
    valid = validation_batches(corpus.valid, config, corpus.vocabulary)
    ContinuousBatches(corpus.test, 1, 1, name="the test text")
    with joined() as processes:
        if not processes.is_main:
            recorder, logs, show_progress = None, (), False
        training = _Training(model, config, processes, accuracy, corpus)
        if start is not None:
            training.resume(start)
        try:
            if is_finished(config, training.results):
                done = len(training.results)
                _log.warning(
                    "nothing is left to train: %d of %d epochs are done", done, config.epochs
                )
                _tell(logs, training.results)
            else:
                keeper = _Keeper(training, recorder, checkpoint_seconds)
                in_bits = corpus.vocabulary.level == "char"
                _run(training, train, valid, keeper, logs, show_progress, in_bits)
        finally:
            for log in logs:
                log.close()
        model.load_state_dict(training.best_weights)
        boundary = boundary_id(config, corpus.vocabulary)
        test = evaluate_text(model, corpus.test, boundary=boundary, accuracy=accuracy)
    return TrainingResult(tuple(training.results), test)


def boundary_id(config: TrainingConfig, vocabulary: Vocabulary) -> int | None:
    """The id of the token that opens a document, where the settings name one.

    Raises:
        InputError: the vocabulary has no such token.
    """
    if config.boundary is None:
        return None
    boundary = vocabulary.id_of(config.boundary)
    if boundary is None:
        raise InputError(
            f"boundary must be a token of the vocabulary of {len(vocabulary)} tokens, "
            f"got {config.boundary!r}"
        )
    return boundary


class _Training:
    """What :func:`fit` trains, and how far it has come."""

    def __init__(
        self,
        model: LanguageModel,
        config: TrainingConfig,
        processes: Processes,
        accuracy: bool,
        corpus: Corpus,
    ) -> None:
        self.model = model
        self.config = config
        self.processes = processes
        self.accuracy = accuracy
        self.corpus = corpus
        self.device = device_of(model)
        # What dropout draws differs from process to process.
        torch.manual_seed(config.seed + processes.rank)
        self.optimizer = new_optimizer(model, config, distributed=processes.world_size > 1)
        # The adaptive softmax leaves out the clusters of which a window has no token.
        self.objective = processes.replicated(
            Objective(model, config), find_unused=model.config.softmax == "adaptive"
        )
        self.results: list[EpochResult] = []
        self.best_weights: dict[str, Tensor] = {}
        self.place = Place.at_start(self.device)

    def resume(self, start: Checkpoint) -> None:
        """Goes on from a checkpoint."""
        processes = self.processes
        if len(start.nats) != processes.world_size:
            raise InputError(
                f"the checkpoint is of a training by {len(start.nats)} processes: as many can go "
                f"on with it, got {processes.world_size}"
            )
        if len(start.results) > self.config.epochs:
            raise InputError(
                f"epochs must be at least {len(start.results)}, which are done already, "
                f"got {self.config.epochs}"
            )
        if start.corpus not in (None, self.corpus.fingerprint):
            raise InputError(
                f"the checkpoint is of a training on another text than {self.corpus.name}: it has "
                "changed since"
            )
        self.model.load_state_dict(start.weights)
        self.best_weights = start.best_weights
        # A copy: the optimizer goes on in the tensors that it is given.
        self.optimizer.load_state_dict(copy.deepcopy(start.optimizer))
        self.results = list(start.results)
        state = {
            name: processes.own_part(value, 1).to(self.device)
            for name, value in start.state.items()
        }
        self.place = Place(
            processes.own_part(start.nats)[0].to(self.device),
            start.window,
            start.num_tokens,
            start.seconds,
            State.from_tensors(state) if state else None,
        )
        torch.set_rng_state(processes.own_part(start.generators["cpu"])[0])
        if self.device.type == "cuda" and "cuda" in start.generators:
            torch.cuda.set_rng_state(processes.own_part(start.generators["cuda"])[0], self.device)

    def checkpoint(self) -> Checkpoint:
        """Where the training stands. All processes make it together."""
        gathered = self.processes.gathered
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        place = self.place
        state = {} if place.state is None else place.state.tensors()
        return Checkpoint(
            weights=self.model.state_dict(),
            best_weights=self.best_weights,
            optimizer=self.optimizer.state_dict(),
            state={name: gathered(value, 1) for name, value in state.items()},
            generators={name: gathered(value[None]) for name, value in generators.items()},
            results=tuple(self.results),
            window=place.window,
            nats=gathered(place.nats[None]),
            num_tokens=place.num_tokens,
            seconds=place.seconds,
            corpus=self.corpus.fingerprint,
        )

    def train_epoch(self, batches: Batches) -> Iterator[None]:
        """Trains on the windows that are left of the epoch; yields after each update."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.results)
        epoch = len(self.results)
        return train_windows(
            self.objective, batches, self.optimizer, self.config, epoch, self.place
        )

    def finish_epoch(self, batches: Batches) -> EpochResult:
        """Validates, and moves on to the next epoch."""
        place, started = self.place, time.perf_counter()
        nats, num_tokens = self.processes.sum(place.nats.item(), place.num_tokens)
        train_loss = nats / num_tokens
        with weights_for_use(self.optimizer):
            valid = self._evaluate(batches)
            result = EpochResult(
                epoch=len(self.results) + 1,
                learning_rate=learning_rate(self.config, self.results),
                train_perplexity=perplexity(train_loss),
                valid_perplexity=valid.perplexity,
                words_per_second=num_tokens / place.seconds,
                train_loss=train_loss,
                valid_loss=valid.mean_loss,
                seconds=place.seconds + time.perf_counter() - started,
                valid_accuracy=valid.accuracy,
            )
            _require_finite(result)
            self.results.append(result)
            if best_of(self.results) is result:
                weights = self.model.state_dict()
                self.best_weights = {name: value.clone() for name, value in weights.items()}
        optimizer = self.optimizer
        if isinstance(optimizer, AveragedSGD) and not optimizer.is_averaging:
            if stalls([r.valid_loss for r in self.results], self.config.non_monotone):
                optimizer.start_averaging()
        self.place = Place.at_start(self.device)
        return result

    def _evaluate(self, batches: Batches) -> Evaluation:
        """The evaluation on all processes' shares of the batches."""
        share = evaluate(self.model, batches, accuracy=self.accuracy)
        if self.processes.world_size == 1:
            return share
        hits = 0.0 if share.accuracy is None else share.accuracy * share.num_tokens
        nats, num_tokens, hits = self.processes.sum(
            share.mean_loss * share.num_tokens, share.num_tokens, hits
        )
        accuracy = None if share.accuracy is None else hits / num_tokens
        return Evaluation(nats / num_tokens, int(num_tokens), accuracy)


class _Keeper:
    """Gives checkpoints to a recorder: when an epoch ends, and when it is time within one."""

    def __init__(
        self, training: _Training, recorder: Recorder | None, checkpoint_seconds: float
    ) -> None:
        self.training = training
        self.recorder = recorder
        self.checkpoint_seconds = checkpoint_seconds
        # All processes take part in a checkpoint, also those without a recorder.
        self.is_needed = training.processes.agreed(recorder is not None)
        self.saved = time.perf_counter()

    def begin(self) -> None:
        if self.recorder is not None:
            self.recorder.begin()
        if not self.training.results and self.training.place.window == 0:
            self.save()

    def save(self, *, is_best: bool = False) -> None:
        if self.is_needed:
            checkpoint = self.training.checkpoint()
            if self.recorder is not None:
                self.recorder.save(checkpoint, is_best=is_best)
        self.saved = time.perf_counter()

    def save_if_due(self) -> None:
        if self.is_needed:
            is_due = time.perf_counter() - self.saved >= self.checkpoint_seconds
            if self.training.processes.agreed(is_due):
                _require_finite_weights(self.training)
                self.save()


def _run(
    training: _Training,
    train: Batches,
    valid: Batches,
    keeper: _Keeper,
    logs: Sequence[Log],
    show_progress: bool,
    in_bits: bool,
) -> None:
    """Trains the epochs that are left."""
    config, processes = training.config, training.processes
    train, valid = (b.shard(processes.rank, processes.world_size) for b in (train, valid))
    keeper.begin()
    _tell(logs, training.results)
    while not is_finished(config, training.results):
        epoch = len(training.results)
        title = f"epoch {epoch + 1}/{config.epochs}"
        num_windows = train.windows_in(epoch)
        with EpochProgress(title, num_windows, in_bits=in_bits, show=show_progress) as progress:
            for _ in training.train_epoch(train):
                place = training.place
                words_per_second = place.num_tokens * processes.world_size / place.seconds
                progress.update(place.window, place.nats, place.num_tokens, words_per_second)
                keeper.save_if_due()
            result = training.finish_epoch(valid)
            progress.finish(result.train_loss, result.valid_loss, result.words_per_second)
        keeper.save(is_best=best_of(training.results) is result)
        _tell(logs, [result])


def _tell(logs: Sequence[Log], results: Sequence[EpochResult]) -> None:
    for log in logs:
        for result in results:
            log.write(result)


def _require_finite(result: EpochResult) -> None:
    if not (math.isfinite(result.train_perplexity) and math.isfinite(result.valid_perplexity)):
        raise TrainingError(
            f"training diverged in epoch {result.epoch}: perplexity {result.train_perplexity} on "
            f"the training text, {result.valid_perplexity} on the validation text; "
            f"a learning rate below {result.learning_rate:g} may help"
        )


def _require_finite_weights(training: _Training) -> None:
    """Keeps weights that are lost out of a checkpoint: the one before stays usable."""
    place = training.place
    train_perplexity = perplexity(place.nats.item() / place.num_tokens)
    finite = (parameter.isfinite().all() for parameter in training.model.parameters())
    if not (math.isfinite(train_perplexity) and all(finite)):
        raise TrainingError(
            f"training diverged in epoch {len(training.results) + 1}: perplexity "
            f"{train_perplexity} on the training text after {place.window} windows; a learning "
            f"rate below {learning_rate(training.config, training.results):g} may help"
        )
