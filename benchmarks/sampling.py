"""Drawing characters from a language model: ours against the same model on torch.nn's layers.

The model is that of TensorFlow's character tutorial, an embedding of 256 and one LSTM, here of 256
and of 1024 units, over 65 characters. What is timed is a call of
rnnfast.language_model.generate from its beginning, packing the weights included, on one thread.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import command

from rnnfast.benchmark import measure
from rnnfast.language_model import LanguageModel, ModelConfig, generate
from rnnfast.text import Vocabulary

VOCABULARY = Vocabulary([chr(ord("A") + index) for index in range(65)], tokenizer="char")
EMBEDDING_SIZE = 256
HIDDEN_SIZES = (256, 1024)
# By number of texts drawn in one batch, the characters of each.
LENGTHS = {1: 500, 16: 100, 256: 20}
MIN_ROUNDS = 3
# The part of the characters that both must draw alike: a random number may fall where the
# rounding of a probability decides, and the text then goes on in another way.
AGREEMENT = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingResult(measure.Environment):
    """A row of the CSV: one model, so many texts in one batch.

    `ratio` is the time of torch.nn's call over that of ours: median over the rounds, with
    quartiles. Characters per second are those of all texts together, at the median time.
    """

    threads: int
    hidden_size: int
    embedding_size: int
    vocab_size: int
    num_samples: int
    length: int
    rounds: int
    ratio: float
    ratio_q25: float
    ratio_q75: float
    characters_per_second: float
    torch_characters_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.hidden_size:>4} units, {self.num_samples:>3} texts  "
            f"torch.nn / ours {self.ratio:.2f} ({self.ratio_q25:.2f} to {self.ratio_q75:.2f})  "
            f"characters per second: ours {self.characters_per_second:,.0f}, "
            f"torch.nn {self.torch_characters_per_second:,.0f}"
        )


def draw(model: LanguageModel, num_samples: int, length: int) -> list[list[int]]:
    """The ids of each step."""
    return list(generate(model, VOCABULARY, [0], length=length, num_samples=num_samples))


def check_agreement(ours: list[list[int]], peers: list[list[int]]) -> None:
    """Raises AssertionError unless both drew the same: a wrong text has no speed."""
    pairs = list(zip(itertools.chain(*ours), itertools.chain(*peers), strict=True))
    agreeing = sum(a == b for a, b in pairs) / len(pairs)
    assert agreeing >= AGREEMENT, f"only {agreeing:.1%} of the characters agree"


def measure_case(
    hidden_size: int, num_samples: int, length: int, seconds: float
) -> list[SamplingResult]:
    """One row."""
    calls = {
        backend: partial(
            draw,
            LanguageModel(
                len(VOCABULARY),
                ModelConfig(
                    hidden_size=hidden_size, embedding_size=EMBEDDING_SIZE, backend=backend
                ),
            ),
            num_samples,
            length,
        )
        for backend in ("rnnfast", "torch")
    }
    with measure.num_threads(1), measure.backend("rnnfast"):
        check_agreement(*(call() for call in calls.values()))
        times = measure.interleave(calls, seconds, MIN_ROUNDS)
    ratio = measure.ratios(times["torch"], times["rnnfast"])
    speed = {
        name: measure.rounded(num_samples * length / measure.spread(values).median)
        for name, values in times.items()
    }
    return [
        SamplingResult(
            **dataclasses.asdict(measure.Environment.here()),
            threads=1,
            hidden_size=hidden_size,
            embedding_size=EMBEDDING_SIZE,
            vocab_size=len(VOCABULARY),
            num_samples=num_samples,
            length=length,
            rounds=len(times["rnnfast"]),
            ratio=measure.rounded(ratio.median),
            ratio_q25=measure.rounded(ratio.q25),
            ratio_q75=measure.rounded(ratio.q75),
            characters_per_second=speed["rnnfast"],
            torch_characters_per_second=speed["torch"],
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every case, prints a line for each and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=HIDDEN_SIZES)
    parser.add_argument("--seconds", type=float, default=5.0, help="budget of a case")
    parser.add_argument("--smoke", action="store_true", help="a model of two units, short texts")
    parser.add_argument("--output", type=Path, metavar="CSV", help="rewritten after every case")
    options = parser.parse_args(arguments)
    lengths = LENGTHS
    if options.smoke:
        options.hidden_sizes, options.seconds, lengths = [2], 0.1, {1: 5, 3: 5}

    cases = itertools.product(options.hidden_sizes, lengths.items())
    measured = (measure_case(size, *case, options.seconds) for size, case in cases)
    command.record(measured, SamplingResult, options.output)


if __name__ == "__main__":
    main()
