"""Fetching the Penn Treebank, from a server on this machine."""

import gzip
import hashlib
import io
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rnnfast.text import (
    PTB_SHA256,
    DownloadError,
    InputError,
    download_file,
    download_ptb,
    load_ptb,
)

PTB = Path(__file__).parents[3] / "shared" / "data" / "ptb"

FILES = {
    "ptb.train.txt": b" the cat sat \n" * 500,
    "ptb.valid.txt": b" the cat \n",
    "ptb.test.txt": b" sat \n",
}
CHECKSUMS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def archive(files, folder="./simple-examples/data", extra=()):
    """A .tgz with the files in a folder, something else before and after them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:

        def add(name, content, **attributes):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in attributes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))

        add(f"{folder}/README", b"read me")
        for name, content in files.items():
            add(f"{folder}/{name}", content)
        for name, content, attributes in extra:
            add(name, content, **attributes)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one file, as badly as it is told.

    ``script`` holds what happens to the next requests: a number of bytes after which the connection
    is cut, or the status of an error; then all goes well.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.knows_ranges = True
        self.tells_length = True
        self.script = []
        self.ranges = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/simple-examples.tgz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        event = server.script.pop(0) if server.script else None
        if event in (404, 429, 503):
            self.send_error(event)
            return
        start = 0
        if asked and server.knows_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if event is None else body[:event])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("rnnfast.text.download._FIRST_PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        server.content = archive(FILES)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, folder, **options):
    options = {"checksums": CHECKSUMS, "show_progress": False, **options}
    return download_ptb(folder, url=server.url, **options)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_three_files_are_fetched_and_nothing_else_is_left(server, tmp_path):
    folder = tmp_path / "new" / "ptb"
    assert fetch(server, folder) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert len(load_ptb(folder).train) == 2_000


def test_nothing_is_fetched_twice(server, tmp_path):
    fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert server.ranges == [None]
    (tmp_path / "ptb.test.txt").unlink()
    fetch(server, tmp_path)
    assert len(server.ranges) == 2
    assert names_in(tmp_path) == sorted(FILES)


def test_download_goes_on_where_the_connection_was_cut(server, tmp_path):
    server.script = [50, 30]
    fetch(server, tmp_path)
    assert server.ranges == [None, "bytes=50-", "bytes=80-"]
    assert names_in(tmp_path) == sorted(FILES)


def test_next_call_goes_on_where_the_last_one_ended(server, tmp_path):
    server.script = [50, 30]
    message = r"cannot download http.*the connection ended after 80 of \d+ bytes \(2 attempts"
    with pytest.raises(DownloadError, match=message):
        fetch(server, tmp_path, retries=1)
    assert names_in(tmp_path) == [".simple-examples.tgz.part"]
    fetch(server, tmp_path)
    assert server.ranges[-1] == "bytes=80-"
    assert names_in(tmp_path) == sorted(FILES)


def test_server_without_ranges_sends_it_from_the_start(server, tmp_path):
    server.knows_ranges = False
    server.script = [50, 30]
    fetch(server, tmp_path)
    assert server.ranges == [None, "bytes=50-", "bytes=30-"]
    assert names_in(tmp_path) == sorted(FILES)


def test_part_that_was_complete_or_too_long_is_no_obstacle(server, tmp_path):
    path = tmp_path / "archive.tgz"
    part = tmp_path / "archive.tgz.part"
    part.write_bytes(server.content)
    download_file(server.url, path, show_progress=False)
    assert path.read_bytes() == server.content
    part.write_bytes(server.content + b"more")
    download_file(server.url, path, show_progress=False)
    assert path.read_bytes() == server.content
    assert server.ranges[-1] is None


def test_length_need_not_be_told(server, tmp_path):
    server.tells_length = False
    fetch(server, tmp_path)
    assert names_in(tmp_path) == sorted(FILES)


def test_busy_server_is_asked_again_but_not_one_that_refuses(server, tmp_path):
    server.script = [503, 429]
    fetch(server, tmp_path)
    assert len(server.ranges) == 3
    server.script = [404]
    with pytest.raises(DownloadError, match="the server answered 404 Not Found"):
        fetch(server, tmp_path / "other")
    assert len(server.ranges) == 4


def test_endless_redirection_is_told_in_one_line(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/file"
        with pytest.raises(DownloadError, match="answered 302 .*infinite loop") as refused:
            download_file(url, tmp_path / "file", show_progress=False)
        server.shutdown()
    assert "\n" not in str(refused.value)


def test_server_that_is_not_there_is_named(server, tmp_path):
    with pytest.raises(DownloadError, match="cannot download http://127.0.0.1:9/.*refused"):
        download_ptb(tmp_path, url="http://127.0.0.1:9/x.tgz", retries=1, show_progress=False)


def test_server_that_does_not_answer_is_left_after_the_timeout(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tgz"
        with pytest.raises(DownloadError, match="timed out"):
            download_ptb(tmp_path, url=url, timeout=0.1, retries=0, show_progress=False)


def test_wrong_sum_leaves_nothing_and_is_told(server, tmp_path):
    server.content = archive(FILES | {"ptb.test.txt": b"other text\n"})
    actual = hashlib.sha256(b"other text\n").hexdigest()
    expected = CHECKSUMS["ptb.test.txt"]
    with pytest.raises(
        DownloadError, match=f"ptb.test.txt of http.*SHA-256 {actual}, expected {expected}"
    ):
        fetch(server, tmp_path)
    assert names_in(tmp_path) == []


def test_other_file_of_the_name_is_not_replaced(server, tmp_path):
    (tmp_path / "ptb.valid.txt").write_bytes(b"mine\n")
    with pytest.raises(DownloadError, match=r"ptb\.valid\.txt, which is there already, is not"):
        fetch(server, tmp_path)
    assert (tmp_path / "ptb.valid.txt").read_bytes() == b"mine\n"
    assert server.ranges == []


@pytest.mark.parametrize("damage", ["truncated", "bits", "no archive", "empty", "not gzip"])
def test_damaged_archive_is_refused_and_fetched_anew(server, tmp_path, damage):
    good = server.content
    middle = len(good) // 2
    server.content = {
        "truncated": good[:middle],
        "bits": good[:middle] + bytes(255 - b for b in good[middle : middle + 40]) + good[-40:],
        "no archive": gzip.compress(b"<html>" * 1_000),
        "empty": b"",
        "not gzip": b"<html>not here</html>",
    }[damage]
    with pytest.raises(DownloadError, match=r"http.*the archive (is damaged|holds no file)"):
        fetch(server, tmp_path)
    assert names_in(tmp_path) == []
    server.content = good
    fetch(server, tmp_path)
    assert names_in(tmp_path) == sorted(FILES)


def test_archive_that_lacks_a_file_is_refused(server, tmp_path):
    server.content = archive({name: FILES[name] for name in list(FILES)[:2]})
    with pytest.raises(DownloadError, match="the archive holds no file ptb.test.txt"):
        fetch(server, tmp_path)


def test_only_regular_files_are_taken_and_only_into_the_folder(server, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    folder = outside / "ptb"
    links = [
        ("data/ptb.test.txt", b"", {"type": tarfile.SYMTYPE, "linkname": "../secret"}),
        ("ptb.test.txt", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("../escaped.txt", b"x", {}),
    ]
    server.content = archive(FILES, folder="../../../tmp/..", extra=links)
    fetch(server, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert names_in(outside) == ["ptb", "secret"]
    server.content = archive({"ptb.train.txt": b"x", "ptb.valid.txt": b"x"}, extra=links)
    with pytest.raises(DownloadError, match="holds no file ptb.test.txt"):
        fetch(server, tmp_path / "other")


def test_sizes_are_limited(server, tmp_path, monkeypatch):
    monkeypatch.setattr("rnnfast.text.download._LARGEST_FILE", 6_999)
    with pytest.raises(
        DownloadError, match="ptb.train.txt has 7,000 bytes: expected at most 6,999"
    ):
        fetch(server, tmp_path)
    monkeypatch.setattr("rnnfast.text.download._LARGEST_FILE", 7_000)
    monkeypatch.setattr("rnnfast.text.download._LARGEST_UNPACKED", 10_000)
    with pytest.raises(DownloadError, match="larger than 10,000 bytes unpacked"):
        fetch(server, tmp_path)
    monkeypatch.setattr("rnnfast.text.download._LARGEST_ARCHIVE", 100)
    with pytest.raises(DownloadError, match="larger than 100 bytes"):
        fetch(server, tmp_path)


def test_arguments_that_cannot_be_are_refused(tmp_path):
    for url in ("file:///etc/passwd", "ptb.tgz", "http://"):
        with pytest.raises(DownloadError, match="a url starts with http:// or https://"):
            download_ptb(tmp_path, url=url)
    with pytest.raises(InputError, match="unknown level 'subword': expected word or char"):
        download_ptb(tmp_path, "subword")
    with pytest.raises(InputError, match="checksums must hold ptb.char.train.txt"):
        download_ptb(tmp_path, "char", checksums=CHECKSUMS)
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot make the folder .*file"):
        download_ptb(tmp_path / "file")


@pytest.mark.skipif(not PTB.is_dir(), reason="../shared/data/ptb is not there")
def test_the_real_files_have_the_sums_that_are_expected(server, tmp_path):
    files = {name: (PTB / name).read_bytes() for name in PTB_SHA256}
    server.content = archive(files)
    server.script = [2**20]
    for level in ("word", "char"):
        download_ptb(tmp_path, level, url=server.url, show_progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
