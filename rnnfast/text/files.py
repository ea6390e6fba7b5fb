"""Reading text files and replacing files without ever leaving half of one."""

import os
from pathlib import Path

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


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Replace ``path`` by ``content``: whoever reads it sees the old file or the new one, whole.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the
    name in one step, so that a crash at any moment leaves the old file as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
