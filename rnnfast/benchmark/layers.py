"""Recurrent layers against their peers: the shapes, and one case measured."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import rnnfast

from . import measure


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
    """A row of the CSV: one case, measured with one backend against one peer.

    `ratio` is the peer's time over ours, the median over the rounds. A share is a part of the GEMM
    rate measured just before and after, at the same threads and dtype. `outcome` is
    ``"measured"``, or says why the numbers are None.
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
    peer: str
    peer_version: str
    outcome: str
    rounds: int = 0
    ratio: float | None = None
    ratio_q25: float | None = None
    ratio_q75: float | None = None
    milliseconds: float | None = None
    peer_milliseconds: float | None = None
    gflops: float | None = None
    peer_gflops: float | None = None
    gemm_gflops: float | None = None
    gemm_share: float | None = None
    peer_gemm_share: float | None = None

    @property
    def sizes(self) -> Shape:
        return Shape(*(getattr(self, name) for name in Shape._fields))

    def __str__(self) -> str:
        case = f"{self.shape:<11}{self.cell:<5}{self.mode:<10}{self.threads:>3}  {self.backend:<8}"
        if self.ratio is None:
            return f"{case} {self.peer}: {self.outcome}"
        return (
            f"{case}{self.ratio:>7.2f} ({self.ratio_q25:.2f} to {self.ratio_q75:.2f},"
            f" {self.rounds} rounds)  {self.gflops:.4g} GFLOP/s = {self.gemm_share:.0%} of GEMM,"
            f" {self.peer} {self.peer_gflops:.4g} = {self.peer_gemm_share:.0%}"
        )


class Peer(NamedTuple):
    """Another implementation of the layers.

    Attributes:
        version: of the package it comes from.
        step: takes a module of torch.nn, its input and the gradient of the output (None for
            inference); gives the call to be timed, which returns what :func:`step` says.
        modes: what it can do.
        own_threads: whether it computes on threads of its own, and not on torch's.
    """

    version: str
    step: Callable[[nn.Module, Tensor, Tensor | None], measure.Call]
    modes: tuple[str, ...] = MODES
    own_threads: bool = False


# How long the threads of a peer and torch's are given to go idle: those of ONNX Runtime were seen
# to spin for some 40 ms.
SETTLE_SECONDS = 0.1


def settle_seconds(threads: int, peers: dict[str, Peer]) -> float:
    """The pause before each sample: none unless a peer has threads of its own."""
    return SETTLE_SECONDS if threads > 1 and any(p.own_threads for p in peers.values()) else 0


def step(module: nn.Module, input: Tensor, grad_output: Tensor | None) -> measure.Call:
    """A step of training; of inference if there is no gradient of the output.

    It returns output and final states and, in training, the gradients of the input and of every
    weight. For inference the caller sets the inference mode: at batch 1 entering it costs as much
    as the kernel.
    """
    if grad_output is None:
        return partial(_inference, module, input)
    return partial(_training, module, input, grad_output)


def _inference(module: nn.Module, input: Tensor) -> tuple[Tensor, ...]:
    output, states = module(input)
    return output, *_flat(states)


def _training(module: nn.Module, input: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
    output, states = module(input)
    gradients = torch.autograd.grad(output, [input, *module.parameters()], grad_output)
    return output, *_flat(states), *gradients


def _flat(states: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (states,) if isinstance(states, Tensor) else states


TORCH = {"torch": Peer(torch.__version__, step)}


def check_agreement(
    case: str, ours: Sequence[Tensor], peer: Sequence[Tensor], name: str = "torch.nn"
) -> None:
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
            msg=lambda message: f"{case}: rnnfast and {name} disagree. {message}",
        )


def steps(
    cell: str, shape: Shape, mode: str, peers: dict[str, Peer] = TORCH
) -> dict[str, measure.Call]:
    """What is timed: a step of each peer and of ours, with the same weights and input."""
    torch.manual_seed(0)
    sizes = (shape.input_size, shape.hidden_size, shape.num_layers)
    ours, theirs = CELLS[cell].ours(*sizes), CELLS[cell].torch(*sizes)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(shape.seq_len, shape.batch, shape.input_size)
    grad_output = None
    if mode == "training":
        input.requires_grad_()
        grad_output = torch.randn(shape.seq_len, shape.batch, shape.hidden_size)
    calls = {name: peer.step(theirs, input, grad_output) for name, peer in peers.items()}
    return calls | {"rnnfast": step(ours, input, grad_output)}


def measure_case(
    name: str,
    cell: str,
    mode: str,
    threads: int,
    seconds: float,
    min_rounds: int = 5,
    *,
    backend: str = "rnnfast",
    peers: dict[str, Peer] = TORCH,
) -> list[LayerResult]:
    """Times one case on a backend of ours and, in the same rounds, on those peers that can do it.

    Raises:
        AssertionError: if a peer's results are not ours.
    """
    peers = {who: peer for who, peer in peers.items() if mode in peer.modes}
    if not peers:
        return []
    with torch.inference_mode(mode == "inference"), measure.num_threads(threads):
        calls = steps(cell, SHAPES[name], mode, peers)
        with measure.backend(backend):
            for who in peers:
                results = (map(torch.as_tensor, calls[step]()) for step in ("rnnfast", who))
                check_agreement(f"{name} {cell} {mode}", *results, who)
            gemm = measure.gemm_times(torch.float32, min(seconds, 0.1))
            times = measure.interleave(calls, seconds, min_rounds, settle_seconds(threads, peers))
            gemm += measure.gemm_times(torch.float32, min(seconds, 0.1))
    work = operations(cell, SHAPES[name], mode)
    case = (name, cell, mode, threads, backend)
    return [
        layer_result(*case, who, peer.version, _numbers(work, times["rnnfast"], times[who], gemm))
        for who, peer in peers.items()
    ]


def _numbers(
    work: int, ours: Sequence[float], peer: Sequence[float], gemm: Sequence[float]
) -> dict[str, int | float | str]:
    ratio = measure.ratios(peer, ours)
    rate, peer_rate = measure.gflops(work, ours), measure.gflops(work, peer)
    gemm_rate = measure.gemm_gflops(gemm)
    numbers = {
        "ratio": ratio.median,
        "ratio_q25": ratio.q25,
        "ratio_q75": ratio.q75,
        "milliseconds": 1e3 * statistics.median(ours),
        "peer_milliseconds": 1e3 * statistics.median(peer),
        "gflops": rate,
        "peer_gflops": peer_rate,
        "gemm_gflops": gemm_rate,
        "gemm_share": rate / gemm_rate,
        "peer_gemm_share": peer_rate / gemm_rate,
    }
    return {
        "outcome": "measured",
        "rounds": len(ours),
        **{key: measure.rounded(value) for key, value in numbers.items()},
    }


def layer_result(
    name: str,
    cell: str,
    mode: str,
    threads: int,
    backend: str,
    peer: str,
    peer_version: str,
    numbers: dict[str, int | float | str],
) -> LayerResult:
    """A row for what was measured here and now."""
    return LayerResult(
        **dataclasses.asdict(measure.Environment.here()),
        threads=threads,
        dtype="float32",
        shape=name,
        **SHAPES[name]._asdict(),
        cell=cell,
        mode=mode,
        backend=backend,
        peer=peer,
        peer_version=peer_version,
        **numbers,
    )
