"""Inference with weights that stay packed (rnnfast.prepack), against calls that pack, and peers."""

import argparse
import copy
import dataclasses
import itertools
import statistics
from collections.abc import Sequence

import command
import peers
import torch

import rnnfast
from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import (
    CELLS,
    SHAPES,
    Peer,
    Shape,
    check_agreement,
    settle_seconds,
    step,
)

# Where packing weighs most: short sequences, and steps of a decoder.
SHORT = {
    "phrase": Shape(1, 8, 512, 512, 1),
    "chunk": Shape(8, 4, 512, 512, 1),
    "batches": Shape(32, 8, 1024, 1024, 1),
    "decoder": Shape(16, 1, 512, 512, 2),
}
ALL = SHAPES | SHORT


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepackedResult(measure.Environment):
    """A row of the CSV: one case against one peer.

    `ratio` is the peer's time over that with packed weights, the median over the rounds, with
    quartiles; the peer ``"rnnfast"`` is our own module, which packs in each call.
    """

    threads: int
    shape: str
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int
    cell: str
    peer: str
    peer_version: str
    rounds: int
    ratio: float
    ratio_q25: float
    ratio_q75: float
    milliseconds: float

    def __str__(self) -> str:
        return (
            f"{self.shape:<11}{self.cell:<5}{self.threads:>2} threads  over {self.peer:<12}"
            f"{self.ratio:>6.2f} ({self.ratio_q25:.2f} to {self.ratio_q75:.2f})"
        )


def measure_case(
    name: str, cell: str, threads: int, seconds: float, min_rounds: int, others: dict[str, Peer]
) -> list[PrepackedResult]:
    """All contenders in the same rounds.

    Raises:
        AssertionError: if a peer's results are not ours.
    """
    torch.manual_seed(0)
    shape = ALL[name]
    sizes = (shape.input_size, shape.hidden_size, shape.num_layers)
    ours, theirs = CELLS[cell].ours(*sizes), CELLS[cell].torch(*sizes)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(shape.seq_len, shape.batch, shape.input_size)
    versions = {"rnnfast": rnnfast.__version__} | {who: p.version for who, p in others.items()}
    with torch.inference_mode(), measure.num_threads(threads), measure.backend("rnnfast"):
        calls = {who: peer.step(theirs, input, None) for who, peer in others.items()}
        calls["rnnfast"] = step(ours, input, None)
        calls["prepacked"] = step(rnnfast.prepack(copy.deepcopy(ours)), input, None)
        for who in versions:
            results = (map(torch.as_tensor, calls[one]()) for one in ("prepacked", who))
            check_agreement(f"{name} {cell}", *results, who)
        times = measure.interleave(calls, seconds, min_rounds, settle_seconds(threads, others))
    rows = []
    for who, version in versions.items():
        ratio = measure.ratios(times[who], times["prepacked"])
        rows.append(
            PrepackedResult(
                **dataclasses.asdict(measure.Environment.here()),
                threads=threads,
                shape=name,
                **shape._asdict(),
                cell=cell,
                peer=who,
                peer_version=version,
                rounds=len(times[who]),
                ratio=measure.rounded(ratio.median),
                ratio_q25=measure.rounded(ratio.q25),
                ratio_q75=measure.rounded(ratio.q75),
                milliseconds=measure.rounded(1e3 * statistics.median(times["prepacked"])),
            )
        )
    return rows


SMOKE = {"shapes": ["odd"], "seconds": 0.02, "min_rounds": 3}
FULL = {"shapes": list(ALL), "seconds": 1.5, "min_rounds": 5}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases asked for, prints a line for each and writes the CSV."""
    installed = {name: p for name, p in peers.available().items() if name != "torch.compile"}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=ALL, metavar="NAME", help="default: all")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    command.add_threads(parser)
    parser.add_argument("--seconds", type=float, help="budget of each case (default: 1.5)")
    command.add_output(parser, smoke="one small shape, briefly: shows that it all works")
    options = parser.parse_args(arguments)
    defaults = SMOKE if options.smoke else FULL
    shapes = options.shapes or defaults["shapes"]
    seconds = defaults["seconds"] if options.seconds is None else options.seconds
    command.check_threads(parser, options.threads)

    cases = itertools.product(options.threads, options.cells, shapes)
    measured = (
        measure_case(name, cell, threads, seconds, defaults["min_rounds"], installed)
        for threads, cell, name in cases
    )
    command.record(measured, PrepackedResult, options.output)


if __name__ == "__main__":
    main()
