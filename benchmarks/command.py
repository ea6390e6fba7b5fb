"""What the benchmarks' command lines have in common: threads, memory, rows that end in a CSV."""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import rnnfast
from rnnfast.benchmark import measure

Row = TypeVar("Row")


def add_threads(parser: argparse.ArgumentParser, default: Sequence[int] | None = None) -> None:
    """Adds ``--threads``; by default one, and two where there are as many CPUs."""
    default = default or sorted({1, min(2, measure.available_cpus())})
    parser.add_argument("--threads", nargs="+", type=int, default=default)


def check_threads(parser: argparse.ArgumentParser, threads: Sequence[int]) -> None:
    """Ends the program if there are fewer CPUs: threads would wait for each other at each step."""
    cpus = measure.available_cpus()
    if not all(1 <= number <= cpus for number in threads):
        parser.error(f"--threads: expected 1 to {cpus}, the CPUs here, got {threads}")


def add_output(parser: argparse.ArgumentParser, smoke: str) -> None:
    """Adds ``--output`` and ``--smoke``, the latter with what it does as its help."""
    parser.add_argument("--output", type=Path, metavar="CSV", help="rewritten as rows come")
    parser.add_argument("--smoke", action="store_true", help=smoke)


def add_keep_freed_memory(parser: argparse.ArgumentParser) -> None:
    """Adds ``--keep-freed-memory``."""
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="in the process, where glibc gives large blocks back to the system",
    )


def keep_freed_memory(options: argparse.Namespace) -> None:
    """Does what the flag asks for. Ends the program where there is no glibc."""
    if options.keep_freed_memory and not rnnfast.keep_freed_memory():
        sys.exit("--keep-freed-memory: expected glibc, whose malloc can be told to")


def record(measured: Iterable[Sequence[Row]], kind: type[Row], output: Path | None) -> None:
    """Prints the rows of each case as they come, and rewrites the CSV; without `output`, one that
    is thrown away, so that a smoke run writes and reads what a full one does."""
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        path = output or Path(scratch, "results.csv")
        for rows in measured:
            results += rows
            print(*rows, sep="\n", flush=True)
            measure.write_csv(path, results)
        if measure.read_csv(path, kind) != results:
            sys.exit(f"{path} does not read back as it was written")
