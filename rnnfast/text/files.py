"""Finding and reading text files, and replacing files without ever leaving half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError


def read_text(path: str | os.PathLike) -> str:
    """Read a UTF-8 text file; a byte-order mark is dropped and CRLF or CR line ends become ``\\n``.

    Raises:
        InputError: the file is missing, is a folder, is empty or is not UTF-8.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError(f"{path} is empty: expected text")
    return text


def text_files(path: str | os.PathLike) -> list[Path]:
    """The text files that ``path`` stands for.

    Args:
        path: a file, whatever its name, or a folder: all ``*.txt`` files in it and in the folders
            below, sorted by path.

    Raises:
        InputError: the folder holds no such file.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not files:
        raise InputError(f"{path} holds no text: expected *.txt files in it or in folders below")
    return files


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Name the file in the system's errors that do not, as where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file to write that takes the place of ``path`` when the block ends without an error.

    Whoever reads ``path`` sees the old file or the new one, whole: the bytes go to a temporary file
    in the same folder, are flushed to the disk, and take the name in one step, so that a crash at
    any moment leaves the old file as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Replace ``path`` by ``content``, as :func:`replacing` does."""
    with replacing(path) as file:
        file.write(content)
