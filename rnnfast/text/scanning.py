"""The tokens of a text file of any size, a chunk at a time: counted, or as ids."""

import codecs
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from rnnfast._extension import _C

from .cleaning import Cleaning
from .errors import InputError
from .tokenization import (
    UNK,
    CharTokenizer,
    PTBCharTokenizer,
    PTBTokenizer,
    Tokenizer,
    get_tokenizer,
)
from .vocabulary import Vocabulary

CHUNK_SIZE = 1 << 18
"""Bytes read at a time; they and their ids stay in a core's cache."""

LONGEST_TOKEN = 1 << 24
"""Bytes after which what has no blank is taken for no text; this bounds the memory."""

# Bytes on each side of a cut by which it is judged.
_AROUND = 64

Result = TypeVar("Result")
Scan = Callable[[bytes, bool], tuple[int, Result]]
"""Takes a block of bytes and whether it is the last; returns how many bytes at its front are done
with, and what came of them. The others come again at the front of the next block."""


class _Refused(Exception):
    """A scan cannot go on, for ``reason``, at ``offset`` of its block or within ``size`` bytes."""

    def __init__(self, reason: str, offset: int, size: int = 1) -> None:
        self.reason = reason
        self.offset = offset
        self.size = size


def count_tokens(
    path: str | os.PathLike,
    tokenizer: str | Tokenizer = "word",
    *,
    cleaning: Cleaning | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Counter[str]:
    """Count the tokens of a UTF-8 text file of any size in one pass.

    The counts are those of the tokens of :func:`read_text`. For characters and words between
    blanks (the tokenizers ``"char"``, ``"ptb_char"`` and ``"ptb"``) without a cleaning they are
    taken in C++, while other Python threads run; else in Python, many times slower. Memory: some
    chunks, and the different tokens.

    Args:
        path: the text.
        tokenizer: the tokenizer, or its name.
        cleaning: what is done to the text before.
        chunk_size: bytes read at a time.

    Returns:
        Occurrences of each token, for :meth:`Vocabulary.from_counts`.

    Raises:
        InputError: the text cannot be read, is empty, is not UTF-8 or has a word of more than
            16 MiB; or the tokenizer is unknown.
    """
    if isinstance(tokenizer, str):
        tokenizer = get_tokenizer(tokenizer)
    counts: Counter[str] = Counter()
    if not _is_native(tokenizer, cleaning):
        for tokens in _scan_file(path, partial(_split_block, tokenizer, cleaning), chunk_size):
            counts.update(tokens)
        return counts
    by_characters = tokenizer.level == "char"
    counter = _C.CharacterCounter() if by_characters else _C.WordCounter()

    def scan(block: bytes, last: bool) -> tuple[int, None]:
        read, refused = counter.count(block, last)
        if refused is not None:
            raise _Refused(_not_utf8(refused[0]), read)
        return read, None

    for _ in _scan_file(path, scan, chunk_size):
        pass
    if not by_characters:
        return Counter(dict(counter.counts()))
    for code, count in counter.counts():
        # Some tokenizers have one name for several characters.
        (name,) = tokenizer.tokenize(chr(code))
        counts[name] += count
    return counts


def encode_chunks(
    path: str | os.PathLike, vocabulary: Vocabulary, dtype: np.dtype, chunk_size: int = CHUNK_SIZE
) -> Iterator[np.ndarray]:
    """Encode a UTF-8 text file of any size, a chunk at a time.

    Args:
        path: the text.
        vocabulary: how to split the text, and the ids.
        dtype: of the ids: uint8, uint16 or int32, and wide enough for the vocabulary.
        chunk_size: bytes read at a time.

    Returns:
        An iterator over arrays of ids, ``(number of tokens)``, of any length, also 0. Each is
        valid until the next.

    Raises:
        InputError: as :func:`encode_file` does.
    """
    if _is_native(vocabulary.tokenizer, vocabulary.cleaning):
        scan = _native_encoding(vocabulary, dtype)
    else:
        scan = partial(_encode_block, vocabulary, dtype)
    return _scan_file(path, scan, chunk_size)


def _is_native(tokenizer: Tokenizer, cleaning: Cleaning | None) -> bool:
    return cleaning is None and isinstance(
        tokenizer, (CharTokenizer, PTBCharTokenizer, PTBTokenizer)
    )


def _native_encoding(vocabulary: Vocabulary, dtype: np.dtype) -> Scan[np.ndarray]:
    unknown = vocabulary.id_of(UNK)
    if vocabulary.level == "char":
        # With the two that some tokenizers give a name of more than one character.
        characters = {token for token in vocabulary.tokens if len(token) == 1} | {" ", "\n"}
        ids = {ord(c): vocabulary.id_of(*vocabulary.tokenizer.tokenize(c)) for c in characters}
        known = [(code, index) for code, index in ids.items() if index is not None]
        encoder = _C.CharacterEncoder(known, -1 if unknown is None else unknown)
    else:
        encoder = _C.WordEncoder(vocabulary.tokens, -1 if unknown is None else unknown)
    ids = np.empty(0, dtype)

    def scan(block: bytes, last: bool) -> tuple[int, np.ndarray]:
        nonlocal ids
        if len(ids) < len(block):
            ids = np.empty(len(block), dtype)
        read, count, refused = encoder.encode(block, last, ids)
        if refused is not None:
            raise _Refused(_reason(refused, vocabulary), read)
        return read, ids[:count]

    return scan


def _reason(refused: bytes, vocabulary: Vocabulary) -> str:
    try:
        (token,) = vocabulary.tokenizer.tokenize(_with_line_feeds(refused.decode()))
    except UnicodeDecodeError:
        return _not_utf8(refused[0])
    return (
        f"{token!r:.60} is not in the vocabulary of {len(vocabulary)} tokens, "
        f"which has no {UNK} to stand for it"
    )


def _not_utf8(byte: int) -> str:
    return f"0x{byte:02x} is not UTF-8 text"


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encode_block(
    vocabulary: Vocabulary, dtype: np.dtype, block: bytes, last: bool
) -> tuple[int, np.ndarray]:
    """A scan that gives ids, for any vocabulary."""
    read, tokens = _split_block(vocabulary.tokenizer, vocabulary.cleaning, block, last)
    try:
        return read, vocabulary.encode(tokens).numpy().astype(dtype)
    except InputError as error:
        raise _Refused(str(error), 0, read) from None


def _split_block(
    tokenizer: Tokenizer, cleaning: Cleaning | None, block: bytes, last: bool
) -> tuple[int, list[str]]:
    """A scan that gives tokens, for any tokenizer and cleaning."""

    def split(text: str) -> list[str]:
        text = _with_line_feeds(text)
        return tokenizer.tokenize(cleaning(text) if cleaning else text)

    read = len(block) if last else _last_cut(block, split)
    try:
        return read, split(block[:read].decode())
    except UnicodeDecodeError as error:
        raise _Refused(_not_utf8(block[error.start]), error.start) from None


def _last_cut(block: bytes, split: Callable[[str], list[str]]) -> int:
    """The last place where a text can be cut: both sides, apart, give the tokens of the whole.

    That is before a blank that follows no other, for no token of ours goes on there. But a cleaning
    may make one blank of that one and its neighbours: so the cut is tried on what is around it.
    """
    cut = len(block)
    while (cut := max(block.rfind(b" ", 1, cut), block.rfind(b"\n", 1, cut))) > 0:
        before = block[max(0, cut - _AROUND) : cut].decode(errors="ignore")
        after = block[cut : cut + _AROUND].decode(errors="ignore")
        if before[-1:].isspace():
            continue
        left, right = split(before), split(after)
        # Where a cleaning leaves nothing of a side, what joins across the cut is out of sight.
        if left and right and left + right == split(before + after):
            return cut
    return 0


def _scan_file(path: str | os.PathLike, scan: Scan[Result], chunk_size: int) -> Iterator[Result]:
    """Feed a file to ``scan``, block by block, and give what it returns."""
    if chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
    position = 0  # of the block in the file
    block = b""
    is_empty = True
    for chunk in _chunks(path, chunk_size):
        if position == 0 and not block and chunk == codecs.BOM_UTF8:
            position = len(chunk)
            continue
        block += chunk
        try:
            read, result = scan(block, not chunk)
        except _Refused as error:
            at = position + error.offset
            where = f"byte {at}" if error.size == 1 else f"bytes {at} to {at + error.size - 1}"
            raise InputError(f"{path}, {where}: {error.reason}") from None
        is_empty = is_empty and not block[:read].decode().strip()
        yield result
        position += read
        block = block[read:]
        if len(block) > LONGEST_TOKEN:
            raise InputError(
                f"{path} is no text: from byte {position} on, {LONGEST_TOKEN} bytes without a blank"
            )
    if is_empty:
        raise InputError(f"{path} is empty: expected text")


def _chunks(path: str | os.PathLike, chunk_size: int) -> Iterator[bytes]:
    """What may be a byte-order mark, then chunks, then nothing."""
    try:
        with open(path, "rb") as file:
            yield file.read(len(codecs.BOM_UTF8))
            while chunk := file.read(chunk_size):
                yield chunk
        yield b""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
