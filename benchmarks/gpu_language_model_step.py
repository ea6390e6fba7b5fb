"""A training step of a word language model on a GPU: ours against the same model in plain torch.nn.

A step is all of it, as in language_model_step.py, on the same models and random tokens; ours also
as one CUDA graph, which leaves the host nothing to do. Both are timed in the same dtype: float32,
float32 with products in TF32, and under autocast to bfloat16.
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import command
import gpu_timing
import torch
from language_model_step import VOCAB_SIZE
from torch import Tensor

from rnnfast.benchmark import measure
from rnnfast.language_model import PRESETS, Config, LanguageModel, new_optimizer, train_step

DTYPES = ("tf32", "bfloat16", "float32")
CONTENDERS = ("rnnfast", "rnnfast, CUDA graph")
PEER = "torch"
# How many steps are taken before one is captured: some libraries set themselves up in the first.
STEPS_BEFORE_CAPTURE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuStepResult(gpu_timing.GpuEnvironment):
    """A row of the CSV: one contender of ours on one model, against plain torch.nn.

    `ratio` is the time of torch.nn's step over ours, the median over the rounds with quartiles;
    `verdict` as of the layers. Words per second are those of the median step. `outcome` is
    ``"measured"``, or says why the numbers are None.
    """

    model: str
    dtype: str
    backend: str
    contender: str
    batch_size: int
    num_steps: int
    hidden_size: int
    vocab_size: int
    outcome: str
    rounds: int = 0
    ratio: float | None = None
    ratio_q25: float | None = None
    ratio_q75: float | None = None
    verdict: str | None = None
    words_per_second: float | None = None
    torch_words_per_second: float | None = None

    def __str__(self) -> str:
        case = f"{self.model:<7}{self.dtype:<9}{self.backend:<8}{self.contender:<20}"
        if self.ratio is None:
            return f"{case} {self.outcome}"
        return (
            f"{case} torch.nn / ours {self.ratio:.2f} ({self.ratio_q25:.2f} to "
            f"{self.ratio_q75:.2f}), {self.verdict}  words per second: ours "
            f"{self.words_per_second:,.0f}, torch.nn {self.torch_words_per_second:,.0f}"
        )


class Trainer:
    """One backend's model and optimizer, and the window that it is trained on."""

    def __init__(self, backend: str, dtype: str, config: Config, device: str) -> None:
        training = config.training
        self.autocast = dtype == "bfloat16"
        self.device = device
        self.model = LanguageModel(VOCAB_SIZE, config.replace(backend=backend).model).to(device)
        self.optimizer = new_optimizer(self.model, training)
        self.parameters = list(self.model.parameters())
        self.max_grad_norm = training.max_grad_norm
        generator = torch.Generator().manual_seed(0)
        shape = (training.num_steps, training.batch_size)
        self.input, self.target = (
            torch.randint(VOCAB_SIZE, shape, generator=generator).to(device) for _ in range(2)
        )

    def __call__(self) -> Tensor:
        """Takes a step; returns the loss before it."""
        # Without autocast's cache of weights, which a captured step would read as they were.
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.autocast, cache_enabled=False):
            loss, _ = train_step(
                self.model,
                self.parameters,
                self.optimizer,
                self.input,
                self.target,
                None,
                self.max_grad_norm,
            )
        return loss


def captured(step: Callable[[], Tensor]) -> measure.Call:
    """The step as a CUDA graph; each call replays it and gives the loss."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(STEPS_BEFORE_CAPTURE):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def check_losses(dtype: str, ours: Tensor, peer: Tensor) -> None:
    """Raises AssertionError unless both first losses agree: a wrong step has no speed."""
    distance = gpu_timing.disagreement(dtype, ours, peer)
    if not distance <= 1:
        raise AssertionError(f"the losses are {distance:.3g} times as far apart as they may be")


def measure_model(
    model: str,
    dtype: str,
    seconds: float,
    clock: gpu_timing.Clock,
    environment: gpu_timing.GpuEnvironment,
    *,
    backend: str = "auto",
    device: str = "cuda",
    contenders: Sequence[str] = CONTENDERS,
) -> list[GpuStepResult]:
    """One row for each contender of ours; one that fails has a row that says so."""
    # With the two biases of torch.nn, as it is plainly written there.
    config = PRESETS[model].replace(dropout=0.0, single_bias=False)
    numbers: dict[str, dict] = {}
    with gpu_timing.tf32(dtype == "tf32"), measure.backend(backend):
        peer = Trainer("torch", dtype, config, device)
        first = peer()
        calls: dict[str, measure.Call] = {PEER: peer}
        for name in contenders:
            try:
                trainer = Trainer("rnnfast", dtype, config, device)
                check_losses(dtype, trainer(), first)
                calls[name] = trainer if name == "rnnfast" else captured(trainer)
            except Exception as error:
                numbers[name] = {"outcome": gpu_timing.failure(error)}
        times = gpu_timing.interleave(calls, seconds, clock)
    training = config.training
    words = training.num_steps * training.batch_size
    for name in calls.keys() - {PEER}:
        ratio = measure.ratios(times[PEER], times[name])
        numbers[name] = {
            "outcome": "measured",
            "rounds": len(times[name]),
            "ratio": measure.rounded(ratio.median),
            "ratio_q25": measure.rounded(ratio.q25),
            "ratio_q75": measure.rounded(ratio.q75),
            "verdict": gpu_timing.verdict(ratio),
            "words_per_second": measure.rounded(1e3 * words / statistics.median(times[name])),
            "torch_words_per_second": measure.rounded(1e3 * words / statistics.median(times[PEER])),
        }
    return [
        GpuStepResult(
            **dataclasses.asdict(environment),
            model=model,
            dtype=dtype,
            backend=backend,
            contender=name,
            batch_size=training.batch_size,
            num_steps=training.num_steps,
            hidden_size=config.model.hidden_size,
            vocab_size=VOCAB_SIZE,
            **numbers[name],
        )
        for name in contenders
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the models asked for, prints a line for each case and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=PRESETS, default=["small", "medium", "large"]
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--backend", choices=("auto", "rnnfast"), default="auto")
    parser.add_argument("--seconds", type=float, default=5.0, help="for the rounds of each case")
    command.add_output(parser, smoke="a model of two units")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(gpu_timing.NO_GPU)
        return
    if options.smoke:
        options.models, options.seconds = ["test"], 0.1
    clock, environment = gpu_timing.Clock(), gpu_timing.GpuEnvironment.here()
    failed: list[GpuStepResult] = []

    def measured() -> Iterator[list[GpuStepResult]]:
        for model, dtype in itertools.product(options.models, options.dtypes):
            rows = measure_model(
                model, dtype, options.seconds, clock, environment, backend=options.backend
            )
            failed.extend(row for row in rows if row.outcome != "measured")
            yield rows

    command.record(measured(), GpuStepResult, options.output)
    if failed:
        sys.exit(f"{len(failed)} cases failed, the first: {failed[0]}")


if __name__ == "__main__":
    main()
