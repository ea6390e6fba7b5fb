"""What ``rnnfast bench`` runs: the layers against torch.nn's on this machine, in about a minute."""

import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import product

from . import measure
from .layers import CELLS, MODES, LayerResult, measure_case

# Without those that take seconds a step; the heaviest comes last, to be cut where time runs out.
QUICK_SHAPES = (
    *("step", "stream128", "rl", "odd", "imdb", "quijote", "ptb_small", "seed001"),
    "ptb_medium",
)
CASES = list(product(QUICK_SHAPES, CELLS, MODES))

_LINE = "{:<11}{:<19}{:<6}{:<11}{:>10}{:>10}{:>8}"


def run(seconds: float, threads: int) -> Iterator[LayerResult]:
    """The cases one after another under the default backend, as far as the time goes; one always.

    Args:
        seconds: for all of them. What a case does not need of its share is the others'.
        threads: of both, ours and torch.nn's.
    """
    now = time.perf_counter()
    end = now + seconds
    overhead = 0.0
    for index, (shape, cell, mode) in enumerate(CASES):
        if index and now >= end:
            return
        share = (end - now) / (len(CASES) - index)
        timed = max(share - overhead, 0.02)
        yield from measure_case(shape, cell, mode, threads, timed, min_rounds=3, backend="auto")
        before, now = now, time.perf_counter()
        # Agreement, warm-up and the GEMM yardstick: about as long for the next case.
        overhead = now - before - timed


def heading(threads: int) -> str:
    """Where this runs, and the heads of the table."""
    here = measure.Environment.here()
    return (
        f"rnnfast {here.rnnfast}, torch {here.torch}\n"
        f"{here.cpu}, {here.isa}, threads: {threads}\n\n"
        "Milliseconds of a call, medians of calls in turn; training is forward and backward.\n"
        "The shape is batch·length·input·hidden·layers; a ratio above 1: rnnfast is faster.\n\n"
        + _LINE.format("shape", "", "cell", "mode", "torch.nn", "rnnfast", "ratio")
    )


def line(result: LayerResult) -> str:
    """A row of the table."""
    times = (f"{ms:.3g}" for ms in (result.peer_milliseconds, result.milliseconds))
    sizes = (result.shape, str(result.sizes), result.cell, result.mode)
    return _LINE.format(*sizes, *times, f"{result.ratio:.2f}")


def verdict(results: Sequence[LayerResult]) -> str:
    """What the results come to, in a few sentences."""
    slower = [row for row in results if row.ratio <= 1]
    mean = statistics.geometric_mean(row.ratio for row in results)
    text = (
        f"rnnfast is faster than torch.nn in {len(results) - len(slower)} of {len(results)} cases; "
        f"torch.nn takes {mean:.2f} times as long in geometric mean"
    )
    if slower:
        names = (f"{row.shape} {row.cell} {row.mode} ({row.ratio:.2f})" for row in slower)
        text += f"; not faster: {', '.join(names)}"
    best = max(results, key=lambda row: row.gemm_share)
    text += (
        f".\nAt best it reaches {best.gflops:.0f} GFLOP/s ({best.shape} {best.cell} {best.mode}), "
        f"{best.gemm_share:.0%} of what torch.mm reaches here."
    )
    left_out = len(CASES) - len(results)
    if left_out:
        text += f"\nThe time was too short for {left_out} more cases: give more with --seconds."
    return text
