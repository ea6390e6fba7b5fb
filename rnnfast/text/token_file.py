"""A text of any size as a file of ids, encoded once and then mapped to memory.

A token file is a header of 64 bytes and then the ids, little-endian, in the smallest of uint8,
uint16 and int32 that holds the vocabulary. The header: the magic ``rnnfast`` and a zero byte;
format version and bytes of an id (uint32); number of ids (uint64); SHA-256 fingerprint of the
vocabulary (32 bytes); size of the vocabulary and CRC-32 of the 60 bytes before it (uint32).
"""

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .files import replacing
from .scanning import CHUNK_SIZE, encode_chunks
from .vocabulary import Vocabulary

_MAGIC = b"rnnfast\0"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ32sI")
_CHECKSUM = struct.Struct("<I")
_IDS_OFFSET = _HEADER.size + _CHECKSUM.size
# By the bytes of an id: the smallest that torch has.
_DTYPES = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<i4")}
# Python has a name for it from 3.13 on. Linux refuses a private map larger than memory without it.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The ids of a text in a file, read where they are: no byte is copied to open it.

    Made by :func:`encode_file` and :meth:`open`. The tensor is a private map of the file: pages
    come from the disk when they are first read and leave memory when it is short, so a file may be
    larger than memory; what is written to the tensor never reaches the file. A file that
    :func:`encode_file` replaces meanwhile stays as it was for those who have it open.

    Attributes:
        path: the file.
        tokens: the ids, ``(number of tokens)``, uint8, uint16 or int32; any of the batching
            classes takes it.
        vocabulary_size: number of tokens in the vocabulary that made the ids.
        fingerprint: :attr:`Vocabulary.fingerprint` of that vocabulary.

    Examples::

        >>> vocabulary = Vocabulary.from_counts(count_tokens("book.txt", "char"), tokenizer="char")
        >>> encode_file("book.txt", vocabulary, "book.tokens")
        >>> file = TokenFile.open("book.tokens", vocabulary)
        >>> batches = ContinuousBatches(file.tokens, batch_size=20, num_steps=35)
    """

    path: Path
    tokens: Tensor
    vocabulary_size: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        dtype = str(self.tokens.dtype).removeprefix("torch.")
        return (
            f"TokenFile({str(self.path)!r}, {len(self)} tokens, {dtype}, "
            f"vocabulary of {self.vocabulary_size})"
        )

    @classmethod
    def open(cls, path: str | os.PathLike, vocabulary: Vocabulary | None = None) -> "TokenFile":
        """Map a token file to memory.

        Args:
            path: the file.
            vocabulary: the one that the ids are expected to be of; None takes any.

        Raises:
            InputError: the file cannot be read, is no token file, is of another version, is
                damaged or truncated, or was made with another vocabulary.
        """
        path = Path(path)
        try:
            with open(path, "rb") as file:
                header = file.read(_IDS_OFFSET)
                size = os.fstat(file.fileno()).st_size
                itemsize, count, fingerprint, vocabulary_size = _parse_header(path, header, size)
                pages = mmap.mmap(
                    file.fileno(),
                    size,
                    flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        if vocabulary is not None and vocabulary.fingerprint != fingerprint:
            raise InputError(
                f"{path} was made with another vocabulary: one of {vocabulary_size} tokens with "
                f"fingerprint {fingerprint[:12]}, expected {len(vocabulary)} tokens with "
                f"fingerprint {vocabulary.fingerprint[:12]}"
            )
        ids = np.frombuffer(pages, _DTYPES[itemsize], count, _IDS_OFFSET)
        return cls(path, torch.from_numpy(ids), vocabulary_size, fingerprint)


def encode_file(
    path: str | os.PathLike,
    vocabulary: Vocabulary,
    output: str | os.PathLike,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> TokenFile:
    """Encode a UTF-8 text file of any size to a token file, a chunk at a time.

    The ids are those of ``vocabulary.encode_text(read_text(path))``. For characters and words
    between blanks (the tokenizers ``"char"``, ``"ptb_char"`` and ``"ptb"``) without a cleaning they
    are found in C++, while other Python threads run; else in Python, many times slower. Memory:
    some chunks, whatever the size of the file.

    Args:
        path: the text. A byte-order mark is dropped; CRLF and CR line ends are read as ``\\n``.
        vocabulary: how to split the text, and the ids. What it does not hold becomes ``<unk>``.
        output: the file to make. It is replaced in one step once all is written, so there is
            never half a file.
        chunk_size: bytes read at a time.

    Returns:
        The token file, open.

    Raises:
        InputError: the text cannot be read, is empty, is not UTF-8 or holds a word of more than
            16 MiB; a token is not in the vocabulary, and neither is ``<unk>``; or the output
            cannot be written. The message has the place in the text, in bytes.
    """
    path, output = Path(path), Path(output)
    if output.exists() and path.exists() and output.samefile(path):
        raise InputError(f"output must be another file than the text, got {output} for both")
    itemsize = 1 if len(vocabulary) <= 1 << 8 else 2 if len(vocabulary) <= 1 << 16 else 4
    count = 0
    try:
        with replacing(output) as file:
            file.write(bytes(_IDS_OFFSET))
            for ids in encode_chunks(path, vocabulary, _DTYPES[itemsize], chunk_size):
                file.write(ids.data)
                count += len(ids)
            if count == 0:
                raise InputError(f"{path} has no tokens left when it is cleaned")
            file.seek(0)
            file.write(_header(itemsize, count, vocabulary))
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
    return TokenFile.open(output)


def _header(itemsize: int, count: int, vocabulary: Vocabulary) -> bytes:
    fingerprint = bytes.fromhex(vocabulary.fingerprint)
    fields = _HEADER.pack(_MAGIC, _VERSION, itemsize, count, fingerprint, len(vocabulary))
    return fields + _CHECKSUM.pack(zlib.crc32(fields))


def _parse_header(path: Path, header: bytes, size: int) -> tuple[int, int, str, int]:
    """Bytes of an id, number of ids, fingerprint and size of the vocabulary."""
    if not header.startswith(_MAGIC) or len(header) < _IDS_OFFSET:
        raise InputError(f"{path} is no token file: expected one that encode_file made")
    fields = header[: _HEADER.size]
    _, version, itemsize, count, fingerprint, vocabulary_size = _HEADER.unpack(fields)
    if version != _VERSION:
        raise InputError(f"{path} is a token file of version {version}, expected {_VERSION}")
    (checksum,) = _CHECKSUM.unpack(header[_HEADER.size :])
    if checksum != zlib.crc32(fields) or itemsize not in _DTYPES or count == 0:
        raise InputError(f"{path} is damaged: its header makes no sense")
    expected = _IDS_OFFSET + itemsize * count
    if size != expected:
        raise InputError(f"{path} is not whole: {size} bytes, expected {expected}")
    return itemsize, count, fingerprint.hex(), vocabulary_size
