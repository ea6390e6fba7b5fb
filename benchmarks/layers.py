"""Recurrent layers of rnnfast against torch.nn's: time, and share of the machine's GEMM rate."""

import argparse
import dataclasses
import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import measure
import torch
from torch import Tensor, nn

import rnnfast


class Shape(NamedTuple):
    """What a stack of layers is run on."""

    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int

    def __str__(self) -> str:
        return "·".join(map(str, self))


SHAPES = {
    "seed001": Shape(60, 20, 200, 256, 1),
    "ptb_small": Shape(20, 20, 200, 200, 2),
    "ptb_medium": Shape(20, 35, 650, 650, 2),
    "ptb_large": Shape(20, 35, 1500, 1500, 2),
    "char": Shape(64, 100, 256, 1024, 1),
    "quijote": Shape(1024, 32, 34, 32, 1),
    "imdb": Shape(32, 80, 128, 128, 1),
    "rl": Shape(8, 128, 64, 64, 1),
    "odd": Shape(7, 13, 37, 61, 1),
    "stream128": Shape(1, 100, 128, 128, 1),
    "stream512": Shape(1, 100, 512, 512, 1),
    "step": Shape(1, 1, 128, 128, 1),
}


class Cell(NamedTuple):
    """The two implementations, and how many hidden_size rows their weights have."""

    ours: type[nn.Module]
    torch: type[nn.Module]
    gates: int


CELLS = {
    "LSTM": Cell(rnnfast.LSTM, nn.LSTM, 4),
    "GRU": Cell(rnnfast.GRU, nn.GRU, 3),
    "RNN": Cell(rnnfast.RNN, nn.RNN, 1),
}
MODES = ("training", "inference")


def operations(cell: str, shape: Shape, mode: str) -> int:
    """Additions and multiplications of the matrix products, the pointwise part left out.

    Training has three times those of inference: the forward products, the gradients of what they
    take in, and the gradients of the weights.
    """
    features = [shape.input_size] + [shape.hidden_size] * (shape.num_layers - 1)
    weights = sum(
        CELLS[cell].gates * shape.hidden_size * (size + shape.hidden_size) for size in features
    )
    forward = 2 * shape.seq_len * shape.batch * weights
    return 3 * forward if mode == "training" else forward


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerResult(measure.Environment):
    """A row of the CSV: one case, measured with one backend.

    `ratio` is torch.nn's time over ours, the median over the pairs. A share is a part of the GEMM
    rate measured just before and after, at the same threads and dtype. `auto` is who serves the
    case under the default backend.
    """

    threads: int
    dtype: str
    shape: str
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int
    cell: str
    mode: str
    backend: str
    auto: str
    pairs: int
    ratio: float
    ratio_q25: float
    ratio_q75: float
    milliseconds: float
    torch_milliseconds: float
    gflops: float
    torch_gflops: float
    gemm_gflops: float
    gemm_share: float
    torch_gemm_share: float

    @property
    def sizes(self) -> Shape:
        return Shape(*(getattr(self, name) for name in Shape._fields))

    def __str__(self) -> str:
        handed_over = "" if self.auto == "rnnfast" else f"  auto: {self.auto}"
        return (
            f"{self.shape:<11}{self.cell:<5}{self.mode:<10}{self.threads:>3}  {self.backend:<8}"
            f"{self.ratio:>7.2f} ({self.ratio_q25:.2f} to {self.ratio_q75:.2f}, {self.pairs} pairs)"
            f"  {self.gflops:.4g} GFLOP/s = {self.gemm_share:.0%} of GEMM,"
            f" torch.nn {self.torch_gflops:.4g} = {self.torch_gemm_share:.0%}{handed_over}"
        )


def training_step(module: nn.Module, input: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: output, final states, gradients of the input and of every weight."""
    output, states = module(input)
    gradients = torch.autograd.grad(output, [input, *module.parameters()], grad_output)
    return output, *_flat(states), *gradients


def inference_step(module: nn.Module, input: Tensor) -> tuple[Tensor, ...]:
    """Forward: output and final states. The caller sets the inference mode."""
    output, states = module(input)
    return output, *_flat(states)


def _flat(states: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (states,) if isinstance(states, Tensor) else states


def check_agreement(case: str, ours: Sequence[Tensor], peer: Sequence[Tensor]) -> None:
    """Raises AssertionError unless both computed the same: a wrong result has no speed.

    Equal within 1000 roundings of the largest element, the error that a sum over a long sequence
    may gather in another order; the tests of the package hold it to a closer bound.
    """
    for actual, expected in zip(ours, peer, strict=True):
        tolerance = 1000 * torch.finfo(expected.dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(
            actual,
            expected,
            rtol=0,
            atol=tolerance,
            msg=lambda message: f"{case}: rnnfast and torch.nn disagree. {message}",
        )


def steps(cell: str, shape: Shape, mode: str) -> dict[str, measure.Call]:
    """What is timed: a step of each implementation, with the same weights and input."""
    torch.manual_seed(0)
    sizes = (shape.input_size, shape.hidden_size, shape.num_layers)
    modules = {"rnnfast": CELLS[cell].ours(*sizes), "torch": CELLS[cell].torch(*sizes)}
    modules["torch"].load_state_dict(modules["rnnfast"].state_dict())
    input = torch.randn(shape.seq_len, shape.batch, shape.input_size)
    if mode == "inference":
        return {who: partial(inference_step, module, input) for who, module in modules.items()}
    input.requires_grad_()
    grad_output = torch.randn(shape.seq_len, shape.batch, shape.hidden_size)
    return {
        who: partial(training_step, module, input, grad_output) for who, module in modules.items()
    }


def measure_case(
    name: str, cell: str, mode: str, threads: int, seconds: float, min_pairs: int
) -> list[LayerResult]:
    """One case on our kernels and, where `auto` leaves it to torch, under `auto` as well."""
    contenders = steps(cell, SHAPES[name], mode)
    results = []
    # Set here and not in the step: at batch 1 entering the mode costs as much as the kernel.
    with torch.inference_mode(mode == "inference"), measure.num_threads(threads):
        with measure.backend("auto"):
            auto = measure.served_by(contenders["rnnfast"])
        for backend in ["rnnfast"] if auto == "rnnfast" else ["rnnfast", "auto"]:
            with measure.backend(backend):
                check_agreement(f"{name} {cell} {mode}", *(step() for step in contenders.values()))
                gemm = measure.gemm_times(torch.float32, min(seconds, 0.1))
                times = measure.interleave(contenders, seconds, min_pairs)
                gemm += measure.gemm_times(torch.float32, min(seconds, 0.1))
            ratio = measure.ratios(times["torch"], times["rnnfast"])
            work = operations(cell, SHAPES[name], mode)
            rate, torch_rate = (measure.gflops(work, times[who]) for who in ("rnnfast", "torch"))
            gemm_rate = measure.gemm_gflops(gemm)
            numbers = {
                "ratio": ratio.median,
                "ratio_q25": ratio.q25,
                "ratio_q75": ratio.q75,
                "milliseconds": 1e3 * statistics.median(times["rnnfast"]),
                "torch_milliseconds": 1e3 * statistics.median(times["torch"]),
                "gflops": rate,
                "torch_gflops": torch_rate,
                "gemm_gflops": gemm_rate,
                "gemm_share": rate / gemm_rate,
                "torch_gemm_share": torch_rate / gemm_rate,
            }
            results.append(
                LayerResult(
                    **dataclasses.asdict(measure.Environment.here()),
                    threads=threads,
                    dtype="float32",
                    shape=name,
                    **SHAPES[name]._asdict(),
                    cell=cell,
                    mode=mode,
                    backend=backend,
                    auto=auto,
                    pairs=len(times["torch"]),
                    **{key: measure.rounded(value) for key, value in numbers.items()},
                )
            )
    return results


SMOKE = {"shapes": ["odd"], "seconds": 0.02, "min_pairs": 3}
FULL = {"shapes": list(SHAPES), "seconds": 2.0, "min_pairs": 5}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases asked for, prints a line for each and writes the CSV."""
    cpus = measure.available_cpus()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="NAME", help="default: all")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, min(2, cpus)}))
    parser.add_argument("--seconds", type=float, help="budget of each case (default: 2)")
    parser.add_argument("--output", type=Path, metavar="CSV", help="rewritten after every case")
    parser.add_argument(
        "--smoke", action="store_true", help="one small shape, briefly: shows that it all works"
    )
    options = parser.parse_args(arguments)
    defaults = SMOKE if options.smoke else FULL
    shapes = options.shapes or defaults["shapes"]
    seconds = defaults["seconds"] if options.seconds is None else options.seconds
    if not all(1 <= threads <= cpus for threads in options.threads):
        # More threads than CPUs would wait for each other at every time step.
        parser.error(f"--threads: expected 1 to {cpus}, the CPUs here, got {options.threads}")

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        output = options.output or Path(scratch, "layers.csv")
        cases = itertools.product(options.threads, options.cells, options.modes, shapes)
        for threads, cell, mode, name in cases:
            for result in measure_case(name, cell, mode, threads, seconds, defaults["min_pairs"]):
                results.append(result)
                print(result, flush=True)
            measure.write_csv(output, results)
        if measure.read_csv(output, LayerResult) != results:
            sys.exit(f"{output} does not read back as it was written")


if __name__ == "__main__":
    main()
