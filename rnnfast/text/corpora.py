"""Texts to learn from: Python's own language reference, Penn Treebank folders, any text files."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .cleaning import Cleaning
from .errors import InputError
from .files import read_text, text_files
from .gutenberg import strip_gutenberg
from .subword import SubwordTokenizer
from .tokenization import EOD, UNK, get_tokenizer
from .vocabulary import Vocabulary

SPLITS = ("train", "valid", "test")

Splits = Sequence[tuple[int | float, int | float]]
"""Start and end of each split, as :func:`load_text` takes them."""

EIGHT_ONE_ONE = ((0.0, 0.8), (0.8, 0.9), (0.9, 1.0))

_HASHED_TOKENS, _HASHED_PLACES = 1 << 22, 1 << 10


@dataclass(frozen=True)
class Corpus:
    """A text as ids, split in three, with the vocabulary that numbers its tokens.

    Attributes:
        name: what the text is, for messages.
        vocabulary: the vocabulary of ``V`` tokens.
        train, valid, test: ids of each part, ``(number of tokens)``, in ``[0, V)``: int64, or from
            a token file its uint8, uint16 or int32.
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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parts: of a part of more than 2**22 tokens, of its length and of as many
        that stand in 1,024 places of it, so that a text larger than memory is not read for it."""
        digest = hashlib.sha256()
        for part in (self.train, self.valid, self.test):
            digest.update(len(part).to_bytes(8, "little"))
            size = _HASHED_TOKENS // _HASHED_PLACES
            for start in range(0, len(part), max(size, len(part) // _HASHED_PLACES)):
                digest.update(part[start : start + size].contiguous().numpy())
        return digest.hexdigest()


def load_ptb(path: str | os.PathLike, level: str = "word") -> Corpus:
    """Read the Penn Treebank as Mikolov prepared it, from a folder.

    By word, from ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``: words stand between
    blanks and each line end is ``<eos>``; that is 929,589 / 73,760 / 82,430 tokens of 10,000
    types. By character, from ``ptb.char.train.txt`` and its like, which hold the same lines spelled
    out, characters between blanks and ``_`` for each blank: 5,017,482 / 393,042 / 442,423 tokens of
    50 types, ``<eos>`` among them.

    The vocabulary is that of the training file. Where TensorFlow's tutorial silently drops a word
    of the other two files that the training file lacks, here it is read as ``<unk>``, or refused
    if there is no ``<unk>``.

    Args:
        path: the folder.
        level: ``"word"`` or ``"char"``.

    Raises:
        InputError: the folder or one of its files is missing, empty or not UTF-8, or holds a word
            outside the vocabulary.
    """
    if level not in _PTB_TOKENIZERS:
        raise InputError(f"unknown level {level!r}: expected {' or '.join(_PTB_TOKENIZERS)}")
    folder = Path(path)
    names = ptb_file_names(level)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one that holds {names['train']}")
    split_at_blanks = get_tokenizer("ptb").tokenize
    tokens = {split: split_at_blanks(read_text(folder / name)) for split, name in names.items()}
    vocabulary = Vocabulary.from_counts(Counter(tokens["train"]), tokenizer=_PTB_TOKENIZERS[level])
    ids = {}
    for split, name in names.items():
        try:
            ids[split] = vocabulary.encode(tokens[split])
        except InputError as error:
            raise InputError(f"{folder / name}: {error}") from None
    return Corpus(str(folder), vocabulary, **ids)


def ptb_file_names(level: str) -> dict[str, str]:
    """The file of each split of the Penn Treebank, by word or by character."""
    return {split: f"ptb.{'char.' if level == 'char' else ''}{split}.txt" for split in SPLITS}


_PTB_TOKENIZERS = {"word": "ptb", "char": "ptb_char"}


def load_text(
    path: str | os.PathLike,
    level: str = "word",
    min_count: int | None = None,
    *,
    max_size: int | None = None,
    cleaning: Cleaning | None = None,
    splits: Splits | None = None,
) -> Corpus:
    """Read a text file, or a folder of them, and split it in three.

    The header and licence of a Project Gutenberg book are left out. Each text of a folder opens
    with ``<eod>``, the first entry of the vocabulary, so that batches may start the state anew
    there.

    Args:
        path: a UTF-8 text file, or a folder: all ``*.txt`` in it and below, sorted by path.
        level: ``"word"``, ``"char"`` or ``"subword"`` (learned from the whole text).
        min_count: words that occur less often in the training part are read as ``<unk>``. With 1
            the vocabulary is that of the whole text. Default: 2 for words; characters are all
            kept. Of sub-words, see :meth:`SubwordTokenizer.train`.
        max_size: largest number of entries of the vocabulary, see :meth:`Vocabulary.from_counts`;
            number of sub-words, 8,000 unless given.
        cleaning: what is done to the text before all this. The vocabulary keeps it.
        splits: where the parts that train, validate and test start and end: three pairs of tokens
            counted from 0 (int) or of fractions of the text (float). The parts may overlap and
            need not cover the text. Default: ``((0.0, 0.8), (0.8, 0.9), (0.9, 1.0))``.

    Raises:
        InputError: a file cannot be used, or a value is out of range.
        ImportError: sub-words need the ``tokenizers`` package, the extra ``subword``.

    Examples::

        >>> corpus = load_text(  # doctest: +SKIP
        ...     "quijote.txt",
        ...     "char",
        ...     cleaning=Cleaning(lower=True, keep=SPANISH),
        ...     splits=((0, 20_512), (20_480, 25_632), (25_600, 30_752)),
        ... )
    """
    if level not in ("word", "char", "subword"):
        raise InputError(f"unknown level {level!r}: expected word, char or subword")
    if level == "char" and min_count is not None:
        raise InputError(f"min_count is for words, got {min_count} with level 'char'")
    if min_count is None:
        min_count = 1 if level == "char" else 2
    documents = []
    for file in text_files(path):
        document = strip_gutenberg(read_text(file))
        if cleaning is not None:
            document = cleaning(document)
        if not document.strip():
            raise InputError(f"{file} is empty once it is cleaned: expected text")
        documents.append(document)
    mark = (EOD,) if Path(path).is_dir() else ()

    if level == "subword":
        tokenizer = SubwordTokenizer.train(
            documents, size=max_size, min_count=min_count, specials=mark
        )
    else:
        tokenizer = get_tokenizer(level)
    tokens: list[str] = []
    for document in documents:
        tokens += mark
        tokens += tokenizer.tokenize(document)
    spans = split_spans(EIGHT_ONE_ONE if splits is None else splits, len(tokens))
    if level == "subword":
        vocabulary = Vocabulary(tokenizer.tokens, tokenizer, cleaning=cleaning)
    else:
        vocabulary = Vocabulary.from_counts(
            _counts(tokens, spans["train"], min_count),
            tokenizer=level,
            min_count=min_count,
            max_size=max_size,
            specials=mark,
            cleaning=cleaning,
        )
    return _corpus(str(path), vocabulary, tokens, spans)


def load_pydoc(min_count: int = 2, *, max_size: int | None = None) -> Corpus:
    """Read the Python language reference that ships inside every CPython (``pydoc_data.topics``).

    The prose is kept, one sentence a line; grammar, code, tables and headings are dropped, and a
    paragraph that several topics share is read once. Of each ten passages of ten paragraphs eight
    train, one validates and one tests. The text is that of the running Python: about 50,000
    tokens, a little different in each version.

    Args:
        min_count, max_size: as for :func:`load_text`.

    Raises:
        InputError: this Python was installed without ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(
            "this Python has no pydoc_data.topics, which CPython ships: choose another text"
        ) from None
    tokenizer = get_tokenizer("word")
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for index, paragraph in enumerate(_prose_paragraphs(topics)):
        split = _PYDOC_PASSAGES[index // 10 % 10]
        lines = _sentence_end.sub("\n", paragraph) + "\n"
        parts[split].extend(tokenizer.tokenize(lines))
    tokens: list[str] = []
    spans = {}
    for split, part in parts.items():
        spans[split] = slice(len(tokens), len(tokens) + len(part))
        tokens += part
    counts = _counts(tokens, spans["train"], min_count)
    vocabulary = Vocabulary.from_counts(counts, min_count=min_count, max_size=max_size)
    return _corpus("pydoc", vocabulary, tokens, spans)


def split_spans(splits: Splits, num_tokens: int) -> dict[str, slice]:
    """The part of a text of ``num_tokens`` that each split is."""
    try:
        pairs = [(start, end) for start, end in splits]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != len(SPLITS):
        raise InputError(f"splits must be three pairs (start, end), got {splits!r}")
    spans = {}
    for split, pair in zip(SPLITS, pairs, strict=True):
        start, end = (_place(value, num_tokens) for value in pair)
        if start > end:
            raise InputError(
                f"the {split} split ends before it starts: {pair[0]!r} to {pair[1]!r} are tokens "
                f"{start:,} to {end:,} (1 is one token, 1.0 the whole text)"
            )
        spans[split] = slice(start, end)
    return spans


def _place(value: int | float, num_tokens: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= num_tokens:
            raise InputError(f"splits: the text has {num_tokens:,} tokens, got place {value:,}")
        return value
    if not isinstance(value, float) or not 0 <= value <= 1:
        raise InputError(
            f"splits: a place is a number of tokens or a fraction from 0.0 to 1.0, got {value!r}"
        )
    # As it is written: 0.29 of 100 tokens are 29, though the float is a little less.
    return int(Fraction(repr(value)) * num_tokens)


def _counts(tokens: list[str], train: slice, min_count: int) -> Counter[str]:
    """How often the tokens occur from which a vocabulary is made."""
    if min_count == 1:
        return Counter(tokens)
    counts = Counter(tokens[train])
    counts[UNK] += 0  # an entry even where no training word is rare: later words may be new
    return counts


def _corpus(
    name: str, vocabulary: Vocabulary, tokens: list[str], spans: dict[str, slice]
) -> Corpus:
    ids = vocabulary.encode(tokens)
    return Corpus(name, vocabulary, **{split: ids[span] for split, span in spans.items()})


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
