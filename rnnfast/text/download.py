"""The Penn Treebank from its usual place, for machines with a network."""

import gzip
import hashlib
import http.client
import os
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from .corpora import ptb_file_names
from .errors import InputError
from .files import write_atomically

PTB_URL = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"
"""The simple examples of Mikolov's RNNLM toolkit, which the Penn Treebank is a part of."""

PTB_SHA256 = {
    "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    "ptb.char.train.txt": "e313d91425e06c4f0a8fb6e881dcce0c291f2a0e9f4dda54833069b122f91da9",
    "ptb.char.valid.txt": "21661f63ec355085879458b6524644d4add5573541b4be14fb52ab2e2e995eb8",
    "ptb.char.test.txt": "1ef5607ac3c463b16e38bfe7900dd3bfc91de5a96e0f21e7eab5188b465b8ebe",
}
"""SHA-256 of each file."""

# No server and no archive can make us write or read more than this, in bytes.
_LARGEST_ARCHIVE = 2**28
_LARGEST_UNPACKED = 2**30
_LARGEST_FILE = 2**25

_FIRST_PAUSE = 1.0  # seconds before the second attempt; doubled before each one after that


class DownloadError(InputError):
    """A file could not be had, or is not the one that was expected."""


def download_ptb(
    folder: str | os.PathLike,
    level: str = "word",
    *,
    url: str = PTB_URL,
    checksums: Mapping[str, str] = PTB_SHA256,
    timeout: float = 30.0,
    retries: int = 4,
    show_progress: bool = True,
) -> Path:
    """Fetch the Penn Treebank as Mikolov prepared it, the files that :func:`load_ptb` reads.

    The archive is downloaded into the folder; a download that breaks off is taken up where it
    ended, by the next attempt and by the next call. Of the archive only the three files are read;
    they take their places, each in one step, once the SHA-256 of all three is right. Nothing is
    downloaded where they are there already.

    Args:
        folder: where the files go; made if it is not there.
        level: ``"word"`` (``ptb.train.txt``, ``ptb.valid.txt``, ``ptb.test.txt``) or ``"char"``
            (``ptb.char.train.txt`` and its like).
        url: a ``.tgz`` that holds the files, in any folder; http or https.
        checksums: SHA-256 of each file, as hexadecimal digits.
        timeout: seconds without an answer after which an attempt ends.
        retries: attempts after the first one.
        show_progress: show a progress bar, if ``tqdm`` is installed.

    Returns:
        The folder.

    Raises:
        DownloadError: the server cannot be reached or refuses, the archive is damaged or lacks a
            file, a file has another SHA-256 (then none is written), or another file of the name
            is in the folder.

    Examples::

        >>> corpus = load_ptb(download_ptb("ptb"))  # doctest: +SKIP
    """
    if level not in ("word", "char"):
        raise InputError(f"unknown level {level!r}: expected word or char")
    folder = Path(folder)
    names = list(ptb_file_names(level).values())
    if not checksums.keys() >= set(names):
        raise InputError(f"checksums must hold {', '.join(names)}, got {', '.join(checksums)}")
    if _are_there(folder, names, checksums):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot make the folder {folder}: {error.strerror}") from None
    archive = folder / ".simple-examples.tgz"
    download_file(url, archive, timeout=timeout, retries=retries, show_progress=show_progress)
    try:
        contents = _unpack(archive, names)
    except DownloadError as error:
        raise DownloadError(f"{url}: {error}") from None
    finally:
        archive.unlink()
    for name, content in contents.items():
        _verify(f"{name} of {url}", content, checksums[name])
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return folder


def download_file(
    url: str,
    path: str | os.PathLike,
    *,
    timeout: float = 30.0,
    retries: int = 4,
    show_progress: bool = True,
) -> None:
    """Fetch a file by HTTP, going on where an attempt before ended.

    What has come stands in ``<path>.part``, which takes its name when it is complete. A server that
    does not know ranges sends it from the start each time.

    Args:
        url: http or https.
        path: the file's place.
        timeout, retries, show_progress: see :func:`download_ptb`.

    Raises:
        DownloadError: the server cannot be reached or refuses, or the file cannot be written.
    """
    if not re.match("https?://.", url):
        raise DownloadError(f"a url starts with http:// or https://, got {url!r}")
    path = Path(path)
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(1 + retries):
        if attempt:
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            _receive(url, part, timeout, show_progress)
        except _BrokenOff as error:
            reason = str(error)
        else:
            os.replace(part, path)
            return
    raise DownloadError(
        f"cannot download {url}: {reason} ({1 + retries} attempts; another call goes on from here)"
    )


class _BrokenOff(Exception):
    """An attempt failed for a reason that may pass."""


def _receive(url: str, part: Path, timeout: float, show_progress: bool) -> None:
    """One attempt: bring ``part`` from its present length to the whole file."""
    offset = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "rnnfast"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing lies behind the offset
            if error.headers.get("Content-Range", "") == f"bytes */{offset}":
                return
            part.unlink()
        # Python's own words on endless redirection take three lines.
        answer = f"the server answered {error.code} {' '.join(str(error.reason).split())}"
        if error.code < 500 and error.code not in (408, 416, 429):
            raise DownloadError(f"cannot download {url}: {answer}") from None
        raise _BrokenOff(answer) from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(str(getattr(error, "reason", error))) from None
    except ValueError as error:
        raise DownloadError(f"{url!r} is no url: {error}") from None
    with response:
        if response.status != 206:
            offset = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink()
            raise _BrokenOff("the server sent another range than was asked for")
        length = response.headers.get("Content-Length", "")
        end = offset + int(length) if re.fullmatch("[0-9]+", length) else None
        try:
            file = open(part, "ab" if offset else "wb")
        except OSError as error:
            raise DownloadError(f"cannot write {part}: {error.strerror}") from None
        with file, _progress_bar(offset, end, show_progress) as bar:
            while chunk := _read(response):
                offset += len(chunk)
                if offset > _LARGEST_ARCHIVE:
                    raise DownloadError(f"{url} is larger than {_LARGEST_ARCHIVE:,} bytes")
                try:
                    file.write(chunk)
                except OSError as error:
                    raise DownloadError(f"cannot write {part}: {error.strerror}") from None
                if bar is not None:
                    bar.update(len(chunk))
    if end is not None and offset < end:
        raise _BrokenOff(f"the connection ended after {offset:,} of {end:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(2**16)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(f"the connection broke: {error}") from None


def _progress_bar(
    offset: int, end: int | None, show_progress: bool
) -> AbstractContextManager[Any | None]:
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext()
    return tqdm(total=end, initial=offset, unit="B", unit_scale=True, disable=not show_progress)


class _Bounded:
    """A file of which no more than a number of bytes can be read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DownloadError(f"the archive is larger than {_LARGEST_UNPACKED:,} bytes unpacked")
        return content


def _unpack(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of the regular files of these names, whatever folder of the archive has them."""
    contents = {}
    try:
        with (
            gzip.open(archive) as file,
            tarfile.open(fileobj=_Bounded(file, _LARGEST_UNPACKED), mode="r|") as members,
        ):
            for member in members:
                name = PurePosixPath(member.name).name
                if name not in names or not member.isreg():
                    continue
                if member.size > _LARGEST_FILE:
                    raise DownloadError(
                        f"{name} has {member.size:,} bytes: expected at most {_LARGEST_FILE:,}"
                    )
                contents[name] = members.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DownloadError(f"the archive is damaged: {error}") from None
    for name in names:
        if name not in contents:
            raise DownloadError(f"the archive holds no file {name}")
    return contents


def _are_there(folder: Path, names: Collection[str], checksums: Mapping[str, str]) -> bool:
    """Whether all files are in the folder; another file of such a name is an error."""
    found = [folder / name for name in names if (folder / name).exists()]
    for path in found:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DownloadError(f"cannot read {path}: {error.strerror}") from None
        _verify(f"{path}, which is there already,", content, checksums[path.name])
    return len(found) == len(names)


def _verify(description: str, content: bytes, expected: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise DownloadError(
            f"{description} is not the expected file: SHA-256 {actual}, expected {expected}"
        )
