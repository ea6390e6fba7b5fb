"""Inference with int8 weights: our kernels against our float32 ones and torch's, and the errors."""

import argparse
import copy
import dataclasses
import itertools
import statistics
import sys
import warnings
from collections.abc import Sequence

import command
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import CELLS, SHAPES, Shape, step

STREAMS = {
    "stream128": SHAPES["stream128"],
    "stream512": SHAPES["stream512"],
    "batch8": Shape(8, 100, 512, 512, 1),
    "batch32": Shape(32, 100, 512, 512, 1),
}
# torch.ao quantises no nn.RNN.
TORCH_AO_CELLS = ("LSTM", "GRU")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedResult(measure.Environment):
    """A row of the CSV: one case.

    `fp32`, `torch_int8` and `torch_fp32` are the times of our float32 kernels, of torch.ao's
    dynamic quantisation (on its `engine`) and of torch.nn over that of our int8 kernels, medians
    over the rounds with quartiles: above 1, int8 is faster. An error is the largest of any element
    of output and final states, with the float32 weights in float64 as truth. What torch.ao lacks
    is 0.
    """

    threads: int
    engine: str
    shape: str
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int
    cell: str
    rounds: int
    milliseconds: float
    fp32: float
    fp32_q25: float
    fp32_q75: float
    torch_int8: float
    torch_int8_q25: float
    torch_int8_q75: float
    torch_fp32: float
    torch_fp32_q25: float
    torch_fp32_q75: float
    error: float
    torch_int8_error: float

    def __str__(self) -> str:
        def text(name: str) -> str:
            middle, low, high = (getattr(self, name + end) for end in ("", "_q25", "_q75"))
            return f"{name} {middle:.2f} ({low:.2f} to {high:.2f})"

        ratios = "  ".join(text(name) for name in ("fp32", "torch_int8", "torch_fp32"))
        return (
            f"{self.shape:<10}{self.cell:<5}{self.threads:>2} threads  {ratios}  "
            f"error {self.error:.2g}, torch.ao's {self.torch_int8_error:.2g}"
        )


def contenders(cell: str, shape: Shape) -> dict[str, nn.Module]:
    """The same weights four times; three where torch.ao has no such cell."""
    sizes = (shape.input_size, shape.hidden_size, shape.num_layers)
    modules = {"fp32": CELLS[cell].ours(*sizes), "torch_fp32": CELLS[cell].torch(*sizes)}
    modules["torch_fp32"].load_state_dict(modules["fp32"].state_dict())
    modules["int8"] = rnnfast.quantize_dynamic(modules["fp32"])
    if cell in TORCH_AO_CELLS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            modules["torch_int8"] = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(modules["torch_fp32"]), {CELLS[cell].torch}, dtype=torch.qint8
            )[0]
    return modules


def largest_error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    return max(
        (actual - expected).abs().max().item()
        for actual, expected in zip(results, truth, strict=True)
    )


def measure_case(name: str, cell: str, threads: int, seconds: float) -> QuantizedResult:
    torch.manual_seed(0)
    shape = STREAMS[name]
    modules = contenders(cell, shape)
    input = torch.randn(shape.seq_len, shape.batch, shape.input_size)
    with torch.inference_mode(), measure.num_threads(threads), measure.backend("rnnfast"):
        steps = {who: step(module, input, None) for who, module in modules.items()}
        truth = step(copy.deepcopy(modules["torch_fp32"]).double(), input.double(), None)()
        errors = {who: largest_error(call(), truth) for who, call in steps.items()}
        if max(errors["fp32"], errors["torch_fp32"]) > 1e-4:
            sys.exit(f"{name} {cell}: float32 and float64 disagree: {errors}")
        peers = [who for who in steps if who != "int8"]
        # Each peer apart: what runs after another's call finds caches and threads gone cold.
        times = {
            who: measure.interleave({who: steps[who], "int8": steps["int8"]}, seconds / len(peers))
            for who in peers
        }
    ratios = {who: measure.ratios(times[who][who], times[who]["int8"]) for who in peers}
    ratios.setdefault("torch_int8", measure.Spread(0, 0, 0))
    return QuantizedResult(
        **dataclasses.asdict(measure.Environment.here()),
        threads=threads,
        engine=torch.backends.quantized.engine,
        shape=name,
        **shape._asdict(),
        cell=cell,
        rounds=min(len(rounds["int8"]) for rounds in times.values()),
        milliseconds=measure.rounded(1e3 * statistics.median(times["fp32"]["int8"])),
        **{who: measure.rounded(ratio.median) for who, ratio in ratios.items()},
        **{f"{who}_q25": measure.rounded(ratio.q25) for who, ratio in ratios.items()},
        **{f"{who}_q75": measure.rounded(ratio.q75) for who, ratio in ratios.items()},
        error=measure.rounded(errors["int8"]),
        torch_int8_error=measure.rounded(errors.get("torch_int8", 0.0)),
    )


SMOKE = {"shapes": ["stream128"], "seconds": 0.02}
FULL = {"shapes": list(STREAMS), "seconds": 3.0}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases asked for, prints a line for each and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=STREAMS, metavar="NAME", help="default: all")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    command.add_threads(parser)
    parser.add_argument("--seconds", type=float, help="budget of each case (default: 3)")
    command.add_output(parser, smoke="one small shape, briefly: shows that it all works")
    options = parser.parse_args(arguments)
    defaults = SMOKE if options.smoke else FULL
    shapes = options.shapes or defaults["shapes"]
    seconds = defaults["seconds"] if options.seconds is None else options.seconds
    command.check_threads(parser, options.threads)

    cases = itertools.product(options.threads, options.cells, shapes)
    measured = ([measure_case(name, cell, threads, seconds)] for threads, cell, name in cases)
    command.record(measured, QuantizedResult, options.output)


if __name__ == "__main__":
    main()
