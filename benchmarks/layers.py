"""Recurrent layers of rnnfast against their peers: time, and share of the machine's GEMM rate."""

import argparse
import itertools
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import command
import peers

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import (
    CELLS,
    MODES,
    SHAPES,
    LayerResult,
    layer_result,
    measure_case,
)

SMOKE = {"shapes": ["odd"], "seconds": 0.02, "min_rounds": 3}
FULL = {"shapes": list(SHAPES), "seconds": 1.5, "min_rounds": 9}


def measure_compiled(
    name: str, cell: str, mode: str, threads: int, seconds: float, min_rounds: int, limit: float
) -> list[LayerResult]:
    """One case against torch.compile, in a process that is stopped if it has not ended in time."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "compiled.csv")
        case = (name, cell, mode, threads)
        process = multiprocessing.get_context("spawn").Process(
            target=_compile_and_measure, args=(output, *case, seconds, min_rounds)
        )
        process.start()
        process.join(limit)
        if process.exitcode == 0:
            return measure.read_csv(output, LayerResult)
        if process.exitcode is None:
            process.kill()
            process.join()
            outcome = f"no result within {limit:g} s"
        else:
            outcome = f"failed with exit code {process.exitcode}"
    version = peers.available()["torch.compile"].version
    return [layer_result(*case, "rnnfast", "torch.compile", version, {"outcome": outcome})]


def _compile_and_measure(output: Path, *case) -> None:
    peer = {"torch.compile": peers.available()["torch.compile"]}
    measure.write_csv(output, measure_case(*case, peers=peer))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases asked for, prints a line for each and writes the CSV."""
    installed = peers.available()
    quick = [name for name in installed if name != "torch.compile"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="NAME", help="default: all")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--peers", nargs="+", choices=installed, default=quick)
    command.add_threads(parser)
    command.add_keep_freed_memory(parser)
    parser.add_argument("--seconds", type=float, help="budget of each case (default: 1.5)")
    parser.add_argument(
        "--compile-limit",
        type=float,
        default=120,
        metavar="SECONDS",
        help="a case that torch.compile has not ended by then is given up (default: 120)",
    )
    command.add_output(parser, smoke="one small shape, briefly: shows that it all works")
    options = parser.parse_args(arguments)
    defaults = SMOKE if options.smoke else FULL
    shapes = options.shapes or defaults["shapes"]
    seconds = defaults["seconds"] if options.seconds is None else options.seconds
    budget = (seconds, defaults["min_rounds"])
    command.check_threads(parser, options.threads)

    command.keep_freed_memory(options)
    in_process = {name: installed[name] for name in options.peers if name != "torch.compile"}

    def measured() -> Iterator[list[LayerResult]]:
        cases = itertools.product(options.threads, options.cells, options.modes, shapes)
        for threads, cell, mode, name in cases:
            case = (name, cell, mode, threads)
            rows = measure_case(*case, *budget, peers=in_process)
            if "torch.compile" in options.peers:
                rows += measure_compiled(*case, *budget, options.compile_limit)
            yield rows

    command.record(measured(), LayerResult, options.output)


if __name__ == "__main__":
    main()
