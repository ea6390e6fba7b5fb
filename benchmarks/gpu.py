"""Recurrent layers on a GPU: ours against torch.nn's (cuDNN's), haste's and FlashRNN's."""

import argparse
import dataclasses
import importlib
import importlib.metadata
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import command
import gpu_timing
import torch
from torch import Tensor, nn

from rnnfast.benchmark import layers, measure
from rnnfast.benchmark.layers import CELLS, MODES, Shape

GRID = {
    f"b{batch}_h{hidden}_t{seq_len}": Shape(batch, seq_len, hidden, hidden, 1)
    for batch, hidden, seq_len in itertools.product(
        (1, 8, 64, 256), (128, 256, 512, 1024, 2048), (32, 256, 1024)
    )
}
# The shape at which FlashRNN's authors give times, and the widest stack of both directions.
PUBLISHED = {"flashrnn": Shape(16, 1024, 768, 768, 1), "two_ways": Shape(32, 80, 128, 256, 2)}
SHAPES = layers.SHAPES | PUBLISHED | GRID
BIDIRECTIONAL = ("two_ways",)
# The most important first: where little time is given, the last are left out.
FIRST = ("ptb_medium", "flashrnn", "rl", "stream512", "two_ways", "ptb_small", "ptb_large", "imdb")
DTYPES = ("bfloat16", "tf32", "float32", "float16")
# How many places in the list of shapes the next cell, dtype or mode is worth.
WEIGHTS = {"cell": 6, "dtype": 4, "mode": 2}


class Case(NamedTuple):
    """What is measured: the name of a shape, a cell, training or inference, a dtype."""

    shape: str
    cell: str
    mode: str
    dtype: str

    @property
    def sizes(self) -> Shape:
        return SHAPES[self.shape]

    @property
    def bidirectional(self) -> bool:
        return self.shape in BIDIRECTIONAL


def cases() -> list[Case]:
    """All, the most important first; of the shapes that are not in FIRST, the smallest first."""
    rest = [name for name in SHAPES if name not in FIRST]
    rest.sort(key=lambda name: layers.operations("LSTM", SHAPES[name], "training"))
    shapes = [*FIRST, *rest]

    def place(case: Case) -> int:
        return (
            shapes.index(case.shape)
            + WEIGHTS["cell"] * list(CELLS).index(case.cell)
            + WEIGHTS["dtype"] * DTYPES.index(case.dtype)
            + WEIGHTS["mode"] * MODES.index(case.mode)
        )

    return sorted(
        itertools.starmap(Case, itertools.product(shapes, CELLS, MODES, DTYPES)), key=place
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuResult(gpu_timing.GpuEnvironment):
    """A row of the CSV: one case on one backend of ours against one peer.

    `ratio` is the peer's time over ours, the median over the rounds with quartiles; `verdict` is
    ``"faster"`` or ``"slower"`` where three of four rounds say so, else ``"equal"``: with backend
    ``auto`` against torch, none may be slower. Rates are those of the matrix products alone.
    `outcome` is ``"measured"``, or says why the numbers are None.
    """

    dtype: str
    shape: str
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int
    directions: int
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
    verdict: str | None = None
    milliseconds: float | None = None
    peer_milliseconds: float | None = None
    tflops: float | None = None
    peer_tflops: float | None = None

    def __str__(self) -> str:
        case = f"{self.shape:<16}{self.cell:<5}{self.mode:<10}{self.dtype:<9}{self.backend:<8}"
        if self.ratio is None:
            return f"{case} {self.peer}: {self.outcome}"
        return (
            f"{case}{self.milliseconds:>9.4g} ms, {self.peer} {self.peer_milliseconds:.4g} ms: "
            f"{self.ratio:.2f} ({self.ratio_q25:.2f} to {self.ratio_q75:.2f}), {self.verdict}"
        )


class Peer(NamedTuple):
    """Another implementation.

    Attributes:
        version: of its package.
        step: takes torch.nn's module, the input and the gradient of the output (None for
            inference); gives the call to be timed, whose first result is the output.
        serves: whether it has what a case asks for.
        whole: whether all its results, gradients too, are laid out as torch's.
    """

    version: str
    step: Callable[[nn.Module, Tensor, Tensor | None], measure.Call]
    serves: Callable[[Case], bool] = lambda case: True
    whole: bool = False


def _haste_step(module: nn.Module, input: Tensor, grad_output: Tensor | None) -> measure.Call:
    """haste's layer of the same weights. Source: haste_pytorch 0.5, LSTM and GRU."""
    haste = importlib.import_module("haste_pytorch")
    theirs = getattr(haste, module.mode)(module.input_size, module.hidden_size)
    theirs.from_native_weights(*(weight.detach() for weight in module.parameters()))
    return layers.step(theirs.cuda().train(module.training), input, grad_output)


def _flashrnn_step(module: nn.Module, input: Tensor, grad_output: Tensor | None) -> measure.Call:
    """FlashRNN's fused LSTM, and torch's product for its input, which it leaves to the caller.

    Its sequences are `(batch, seq_len, gates, heads, head_dim)`, here with one head, and its gates
    in torch's order. Source: flashrnn 1.0, ``flashrnn.flashrnn``.
    """
    flashrnn = importlib.import_module("flashrnn").flashrnn
    weight_ih, weight_hh, bias_ih, bias_hh = module.parameters()
    hidden_size = module.hidden_size
    dtype = str(input.dtype).removeprefix("torch.")

    def forward() -> Tensor:
        gates = nn.functional.linear(input, weight_ih).transpose(0, 1).unflatten(-1, (4, 1, -1))
        recurrent = weight_hh.view(4, 1, hidden_size, hidden_size)
        bias = (bias_ih + bias_hh).view(4, 1, hidden_size)
        states, _ = flashrnn(gates, recurrent, bias, function="lstm", dtype=dtype)
        return states[0].squeeze(2).transpose(0, 1)

    def training() -> tuple[Tensor, ...]:
        output = forward()
        wanted = [input, *module.parameters()]
        return output, *torch.autograd.grad(output, wanted, grad_output)

    return training if grad_output is not None else lambda: (forward(),)


def _one_layer(case: Case) -> bool:
    return case.sizes.num_layers == 1 and not case.bidirectional


def peers() -> dict[str, Peer]:
    """By name, those that can be imported here: torch, and what packages there are."""
    found = {"torch": Peer(torch.__version__, layers.step, whole=True)}
    others = {
        "haste_pytorch": Peer(
            "", _haste_step, lambda c: _one_layer(c) and c.cell != "RNN" and c.dtype == "float32"
        ),
        "flashrnn": Peer(
            "",
            _flashrnn_step,
            lambda c: _one_layer(c) and c.cell == "LSTM" and c.dtype in ("bfloat16", "float16"),
        ),
    }
    for name, peer in others.items():
        try:
            importlib.import_module(name)
        except Exception:  # not installed, or not for this torch and CUDA
            continue
        found[name] = peer._replace(version=importlib.metadata.version(name.replace("_", "-")))
    return found


def measure_case(
    case: Case,
    seconds: float,
    among: dict[str, Peer],
    clock: gpu_timing.Clock,
    environment: gpu_timing.GpuEnvironment,
    *,
    backend: str = "auto",
    device: str = "cuda",
) -> list[GpuResult]:
    """Times a case on a backend of ours and, in the same rounds, on those peers that serve it.

    A peer that fails or computes something else has a row that says so, and no numbers.
    """
    among = {name: peer for name, peer in among.items() if peer.serves(case)}
    numbers: dict[str, dict] = {}
    with (
        torch.inference_mode(case.mode == "inference"),
        gpu_timing.tf32(case.dtype == "tf32"),
        measure.backend(backend),
    ):
        try:
            ours, theirs, data = _contenders(case, device)
            call = layers.step(ours, *data)
            results = call()
        except Exception as error:
            outcome = f"ours failed: {gpu_timing.failure(error)}"
            numbers = {name: {"outcome": outcome} for name in among}
            among_sound = {}
        else:
            calls, among_sound = {"rnnfast": call}, {}
            for name, peer in among.items():
                try:
                    calls[name] = peer.step(theirs, *data)
                    _check(case, results, calls[name](), peer.whole)
                    among_sound[name] = peer
                except Exception as error:
                    calls.pop(name, None)
                    numbers[name] = {"outcome": gpu_timing.failure(error)}
            del results
        if among_sound:
            times = gpu_timing.interleave(calls, seconds, clock)
            for name in among_sound:
                numbers[name] = _numbers(case, times["rnnfast"], times[name])
    return [
        GpuResult(
            **dataclasses.asdict(environment),
            dtype=case.dtype,
            shape=case.shape,
            **case.sizes._asdict(),
            directions=1 + case.bidirectional,
            cell=case.cell,
            mode=case.mode,
            backend=backend,
            peer=name,
            peer_version=peer.version,
            **numbers[name],
        )
        for name, peer in among.items()
    ]


def _contenders(
    case: Case, device: str
) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor | None]]:
    """Our module and torch's with the same weights, the input, the gradient of the output."""
    torch.manual_seed(0)
    shape, cell = case.sizes, CELLS[case.cell]
    factory = {"device": device, "dtype": gpu_timing.DTYPES[case.dtype]}
    sizes = (shape.input_size, shape.hidden_size, shape.num_layers)
    ours, theirs = (
        kind(*sizes, bidirectional=case.bidirectional, **factory)
        for kind in (cell.ours, cell.torch)
    )
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(shape.seq_len, shape.batch, shape.input_size, **factory)
    if case.mode == "inference":
        return ours.eval(), theirs.eval(), (input, None)
    features = shape.hidden_size * (1 + case.bidirectional)
    grad_output = torch.randn(shape.seq_len, shape.batch, features, **factory)
    return ours, theirs, (input.requires_grad_(), grad_output)


def _check(case: Case, ours: Sequence[Tensor], peer: Sequence[Tensor], whole: bool) -> None:
    """Raises AssertionError unless both computed the same: a wrong result has no speed."""
    pairs = zip(ours, peer, strict=True) if whole else [(ours[0], peer[0])]
    for index, (one, other) in enumerate(pairs):
        distance = gpu_timing.disagreement(case.dtype, one, other)
        if not distance <= 1:
            raise AssertionError(
                f"result {index} is {distance:.3g} times as far from ours as it may be"
            )


def _numbers(case: Case, ours: Sequence[float], peer: Sequence[float]) -> dict[str, object]:
    ratio = measure.ratios(peer, ours)
    work = layers.operations(case.cell, case.sizes, case.mode)
    milliseconds, peer_milliseconds = statistics.median(ours), statistics.median(peer)
    numbers = {
        "ratio": ratio.median,
        "ratio_q25": ratio.q25,
        "ratio_q75": ratio.q75,
        "milliseconds": milliseconds,
        "peer_milliseconds": peer_milliseconds,
    }
    if not case.bidirectional:  # whose products are others
        numbers |= {"tflops": work / milliseconds / 1e9}
        numbers |= {"peer_tflops": work / peer_milliseconds / 1e9}
    return {
        "outcome": "measured",
        "rounds": len(ours),
        "verdict": gpu_timing.verdict(ratio),
        **{key: measure.rounded(value) for key, value in numbers.items()},
    }


def within(
    budget: float,
    wanted: Sequence[Case],
    measured: Callable[[Case], list[GpuResult]],
    clock: gpu_timing.Clock,
) -> Iterator[list[GpuResult]]:
    """Measures one case after the other until the budget, in seconds, is used up."""
    end = clock.now() + budget
    for done, case in enumerate(wanted):
        if done and clock.now() >= end:
            print(f"the budget of {budget:g} s was enough for {done} of {len(wanted)} cases")
            return
        yield measured(case)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases asked for, prints a line for each and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="NAME", help="default: all")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--backend", choices=("auto", "rnnfast", "torch"), default="auto")
    parser.add_argument("--seconds", type=float, default=0.2, help="for the rounds of each case")
    parser.add_argument(
        "--budget", type=float, default=360.0, help="seconds for all; the most important come first"
    )
    command.add_output(parser, smoke="one small shape, briefly")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="default: all that are here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(gpu_timing.NO_GPU)
        return
    if options.smoke:
        options.shapes, options.seconds = options.shapes or ["odd"], 0.02
    wanted = [
        case
        for case in cases()
        if case.shape in (options.shapes or SHAPES)
        and case.cell in options.cells
        and case.mode in options.modes
        and case.dtype in options.dtypes
    ]
    among, clock = peers(), gpu_timing.Clock()
    if options.peers is not None:
        missing = [name for name in options.peers if name not in among]
        if missing:
            parser.error(f"--peers: expected some of {', '.join(among)}, got {', '.join(missing)}")
        among = {name: among[name] for name in options.peers}
    environment = gpu_timing.GpuEnvironment.here()
    print(f"{environment.device}, driver {environment.driver}, CUDA {environment.cuda}, "
          f"peers: {', '.join(among)}")  # fmt: skip

    failed: list[GpuResult] = []

    def measured(case: Case) -> list[GpuResult]:
        rows = measure_case(
            case, options.seconds, among, clock, environment, backend=options.backend
        )
        sound = ("measured", gpu_timing.OUT_OF_MEMORY)
        failed.extend(
            row for row in rows if row.peer == "torch" and not row.outcome.endswith(sound)
        )
        return rows

    command.record(within(options.budget, wanted, measured, clock), GpuResult, options.output)
    if failed:
        sys.exit(f"{len(failed)} cases failed against torch, the first: {failed[0]}")


if __name__ == "__main__":
    main()
