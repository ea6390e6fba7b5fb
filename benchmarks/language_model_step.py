"""A training step of a word language model: ours against the same model in plain torch.nn.

A step is all of it: embedding, LSTM, projection to the vocabulary, cross entropy, backward,
clipping and update (rnnfast.language_model.train_step). The models are those of TensorFlow's PTB
tutorial and its notebook's, without dropout, on random tokens; torch.nn runs in float32, ours in
float32 and with products in bfloat16.

What a step frees, glibc gives back to the system where it is large, and has it again page by page,
zeroed: much of plain torch.nn's step. ``--keep-freed-memory`` measures without that.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import command
import torch
from torch import Tensor

import rnnfast
from rnnfast.benchmark import measure
from rnnfast.language_model import PRESETS, Config, LanguageModel, new_optimizer, train_step

VOCAB_SIZE = 10_000
PRECISIONS = ("fp32", "bf16")
# How far the first loss may be from torch's, relative to it.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}
MIN_ROUNDS = 3  # a step of the large model takes seconds
# Samples that the budget is for, each of as many steps as fit: as in training, a step then finds
# the caches as its own kind left them.
SAMPLES = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult(measure.Environment):
    """A row of the CSV: one model in one precision.

    `hidden_size` has the units of each layer. `ratio` is the time of torch.nn's step over that of
    ours: median over the rounds, with quartiles. Words per second are those of the median step.
    """

    threads: int
    model: str
    precision: str
    batch_size: int
    num_steps: int
    hidden_size: str
    vocab_size: int
    rounds: int
    ratio: float
    ratio_q25: float
    ratio_q75: float
    words_per_second: float
    torch_words_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.model:<8}{self.precision:<5}{self.threads} threads  "
            f"torch.nn / ours {self.ratio:.2f} ({self.ratio_q25:.2f} to {self.ratio_q75:.2f})  "
            f"words per second: ours {self.words_per_second:,.0f}, "
            f"torch.nn {self.torch_words_per_second:,.0f}"
        )


class Trainer:
    """One backend's model and optimizer, and the window that it is trained on."""

    def __init__(self, backend: str, precision: str, config: Config) -> None:
        training = config.training
        self.precision = precision
        self.model = LanguageModel(VOCAB_SIZE, config.replace(backend=backend).model)
        self.optimizer = new_optimizer(self.model, training)
        generator = torch.Generator().manual_seed(0)
        shape = (training.num_steps, training.batch_size)
        self.input, self.target = (
            torch.randint(VOCAB_SIZE, shape, generator=generator) for _ in range(2)
        )
        self.step = partial(
            train_step,
            self.model,
            list(self.model.parameters()),
            self.optimizer,
            self.input,
            self.target,
            None,
            training.max_grad_norm,
        )

    def __call__(self, steps: int = 1) -> Tensor:
        """Takes steps; returns the loss before the last."""
        rnnfast.set_precision(self.precision)
        try:
            for _ in range(steps):
                loss, _ = self.step()
        finally:
            rnnfast.set_precision("fp32")
        return loss


def check_losses(losses: dict[str, Tensor]) -> None:
    """Raises AssertionError unless all first losses agree: a wrong step has no speed."""
    for precision in PRECISIONS:
        torch.testing.assert_close(
            losses[precision], losses["torch"], rtol=TOLERANCE[precision], atol=0
        )


def measure_model(model: str, threads: int, seconds: float) -> list[StepResult]:
    """One row for each precision."""
    # With the two biases of torch.nn, as it is plainly written there.
    config = PRESETS[model].replace(dropout=0.0, single_bias=False)
    training = config.training
    with measure.num_threads(threads), measure.backend("rnnfast"):
        trainers = {"torch": Trainer("torch", "fp32", config)}
        trainers |= {name: Trainer("rnnfast", name, config) for name in PRECISIONS}
        check_losses({name: trainer() for name, trainer in trainers.items()})
        start = time.perf_counter()
        trainers["torch"]()
        steps = max(1, round(seconds / SAMPLES / (time.perf_counter() - start)))
        samples = {name: partial(trainer, steps) for name, trainer in trainers.items()}
        times = measure.interleave(samples, seconds, MIN_ROUNDS)
    words = steps * training.num_steps * training.batch_size
    results = []
    for precision in PRECISIONS:
        ratio = measure.ratios(times["torch"], times[precision])
        results.append(
            StepResult(
                **dataclasses.asdict(measure.Environment.here()),
                threads=threads,
                model=model,
                precision=precision,
                batch_size=training.batch_size,
                num_steps=training.num_steps,
                hidden_size=" ".join(map(str, config.model.hidden_sizes)),
                vocab_size=VOCAB_SIZE,
                rounds=len(times[precision]),
                ratio=measure.rounded(ratio.median),
                ratio_q25=measure.rounded(ratio.q25),
                ratio_q75=measure.rounded(ratio.q75),
                words_per_second=measure.rounded(words / measure.spread(times[precision]).median),
                torch_words_per_second=measure.rounded(
                    words / measure.spread(times["torch"]).median
                ),
            )
        )
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the models asked for, prints a line for each case and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=PRESETS, default=["small", "stacked", "medium", "large"]
    )
    command.add_threads(parser)
    parser.add_argument("--seconds", type=float, default=20.0, help="budget of each model")
    command.add_keep_freed_memory(parser)
    parser.add_argument("--smoke", action="store_true", help="a model of two units, at one thread")
    parser.add_argument("--output", type=Path, metavar="CSV", help="rewritten after every model")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.models, options.threads, options.seconds = ["test"], [1], 0.1
    command.check_threads(parser, options.threads)

    command.keep_freed_memory(options)
    cases = itertools.product(options.models, options.threads)
    measured = (measure_model(*case, options.seconds) for case in cases)
    command.record(measured, StepResult, options.output)


if __name__ == "__main__":
    main()
