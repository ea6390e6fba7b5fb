"""Texts counted and encoded to a token file, against the way of small texts, in Python."""

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data import topics

import command
import torch

from rnnfast.benchmark import measure
from rnnfast.text import Vocabulary, count_tokens, encode_file, get_tokenizer, read_text

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# By name: the tokenizer, and the file in the data folder. pydoc comes with Python.
TEXTS = {
    "pydoc": ("ptb", None),
    "ptb": ("ptb", "ptb/ptb.train.txt"),
    "quijote": ("char", "quijote/quijote.txt"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextResult(measure.Environment):
    """A row of the CSV: one task on one text, on one thread.

    The text is repeated until it has `megabytes` (10^6 bytes). The peer of encode_file is
    `vocabulary.encode_text(read_text(path))`, which leaves the ids in memory while ours writes them
    to the disk; that of count_tokens is a Counter of the tokens of `read_text(path)`. `ratio` is
    the peer's time over ours, median over the rounds with quartiles; a rate is of the median time.
    """

    task: str
    text: str
    tokenizer: str
    megabytes: float
    tokens: int
    types: int
    rounds: int
    megabytes_per_second: float
    peer_megabytes_per_second: float
    ratio: float
    ratio_q25: float
    ratio_q75: float

    def __str__(self) -> str:
        return (
            f"{self.task:<13}{self.text:<9}{self.megabytes_per_second:6.0f} MB/s, Python "
            f"{self.peer_megabytes_per_second:5.1f}  ratio {self.ratio:.1f} "
            f"({self.ratio_q25:.1f} to {self.ratio_q75:.1f})"
        )


def content_of(name: str, data: Path) -> bytes:
    _, place = TEXTS[name]
    return (data / place).read_bytes() if place else "\n".join(topics.topics.values()).encode()


def measure_text(
    name: str, data: Path, megabytes: float, seconds: float
) -> Iterator[list[TextResult]]:
    content = content_of(name, data)
    content *= max(1, round(megabytes * 1e6 / len(content)))
    tokenizer, _ = TEXTS[name]
    tokenize = get_tokenizer(tokenizer).tokenize
    with tempfile.TemporaryDirectory() as folder, measure.num_threads(1):
        path, output = Path(folder, "text.txt"), Path(folder, "text.tokens")
        path.write_bytes(content)
        counts = count_tokens(path, tokenizer)
        vocabulary = Vocabulary.from_counts(counts, tokenizer=tokenizer)
        ids = vocabulary.encode_text(read_text(path))
        encoded = encode_file(path, vocabulary, output)
        if counts != Counter(tokenize(read_text(path))) or not torch.equal(
            encoded.tokens.to(torch.int64), ids
        ):
            sys.exit(f"{name}: C++ and Python disagree")
        tasks = {
            "encode_file": (
                lambda: encode_file(path, vocabulary, output),
                lambda: vocabulary.encode_text(read_text(path)),
            ),
            "count_tokens": (
                lambda: count_tokens(path, tokenizer),
                lambda: Counter(tokenize(read_text(path))),
            ),
        }
        for task, (ours, peer) in tasks.items():
            times = measure.interleave({"ours": ours, "peer": peer}, seconds)
            ratio = measure.ratios(times["peer"], times["ours"])
            rates = [len(content) / 1e6 / statistics.median(times[who]) for who in times]
            yield [
                TextResult(
                    **dataclasses.asdict(measure.Environment.here()),
                    task=task,
                    text=name,
                    tokenizer=tokenizer,
                    megabytes=measure.rounded(len(content) / 1e6),
                    tokens=len(ids),
                    types=len(vocabulary),
                    rounds=len(times["ours"]),
                    megabytes_per_second=measure.rounded(rates[0]),
                    peer_megabytes_per_second=measure.rounded(rates[1]),
                    ratio=measure.rounded(ratio.median),
                    ratio_q25=measure.rounded(ratio.q25),
                    ratio_q75=measure.rounded(ratio.q75),
                )
            ]


SMOKE = {"texts": ["pydoc"], "megabytes": 0.5, "seconds": 0.02}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the texts asked for, prints a line for each task and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--texts", nargs="+", choices=TEXTS, metavar="NAME", help="default: all that are there"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of ptb and quijote")
    parser.add_argument("--megabytes", type=float, help="size of a text (default: 10)")
    parser.add_argument("--seconds", type=float, help="budget of each task (default: 5)")
    command.add_output(parser, smoke="one small text, briefly: shows that it all works")
    options = parser.parse_args(arguments)
    there = [
        name for name, (_, place) in TEXTS.items() if not place or (options.data / place).exists()
    ]
    defaults = SMOKE if options.smoke else {"texts": there, "megabytes": 10.0, "seconds": 5.0}
    texts = options.texts or defaults["texts"]
    if missing := [name for name in texts if name not in there]:
        parser.error(f"--texts: {', '.join(missing)} not found in {options.data}")
    megabytes = defaults["megabytes"] if options.megabytes is None else options.megabytes
    seconds = defaults["seconds"] if options.seconds is None else options.seconds
    measured = (
        rows for name in texts for rows in measure_text(name, options.data, megabytes, seconds)
    )
    command.record(measured, TextResult, options.output)


if __name__ == "__main__":
    main()
