"""Word and character language models, from text to sample.

>>> from rnnfast.language_model import LanguageModel, fit, preset, sample
>>> config = preset("small").replace(epochs=2)
>>> corpus = config.data.load()
>>> model = LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed)
>>> result = fit(model, corpus, config.training)
>>> text = sample(model, corpus.vocabulary, length=50, prompt="The class")
"""

from .beam import Hypothesis, beam_search
from .chart import plot_history
from .checkpoint import CheckpointError, Run
from .comparison import BackendComparison, compare_backends
from .config import Config, DataConfig, ModelConfig, TrainingConfig
from .evaluation import Evaluation, evaluate, evaluate_text, perplexity
from .logs import CsvLog, Log, TensorBoardLog
from .model import Hidden, LanguageModel
from .optimizers import AveragedSGD, new_optimizer
from .presets import PRESETS, preset
from .results import Checkpoint, EpochResult, TrainingResult
from .sampling import generate, sample, stream_text
from .softmax import sequence_loss
from .state import State
from .steps import train_epoch, train_step
from .training import TrainingError, fit, training_batches, validation_batches

__all__ = [
    "PRESETS",
    "AveragedSGD",
    "BackendComparison",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "CsvLog",
    "DataConfig",
    "EpochResult",
    "Evaluation",
    "Hidden",
    "Hypothesis",
    "LanguageModel",
    "Log",
    "ModelConfig",
    "Run",
    "State",
    "TensorBoardLog",
    "TrainingConfig",
    "TrainingError",
    "TrainingResult",
    "beam_search",
    "compare_backends",
    "evaluate",
    "evaluate_text",
    "fit",
    "generate",
    "new_optimizer",
    "perplexity",
    "plot_history",
    "preset",
    "sample",
    "sequence_loss",
    "stream_text",
    "train_epoch",
    "train_step",
    "training_batches",
    "validation_batches",
]
