"""What no layer falls below on this machine: what its units, its caches and a call take at least.

--output, a row for each quantity (:class:`FloorResult`), the best of some rounds on otherwise idle
threads:
    quantity, of what: see QUANTITIES; `threads` at once.
    bytes: of the memory that each thread reads again and again; 0 where there is none.
    value, unit.

:func:`floor` makes of them the least time of a case of layers.py. A C++ compiler is needed.
"""

import argparse
import ctypes
import dataclasses
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import command
import numpy as np
import torch

from rnnfast import _C
from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import CELLS, MODES, Shape, operations, step

QUANTITIES = {
    "multiply_add": "operations of multiply-adds in registers, all threads",
    "read": "reading memory, each thread its own, all threads",
    "activation": "one element of `of`, by the package's own function",
    "call": "the smallest layer of the cell `of`: one step of one row, 4 units",
}
SIZES = tuple(2**power for power in range(16, 26))
FULL = {"seconds": 0.05, "rounds": 20, "sizes": SIZES}
SMOKE = {"seconds": 0.002, "rounds": 2, "sizes": SIZES[:2]}
# Of each unit in each step; in training of an LSTM tanh of the cell state once more.
ACTIVATIONS = {
    "LSTM": {"sigmoid": 3, "tanh": 2},
    "GRU": {"sigmoid": 2, "tanh": 1},
    "RNN": {"tanh": 1},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloorResult(measure.Environment):
    """A row of the CSV."""

    quantity: str
    of: str
    threads: int
    bytes: int
    value: float
    unit: str

    def __str__(self) -> str:
        size = f", {self.bytes // 1024} KiB" if self.bytes else ""
        return (
            f"{self.quantity} {self.of}: {self.value:g} {self.unit}, {self.threads} threads{size}"
        )


def floor(cell: str, shape: Shape, mode: str, threads: int, rows: Iterable[FloorResult]) -> float:
    """The least seconds of a case: a call, the products and the activations, one after another.

    Products take what multiply-adds in registers take. But the recurrent ones of a step have to
    read weight_hh, of which each thread has a share; a training reads it once more for backward.

    Raises:
        KeyError: if the rows lack a quantity.
    """
    known = {(row.quantity, row.of, row.threads, row.bytes): row.value for row in rows}
    rate = known["multiply_add", "float32", threads, 0] * 1e9
    training = mode == "training"
    passes = 2 if training else 1
    gates = CELLS[cell].gates
    units = shape.num_layers * shape.seq_len * shape.batch * shape.hidden_size
    recurrent = passes * 2 * units * gates * shape.hidden_size
    share = 4 * gates * shape.hidden_size**2 / threads
    sizes = [size for name, _, count, size in known if name == "read" and count == threads]
    # Between two sizes the time of a pass is taken to grow evenly; below the least, with the bytes.
    times = [threads * size / (known["read", "float32", threads, size] * 1e9) for size in sizes]
    reading = float(np.interp(share, [0, *sizes], [0, *times]))
    steps = passes * shape.num_layers * shape.seq_len
    counts = dict(ACTIVATIONS[cell])
    if training and cell == "LSTM":
        counts["tanh"] += 1
    activations = sum(
        units * count * known["activation", name, 1, 0] * 1e-9 for name, count in counts.items()
    )
    return (
        known["call", f"{cell} {mode}", 1, 0] * 1e-6
        + (operations(cell, shape, mode) - recurrent) / rate
        + max(recurrent / rate, steps * reading)
        + activations / threads
    )


def _library(folder: Path) -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None:
        sys.exit("floor: expected a C++ compiler called c++, found none")
    source, made = Path(__file__).with_suffix(".cpp"), folder / "floor.so"
    options = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, str(source), "-o", str(made)], check=True)
    library = ctypes.CDLL(str(made))
    library.multiply_add.restype = ctypes.c_int64
    library.multiply_add.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    library.read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return library


Work = Callable[[], object]


def _activations(name: str, x: np.ndarray, repetitions: int) -> None:
    for _ in range(repetitions):
        _C.activation(name, x)


def _at_once(works: Sequence[Work]) -> float:
    """Seconds from when the first thread begins to when the last has ended."""
    together = threading.Barrier(len(works))
    begins, ends = [], []

    def run(work: Work) -> None:
        together.wait()
        begins.append(time.perf_counter())
        work()
        ends.append(time.perf_counter())

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(ends) - min(begins)


def _best(seconds: float, rounds: int, works: Callable[[int], Sequence[Work]]) -> float:
    """The least seconds of one repetition; works(n) repeats n times on each thread."""
    count = 1
    while (taken := _at_once(works(count))) < seconds:
        count = max(2 * count, math.ceil(count * seconds / max(taken, 1e-6) / 2))
    return min(_at_once(works(count)) for _ in range(rounds)) / count


def _multiply_add(library: ctypes.CDLL, repetitions: int) -> int:
    return library.multiply_add(repetitions, ctypes.byref(ctypes.c_float()))


def _read(library: ctypes.CDLL, memory: np.ndarray, repetitions: int) -> None:
    sink = ctypes.byref(ctypes.c_float())
    library.read(memory.ctypes.data, memory.size, repetitions, sink)


def _works(function: Callable, *each: Sequence[object]) -> Callable[[int], list[Work]]:
    """What :func:`_best` takes: for each thread the function, whose last argument is how often."""
    return lambda repetitions: [partial(function, *own, repetitions) for own in each]


def measured(
    threads: Sequence[int], seconds: float, rounds: int, sizes: Sequence[int]
) -> Iterator[list[FloorResult]]:
    """The quantities one after another."""
    environment = dataclasses.asdict(measure.Environment.here())

    def row(quantity: str, of: str, count: int, size: int, value: float, unit: str) -> FloorResult:
        return FloorResult(
            **environment,
            quantity=quantity,
            of=of,
            threads=count,
            bytes=size,
            value=measure.rounded(value),
            unit=unit,
        )

    with tempfile.TemporaryDirectory() as folder:
        library = _library(Path(folder))
    for count in threads:
        operations_each = _multiply_add(library, 1)
        taken = _best(seconds, rounds, _works(_multiply_add, *[(library,)] * count))
        rate = count * operations_each / taken
        yield [row("multiply_add", "float32", count, 0, rate / 1e9, "GFLOP/s")]
        for size in sizes:
            each = [(library, np.ones(size // 4, dtype=np.float32)) for _ in range(count)]
            taken = _best(seconds, rounds, _works(_read, *each))
            yield [row("read", "float32", count, size, count * size / taken / 1e9, "GB/s")]
    few, many = (np.linspace(-8, 8, size, dtype=np.float32) for size in (16, 2**15))
    for name in ("sigmoid", "tanh"):
        # What a call takes whatever its size is, is in both.
        each = [_best(seconds, rounds, _works(_activations, (name, x))) for x in (few, many)]
        taken = (each[1] - each[0]) / (many.size - few.size)
        yield [row("activation", name, 1, 0, taken * 1e9, "ns")]
    torch.set_num_threads(1)
    for cell in CELLS:
        for mode in MODES:
            training = mode == "training"
            module, input = CELLS[cell].ours(4, 4), torch.randn(1, 1, 4, requires_grad=training)
            call = step(module, input, torch.randn(1, 1, 4) if training else None)
            with torch.inference_mode(not training), measure.no_garbage_collection():
                times = measure.interleave({"call": call}, seconds * rounds, rounds)["call"]
            yield [row("call", f"{cell} {mode}", 1, 0, min(times) * 1e6, "µs")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures each quantity, prints a line for it and writes the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_threads(parser)
    command.add_output(parser, smoke="two sizes, briefly")
    options = parser.parse_args(arguments)
    command.check_threads(parser, options.threads)
    chosen = SMOKE if options.smoke else FULL
    command.record(measured(options.threads, **chosen), FloorResult, options.output)


if __name__ == "__main__":
    main()
