"""What every benchmark shares: timing in turn, the GEMM yardstick, where it ran, and the CSV."""

import csv
import dataclasses
import datetime
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

import torch

import rnnfast

# A sample repeats a short call until it lasts this long, so that the clock and the loop around the
# call do not count.
SAMPLE_SECONDS = 1e-3
# Caches, page tables and the thread pool are warm after this time.
WARM_UP_SECONDS = 0.05
# How long calls are made after a pause: of two threads that were woken on the same CPU, the system
# moves one after some tens of milliseconds.
RESUME_SECONDS = 0.1
GEMM_SIZE = 1024

Call = Callable[[], object]


class Spread(NamedTuple):
    """Median and quartiles of a sample."""

    q25: float
    median: float
    q75: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least two values."""
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratios(peer: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times longer the peer took, pair by pair: above 1, ours is faster.

    A pair ran within moments, so that what else the machine did then slowed both alike; this is why
    the median is taken of the ratios, and not the ratio of the medians.
    """
    return spread([a / b for a, b in zip(peer, ours, strict=True)])


def interleave(
    contenders: dict[str, Call], seconds: float, min_rounds: int = 5, settle: float = 0
) -> dict[str, list[float]]:
    """Times the contenders in turn, A B A B, until the budget is used up.

    Args:
        contenders: by name, what to call. Results are dropped within the time taken.
        seconds: budget for the timed rounds; warm-up comes on top.
        min_rounds: rounds to take however long they last.
        settle: for contenders that have threads of their own, which go on spinning for a while
            after a call and would take the CPU from the next contender: seconds of the pause that
            precedes each sample (:func:`take_over`).

    Returns:
        By name, the seconds of one call in each round.
    """
    with no_garbage_collection():
        counts = {name: _calls_per_sample(call) for name, call in contenders.items()}
        times = {name: [] for name in contenders}
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < min_rounds or time.perf_counter() < end:
            for name, call in contenders.items():
                if settle:
                    take_over(call, settle)
                times[name].append(_sample(call, counts[name]) / counts[name])
            rounds += 1
    return times


def take_over(call: Call, settle: float) -> None:
    """Lets the threads of the contender before go idle for so many seconds, and makes calls until
    the system has given each thread of this one a CPU of its own."""
    time.sleep(settle)
    _warm_up(call, RESUME_SECONDS)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Garbage is collected before, and not while this lasts."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _sample(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def _warm_up(call: Call, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while True:
        call()
        if time.perf_counter() >= end:
            return


def _calls_per_sample(call: Call) -> int:
    _warm_up(call, WARM_UP_SECONDS)
    count = 1
    while _sample(call, count) < SAMPLE_SECONDS:
        count *= 2
    return count


def gemm_times(dtype: torch.dtype, seconds: float = 0.1) -> list[float]:
    """Seconds of the yardstick: torch.mm of two 1024 x 1024 matrices, at torch's threads."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return interleave({"gemm": partial(torch.mm, a, b, out=product)}, seconds)["gemm"]


def gflops(operations: float, times: Sequence[float]) -> float:
    """Billions of operations per second, at the median time."""
    return operations / statistics.median(times) / 1e9


def gemm_gflops(times: Sequence[float]) -> float:
    """The yardstick's rate; a multiplication and an addition are two operations."""
    return gflops(2 * GEMM_SIZE**3, times)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """rnnfast.set_backend for a while."""
    before = rnnfast.get_backend()
    rnnfast.set_backend(name)
    try:
        yield
    finally:
        rnnfast.set_backend(before)


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """torch.set_num_threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """When and on what a row was measured: the first columns of every CSV."""

    date: str
    cpu: str
    rnnfast: str
    torch: str
    isa: str

    @classmethod
    def here(cls) -> "Environment":
        return cls(
            date=datetime.date.today().isoformat(),
            cpu=_cpu_model(),
            rnnfast=rnnfast.__version__,
            torch=torch.__version__,
            isa=rnnfast.cpu_isa(),
        )


def _cpu_model() -> str:
    """Its name and, where the name is that of many generations, which one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in told and "model" in told:
        name += f", family {told['cpu family']} model {told['model']}"
    return name


def rounded(value: float) -> float:
    """To four significant digits, more than any timing here is worth."""
    return float(f"{value:.4g}")


Row = TypeVar("Row")


def write_csv(path: Path, rows: Sequence[object]) -> None:
    """Writes rows, dataclasses of one kind, under a header of their field names; None is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(rows[0]))
        writer.writerows(dataclasses.astuple(row) for row in rows)


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """Reads what :func:`write_csv` wrote.

    A field is of one type, or of that or None, which an empty cell stands for.

    Raises:
        ValueError: if the header is not that of `kind`, or a cell is not of its field's type or is
            not finite.
    """
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != names:
            raise ValueError(f"{path}: expected the columns {','.join(names)}, got {header}")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(names):
                raise ValueError(f"{where}: expected {len(names)} cells, got {len(cells)}")
            values = {}
            for field, cell in zip(fields, cells, strict=True):
                cell_type, *optional = get_args(field.type) or [field.type]
                if optional and not cell:
                    values[field.name] = None
                    continue
                try:
                    values[field.name] = cell_type(cell)
                except ValueError:
                    type_name = cell_type.__name__
                    raise ValueError(f"{where}: {field.name} is no {type_name}: {cell!r}") from None
                if cell_type is float and not math.isfinite(values[field.name]):
                    raise ValueError(f"{where}: {field.name} is not finite: {cell!r}")
            rows.append(kind(**values))
    return rows
