"""A run on disk: settings, vocabulary and weights in one folder, nothing pickled."""

import hashlib
import json
import os
from pathlib import Path

from torch import Tensor

from ..text import InputError, Vocabulary, read_text, write_atomically
from .config import Config
from .model import LanguageModel
from .training import EpochResult

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save
except ImportError as error:
    raise ImportError("checkpoints need safetensors: pip install rnnfast[lm]") from error

WEIGHTS = ("best", "last")


class CheckpointError(InputError):
    """A run cannot be read or must not be written; the message is one line that says why."""


class Run:
    """The folder of one training.

    ========================  ================================================================
    ``config.json``           the :class:`Config`
    ``vocabulary.json``       the :class:`~rnnfast.text.Vocabulary`
    ``best.safetensors``      the weights of the epoch with the best validation perplexity
    ``last.safetensors``      the weights of the last epoch
    ========================  ================================================================

    Each file is replaced in one step. A weights file holds, as metadata, the fingerprints of the
    vocabulary and the settings it was trained with and of its own weights, so that files that do
    not belong together, or are damaged, are told and refused.

    Made by :meth:`create` for a training and by :meth:`open` for a trained model.
    """

    def __init__(self, path: str | os.PathLike, config: Config, vocabulary: Vocabulary) -> None:
        self.path = Path(path)
        self.config = config
        self.vocabulary = vocabulary
        self._has_files_of_this_run = False

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        config: Config,
        vocabulary: Vocabulary,
        *,
        overwrite: bool = False,
    ) -> "Run":
        """A run to be trained. Nothing is written before :meth:`begin`.

        Args:
            path: the folder, which may not exist yet.
            config: the settings.
            vocabulary: the vocabulary.
            overwrite: whether a run that the folder holds may be replaced.

        Raises:
            CheckpointError: the path is a file, or holds a run and ``overwrite`` is False.
        """
        refuse_existing(path, overwrite=overwrite)
        return cls(path, config, vocabulary)

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Run":
        """A run that was trained.

        Raises:
            CheckpointError: the folder or a file is missing or damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a folder: expected one that holds a run")
        parsed = []
        for file_name, parse in (
            ("config.json", Config.from_json),
            ("vocabulary.json", Vocabulary.from_json),
        ):
            file = path / file_name
            if not file.is_file():
                raise CheckpointError(f"{path} holds no run: {file_name} is missing")
            try:
                parsed.append(parse(read_text(file)))
            except InputError as error:
                raise CheckpointError(f"{file} is damaged: {error}") from None
        return cls(path, *parsed)

    def begin(self) -> None:
        """Make the folder and prove that it can be written to.

        A run that stands there stays whole until the first :meth:`save`.

        Raises:
            CheckpointError: the folder cannot be made or written to.
        """
        probe = self.path / ".begin.tmp"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.path}: {error.strerror}") from None

    def save(self, model: LanguageModel, result: EpochResult, *, is_best: bool) -> None:
        """Write the weights after an epoch, as the last and, where they are, as the best."""
        if not self._has_files_of_this_run:
            for name in WEIGHTS:
                self._weights_path(name).unlink(missing_ok=True)
            self.vocabulary.save(self.path / "vocabulary.json")
            write_atomically(self.path / "config.json", self.config.to_json().encode())
            self._has_files_of_this_run = True
        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        metadata = {
            "config": self.config.fingerprint,
            "vocabulary": self.vocabulary.fingerprint,
            "weights": _weights_fingerprint(weights),
            "epoch": str(result.epoch),
            "valid_perplexity": repr(result.valid_perplexity),
        }
        content = save(weights, metadata)
        if is_best:
            write_atomically(self._weights_path("best"), content)
        write_atomically(self._weights_path("last"), content)

    def load_model(self, weights: str = "best", *, backend: str | None = None) -> LanguageModel:
        """The model with its trained weights, in evaluation mode.

        Args:
            weights: ``"best"`` or ``"last"``.
            backend: whose LSTM runs it. Default: the one it was trained with.

        Raises:
            CheckpointError: the weights are missing, damaged, of another vocabulary, of other
                settings or of other shapes.
        """
        if weights not in WEIGHTS:
            raise CheckpointError(f"unknown weights {weights!r}: expected {' or '.join(WEIGHTS)}")
        path = self._weights_path(weights)
        tensors, metadata = _read_weights(path)
        for name, expected in (
            ("vocabulary", self.vocabulary.fingerprint),
            ("config", self.config.fingerprint),
        ):
            if metadata.get(name) != expected:
                raise CheckpointError(
                    f"{path} was not trained with {self.path / name}.json: fingerprints differ"
                )
        config = self.config if backend is None else self.config.replace(backend=backend)
        model = LanguageModel(len(self.vocabulary), config.model)
        expected_shapes = {name: tuple(v.shape) for name, v in model.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        for name in sorted(expected_shapes.keys() | shapes.keys()):
            if shapes.get(name) != expected_shapes.get(name):
                raise CheckpointError(
                    f"{path}: {name} is {_describe(shapes.get(name))}, "
                    f"expected {_describe(expected_shapes.get(name))}"
                )
        model.load_state_dict(tensors)
        return model.eval()

    def _weights_path(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def refuse_existing(path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Raise :class:`CheckpointError` if a run must not be written to ``path``."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: expected a folder for the run")
    files = ("config.json", "vocabulary.json", *(f"{name}.safetensors" for name in WEIGHTS))
    if not overwrite and any((path / file).exists() for file in files):
        raise CheckpointError(f"{path} already holds a run: choose another folder or --overwrite")


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no such weights: {path.name} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from None
    if metadata.get("weights") != _weights_fingerprint(tensors):
        raise CheckpointError(f"{path} is damaged: its weights are not those that were saved")
    return tensors, metadata


def _weights_fingerprint(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"
