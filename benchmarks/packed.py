"""Training on a PackedSequence against our own padded call, and against torch.nn's packed one."""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

import command
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import CELLS, check_agreement

BATCH, SIZE = 16, 64
SEQ_LENS = (50, 200, 1000)
# Sequences that all have seq_len steps, where packing can but cost; and lengths uniform below it.
LENGTHS = ("equal", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedResult(measure.Environment):
    """A row of the CSV: one case.

    `padded` is the time of our padded call over that of our packed one, `torch_packed` that of
    torch.nn's packed call over it: medians over the rounds, with quartiles.
    """

    threads: int
    cell: str
    batch: int
    size: int
    seq_len: int
    lengths: str
    rounds: int
    padded: float
    padded_q25: float
    padded_q75: float
    torch_packed: float
    torch_packed_q25: float
    torch_packed_q75: float

    def __str__(self) -> str:
        return (
            f"{self.cell:<5}{self.seq_len:>5} {self.lengths:<8}{self.threads} threads  "
            f"padded / packed {self.padded:.2f} ({self.padded_q25:.2f} to {self.padded_q75:.2f})  "
            f"torch.nn's packed / ours {self.torch_packed:.2f} "
            f"({self.torch_packed_q25:.2f} to {self.torch_packed_q75:.2f})"
        )


def training_step(module: nn.Module, input: Tensor | PackedSequence) -> tuple[Tensor, ...]:
    """Forward and backward: output and the gradients of the input and of every weight."""
    output, _ = module(input)
    if isinstance(input, PackedSequence):
        input, output = input.data, output.data
    leaves = [input, *module.parameters()]
    return output, *torch.autograd.grad(output, leaves, torch.ones_like(output))


def measure_case(
    cell: str, seq_len: int, lengths: str, threads: int, seconds: float
) -> PackedResult:
    torch.manual_seed(0)
    ours, peer = (kind(SIZE, SIZE) for kind in (CELLS[cell].ours, CELLS[cell].torch))
    peer.load_state_dict(ours.state_dict())
    padded = torch.randn(seq_len, BATCH, SIZE, requires_grad=True)
    sizes = torch.full((BATCH,), seq_len)
    if lengths == "uniform":
        sizes[1:] = torch.randint(1, seq_len + 1, (BATCH - 1,)).sort(descending=True).values
    packed = pack_padded_sequence(padded.detach(), sizes)
    packed = packed._replace(data=packed.data.requires_grad_())
    step = partial(training_step, ours, packed)
    peers = {
        "padded": partial(training_step, ours, padded),
        "torch": partial(training_step, peer, packed),
    }
    with measure.num_threads(threads), measure.backend("rnnfast"):
        check_agreement(f"packed {cell}", step(), peers["torch"]())
        # Each peer apart: what runs after torch's call, with caches and threads gone cold, pays.
        times = {
            name: measure.interleave({"peer": call, "packed": step}, seconds / 2)
            for name, call in peers.items()
        }
    padded_ratio, torch_ratio = (
        measure.ratios(times[name]["peer"], times[name]["packed"]) for name in peers
    )
    return PackedResult(
        **dataclasses.asdict(measure.Environment.here()),
        threads=threads,
        cell=cell,
        batch=BATCH,
        size=SIZE,
        seq_len=seq_len,
        lengths=lengths,
        rounds=len(times["padded"]["packed"]),
        padded=measure.rounded(padded_ratio.median),
        padded_q25=measure.rounded(padded_ratio.q25),
        padded_q75=measure.rounded(padded_ratio.q75),
        torch_packed=measure.rounded(torch_ratio.median),
        torch_packed_q25=measure.rounded(torch_ratio.q25),
        torch_packed_q75=measure.rounded(torch_ratio.q75),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases asked for, prints a line for each and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq-lens", nargs="+", type=int, help="default: 50 200 1000")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    command.add_threads(parser)
    parser.add_argument("--seconds", type=float, help="budget of each case (default: 2)")
    command.add_output(parser, smoke="short sequences, briefly: shows that it all works")
    options = parser.parse_args(arguments)
    seq_lens = options.seq_lens or (SEQ_LENS[:1] if options.smoke else SEQ_LENS)
    seconds = options.seconds or (0.02 if options.smoke else 2.0)
    command.check_threads(parser, options.threads)

    cases = itertools.product(options.cells, seq_lens, LENGTHS, options.threads)
    measured = ([measure_case(*case, seconds)] for case in cases)
    command.record(measured, PackedResult, options.output)


if __name__ == "__main__":
    main()
