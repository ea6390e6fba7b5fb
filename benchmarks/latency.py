"""Latency of one step at batch 1: stream, modules and cells, ONNX Runtime; back to back and paced.

Every contender is called from Python as a user would call it, with its state fed back, in float32,
with the same weights: `stream` (rnnfast.stream), `module` (rnnfast.LSTM or GRU), `torch.nn` (its
LSTM or GRU), `torch.nn cell` (LSTMCell or GRUCell), all under inference_mode, and `onnxruntime` (a
graph of one LSTM or GRU node with its buffers bound; left out, with a word, where the packages onnx
and onnxruntime are not installed). `hot` steps follow each other at once; before a `paced` step the
process sleeps 2 ms, as a loop over audio or a controller does. Contenders take turns in rounds, so
that what else the machine does meets them all. Two CSVs are written:

--output, a row for each contender of each case (:class:`LatencyResult`):
    date, cpu, rnnfast, torch, isa: as in the other CSVs. version: of the contender's library.
    threads, cell (LSTM or GRU), size (of input and state), pace (hot or paced), contender.
    samples: steps timed. p50, p90, p99, p999: percentiles, microseconds.
    ratio, ratio_q25, ratio_q75: this contender's time over the stream's (above 1, the stream is
    faster): median and quartiles over the rounds of the quotient of both medians of the round.

the same name with _histogram, a row for each bin that is not empty (:class:`HistogramBin`):
    threads, cell, size, pace, contender: which row of the other file.
    lower, upper: the bin's edges, microseconds; 20 bins to a power of ten, edges 10^(i / 20).
    count: steps within.
"""

import argparse
import dataclasses
import gc
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import command
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import SETTLE_SECONDS

CELLS = {
    "LSTM": (rnnfast.LSTM, nn.LSTM, nn.LSTMCell),
    "GRU": (rnnfast.GRU, nn.GRU, nn.GRUCell),
}
SIZES = (128, 512)
PAUSES = {"hot": 0.0, "paced": 2e-3}  # seconds before a step
# Of a case and contender, how many rounds, and the steps of a round; seconds for threads to settle.
FULL = {"rounds": 20, "hot": 500, "paced": 50, "settle": SETTLE_SECONDS}
SMOKE = {"rounds": 2, "hot": 20, "paced": 5, "settle": 0}
# Untimed steps, with which a contender's turn begins.
WARM_UP = 20
# About the longest that a turn lasts: slow contenders take fewer steps.
TURN_SECONDS = 0.25
BINS_PER_DECADE = 20

Step = Callable[[], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyResult(measure.Environment):
    """A row of the CSV: one contender in one case."""

    threads: int
    cell: str
    size: int
    pace: str
    contender: str
    version: str
    samples: int
    p50: float
    p90: float
    p99: float
    p999: float
    ratio: float
    ratio_q25: float
    ratio_q75: float

    def __str__(self) -> str:
        return (
            f"{self.cell:<5}{self.size:>4} {self.threads} threads {self.pace:<6}"
            f"{self.contender:<14}{self.p50:>9.4g} µs, p90 {self.p90:.4g}, p99 {self.p99:.4g}, "
            f"p99.9 {self.p999:.4g}; stream's times {self.ratio:.2f} "
            f"({self.ratio_q25:.2f} to {self.ratio_q75:.2f})"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistogramBin:
    """A row of the second CSV."""

    threads: int
    cell: str
    size: int
    pace: str
    contender: str
    lower: float
    upper: float
    count: int


def torch_steps(cell: str, peer: nn.Module, x: Tensor) -> dict[str, Step]:
    """What is timed, but for ONNX Runtime: one step of each contender, with the peer's weights."""
    ours_class, _, cell_class = CELLS[cell]
    size = peer.hidden_size
    ours, single = ours_class(size, size), cell_class(size, size)
    ours.load_state_dict(peer.state_dict())
    single.load_state_dict({name[:-3]: value for name, value in peer.state_dict().items()})
    stream = rnnfast.stream(ours)

    def of_module(module: nn.Module) -> Step:
        sequence = x.unsqueeze(0)
        zeros = torch.zeros(1, 1, size)
        hx = (zeros, zeros) if cell == "LSTM" else zeros

        def step() -> Tensor:
            nonlocal hx
            output, hx = module(sequence, hx)
            return output[0]

        return step

    def of_cell() -> Step:
        zeros = torch.zeros(1, size)
        hx = (zeros, zeros) if cell == "LSTM" else zeros

        def step() -> Tensor:
            nonlocal hx
            hx = single(x, hx)
            return hx[0] if cell == "LSTM" else hx

        return step

    return {
        "stream": lambda: stream.step(x),
        "module": of_module(ours),
        "torch.nn": of_module(peer),
        "torch.nn cell": of_cell(),
    }


def onnxruntime_step(cell: str, peer: nn.Module, x: Tensor, threads: int) -> Step:
    """One step on ONNX Runtime, of a graph of one node with the peer's weights.

    Raises:
        ImportError: if onnx or onnxruntime is not installed.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    size = peer.hidden_size
    # The standard's gates are i o f c and z r h; torch's are i f g o and r z n.
    gates, attributes = ([0, 3, 1, 2], {}) if cell == "LSTM" else ([1, 0, 2], {})
    if cell == "GRU":
        attributes["linear_before_reset"] = 1

    def reordered(name: str) -> Tensor:
        parameter = getattr(peer, name).detach()
        return torch.cat([parameter.split(size)[gate] for gate in gates])

    weights = {
        "W": reordered("weight_ih_l0"),
        "R": reordered("weight_hh_l0"),
        "B": torch.cat([reordered("bias_ih_l0"), reordered("bias_hh_l0")]),
    }
    states = ["h", "c"] if cell == "LSTM" else ["h"]
    shape = [1, 1, size]

    def values(names: list[str]) -> list:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]

    node = helper.make_node(
        cell,
        ["x", *weights, "", *states],
        ["", *(f"{name}_n" for name in states)],
        hidden_size=size,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        cell,
        values(["x", *states]),
        values([f"{name}_n" for name in states]),
        [numpy_helper.from_array(w.unsqueeze(0).numpy(), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    # Its quickest way: buffers bound once, two of each state, which swap roles at every step. On
    # the CPU an OrtValue is the memory of the array that it is made from.
    value_of = onnxruntime.OrtValue.ortvalue_from_numpy
    input = torch.empty(shape)
    buffers = [[torch.zeros(shape) for _ in states] for _ in range(2)]
    turns = []
    for before, after in (buffers, buffers[::-1]):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", value_of(input.numpy()))
        for name, old, new in zip(states, before, after, strict=True):
            binding.bind_ortvalue_input(name, value_of(old.numpy()))
            binding.bind_ortvalue_output(f"{name}_n", value_of(new.numpy()))
        turns.append((binding, after))
    turns = itertools.cycle(turns)

    def step() -> Tensor:
        binding, after = next(turns)
        input.copy_(x)
        session.run_with_iobinding(binding)
        return after[0][0]

    return step


def versions() -> dict[str, str]:
    """Of each contender's library, for those that are not torch's."""
    found = {"stream": rnnfast.__version__, "module": rnnfast.__version__}
    try:
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    except ImportError:
        pass
    return found


def timed(step: Step, count: int, pause: float) -> list[int]:
    """Nanoseconds of each of `count` steps, the clock's own (some tens) included."""
    clock, times = time.perf_counter_ns, []
    for _ in range(count):
        if pause:
            time.sleep(pause)
        start = clock()
        step()
        times.append(clock() - start)
    return times


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the ordered values that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def histogram(microseconds: Sequence[float]) -> list[tuple[float, float, int]]:
    """Lower edge, upper edge and count of every bin that is not empty, in order."""
    bins = Counter(math.floor(math.log10(value) * BINS_PER_DECADE) for value in microseconds)
    return [
        (
            measure.rounded(10 ** (index / BINS_PER_DECADE)),
            measure.rounded(10 ** ((index + 1) / BINS_PER_DECADE)),
            count,
        )
        for index, count in sorted(bins.items())
    ]


def check_agreement(case: str, steps: dict[str, Step]) -> None:
    """Raises AssertionError unless all compute the same over some steps: a wrong result has no
    speed."""
    for _ in range(3):
        expected = steps["torch.nn"]()
        for name, step in steps.items():
            if name != "torch.nn":
                torch.testing.assert_close(
                    step(), expected, rtol=0, atol=1e-5, msg=lambda text: f"{case}: {text}"
                )


def measure_case(
    threads: int, cell: str, size: int, pace: str, plan: dict[str, float]
) -> tuple[list[LatencyResult], list[HistogramBin]]:
    """All contenders in one case."""
    torch.manual_seed(0)
    peer = CELLS[cell][1](size, size)
    x = torch.randn(1, size)
    with torch.inference_mode(), measure.num_threads(threads), measure.backend("rnnfast"):
        steps = torch_steps(cell, peer, x)
        try:
            steps["onnxruntime"] = onnxruntime_step(cell, peer, x, threads)
        except ImportError as error:
            print(f"onnxruntime left out: {error}", file=sys.stderr)
        check_agreement(f"{cell} {size}", steps)
        rounds = {name: [] for name in steps}
        settle = plan["settle"] if threads > 1 else 0
        gc.collect()
        gc.disable()
        try:
            for _ in range(plan["rounds"]):
                for name, step in steps.items():
                    if settle:
                        measure.take_over(step, settle)
                    each = statistics.median(timed(step, WARM_UP, 0)) / 1e9 + PAUSES[pace]
                    count = min(plan[pace], max(WARM_UP, int(TURN_SECONDS / each)))
                    rounds[name].append(timed(step, count, PAUSES[pace]))
        finally:
            gc.enable()

    medians = {name: [statistics.median(times) for times in rounds[name]] for name in rounds}
    of_library, results, bins = versions(), [], []
    for name, all_times in rounds.items():
        ordered = sorted(nanoseconds / 1e3 for times in all_times for nanoseconds in times)
        ratio = measure.ratios(medians[name], medians["stream"])
        numbers = {
            "p50": percentile(ordered, 0.5),
            "p90": percentile(ordered, 0.9),
            "p99": percentile(ordered, 0.99),
            "p999": percentile(ordered, 0.999),
            "ratio": ratio.median,
            "ratio_q25": ratio.q25,
            "ratio_q75": ratio.q75,
        }
        case = {"threads": threads, "cell": cell, "size": size, "pace": pace, "contender": name}
        results.append(
            LatencyResult(
                **dataclasses.asdict(measure.Environment.here()),
                **case,
                version=of_library.get(name, torch.__version__),
                samples=len(ordered),
                **{key: measure.rounded(value) for key, value in numbers.items()},
            )
        )
        bins += [
            HistogramBin(**case, lower=lower, upper=upper, count=count)
            for lower, upper, count in histogram(ordered)
        ]
    return results, bins


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases asked for, prints a line for each contender and writes both CSVs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--paces", nargs="+", choices=PAUSES, default=list(PAUSES))
    command.add_threads(parser)
    command.add_output(parser, smoke="few steps: shows that it works, not how fast")
    options = parser.parse_args(arguments)
    command.check_threads(parser, options.threads)

    results, bins = [], []
    with tempfile.TemporaryDirectory() as scratch:
        output = options.output or Path(scratch, "latency.csv")
        second = output.with_name(f"{output.stem}_histogram{output.suffix}")
        cases = itertools.product(options.threads, options.cells, options.sizes, options.paces)
        for case in cases:
            of_case, bins_of_case = measure_case(*case, SMOKE if options.smoke else FULL)
            results += of_case
            bins += bins_of_case
            print(*of_case, sep="\n", flush=True)
            measure.write_csv(output, results)
            measure.write_csv(second, bins)
        for path, rows, kind in ((output, results, LatencyResult), (second, bins, HistogramBin)):
            if measure.read_csv(path, kind) != rows:
                sys.exit(f"{path} does not read back as it was written")


if __name__ == "__main__":
    main()
