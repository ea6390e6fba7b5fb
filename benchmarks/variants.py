"""Layers that torch.nn serves by slower ways: projected states, float16, bfloat16 and precision."""

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import command
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import CELLS, MODES, SHAPES, Shape, step


class Contender(NamedTuple):
    """A way to run a layer: whose module, in what dtype, under what precision of ours."""

    ours: bool
    dtype: torch.dtype = torch.float32
    precision: str = "fp32"


class Variant(NamedTuple):
    """What is compared: each of the first with each of the others, where that differs."""

    cells: tuple[str, ...]
    shapes: tuple[str, ...]
    contenders: dict[str, Contender]
    peers: dict[str, Contender]
    proj: bool = False


OURS, TORCH = Contender(ours=True), Contender(ours=False)
VARIANTS = {
    "proj_size": Variant(
        ("LSTM",),
        ("seed001", "ptb_medium", "imdb", "rl"),
        {"rnnfast": OURS},
        {"torch": TORCH},
        proj=True,
    ),
    "float16": Variant(
        ("LSTM", "GRU"),
        ("seed001", "ptb_small", "imdb", "rl"),
        {"rnnfast float16": Contender(True, torch.float16)},
        {"rnnfast float32": OURS, "torch float16": Contender(False, torch.float16)},
    ),
    "bfloat16": Variant(
        ("LSTM", "GRU"),
        ("seed001", "ptb_medium", "ptb_large", "stream512"),
        {
            "rnnfast precision bf16": Contender(True, torch.float32, "bf16"),
            "rnnfast bfloat16": Contender(True, torch.bfloat16),
        },
        {"rnnfast float32": OURS, "torch bfloat16": Contender(False, torch.bfloat16)},
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantResult(measure.Environment):
    """A row of the CSV: a contender against a peer.

    `ratio` is the peer's time over the contender's, the median over the rounds with quartiles.
    `error` and `peer_error` are the largest of any element of the output as a part of the largest
    element, with the same weights in float64 as truth.
    """

    threads: int
    variant: str
    shape: str
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    cell: str
    mode: str
    contender: str
    peer: str
    rounds: int
    ratio: float
    ratio_q25: float
    ratio_q75: float
    milliseconds: float
    peer_milliseconds: float
    error: float
    peer_error: float

    @property
    def sizes(self) -> Shape:
        return Shape(*(getattr(self, name) for name in Shape._fields))

    def __str__(self) -> str:
        return (
            f"{self.shape:<11}{self.cell:<5}{self.mode:<10}{self.threads} threads  "
            f"{self.peer} / {self.contender} {self.ratio:.2f} "
            f"({self.ratio_q25:.2f} to {self.ratio_q75:.2f})  "
            f"errors {self.peer_error:.2g}, {self.error:.2g}"
        )


def _under(precision: str, call: measure.Call) -> object:
    rnnfast.set_precision(precision)
    return call()


def _step(
    contender: Contender, truth: nn.Module, input: Tensor, grad_output: Tensor | None
) -> measure.Call:
    """A step with the weights and the input of the truth."""
    cell, sizes = truth.mode.removesuffix("_TANH"), (truth.input_size, truth.hidden_size)
    kind = CELLS[cell].ours if contender.ours else CELLS[cell].torch
    options = {"proj_size": truth.proj_size} if truth.proj_size else {}
    module = kind(*sizes, truth.num_layers, dtype=contender.dtype, **options)
    module.load_state_dict(truth.state_dict())
    input = input.detach().to(contender.dtype).requires_grad_(input.requires_grad)
    grad_output = None if grad_output is None else grad_output.to(contender.dtype)
    return partial(_under, contender.precision, step(module, input, grad_output))


def measure_case(
    variant: str, name: str, cell: str, mode: str, threads: int, seconds: float, min_rounds: int
) -> list[VariantResult]:
    """Each contender of a case against each peer."""
    torch.manual_seed(0)
    _, _, contenders, peers, projected = VARIANTS[variant]
    shape = SHAPES[name]
    proj_size = shape.hidden_size // 2 if projected else 0
    options = {"proj_size": proj_size} if projected else {}
    truth = CELLS[cell].torch(*shape[2:], dtype=torch.float64, **options)
    input = torch.randn(*shape[1::-1], shape.input_size, dtype=torch.float64)
    grad_output = None
    if mode == "training":
        input.requires_grad_()
        size = proj_size or shape.hidden_size
        grad_output = torch.randn(*shape[1::-1], size, dtype=torch.float64)
    every = contenders | peers
    inference = torch.inference_mode(mode == "inference")
    with inference, measure.num_threads(threads), measure.backend("rnnfast"), _fp32_at_end():
        steps = {who: _step(one, truth, input, grad_output) for who, one in every.items()}
        expected = step(truth, input, grad_output)()[0]
        errors = {
            who: ((call()[0] - expected).abs().max() / expected.abs().max()).item()
            for who, call in steps.items()
        }
        for who, error in errors.items():
            # Far more than a half type's rounding, far less than what a wrong result is off by.
            if error > 0.1:
                sys.exit(f"{name} {cell} {mode}: {who} is off by {error:.2g} of the largest")
        # Each pair apart: what runs after another's call finds caches and memory gone cold, and
        # torch's in float16 take fifty times as long as ours.
        pairs = list(itertools.product(contenders, peers))
        times = [
            measure.interleave({who: steps[who] for who in pair}, seconds / len(pairs), min_rounds)
            for pair in pairs
        ]
    return [
        _result(variant, name, proj_size, cell, mode, threads, *pair, of_pair, errors)
        for pair, of_pair in zip(pairs, times, strict=True)
    ]


@contextlib.contextmanager
def _fp32_at_end():
    try:
        yield
    finally:
        rnnfast.set_precision("fp32")


def _result(
    variant: str,
    name: str,
    proj_size: int,
    cell: str,
    mode: str,
    threads: int,
    contender: str,
    peer: str,
    times: dict[str, list[float]],
    errors: dict[str, float],
) -> VariantResult:
    ratio = measure.ratios(times[peer], times[contender])
    numbers = {
        "ratio": ratio.median,
        "ratio_q25": ratio.q25,
        "ratio_q75": ratio.q75,
        "milliseconds": 1e3 * statistics.median(times[contender]),
        "peer_milliseconds": 1e3 * statistics.median(times[peer]),
        "error": errors[contender],
        "peer_error": errors[peer],
    }
    return VariantResult(
        **dataclasses.asdict(measure.Environment.here()),
        threads=threads,
        variant=variant,
        shape=name,
        **SHAPES[name]._asdict(),
        proj_size=proj_size,
        cell=cell,
        mode=mode,
        contender=contender,
        peer=peer,
        rounds=len(times[peer]),
        **{key: measure.rounded(value) for key, value in numbers.items()},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the variants asked for, prints a line for each row and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    command.add_threads(parser, [min(2, measure.available_cpus())])
    parser.add_argument("--seconds", type=float, default=2.0, help="budget of each case")
    command.add_output(parser, smoke="one small shape, briefly: shows that it all works")
    options = parser.parse_args(arguments)
    command.check_threads(parser, options.threads)
    budget = (0.02, 2) if options.smoke else (options.seconds, 5)

    measured = (
        measure_case(variant, *case, *budget)
        for variant in options.variants
        for case in itertools.product(
            ("odd",) if options.smoke else VARIANTS[variant].shapes,
            VARIANTS[variant].cells,
            options.modes,
            options.threads,
        )
    )
    command.record(measured, VariantResult, options.output)


if __name__ == "__main__":
    main()
