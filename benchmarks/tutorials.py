"""The tutorials' language models, trained in full on their own texts, and what they reached.

Each tutorial is one ``rnnfast train``; what an interruption left is gone on with. The data are the
folders ``ptb``, ``quijote`` and ``tinyshakespeare`` of ``--data``. ``--epochs`` trains for fewer
epochs than the tutorial; rows say so.
"""

import argparse
import csv
import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from command import record

from rnnfast import cli
from rnnfast.benchmark import measure
from rnnfast.language_model import Run, evaluate_text, preset

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """A tutorial: its command, and the perplexities that it published.

    Attributes:
        preset: settings to start from.
        text: flag and place of its text in the data folder.
        flags: other settings.
        train, valid, test: perplexities, those on the validation and the test text honest ones.
    """

    preset: str
    text: tuple[str, str]
    flags: tuple[str, ...] = ()
    train: float | None = None
    valid: float | None = None
    test: float | None = None

    def command(self, data: Path, output: Path, *flags: str) -> list[str]:
        """What follows ``rnnfast``."""
        flag, place = self.text
        text = (flag, str(data / place))
        return [
            "train",
            "--preset",
            self.preset,
            *text,
            "--output",
            str(output),
            *self.flags,
            *flags,
        ]


PTB = ("--data-path", "ptb")
QUIJOTE = ("--text", "quijote/quijote.txt")
CONCISE = ("--init", "torch")
TUTORIALS = {
    "ptb-small": Tutorial("small", PTB, (), 37.99, 121.39, 115.91),
    "ptb-medium": Tutorial("medium", PTB, (), 48.45, 86.16, 82.07),
    "ptb-large": Tutorial("large", PTB, (), 37.87, 82.62, 78.29),
    "ptb-stacked": Tutorial("stacked", PTB),
    "ptb-examples": Tutorial("examples", PTB),
    "ptb-examples-tied": Tutorial("examples-tied", PTB),
    "ptb-awd": Tutorial("awd", PTB, (), None, 61.2, 58.8),
    "quijote-rnn": Tutorial("quijote-rnn", QUIJOTE, (), 10.8),
    "quijote-rnn-concise": Tutorial("quijote-rnn", QUIJOTE, CONCISE, 9.1),
    "quijote-lstm": Tutorial("quijote-lstm", QUIJOTE, (), 10.1),
    "quijote-lstm-concise": Tutorial("quijote-lstm", QUIJOTE, CONCISE, 8.7),
    "quijote-gru": Tutorial("quijote-gru", QUIJOTE, (), 8.3),
    "quijote-gru-concise": Tutorial("quijote-gru", QUIJOTE, CONCISE, 7.4),
    "quijote-gru-original": Tutorial("quijote-gru-original", QUIJOTE, (), 8.3),
    "quijote-gru-original-concise": Tutorial("quijote-gru-original", QUIJOTE, CONCISE, 7.4),
    "shakespeare-keras": Tutorial("keras", ("--text", "tinyshakespeare/input.txt")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRow(measure.Environment):
    """A row of the CSV: one epoch of a tutorial.

    `epochs` is how many the tutorial has; `test_perplexity` stands in the last row, of the weights
    that validate best. Perplexities are by token, a word or a character. A training of hours has no
    speed to compare: ``language_model_step.py`` measures that, in turn.
    """

    threads: int
    tutorial: str
    backend: str
    precision: str
    epochs: int
    epoch: int
    learning_rate: float
    train_perplexity: float
    valid_perplexity: float
    test_perplexity: float | None

    def __str__(self) -> str:
        test = "" if self.test_perplexity is None else f", test {self.test_perplexity:.2f}"
        return (
            f"{self.tutorial:<30}{self.backend} {self.precision}  epoch {self.epoch} of "
            f"{self.epochs}: train {self.train_perplexity:.2f}, "
            f"valid {self.valid_perplexity:.2f}{test}"
        )


def train(
    name: str, data: Path, runs: Path, threads: int, backend: str, precision: str, flags: list[str]
) -> list[EpochRow]:
    """Trains a tutorial, or goes on with it, and reads its rows from the run's log."""
    tutorial = TUTORIALS[name]
    output = runs / "-".join([name, *([backend] if backend != "rnnfast" else []), precision])
    chosen = ["--backend", backend, "--precision", precision, *flags]
    arguments = tutorial.command(data, output, *chosen)
    if (output / "config.toml").exists():
        arguments = ["train", "--resume", str(output), *flags]
    print(f"rnnfast {shlex.join(arguments)}", flush=True)
    with measure.num_threads(threads):
        if cli.main(arguments) != 0:
            sys.exit(f"{name} was not trained")
        run = Run.open(output)
        test = run.config.data.load().test
        evaluation = evaluate_text(run.load_model(), test)
    here = dataclasses.asdict(measure.Environment.here())
    with (output / "log.csv").open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    return [
        EpochRow(
            **here,
            threads=threads,
            tutorial=name,
            backend=backend,
            precision=precision,
            epochs=preset(tutorial.preset).training.epochs,
            epoch=int(epoch["epoch"]),
            learning_rate=float(epoch["learning_rate"]),
            train_perplexity=measure.rounded(float(epoch["train_perplexity"])),
            valid_perplexity=measure.rounded(float(epoch["valid_perplexity"])),
            test_perplexity=measure.rounded(evaluation.perplexity) if epoch is epochs[-1] else None,
        )
        for epoch in epochs
    ]


def merged(rows: Sequence[EpochRow], path: Path | None) -> list[EpochRow]:
    """The rows and those of other trainings that the CSV has."""
    trained = {(row.tutorial, row.backend, row.precision) for row in rows}
    before = measure.read_csv(path, EpochRow) if path is not None and path.exists() else []
    kept = [row for row in before if (row.tutorial, row.backend, row.precision) not in trained]
    order = list(TUTORIALS)
    return sorted(
        [*kept, *rows],
        key=lambda row: (order.index(row.tutorial), row.backend, row.precision, row.epoch),
    )


def smoke_text(folder: Path) -> Path:
    """Data in which each tutorial's text is there, made up and as short as it may be."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(27, (31_000,), generator=generator).tolist()
    text = "".join(" abcdefghijklmnopqrstuvwxyz"[letter] for letter in letters)
    (folder / "quijote").mkdir()
    (folder / "quijote" / "quijote.txt").write_text(text)
    return folder


def run(options: argparse.Namespace) -> Iterator[list[EpochRow]]:
    """The rows of each tutorial that was asked for."""
    chosen = [options.threads, options.backend, options.precision]
    if options.smoke:
        with tempfile.TemporaryDirectory() as scratch:
            data, runs = smoke_text(Path(scratch)), Path(scratch, "runs")
            yield train("quijote-rnn", data, runs, *chosen, ["--epochs", "1"])
        return
    flags = ["--epochs", str(options.epochs)] if options.epochs else []
    for name in options.names or TUTORIALS:
        yield merged(train(name, options.data, options.runs, *chosen, flags), options.output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains those asked for and writes their rows into the CSV, in place of older ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(TUTORIALS)} (default: all)"
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tutorials")
    parser.add_argument("--threads", type=int, default=min(2, measure.available_cpus()))
    parser.add_argument("--backend", choices=["rnnfast", "torch"], default="rnnfast")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--epochs", type=int, help="default: the tutorial's")
    parser.add_argument("--output", type=Path, help="CSV; rows of other trainings stay")
    parser.add_argument("--smoke", action="store_true", help="one, on little; writes nothing")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - TUTORIALS.keys())
    if unknown:
        parser.error(f"expected names of {', '.join(TUTORIALS)}; got {', '.join(unknown)}")
    for rows in run(options):
        record([rows], EpochRow, options.output)


if __name__ == "__main__":
    main()
