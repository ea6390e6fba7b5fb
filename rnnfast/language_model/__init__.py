"""Word and character language models, from text to sample.

>>> from rnnfast.language_model import Config, LanguageModel, fit, sample
>>> config = Config.preset("small", epochs=2)
>>> corpus = config.data.load()
>>> model = LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed)
>>> result = fit(model, corpus, config.training)
>>> text = sample(model, corpus.vocabulary, length=50, prompt="The class")
"""

from .checkpoint import CheckpointError, Run
from .comparison import BackendComparison, compare_backends
from .config import PRESETS, Config, DataConfig, ModelConfig, TrainingConfig
from .evaluation import evaluate, evaluate_text, perplexity
from .model import LanguageModel, State, sequence_loss
from .sampling import generate, sample
from .training import (
    EpochResult,
    TrainingError,
    TrainingResult,
    fit,
    new_optimizer,
    train_epoch,
    train_step,
)

__all__ = [
    "PRESETS",
    "BackendComparison",
    "CheckpointError",
    "Config",
    "DataConfig",
    "EpochResult",
    "LanguageModel",
    "ModelConfig",
    "Run",
    "State",
    "TrainingConfig",
    "TrainingError",
    "TrainingResult",
    "compare_backends",
    "evaluate",
    "evaluate_text",
    "fit",
    "generate",
    "new_optimizer",
    "perplexity",
    "sample",
    "sequence_loss",
    "train_epoch",
    "train_step",
]
