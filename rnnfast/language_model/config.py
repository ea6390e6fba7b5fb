"""Settings of a run: which text, which model, how it is trained; the tutorials' presets."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..text import Corpus, InputError, load_ptb, load_pydoc, load_text

BACKENDS = ("rnnfast", "torch")
CORPORA = ("pydoc", "ptb", "text")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"{name} must be {expected}, got {value!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require_at_least_one(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(_is_integer(value) and value >= 1, name, value, "an integer of at least 1")


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(
            _is_number(value) and 0 < value < float("inf"), name, value, "a finite number above 0"
        )


@dataclass(frozen=True)
class DataConfig:
    """Which text is read.

    Args:
        corpus: ``"pydoc"`` (the language reference inside CPython), ``"ptb"`` (a folder of
            ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``) or ``"text"`` (any file).
        path: the folder or the file; None for pydoc.
        level: ``"word"``, or ``"char"`` for a text file.
        min_count: rarer words are read as ``<unk>``. None: the corpus's own default. Not for ptb,
            whose files hold ``<unk>`` already, nor for characters.
    """

    corpus: str = "pydoc"
    path: str | None = None
    level: str = "word"
    min_count: int | None = None

    def __post_init__(self) -> None:
        _require(self.corpus in CORPORA, "corpus", self.corpus, f"one of {', '.join(CORPORA)}")
        _require(self.level in ("word", "char"), "level", self.level, "word or char")
        if self.corpus == "pydoc":
            _require(self.path is None, "path", self.path, "None for corpus pydoc")
        else:
            _require(
                isinstance(self.path, str), "path", self.path, f"given for corpus {self.corpus}"
            )
        if self.corpus != "text":
            _require(self.level == "word", "level", self.level, f"word for corpus {self.corpus}")
        if self.min_count is not None:
            words = self.corpus != "ptb" and self.level == "word"
            _require(words, "min_count", self.min_count, "left out for ptb and for characters")
            _require_at_least_one(self, "min_count")

    def load(self) -> Corpus:
        """Read the text.

        Raises:
            InputError: it is missing or cannot be used.
        """
        if self.corpus == "ptb":
            return load_ptb(self.path)
        options = {} if self.min_count is None else {"min_count": self.min_count}
        if self.corpus == "text":
            return load_text(self.path, self.level, **options)
        return load_pydoc(**options)

    @property
    def name(self) -> str:
        """A short name for file names: pydoc, or that of the folder or file."""
        return self.corpus if self.path is None else Path(self.path).stem


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a :class:`~rnnfast.language_model.LanguageModel`.

    Args:
        hidden_size: units of the embedding and of each layer.
        num_layers: number of LSTM layers.
        dropout: probability that a unit of the embedding or of a layer's output is dropped in
            training; the tutorial's ``1 - keep_prob``.
        init_scale: initial weights are uniform in ``[-init_scale, init_scale]``.
        backend: ``"rnnfast"`` or ``"torch"``: whose LSTM.
    """

    hidden_size: int = 200
    num_layers: int = 2
    dropout: float = 0.0
    init_scale: float = 0.1
    backend: str = "rnnfast"

    def __post_init__(self) -> None:
        _require_at_least_one(self, "hidden_size", "num_layers")
        _require_positive(self, "init_scale")
        _require(
            _is_number(self.dropout) and 0 <= self.dropout < 1,
            "dropout",
            self.dropout,
            "at least 0 and below 1",
        )
        _require(self.backend in BACKENDS, "backend", self.backend, f"one of {', '.join(BACKENDS)}")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Args:
        batch_size: columns of text read in parallel.
        num_steps: time steps of a window, through which the gradient flows back.
        epochs: passes over the training text; the tutorial's ``max_max_epoch``.
        learning_rate: learning rate of the first epochs.
        decay_after: number of epochs at the full learning rate; the tutorial's ``max_epoch``.
        lr_decay: factor on the learning rate for each epoch after those.
        max_grad_norm: the gradient of all weights together is scaled down to this norm.
        seed: seeds the initial weights and the dropout.
    """

    batch_size: int = 20
    num_steps: int = 20
    epochs: int = 13
    learning_rate: float = 1.0
    decay_after: int = 4
    lr_decay: float = 0.5
    max_grad_norm: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require_at_least_one(self, "batch_size", "num_steps", "epochs", "decay_after")
        _require_positive(self, "learning_rate", "lr_decay", "max_grad_norm")
        _require(
            _is_integer(self.seed) and 0 <= self.seed < 2**63,
            "seed",
            self.seed,
            "an integer from 0 to 2**63 - 1",
        )

    def learning_rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0.

        ``learning_rate * lr_decay ** max(epoch + 1 - decay_after, 0)``
        """
        return self.learning_rate * self.lr_decay ** max(epoch + 1 - self.decay_after, 0)


@dataclass(frozen=True)
class Config:
    """All settings of a run, as its ``config.json`` holds them.

    Examples::

        >>> config = Config.preset("small", epochs=2, backend="torch")
        >>> config.training.epochs, config.model.hidden_size
        (2, 200)
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @classmethod
    def preset(cls, name: str, data: DataConfig | None = None, **changes: Any) -> "Config":
        """The configuration of that name from TensorFlow's PTB tutorial, with single changes.

        Args:
            name: ``"small"``, ``"medium"``, ``"large"`` or ``"test"``.
            data: which text is read. Default: pydoc.
            changes: other values for fields of :class:`ModelConfig` and :class:`TrainingConfig`.
        """
        if name not in PRESETS:
            raise InputError(f"unknown model {name!r}: expected one of {', '.join(PRESETS)}")
        return PRESETS[name].replace(data=data or DataConfig(), **changes)

    def replace(self, data: DataConfig | None = None, **changes: Any) -> "Config":
        """The same settings with other data or other values for single fields."""
        sections = {"model": self.model, "training": self.training}
        for section_name, section in sections.items():
            names = {f.name for f in dataclasses.fields(section)}
            own = {name: changes.pop(name) for name in names & changes.keys()}
            sections[section_name] = dataclasses.replace(section, **own)
        if changes:
            raise InputError(f"unknown setting {', '.join(sorted(changes))}")
        return Config(data or self.data, **sections)

    def to_json(self) -> str:
        """The settings as a JSON object with the keys ``data``, ``model`` and ``training``."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: the text is no such object, or a setting is unknown or out of range.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"a configuration is a JSON object: {error}") from None
        sections = {"data": DataConfig, "model": ModelConfig, "training": TrainingConfig}
        if not isinstance(content, dict) or content.keys() != sections.keys():
            raise InputError(f"a configuration has the keys {', '.join(sections)}")
        values = {}
        for name, section in sections.items():
            names = [f.name for f in dataclasses.fields(section)]
            if not isinstance(content[name], dict) or content[name].keys() != set(names):
                raise InputError(f"{name} has the keys {', '.join(names)}")
            values[name] = section(**content[name])
        return cls(**values)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all settings."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


PRESETS: dict[str, Config] = {
    "small": Config(
        model=ModelConfig(hidden_size=200, num_layers=2, dropout=0.0, init_scale=0.1),
        training=TrainingConfig(
            num_steps=20, epochs=13, decay_after=4, lr_decay=0.5, max_grad_norm=5.0
        ),
    ),
    "medium": Config(
        model=ModelConfig(hidden_size=650, num_layers=2, dropout=0.5, init_scale=0.05),
        training=TrainingConfig(
            num_steps=35, epochs=39, decay_after=6, lr_decay=0.8, max_grad_norm=5.0
        ),
    ),
    "large": Config(
        model=ModelConfig(hidden_size=1500, num_layers=2, dropout=0.65, init_scale=0.04),
        training=TrainingConfig(
            num_steps=35, epochs=55, decay_after=14, lr_decay=1 / 1.15, max_grad_norm=10.0
        ),
    ),
    "test": Config(
        model=ModelConfig(hidden_size=2, num_layers=1, dropout=0.0, init_scale=0.1),
        training=TrainingConfig(
            num_steps=2, epochs=1, decay_after=1, lr_decay=0.5, max_grad_norm=1.0
        ),
    ),
}
"""The configurations of TensorFlow's PTB tutorial; batch 20 and learning rate 1 in each."""
