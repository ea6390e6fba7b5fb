"""Settings of a run: which text, which model, how it is trained; as TOML on disk."""

import dataclasses
import hashlib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..text import (
    Cleaning,
    Corpus,
    InputError,
    load_encoded,
    load_ptb,
    load_pydoc,
    load_text,
)
from .checks import is_integer, is_number, require, require_at_least_one

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

try:
    import tomli_w
except ImportError as error:
    raise ImportError("settings on disk need tomli-w: pip install rnnfast[lm]") from error

Section = TypeVar("Section")

BACKENDS = ("rnnfast", "torch")
PRECISIONS = ("fp32", "bf16")
CORPORA = ("pydoc", "ptb", "text", "encoded")
LEVELS = ("word", "char", "subword")
CELLS = ("lstm", "gru", "rnn")
INITS = ("uniform", "normal", "torch", "embeddings")
OPTIMIZERS = ("sgd", "adadelta", "adam", "adamw", "asgd")
SCHEDULES = ("exponential", "plateau", "constant")
BATCHINGS = ("continuous", "random", "overlapping")


def _is_positive_integer(value: object) -> bool:
    return is_integer(value) and value >= 1


def _is_path(value: object) -> bool:
    """Whether it names a file, under a name that a file of settings can hold."""
    return isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)


def _require_choice(settings: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(settings, name)
    require(value in choices, name, value, f"one of {', '.join(choices)}")


def _require_flags(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(isinstance(value, bool), name, value, "true or false")


def _require_at_least_one(
    settings: object, *names: str, optional: bool = False, is_size: bool = False
) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (optional and value is None):
            require_at_least_one(name, value)
            # Torch can tell of larger ones by an overflow only.
            require(not is_size or value < 2**31, name, value, "below 2**31")


def _require_left_out(settings: object, where: str, *names: str) -> None:
    """Raises InputError for a setting that is not at its default."""
    for name in names:
        value, default = getattr(settings, name), getattr(type(settings), name)
        require(value == default, name, value, f"left out {where}")


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(is_number(value) and 0 < value < math.inf, name, value, "a finite number above 0")


def _require_not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(
            is_number(value) and 0 <= value < math.inf, name, value, "a finite number of 0 or more"
        )


def _require_probability(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(is_number(value) and 0 <= value <= 1, name, value, "from 0 to 1")


def _require_dropout(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None:
            require(is_number(value) and 0 <= value < 1, name, value, "at least 0 and below 1")


def _freeze_lists(settings: object) -> None:
    """TOML and the command line give lists; settings are hashable and hold tuples."""

    def frozen(value: object) -> object:
        return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value

    for f in dataclasses.fields(settings):
        object.__setattr__(settings, f.name, frozen(getattr(settings, f.name)))


@dataclass(frozen=True)
class DataConfig:
    """Which text is read, and what is a token of it.

    Args:
        corpus: ``"pydoc"`` (the language reference inside CPython), ``"ptb"`` (a folder of the
            Penn Treebank's files), ``"text"`` (any file, or a folder of them) or ``"encoded"`` (a
            folder that ``rnnfast encode`` made of a text of any size).
        path: the folder or the file; None for pydoc.
        level: ``"word"``, ``"char"`` or ``"subword"``; pydoc has words only, ptb no sub-words, and
            what is encoded has its own.
        min_count: rarer words are read as ``<unk>``. None: the corpus's own default. Not for ptb,
            whose files hold ``<unk>`` already, nor for characters.
        max_size: entries of the vocabulary; rarer tokens are read as ``<unk>``. None: no limit.
        lower: whether letters are made lower case (``"text"``).
        keep: the letters that are kept (``"text"``); every run of anything else becomes one blank.
            None: all.
        splits: where the parts that train, validate and test start and end, in tokens or, with
            fractions, as shares of the text (``"text"`` and ``"encoded"``). None: 80, 10 and 10%.
    """

    corpus: str = "pydoc"
    path: str | None = None
    level: str = "word"
    min_count: int | None = None
    max_size: int | None = None
    lower: bool = False
    keep: str | None = None
    splits: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        _freeze_lists(self)
        _require_choice(self, "corpus", CORPORA)
        _require_choice(self, "level", LEVELS)
        _require_at_least_one(self, "min_count", "max_size", optional=True)
        _require_flags(self, "lower")
        if self.path is not None:
            require(_is_path(self.path), "path", self.path, "a name that UTF-8 holds")
        if self.keep is not None:
            require(isinstance(self.keep, str) and self.keep != "", "keep", self.keep, "letters")
        if self.corpus == "pydoc":
            require(self.path is None, "path", self.path, "left out for corpus pydoc")
        if self.corpus == "ptb":
            require(self.level != "subword", "level", self.level, "word or char for corpus ptb")
        _require_left_out(self, f"for corpus {self.corpus}", *self._left_out())
        if self.level != "word":
            require(self.min_count is None, "min_count", self.min_count, "left out but for words")
        if self.splits is not None:
            pairs = isinstance(self.splits, tuple) and [
                isinstance(pair, tuple) and len(pair) == 2 and all(map(is_number, pair))
                for pair in self.splits
            ]
            require(
                bool(pairs) and len(pairs) == 3 and all(pairs),
                "splits",
                self.splits,
                "three pairs of numbers",
            )

    def _left_out(self) -> tuple[str, ...]:
        """The settings that the corpus does without."""
        return {
            "pydoc": ("level", "lower", "keep", "splits"),
            "ptb": ("min_count", "max_size", "lower", "keep", "splits"),
            "text": (),
            "encoded": ("level", "min_count", "max_size", "lower", "keep"),
        }[self.corpus]

    def load(self) -> Corpus:
        """Read the text.

        Raises:
            InputError: it is missing or cannot be used.
        """
        if self.corpus == "pydoc":
            counted = {} if self.min_count is None else {"min_count": self.min_count}
            return load_pydoc(**counted, max_size=self.max_size)
        if self.path is None:
            raise InputError(f"path must be given for corpus {self.corpus}, got None")
        if self.corpus == "ptb":
            return load_ptb(self.path, self.level)
        if self.corpus == "encoded":
            return load_encoded(self.path, self.splits)
        cleaned = self.lower or self.keep is not None
        return load_text(
            self.path,
            self.level,
            min_count=self.min_count,
            max_size=self.max_size,
            cleaning=Cleaning(lower=self.lower, keep=self.keep) if cleaned else None,
            splits=self.splits,
        )

    @property
    def name(self) -> str:
        """A short name for file names: pydoc, or that of the folder or file."""
        return self.corpus if self.path is None else Path(self.path).stem


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a :class:`~rnnfast.language_model.LanguageModel`.

    Args:
        hidden_size: units of each layer; or one number for each layer, the lowest first.
        num_layers: number of layers; None: 1, or as many as ``hidden_size`` has numbers.
        cell: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        embedding: ``"learned"``, or ``"one_hot"``: the token's place in the vocabulary as a vector.
        embedding_size: units of the learned embedding. None: those of the first layer.
        reset_after: which form of the GRU: torch's and cuDNN's, or with False the original one.
        nonlinearity: ``"tanh"`` or ``"relu"``, of cell rnn.
        single_bias: whether each gate has one bias in place of torch's two, as in TensorFlow and
            Keras: ``bias_ih`` starts at zero, ``bias_hh`` stays zero.
        tied: whether the softmax layer has the embedding's weights; sizes must agree.
        softmax: ``"full"``, or ``"adaptive"`` (Grave et al. 2017) for large vocabularies.
        cutoffs: ids at which the adaptive softmax's clusters begin, rising.
        init: ``"uniform"`` in ``[-init_scale, init_scale]``, all weights and biases; ``"normal"``
            with standard deviation ``init_scale``, biases zero; ``"torch"`` as in torch.nn; or
            ``"embeddings"``: as in torch.nn but for embedding and softmax, which are uniform, with
            biases zero.
        init_scale: see ``init``; ``"torch"`` does without.
        forget_bias: added to the LSTM's forget-gate bias at the start.
        dropout: probability that a unit of the embedding or of a layer's output is dropped in
            training; the tutorial's ``1 - keep_prob``.
        input_dropout: that of the embedding's output. None: ``dropout``.
        hidden_dropout: that of each layer's output but the last's. None: ``dropout``.
        output_dropout: that of the last layer's output. None: ``dropout``.
        embedding_dropout: probability that a token's whole vector is dropped (Gal & Ghahramani).
        weight_dropout: probability that a weight of ``weight_hh`` is dropped (DropConnect).
        locked_dropout: whether a unit is dropped in all time steps of a window or in none.
        backend: ``"rnnfast"`` or ``"torch"``: whose layers.
        precision: ``"fp32"``, or ``"bf16"`` products where the CPU has them; not with torch.
    """

    hidden_size: int | tuple[int, ...] = 200
    num_layers: int | None = None
    cell: str = "lstm"
    embedding: str = "learned"
    embedding_size: int | None = None
    reset_after: bool = True
    nonlinearity: str = "tanh"
    single_bias: bool = False
    tied: bool = False
    softmax: str = "full"
    cutoffs: tuple[int, ...] = ()
    init: str = "uniform"
    init_scale: float = 0.1
    forget_bias: float = 0.0
    dropout: float = 0.0
    input_dropout: float | None = None
    hidden_dropout: float | None = None
    output_dropout: float | None = None
    embedding_dropout: float = 0.0
    weight_dropout: float = 0.0
    locked_dropout: bool = False
    backend: str = "rnnfast"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _freeze_lists(self)
        sizes = self.hidden_size
        if isinstance(sizes, tuple):
            require(
                len(sizes) > 0 and all(map(_is_positive_integer, sizes)),
                "hidden_size",
                sizes,
                "integers of at least 1",
            )
            require(
                self.num_layers in (None, len(sizes)),
                "num_layers",
                self.num_layers,
                f"left out or {len(sizes)}, the layers of hidden_size",
            )
        else:
            _require_at_least_one(self, "hidden_size", is_size=True)
        _require_at_least_one(self, "num_layers", "embedding_size", optional=True, is_size=True)
        _require_choice(self, "cell", CELLS)
        _require_choice(self, "embedding", ("learned", "one_hot"))
        _require_choice(self, "nonlinearity", ("tanh", "relu"))
        _require_choice(self, "softmax", ("full", "adaptive"))
        _require_choice(self, "init", INITS)
        _require_choice(self, "backend", BACKENDS)
        _require_choice(self, "precision", PRECISIONS)
        _require_flags(self, "reset_after", "single_bias", "tied", "locked_dropout")
        _require_positive(self, "init_scale")
        is_finite = is_number(self.forget_bias) and math.isfinite(self.forget_bias)
        require(is_finite, "forget_bias", self.forget_bias, "a finite number")
        if self.cell != "lstm":
            require(self.forget_bias == 0, "forget_bias", self.forget_bias, "0 but for cell lstm")
        require(self.dropout is not None, "dropout", self.dropout, "at least 0 and below 1")
        _require_dropout(self, "dropout", "input_dropout", "hidden_dropout", "output_dropout")
        _require_dropout(self, "embedding_dropout", "weight_dropout")
        if self.embedding == "one_hot":
            _require_left_out(self, "with embedding one_hot", "embedding_size", "tied")
        if self.tied:
            last, first = self.hidden_sizes[-1], self.embedding_size or self.hidden_sizes[0]
            require(last == first, "embedding_size", first, f"{last}, the last layer's, with tied")
        rising = (
            isinstance(self.cutoffs, tuple)
            and all(map(_is_positive_integer, self.cutoffs))
            and list(self.cutoffs) == sorted(set(self.cutoffs))
        )
        require(rising, "cutoffs", self.cutoffs, "integers of at least 1, rising")
        if self.softmax == "adaptive":
            require(len(self.cutoffs) > 0, "cutoffs", self.cutoffs, "given with softmax adaptive")
            require(not self.tied, "tied", self.tied, "false with softmax adaptive")
        else:
            _require_left_out(self, "with softmax full", "cutoffs")
        if self.backend == "torch":
            require(self.precision == "fp32", "precision", self.precision, "fp32 with torch")
            require(
                self.cell != "gru" or self.reset_after,
                "reset_after",
                self.reset_after,
                "true with backend torch, which has the other form only",
            )

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Units of each layer, the lowest first."""
        if isinstance(self.hidden_size, tuple):
            return self.hidden_size
        return (self.hidden_size,) * (self.num_layers or 1)


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Args:
        batch_size: rows of a batch: columns of text read in parallel, or windows.
        num_steps: time steps of a window, through which the gradient flows back.
        epochs: passes over the training text; the tutorial's ``max_max_epoch``.
        batching: ``"continuous"`` (columns, the state carried from window to window), ``"random"``
            (windows in random order) or ``"overlapping"`` (a window at each ``stride`` tokens); the
            last two start each window with a state of zeros.
        stride: tokens from one overlapping window to the next.
        shuffle: whether overlapping windows come in random order.
        random_offset: whether each epoch of continuous batches drops some tokens at the beginning,
            so that windows fall differently.
        variable_length: whether windows of continuous batches have random lengths about
            ``num_steps``, as in AWD-LSTM.
        boundary: the token that opens a document, before which the state is set to zero. None:
            the text is one document.
        truncation: probability that the gradient is cut between two windows of continuous batches;
            below 1, what passes is scaled up so that the gradient is unbiased (Tallec & Ollivier).
        optimizer: ``"sgd"``, ``"adadelta"``, ``"adam"``, ``"adamw"`` or ``"asgd"`` (gradient
            descent whose weights are averaged once validation stalls, as in AWD-LSTM).
        learning_rate: learning rate of the first epochs.
        weight_decay: of the optimizer.
        schedule: ``"exponential"`` (from epoch ``decay_after`` on, times ``lr_decay`` each),
            ``"plateau"`` (times ``lr_decay`` whenever validation does not improve) or
            ``"constant"``.
        decay_after: number of epochs at the full learning rate; the tutorial's ``max_epoch``.
        lr_decay: factor on the learning rate, see ``schedule``.
        max_grad_norm: the gradient of all weights together is scaled down to this norm; inf: never.
        loss_reduction: the loss that is differentiated is the mean over the batch of the
            ``"sum"`` (TensorFlow's tutorial) or the ``"mean"`` over time.
        teacher_forcing: probability that a time step reads the text and not the model's own guess
            (scheduled sampling, Bengio et al. 2015).
        activation_regularization: weight of the squared outputs in the loss (alpha of AWD-LSTM).
        temporal_activation_regularization: weight of the squared differences of outputs from one
            time step to the next (beta of AWD-LSTM).
        non_monotone: epochs that validation looks back on before averaging starts (``"asgd"``).
        patience: epochs without improvement on validation after which training stops. None: never.
        seed: seeds the initial weights, the dropout and the order of the windows.
    """

    batch_size: int = 20
    num_steps: int = 20
    epochs: int = 13
    batching: str = "continuous"
    stride: int = 1
    shuffle: bool = False
    random_offset: bool = False
    variable_length: bool = False
    boundary: str | None = None
    truncation: float = 1.0
    optimizer: str = "sgd"
    learning_rate: float = 1.0
    weight_decay: float = 0.0
    schedule: str = "exponential"
    decay_after: int = 4
    lr_decay: float = 0.5
    max_grad_norm: float = 5.0
    loss_reduction: str = "sum"
    teacher_forcing: float = 1.0
    activation_regularization: float = 0.0
    temporal_activation_regularization: float = 0.0
    non_monotone: int = 5
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require_at_least_one(self, "batch_size", "num_steps", "epochs", "decay_after", "stride")
        _require_at_least_one(self, "non_monotone")
        _require_at_least_one(self, "patience", optional=True)
        _require_choice(self, "batching", BATCHINGS)
        _require_choice(self, "optimizer", OPTIMIZERS)
        _require_choice(self, "schedule", SCHEDULES)
        _require_choice(self, "loss_reduction", ("sum", "mean"))
        _require_flags(self, "shuffle", "random_offset", "variable_length")
        _require_positive(self, "learning_rate", "lr_decay")
        _require_not_negative(self, "weight_decay")
        _require_not_negative(
            self, "activation_regularization", "temporal_activation_regularization"
        )
        _require_probability(self, "teacher_forcing")
        norm, cut = self.max_grad_norm, self.truncation
        require(is_number(norm) and norm > 0, "max_grad_norm", norm, "above 0, or inf")
        require(is_number(cut) and 0 < cut <= 1, "truncation", cut, "above 0 and at most 1")
        if self.boundary is not None:
            require(
                isinstance(self.boundary, str) and self.boundary != "",
                "boundary",
                self.boundary,
                "a token",
            )
        where = f"with {self.batching} batches"
        if self.batching != "continuous":
            names = ("random_offset", "variable_length", "boundary", "truncation")
            _require_left_out(self, where, *names)
        if self.batching != "overlapping":
            _require_left_out(self, where, "stride", "shuffle")
        require(
            is_integer(self.seed) and 0 <= self.seed < 2**63,
            "seed",
            self.seed,
            "an integer from 0 to 2**63 - 1",
        )

    def learning_rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0, by the exponential schedule.

        ``learning_rate * lr_decay ** max(epoch + 1 - decay_after, 0)``
        """
        return self.learning_rate * self.lr_decay ** max(epoch + 1 - self.decay_after, 0)


@dataclass(frozen=True)
class Config:
    """All settings of a run, as its ``config.toml`` holds them.

    Examples::

        >>> from rnnfast.language_model import preset
        >>> config = preset("small").replace(epochs=2, backend="torch")
        >>> config.training.epochs, config.model.hidden_size
        (2, 200)
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def replace(self, **changes: Any) -> "Config":
        """The same settings with other values for single fields of any section.

        Args:
            changes: values by field name, each of which only one section has; or whole sections as
                ``data``, ``model`` and ``training``.

        Raises:
            InputError: a name is unknown or a value out of range.
        """
        sections = {name: changes.pop(name, getattr(self, name)) for name in SECTIONS}
        for name, section in sections.items():
            names = {f.name for f in dataclasses.fields(section)}
            own = {key: changes.pop(key) for key in names & changes.keys()}
            sections[name] = _replaced(section, own)
        if changes:
            raise InputError(f"unknown setting {', '.join(sorted(changes))}")
        return Config(**sections)

    def to_toml(self) -> str:
        """The settings as TOML with the tables ``data``, ``model`` and ``training``.

        A setting that is None, for which TOML has no word, is left out.
        """
        return tomli_w.dumps(
            {
                name: {key: value for key, value in section.items() if value is not None}
                for name, section in dataclasses.asdict(self).items()
            }
        )

    @classmethod
    def from_toml(cls, text: str) -> "Config":
        """Read what :meth:`to_toml` wrote, or what somebody wrote by hand.

        A table or a setting that is not there has its default.

        Raises:
            InputError: the text is no TOML, or a setting is unknown or out of range.
        """
        return cls().updated(parse_toml(text))

    def updated(self, tables: Mapping[str, Any]) -> "Config":
        """The same settings but for those in ``tables``, by section.

        Raises:
            InputError: a section or setting is unknown, or a value out of range.
        """
        unknown = tables.keys() - SECTIONS.keys()
        if unknown:
            raise InputError(
                f"unknown table {', '.join(sorted(unknown))}: expected {', '.join(SECTIONS)}"
            )
        sections = {}
        for name, values in tables.items():
            if not isinstance(values, Mapping):
                raise InputError(f"{name} must be a table, got {values!r}")
            known = {f.name for f in dataclasses.fields(SECTIONS[name])}
            if values.keys() - known:
                raise InputError(
                    f"unknown setting {', '.join(sorted(values.keys() - known))} in {name}"
                )
            sections[name] = _replaced(getattr(self, name), values)
        return dataclasses.replace(self, **sections)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all settings."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()


def _replaced(section: Section, values: Mapping[str, Any]) -> Section:
    """The section with other values; layers of given sizes are as many as there are sizes."""
    if isinstance(values.get("hidden_size"), (list, tuple)):
        values = {"num_layers": None, **values}
    return dataclasses.replace(section, **values)


SECTIONS = {"data": DataConfig, "model": ModelConfig, "training": TrainingConfig}


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        InputError: the text is no TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise InputError(f"settings are TOML: {error}") from None
