"""What follows an epoch, by the results of all epochs so far: at which rate, and whether at all."""

import math
from collections.abc import Sequence

from .config import TrainingConfig
from .results import EpochResult, best_of


def learning_rate(config: TrainingConfig, results: Sequence[EpochResult]) -> float:
    """Learning rate of the epoch that follows those with these results."""
    if config.schedule == "exponential":
        return config.learning_rate_at(len(results))
    if config.schedule == "constant":
        return config.learning_rate
    best, stalled = math.inf, 0
    for result in results:
        stalled += result.valid_loss >= best
        best = min(best, result.valid_loss)
    return config.learning_rate * config.lr_decay**stalled


def is_finished(config: TrainingConfig, results: Sequence[EpochResult]) -> bool:
    """Whether no epoch follows those with these results: all are done, or patience ended."""
    if len(results) >= config.epochs:
        return True
    if config.patience is None or not results:
        return False
    return len(results) - best_of(results).epoch >= config.patience
