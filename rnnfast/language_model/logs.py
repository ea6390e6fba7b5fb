"""What each epoch gave, kept for other programs: a CSV file, TensorBoard."""

import csv
import dataclasses
import io
import math
import os
from pathlib import Path
from typing import Protocol

from ..text import InputError, write_atomically
from .results import EpochResult

Number = int | float | None


class Log(Protocol):
    """Takes what each epoch gave, as :class:`CsvLog` and :class:`TensorBoardLog` do."""

    def write(self, result: EpochResult) -> None:
        """Called after each epoch, and for those that were done before where a run is resumed; what
        was given is safe when it returns."""
        ...

    def close(self) -> None:
        """Called when no epoch follows."""
        ...


class CsvLog:
    """A table of the epochs, a line for each: the fields of :class:`EpochResult`.

    The file is replaced in one step after each epoch, so that whoever reads it sees whole lines
    only. Numbers are written with all their digits; a field that is None is empty.

    No epoch has two lines: where one is written again, after a run was resumed, its line and those
    of later epochs are replaced.

    Args:
        path: the file; its folder is made where it does not exist. Nothing is written before the
            first epoch's end.
        append: whether the lines of a file that is there are kept, those of epochs before the first
            one that is written. :func:`fit` does without, since it tells its logs all epochs of the
            run that it resumes.

    Raises:
        InputError: with ``append``, the file holds something else.
    """

    def __init__(self, path: str | os.PathLike, append: bool = False) -> None:
        self.path = Path(path)
        self._rows = self.read(path) if append and self.path.exists() else []

    def write(self, result: EpochResult) -> None:
        """Add the line of an epoch."""
        self._rows = [row for row in self._rows if row["epoch"] < result.epoch]
        self._rows.append(dataclasses.asdict(result))
        names = dict.fromkeys(name for row in self._rows for name in row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue().encode())

    def close(self) -> None:
        """Nothing is left to do."""

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict[str, Number]]:
        """The lines of a file, each as the numbers by field, in the order of the epochs.

        Raises:
            InputError: the file is missing or is no table of epochs.
        """
        try:
            with open(path, encoding="utf-8", newline="") as file:
                lines = list(csv.reader(file, strict=True))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} is no table of epochs: {error}") from None
        names = lines[0] if lines else []
        if "epoch" not in names:
            raise InputError(f"{path} is no table of epochs: its first line names no field epoch")
        rows = []
        for number, line in enumerate(lines[1:], start=2):
            try:
                row = dict(zip(names, map(_number, line), strict=True))
            except ValueError:
                row = {"epoch": None}
            previous = rows[-1]["epoch"] if rows else 0
            if not isinstance(row["epoch"], int) or row["epoch"] <= previous:
                raise InputError(
                    f"{path} is no table of epochs: line {number} must hold {len(names)} numbers, "
                    f"the epoch's rising, got {','.join(line)!r}"
                )
            rows.append(row)
        return rows


def _number(text: str) -> Number:
    if text == "":
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


class TensorBoardLog:
    """Scalars for TensorBoard, by epoch: ``tensorboard --logdir`` the folder or one above it.

    ``loss/`` (nats per token), ``bits_per_token/`` and ``perplexity/``, each of ``train`` and
    ``valid``; ``learning_rate``; ``words_per_second``; ``accuracy/valid`` where it is known.

    A run that is resumed goes on in its folder: TensorBoard then forgets the epochs, from the first
    one that is written on, of what the folder held before.

    Args:
        folder: where the event file goes. Nothing is written before the first epoch's end.

    Raises:
        ImportError: the package tensorboard is missing, which the extra ``tensorboard`` brings.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "logs for TensorBoard need tensorboard: pip install rnnfast[tensorboard]"
            ) from error
        self._make_writer = SummaryWriter
        self._writer: SummaryWriter | None = None
        self.folder = Path(folder)

    def write(self, result: EpochResult) -> None:
        """Add the scalars of an epoch."""
        if self._writer is None:
            self._writer = self._make_writer(str(self.folder), purge_step=result.epoch)
        scalars = {
            "learning_rate": result.learning_rate,
            "words_per_second": result.words_per_second,
        }
        for part in ("train", "valid"):
            loss = getattr(result, f"{part}_loss")
            scalars[f"loss/{part}"] = loss
            scalars[f"bits_per_token/{part}"] = loss / math.log(2)
            scalars[f"perplexity/{part}"] = getattr(result, f"{part}_perplexity")
        if result.valid_accuracy is not None:
            scalars["accuracy/valid"] = result.valid_accuracy
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, result.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
