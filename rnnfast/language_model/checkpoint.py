"""A run on disk: settings, vocabulary, weights and checkpoints in one folder, nothing pickled."""

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..text import InputError, Vocabulary, read_text, write_atomically
from ..text.files import naming
from .config import Config, parse_toml
from .distributed import Processes
from .model import LanguageModel
from .results import Checkpoint, EpochResult, best_of

try:
    import tomli_w
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save
except ImportError as error:
    raise ImportError("checkpoints need safetensors: pip install rnnfast[lm]") from error

WEIGHTS = ("best", "last")

_log = logging.getLogger(__name__)


class CheckpointError(InputError):
    """A run cannot be read or must not be written; the message is one line that says why."""


class Run:
    """The folder of one training.

    ========================  ================================================================
    ``config.toml``           the :class:`Config`
    ``vocabulary.json``       the :class:`~rnnfast.text.Vocabulary`
    ``best.safetensors``      the weights of the epoch with the best validation perplexity
    ``last.safetensors``      the last :class:`Checkpoint`: all that the training needs to go on
    ``previous.safetensors``  the one before, for when the last is damaged
    ========================  ================================================================

    Each file is replaced in one step, once its content is on the disk, so that a crash at any
    moment leaves a checkpoint to go on from. A ``safetensors`` file holds, as metadata, the
    fingerprints of the vocabulary and the settings it was trained with and of its own content, so
    that files that do not belong together, or are damaged, are told and refused. The number of
    epochs is no part of the settings' fingerprint: a run may be trained for more.

    Made by :meth:`create` for a training and by :meth:`open` for one that was begun.

    Examples::

        >>> run = Run.create("runs/ptb", config, corpus.vocabulary)
        >>> fit(model, corpus, config.training, recorder=run)  # killed
        >>> run = Run.open("runs/ptb")
        >>> fit(model, corpus, run.config.training, recorder=run, start=run.checkpoint())
        >>> model = run.load_model()
    """

    def __init__(self, path: str | os.PathLike, config: Config, vocabulary: Vocabulary) -> None:
        self.path = Path(path)
        self.config = config
        self.vocabulary = vocabulary
        self._tables = parse_toml(config.to_toml())
        self._is_new = True
        self._may_replace = False
        self._was_read = False
        self._last_is_sound = True

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
        run = cls(path, config, vocabulary)
        run._may_replace = overwrite
        return run

    @classmethod
    def open(cls, path: str | os.PathLike, *, epochs: int | None = None) -> "Run":
        """A run whose training was begun.

        Args:
            path: the folder.
            epochs: for how many epochs it is trained, in place of the settings' number.

        Raises:
            CheckpointError: the folder or a file is missing or damaged.
            InputError: the number of epochs is out of range.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a folder: expected one that holds a run")
        parsed = []
        for file_name, parse in (
            ("config.toml", _parse_settings),
            ("vocabulary.json", Vocabulary.from_json),
        ):
            file = path / file_name
            if not file.is_file():
                raise CheckpointError(f"{path} holds no run: {file_name} is missing")
            try:
                parsed.append(parse(read_text(file)))
            except InputError as error:
                raise CheckpointError(f"{file} is damaged: {error}") from None
        (tables, config), vocabulary = parsed
        if epochs is not None:
            config = config.replace(epochs=epochs)
            tables = _with_epochs(tables, epochs)
        run = cls(path, config, vocabulary)
        run._tables = tables
        run._is_new = False
        return run

    def begin(self) -> None:
        """Make the folder ready for a training: a new run takes the place of one that is there.

        Raises:
            CheckpointError: the folder cannot be made or written to; another process trains in it,
                or did so since :meth:`create`; or it holds a training whose checkpoint was not read
                and would be lost.
        """
        if not (self._is_new or self._was_read):
            raise CheckpointError(
                f"{self.path} holds a training: start=run.checkpoint() goes on with it"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            if self._is_new:
                # Since create, another process may have trained here and ended.
                refuse_existing(self.path, overwrite=self._may_replace)
                if (self.path / "config.toml").exists():
                    (self.path / "log.csv").unlink(missing_ok=True)
                # In this order a crash leaves no file beside a config.toml that it is not of.
                for name in ("config.toml", *(f"{name}.safetensors" for name in _TENSOR_FILES)):
                    (self.path / name).unlink(missing_ok=True)
                self.vocabulary.save(self.path / "vocabulary.json")
                self._is_new = False
            write_atomically(self.path / "config.toml", tomli_w.dumps(self._tables).encode())
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.path}: {error.strerror}") from None

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Write a checkpoint as the last, and its best weights where they are new.

        Args:
            checkpoint: where the training stands.
            is_best: whether its best weights are others than at the call before.
        """
        if is_best:
            self._save_best(checkpoint)
        tensors, plain = _flatten(checkpoint)
        temporary = self._write("last", tensors, {"checkpoint": json.dumps(plain)})
        last = self._path("last")
        # A crash between the two leaves `previous`, which is then the last checkpoint.
        if self._last_is_sound and last.exists():
            os.replace(last, self._path("previous"))
        os.replace(temporary, last)
        _sync_folder(self.path)
        self._last_is_sound = True

    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint; the one before, with a warning in the log, if it is damaged.

        Best weights that are damaged or missing on the disk are written anew from it.

        Returns:
            The checkpoint, or None if the run has none yet.

        Raises:
            CheckpointError: all that are there are damaged, or of other settings or another
                vocabulary.
        """
        self._was_read = True
        there = [name for name in _CHECKPOINTS if self._path(name).exists()]
        errors = []
        for name in there:
            try:
                checkpoint = self._read_checkpoint(name)
            except CheckpointError as error:
                errors.append(error)
                self._last_is_sound = self._last_is_sound and name != "last"
                continue
            for error in errors:
                _log.warning("%s; going on from %s", error, self._path(name))
            self._mend_best(checkpoint)
            return checkpoint
        if errors:
            raise CheckpointError("; ".join(map(str, errors)))
        if self._path("best").exists():
            raise CheckpointError(f"{self.path} has weights, but no checkpoint to go on from")
        return None

    def load_model(self, weights: str = "best", *, backend: str | None = None) -> LanguageModel:
        """The model with its trained weights, in evaluation mode.

        Args:
            weights: ``"best"``, or ``"last"``: those of the last checkpoint.
            backend: whose layers run it. Default: those it was trained with.

        Raises:
            CheckpointError: the weights are missing, damaged, of another vocabulary, of other
                settings or of other shapes.
        """
        if weights not in WEIGHTS:
            raise CheckpointError(f"unknown weights {weights!r}: expected {' or '.join(WEIGHTS)}")
        path = self._path(weights)
        tensors = self._read(weights)[0]
        if weights == "last":
            tensors = _section(tensors, "model")
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

    def _lock(self) -> None:
        """Keeps other processes from training here for as long as this one lives."""
        self._locked = open(self.path / ".lock", "w")
        try:
            fcntl.lockf(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"another process is training in {self.path}") from None

    def _save_best(self, checkpoint: Checkpoint) -> None:
        best = best_of(checkpoint.results)
        metadata = {"epoch": str(best.epoch), "valid_perplexity": repr(best.valid_perplexity)}
        temporary = self._write("best", checkpoint.best_weights, metadata)
        os.replace(temporary, self._path("best"))

    def _mend_best(self, checkpoint: Checkpoint) -> None:
        if not (checkpoint.best_weights and Processes.launched().is_main):
            return
        try:
            self._read("best")
        except CheckpointError as error:
            _log.warning("%s; written anew from the checkpoint", error)
            self._save_best(checkpoint)

    def _read_checkpoint(self, name: str) -> Checkpoint:
        tensors, metadata = self._read(name)
        if "checkpoint" not in metadata:
            raise CheckpointError(f"{self._path(name)} holds weights alone: no checkpoint")
        return _unflatten(tensors, json.loads(metadata["checkpoint"]))

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
        """Writes a file under a temporary name, which is returned when all is on the disk."""
        tensors = _unshared(tensors)
        metadata = {
            **metadata,
            "config": _fingerprint(self._tables),
            "vocabulary": self.vocabulary.fingerprint,
            "torch": torch.__version__,
        }
        metadata["content"] = _content_fingerprint(tensors, metadata)
        # The same name each time: what a killed training left is overwritten.
        temporary = self.path / f".{name}.safetensors.tmp"
        with naming(temporary), open(temporary, "wb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a file that is whole and of this run."""
        path = self._path(name)
        if not path.is_file():
            raise CheckpointError(f"{path.parent} holds no such weights: {path.name} is missing")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or damaged: {error}") from None
        if metadata.pop("content", None) != _content_fingerprint(tensors, metadata):
            raise CheckpointError(f"{path} is damaged: its content is not what was saved")
        for key, file_name, expected in (
            ("vocabulary", "vocabulary.json", self.vocabulary.fingerprint),
            ("config", "config.toml", _fingerprint(self._tables)),
        ):
            if metadata[key] != expected:
                raise CheckpointError(
                    f"{path} was not trained with {self.path / file_name}: fingerprints differ"
                )
        return tensors, metadata

    def _path(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


_CHECKPOINTS = ("last", "previous")
_TENSOR_FILES = ("best", *_CHECKPOINTS)


def refuse_existing(path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Raise :class:`CheckpointError` if a run must not be written to ``path``."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: expected a folder for the run")
    files = ("config.toml", "vocabulary.json", *(f"{name}.safetensors" for name in _TENSOR_FILES))
    if not overwrite and any((path / file).exists() for file in files):
        raise CheckpointError(f"{path} already holds a run: choose another folder or --overwrite")


def _flatten(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint as tensors by name and what JSON can hold."""
    groups = checkpoint.optimizer["param_groups"]
    kept = checkpoint.optimizer["state"]
    tensors = {
        **_prefixed("model", checkpoint.weights),
        **_prefixed("best", checkpoint.best_weights),
        **_prefixed("state", checkpoint.state),
        **_prefixed("generator", checkpoint.generators),
        "nats": checkpoint.nats,
    }
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in kept.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    plain = {
        "optimizer": {"param_groups": groups, "state": numbers},
        "results": [dataclasses.asdict(result) for result in checkpoint.results],
        "window": checkpoint.window,
        "num_tokens": checkpoint.num_tokens,
        "seconds": checkpoint.seconds,
        "corpus": checkpoint.corpus,
    }
    return tensors, plain


def _unflatten(tensors: dict[str, Tensor], plain: dict[str, Any]) -> Checkpoint:
    """The checkpoint that :func:`_flatten` was given."""
    kept: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in plain["optimizer"]["state"].items()
    }
    for key, value in _section(tensors, "optimizer").items():
        index, name = key.split(".", 1)
        kept.setdefault(int(index), {})[name] = value
    groups = [
        {
            name: tuple(value) if isinstance(value, list) and name != "params" else value
            for name, value in group.items()
        }
        for group in plain["optimizer"]["param_groups"]
    ]
    return Checkpoint(
        weights=_section(tensors, "model"),
        best_weights=_section(tensors, "best"),
        optimizer={"param_groups": groups, "state": kept},
        state=_section(tensors, "state"),
        generators=_section(tensors, "generator"),
        results=tuple(EpochResult(**result) for result in plain["results"]),
        window=plain["window"],
        nats=tensors["nats"],
        num_tokens=plain["num_tokens"],
        seconds=plain["seconds"],
        corpus=plain.get("corpus"),
    )


def _prefixed(section: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{section}.{name}": value for name, value in tensors.items()}


def _section(tensors: dict[str, Tensor], section: str) -> dict[str, Tensor]:
    """What :func:`_prefixed` was given."""
    prefix = f"{section}."
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: tied weights stand in a file twice."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


def _parse_settings(text: str) -> tuple[dict[str, Any], Config]:
    """The settings as they stand in the text, and with defaults for those that do not."""
    return parse_toml(text), Config.from_toml(text)


def _with_epochs(tables: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The same settings but for the number of epochs."""
    return {**tables, "training": {**tables.get("training", {}), "epochs": epochs}}


def _fingerprint(tables: dict[str, Any]) -> str:
    """SHA-256 of the settings, whatever the number of epochs."""
    return hashlib.sha256(tomli_w.dumps(_with_epochs(tables, 1)).encode()).hexdigest()


def _content_fingerprint(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sync_folder(path: Path) -> None:
    """Has the names in a folder on the disk when it returns."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"
