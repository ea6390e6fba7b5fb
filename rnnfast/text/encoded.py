"""A text of any size made ready once: a folder of its vocabulary and its token file."""

import os
from pathlib import Path

from .cleaning import Cleaning
from .corpora import EIGHT_ONE_ONE, Corpus, Splits, split_spans
from .errors import InputError
from .scanning import count_tokens
from .token_file import TokenFile, encode_file
from .vocabulary import Vocabulary

_VOCABULARY, _TOKENS = "vocabulary.json", "text.tokens"


def encode_corpus(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    tokenizer: str = "ptb",
    *,
    min_count: int = 1,
    max_size: int | None = None,
    cleaning: Cleaning | None = None,
) -> Path:
    """Number the tokens of a text file of any size, for :func:`load_encoded`.

    The text is read twice, to count its tokens and to encode them, and never held in memory; see
    :func:`count_tokens` and :func:`encode_file`.

    Args:
        path: a UTF-8 text file.
        folder: where ``vocabulary.json`` and ``text.tokens`` go; made where it is missing.
        tokenizer: ``"ptb"`` (words between blanks, each line end ``<eos>``), ``"char"``, or, many
            times slower, ``"word"``.
        min_count, max_size: see :meth:`Vocabulary.from_counts`; counted in the whole text.
        cleaning: what is done to the text before. The vocabulary keeps it.

    Returns:
        The folder.

    Raises:
        InputError: the text cannot be used, a value is out of range, or the folder holds a run or
            cannot be written to.
    """
    folder = Path(folder)
    if (folder / "config.toml").exists():
        raise InputError(f"{folder} holds a run, whose vocabulary would be lost: choose another")
    counts = count_tokens(path, tokenizer, cleaning=cleaning)
    vocabulary = Vocabulary.from_counts(
        counts, tokenizer=tokenizer, min_count=min_count, max_size=max_size, cleaning=cleaning
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary.save(folder / _VOCABULARY)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    encode_file(path, vocabulary, folder / _TOKENS)
    return folder


def load_encoded(folder: str | os.PathLike, splits: Splits | None = None) -> Corpus:
    """A text that :func:`encode_corpus` made ready: its ids are mapped to memory, not read.

    Args:
        folder: the folder.
        splits: see :func:`load_text`.

    Raises:
        InputError: a file is missing or damaged, they do not belong together, or a split is out
            of range.
    """
    folder = Path(folder)
    vocabulary = Vocabulary.load(folder / _VOCABULARY)
    tokens = TokenFile.open(folder / _TOKENS, vocabulary).tokens
    spans = split_spans(EIGHT_ONE_ONE if splits is None else splits, len(tokens))
    return Corpus(str(folder), vocabulary, **{name: tokens[span] for name, span in spans.items()})
