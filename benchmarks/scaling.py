"""How time and memory grow: with the length of a sequence, with threads that have a CPU or none."""

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import command
import torch
from torch import nn

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import CELLS, MODES, SHAPES, Shape, check_agreement, steps

STUDIES = ("length", "threads", "crowded", "memory")
LENGTHS = (10, 100, 1000, 10_000, 100_000)
# The others' time for an element is given relative to this one's, taken in the same round.
REFERENCE_LENGTH = 1000
# batch, and input and hidden size
SIZES = ((1, 32), (8, 64))
# Torch's autograd keeps gigabytes for a longer GRU.
LONGEST_FOR_TORCH = 10_000
# hidden_size of 200 and more: what two threads are for.
THREADED = ("seed001", "ptb_small", "ptb_medium", "ptb_large", "char", "stream512")
# More threads than the one CPU they have; one row, whose steps threads share, and many.
CROWDED = ("stream128", "imdb")
CROWD = (1, 2, 4, 8, 16)
MEMORIES = ("torch.nn", "full", "recompute", "tbptt")
TBPTT_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingResult(measure.Environment):
    """A row of the CSV: one contender in one case of a study.

    `nanoseconds` are for an element of the output, batch x seq_len x hidden_size of them.
    `relative`, with quartiles over the rounds:

    - study ``length``: time of an element over that of an element at length 1000;
    - study ``threads``: time at one thread over the time at this number of threads;
    - study ``crowded``: the same in a process that has one CPU only;
    - study ``memory``: none. `peak_mib` is by how much training once, on an input that is there,
      raises the process's largest resident memory.
    """

    study: str
    contender: str
    cell: str
    mode: str
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int
    memory: str
    threads: int
    rounds: int
    milliseconds: float
    nanoseconds: float
    relative: float | None = None
    relative_q25: float | None = None
    relative_q75: float | None = None
    peak_mib: float | None = None

    @property
    def sizes(self) -> Shape:
        return Shape(*(getattr(self, name) for name in Shape._fields))

    def __str__(self) -> str:
        text = (
            f"{self.study:<8}{self.cell:<5}{self.mode:<10}{self.sizes!s:<20}{self.threads} threads"
            f"  {self.contender:<8} {self.memory:<10}{self.nanoseconds:8.3g} ns an element"
        )
        if self.relative is not None:
            text += f", {self.relative:.2f} ({self.relative_q25:.2f} to {self.relative_q75:.2f})"
        return text if self.peak_mib is None else f"{text}, {self.peak_mib:.0f} MiB"


def _result(
    shape: Shape, times: Sequence[float], relative: measure.Spread | None = None, **columns
) -> ScalingResult:
    seconds = statistics.median(times)
    elements = shape.batch * shape.seq_len * shape.hidden_size
    numbers = {"milliseconds": 1e3 * seconds, "nanoseconds": 1e9 * seconds / elements}
    if relative is not None:
        names = ("relative_q25", "relative", "relative_q75")
        numbers |= dict(zip(names, relative, strict=True))
    return ScalingResult(
        **dataclasses.asdict(measure.Environment.here()),
        **shape._asdict(),
        rounds=len(times),
        **{name: measure.rounded(value) for name, value in numbers.items()},
        **columns,
    )


def study_length(
    lengths: Sequence[int], seconds: float, min_rounds: int
) -> Iterator[ScalingResult]:
    """Every length of a case in the same rounds, at one thread."""
    for cell, mode, (batch, size) in product(("LSTM", "GRU"), MODES, SIZES):
        shapes = {length: Shape(batch, length, size, size, 1) for length in lengths}
        with torch.inference_mode(mode == "inference"), measure.num_threads(1):
            with measure.backend("rnnfast"):
                calls = {length: steps(cell, shape, mode) for length, shape in shapes.items()}
                short = calls[min(calls)]
                check_agreement(f"{cell} {mode}", short["rnnfast"](), short["torch"]())
                for who, longest in (("rnnfast", max(lengths)), ("torch", LONGEST_FOR_TORCH)):
                    contenders = {n: call[who] for n, call in calls.items() if n <= longest}
                    times = measure.interleave(contenders, seconds, min_rounds)
                    for length, sample in times.items():
                        per_step = [t / length for t in sample]
                        reference = [t / REFERENCE_LENGTH for t in times[REFERENCE_LENGTH]]
                        yield _result(
                            shapes[length],
                            sample,
                            measure.ratios(per_step, reference),
                            study="length",
                            contender=who,
                            cell=cell,
                            mode=mode,
                            memory="full",
                            threads=1,
                        )


def study_threads(names: Sequence[str], seconds: float, min_rounds: int) -> Iterator[ScalingResult]:
    """One thread and two in the same rounds, ours and torch.nn's."""
    for cell, mode, name in product(("LSTM", "GRU"), MODES, names):
        times = _by_threads(cell, mode, name, (1, 2), seconds, min_rounds)
        yield from _threads_results("threads", cell, mode, name, times)


def study_crowded(
    names: Sequence[str], counts: Sequence[int], seconds: float, min_rounds: int
) -> Iterator[ScalingResult]:
    """Threads that all have to share one CPU, in a process of its own for each case."""
    context = multiprocessing.get_context("spawn")
    for cell, name in product(("LSTM", "GRU"), names):
        case = (cell, "inference", name)
        with _one_cpu():
            pool = context.Pool(1)
        with pool:
            times = pool.apply(_by_threads, (*case, counts, seconds, min_rounds))
        yield from _threads_results("crowded", *case, times)


@contextmanager
def _one_cpu() -> Iterator[None]:
    """A process that starts here has one CPU from its first moment on, as in a container: OpenMP
    counts the CPUs when it is loaded, and with more threads than that they soon stop spinning."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _by_threads(
    cell: str, mode: str, name: str, counts: Sequence[int], seconds: float, min_rounds: int
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each round, by whose layer it is and how many threads it has."""

    def at(threads: int, call: measure.Call) -> object:
        torch.set_num_threads(threads)
        return call()

    with torch.inference_mode(mode == "inference"), measure.num_threads(1):
        with measure.backend("rnnfast"):
            calls = steps(cell, SHAPES[name], mode)
            check_agreement(f"{name} {cell} {mode}", calls["rnnfast"](), calls["torch"]())
            contenders = {(who, n): partial(at, n, calls[who]) for who, n in product(calls, counts)}
            return measure.interleave(contenders, seconds, min_rounds)


def _threads_results(
    study: str, cell: str, mode: str, name: str, times: dict[tuple[str, int], list[float]]
) -> Iterator[ScalingResult]:
    for (who, threads), own in times.items():
        yield _result(
            SHAPES[name],
            own,
            measure.ratios(times[who, 1], own),
            study=study,
            contender=who,
            cell=cell,
            mode=mode,
            memory="full",
            threads=threads,
        )


def study_memory(lengths: Sequence[int], memories: Sequence[str]) -> Iterator[ScalingResult]:
    """Training once, in a process of its own for each case, at one thread."""
    batch, size = SIZES[-1]
    context = multiprocessing.get_context("spawn")
    for length, memory in product(lengths, memories):
        shape = Shape(batch, length, size, size, 1)
        with context.Pool(1) as pool:
            seconds, peak = pool.apply(_train_once, (shape, memory))
        yield _result(
            shape,
            [seconds],
            study="memory",
            contender="torch" if memory == "torch.nn" else "rnnfast",
            cell="LSTM",
            mode="training",
            memory="full" if memory == "torch.nn" else memory,
            threads=1,
            peak_mib=measure.rounded(peak),
        )


def _train_once(shape: Shape, memory: str) -> tuple[float, float]:
    """Seconds, and MiB by which the peak of resident memory exceeds what was there before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = CELLS["LSTM"]
    sizes = (shape.input_size, shape.hidden_size)
    if memory == "torch.nn":
        module: nn.Module = kind.torch(*sizes)
    else:
        module = kind.ours(*sizes, memory="recompute" if memory == "recompute" else "full")
    steps_at_once = TBPTT_STEPS if memory == "tbptt" else shape.seq_len
    input = torch.randn(shape.seq_len, shape.batch, shape.input_size)
    with measure.backend("rnnfast"):
        module(input[:10])[0].sum().backward()  # loads what the first call loads
        before, start = _resident("VmRSS"), time.perf_counter()
        states = None
        for part in input.split(steps_at_once):
            output, states = module(part, states)
            output.sum().backward()
            states = tuple(state.detach() for state in states)
        return time.perf_counter() - start, _resident("VmHWM") - before


def _resident(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the studies asked for, prints a line for each row and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    # Some systems let no process choose its CPUs.
    possible = [name for name in STUDIES if name != "crowded" or hasattr(os, "sched_setaffinity")]
    parser.add_argument("--studies", nargs="+", choices=possible, default=possible)
    parser.add_argument("--seconds", type=float, default=1.0, help="budget of each case")
    command.add_output(parser, smoke="short and small, briefly: shows that it all works")
    options = parser.parse_args(arguments)
    if "threads" in options.studies and measure.available_cpus() < 2:
        parser.error("--studies threads: expected two CPUs or more, got one")
    if options.smoke:
        lengths, names, memory, budget = (10, 1000), ["odd"], ([100], ["recompute"]), (0.02, 2)
        crowded = (["odd"], (1, 2))
    else:
        memory, crowded = (LENGTHS[-2:], MEMORIES), (CROWDED, CROWD)
        lengths, names, budget = LENGTHS, THREADED, (options.seconds, 3)
    studies = {
        "length": lambda: study_length(lengths, *budget),
        "threads": lambda: study_threads(names, *budget),
        "crowded": lambda: study_crowded(*crowded, *budget),
        "memory": lambda: study_memory(*memory),
    }
    measured = ([result] for study in options.studies for result in studies[study]())
    command.record(measured, ScalingResult, options.output)


if __name__ == "__main__":
    main()
