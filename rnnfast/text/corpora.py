"""Texts to learn from: Python's own language reference, Penn Treebank folders, any text file."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .errors import InputError
from .files import read_text
from .tokenization import UNK, get_tokenizer
from .vocabulary import Vocabulary

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Corpus:
    """A text as ids, split in three, with the vocabulary that numbers its tokens.

    Attributes:
        name: what the text is, for messages.
        vocabulary: the vocabulary of ``V`` tokens.
        train, valid, test: ids of each part, ``(number of tokens)``, int64, in ``[0, V)``.
    """

    name: str
    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor

    def split(self, name: str) -> Tensor:
        """The part of that name: ``"train"``, ``"valid"`` or ``"test"``."""
        if name not in SPLITS:
            raise InputError(f"unknown split {name!r}: expected one of {', '.join(SPLITS)}")
        return getattr(self, name)


def load_ptb(data_path: str | os.PathLike) -> Corpus:
    """Read ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt`` from a folder.

    Words stand between blanks and each line end is ``<eos>``; the vocabulary is that of the
    training file. The Penn Treebank as Mikolov prepared it gives 929,589 / 73,760 / 82,430 tokens
    of 10,000 types. Where TensorFlow's tutorial silently drops a word of the other two files that
    the training file lacks, here it is read as ``<unk>``, or refused if there is no ``<unk>``.

    Raises:
        InputError: the folder or one of its files is missing, empty or not UTF-8, or holds a word
            outside the vocabulary.
    """
    folder = Path(data_path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one that holds ptb.train.txt")
    paths = {split: folder / f"ptb.{split}.txt" for split in SPLITS}
    tokenizer = get_tokenizer("ptb")
    tokens = {split: tokenizer.tokenize(read_text(path)) for split, path in paths.items()}
    vocabulary = Vocabulary.from_counts(Counter(tokens["train"]), tokenizer="ptb")
    ids = {}
    for split, path in paths.items():
        try:
            ids[split] = vocabulary.encode(tokens[split])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return Corpus(str(folder), vocabulary, **ids)


def load_text(path: str | os.PathLike, level: str = "word", min_count: int | None = None) -> Corpus:
    """Read a text file and split it: the first 80% to train, then 10% to validate, 10% to test.

    Args:
        path: a UTF-8 text file.
        level: ``"word"`` or ``"char"``.
        min_count: words that occur less often in the training part are read as ``<unk>``. With 1
            the vocabulary is that of the whole file. Default: 2 for words; characters are all
            kept.

    Raises:
        InputError: the file cannot be used, or a value is out of range.
    """
    if level not in ("word", "char"):
        raise InputError(f"unknown level {level!r}: expected word or char")
    if level == "char" and min_count is not None:
        raise InputError(f"min_count is for words, got {min_count} with level 'char'")
    if min_count is None:
        min_count = 2 if level == "word" else 1
    tokens = get_tokenizer(level).tokenize(read_text(path))
    first, second = len(tokens) * 8 // 10, len(tokens) * 9 // 10
    parts = {"train": tokens[:first], "valid": tokens[first:second], "test": tokens[second:]}
    return _number(str(path), parts, level, min_count)


def load_pydoc(min_count: int = 2) -> Corpus:
    """Read the Python language reference that ships inside every CPython (``pydoc_data.topics``).

    The prose is kept, one sentence a line; grammar, code, tables and headings are dropped, and a
    paragraph that several topics share is read once. Of each ten passages of ten paragraphs eight
    train, one validates and one tests. The text is that of the running Python: about 50,000
    tokens, a little different in each version.

    Args:
        min_count: as for :func:`load_text`.

    Raises:
        InputError: this Python was installed without ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(
            "this Python has no pydoc_data.topics, which CPython ships: choose another text"
        ) from None
    paragraphs = _prose_paragraphs(topics)
    tokenizer = get_tokenizer("word")
    tokens: dict[str, list[str]] = {split: [] for split in SPLITS}
    for index, paragraph in enumerate(paragraphs):
        split = _PYDOC_PASSAGES[index // 10 % 10]
        lines = _sentence_end.sub("\n", paragraph) + "\n"
        tokens[split].extend(tokenizer.tokenize(lines))
    return _number("pydoc", tokens, "word", min_count)


def _number(name: str, parts: dict[str, list[str]], tokenizer: str, min_count: int) -> Corpus:
    """The parts of a raw text as ids of a vocabulary that covers them all."""
    if min_count == 1:
        counts = Counter(token for tokens in parts.values() for token in tokens)
    else:
        counts = Counter(parts["train"])
        counts[UNK] += 0  # an entry even where no training word is rare: later words may be new
    vocabulary = Vocabulary.from_counts(counts, tokenizer=tokenizer, min_count=min_count)
    return Corpus(name, vocabulary, **{s: vocabulary.encode(t) for s, t in parts.items()})


# The passages that validate and test lie apart, so that no one topic fills them.
_PYDOC_PASSAGES = ("train",) * 4 + ("valid",) + ("train",) * 4 + ("test",)

_sentence_end = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.) +(?=[A-Z(])")
_list_mark = re.compile(r"^(?:[*+-]|\d+\.|\[\d+\]) ")
_foot_mark = re.compile(r" ?\[\d+\]")
_single_quotes = re.compile(r"‘([^’]*)’")
_quote_mark = re.compile(r"``|[\"“”]")
_emphasis = re.compile(r"(?<!\w)(\*{1,2})(\w[^*]*?)\1(?!\w)")


def _prose_paragraphs(topics: Mapping[str, str]) -> Iterable[str]:
    """The distinct paragraphs of prose, each on one line and without marks of markup.

    Quotes go too: nearly all of them mark code, as in the "with" statement.
    """
    seen = set()
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            line = _list_mark.sub("", " ".join(paragraph.split()))
            line = _foot_mark.sub("", line)
            line = _single_quotes.sub(r"\1", line).replace("’", "'")
            line = _emphasis.sub(r"\2", _quote_mark.sub("", line))
            if line not in seen and _is_prose(line):
                seen.add(line)
                yield line


def _is_prose(line: str) -> bool:
    """Whether a paragraph reads as sentences: mostly words, and a full stop or its like."""
    words = line.split()
    if len(words) < 6 or line[-1] not in ".:?!)" or "::=" in line or ">>>" in line:
        return False
    alphabetic = sum(word.strip(".,;:()'").isalpha() for word in words)
    return alphabetic >= 0.7 * len(words)
