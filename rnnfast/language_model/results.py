"""What a training gives, and what it needs to go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .evaluation import Evaluation


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave.

    Attributes:
        epoch: the epoch, counted from 1.
        learning_rate: learning rate of the epoch.
        train_perplexity: perplexity on the training text, of each window before its update.
        valid_perplexity: perplexity on the validation text after the epoch.
        words_per_second: tokens trained on per second, validation not counted.
        train_loss, valid_loss: logarithms of the perplexities: mean loss in nats per token.
        seconds: how long the epoch took, with validation and without saving.
        valid_accuracy: share of the validation text's tokens that were the likeliest to the model;
            None where it was not computed.
    """

    epoch: int
    learning_rate: float
    train_perplexity: float
    valid_perplexity: float
    words_per_second: float
    train_loss: float
    valid_loss: float
    seconds: float
    valid_accuracy: float | None = None


def best_of(results: Sequence[EpochResult]) -> EpochResult:
    """The epoch with the lowest validation loss, the first of equals."""
    return min(results, key=lambda result: result.valid_loss)


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        epochs: one result for each epoch.
        test: evaluation on the test text, of the weights that validate best.
    """

    epochs: tuple[EpochResult, ...]
    test: Evaluation

    @property
    def best(self) -> EpochResult:
        """The epoch with the lowest validation loss."""
        return best_of(self.epochs)

    @property
    def test_perplexity(self) -> float:
        """Perplexity on the test text, of the weights that validate best."""
        return self.test.perplexity


@dataclass(frozen=True)
class Checkpoint:
    """A training between two updates: all that it needs to go on as if it had not been left.

    Attributes:
        weights: the model's weights by name.
        best_weights: those of the best epoch so far; empty before the first is done.
        optimizer: the optimizer's ``state_dict``.
        state: the model's state that the next window starts from, of all rows of the batch, as
            :meth:`State.tensors` names it; empty for zeros.
        generators: states of torch's generators by device, ``(processes, bytes)``, uint8.
        results: of the epochs that are done.
        window: windows done in the epoch after those.
        nats: sum of the losses of the targets in these windows, ``(processes)``, float64.
        num_tokens: number of these targets, in each process.
        seconds: time that these windows took.
        corpus: the text's :attr:`~rnnfast.text.Corpus.fingerprint`; None: not known.
    """

    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Tensor]
    generators: dict[str, Tensor]
    results: tuple[EpochResult, ...]
    window: int
    nats: Tensor
    num_tokens: int
    seconds: float
    corpus: str | None = None
