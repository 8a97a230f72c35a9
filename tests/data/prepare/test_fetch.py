"""Fetching from a real server on the loopback that breaks off, ignores ranges, or lies."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from goat_jax.data.prepare.fetch import ATTEMPTS, RemoteFile, fetch
from goat_jax.errors import UserError
from kinds import expect

DATA = bytes(range(256)) * 4000  # a megabyte


class Server(http.server.ThreadingHTTPServer):
    """Serves `DATA`; tests set its faults and read the requests that it received."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.break_after: list[int] = []  # bytes of the next answers
        self.ranges = True
        self.status = 200
        self.asked: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, format, *args):
        pass

    def do_GET(self):
        server, wanted = expect(Server, self.server), self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            return self.send_error(server.status)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        start = start if server.ranges else 0
        if start >= len(DATA):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(DATA)}")
            self.end_headers()
            return
        body = DATA[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.break_after.pop(0)] if server.break_after else body)


@pytest.fixture
def server():
    own = Server()
    thread = threading.Thread(target=own.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield own
    own.shutdown()
    own.server_close()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture
def remote(server):
    url = f"http://127.0.0.1:{server.server_address[1]}/a.bin"
    return RemoteFile("a.bin", url, f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))


def get(remote, folder: Path, **options):
    return fetch(remote, folder, wait=0.0, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_reported(server, remote, tmp_path):
    seen = []
    path, _ = (get(remote, tmp_path, report=lambda *what: seen.append(what)) for _ in range(2))
    assert path.read_bytes() == DATA and names(tmp_path) == ["a.bin"]
    assert server.asked == [None]
    assert seen[-1] == ("a.bin", len(DATA), len(DATA))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_broken_connection_goes_on_where_it_broke(server, remote, tmp_path):
    server.break_after = [300_000, 100_000]
    assert get(remote, tmp_path).read_bytes() == DATA
    assert server.asked == [None, "bytes=300000-", "bytes=400000-"]


def test_a_later_call_goes_on_too(server, remote, tmp_path):
    server.break_after = [100_000] * ATTEMPTS
    with pytest.raises(UserError, match=r"broke off 5 times .* 500,000 bytes are kept"):
        get(remote, tmp_path)
    assert names(tmp_path) == [".a.bin.part"]
    assert get(remote, tmp_path).read_bytes() == DATA
    assert server.asked[-1] == "bytes=500000-"


def test_a_server_without_ranges_starts_again(server, remote, tmp_path):
    server.ranges, server.break_after = False, [300_000]
    assert get(remote, tmp_path).read_bytes() == DATA
    assert server.asked == [None, "bytes=300000-"]


def test_a_whole_part_needs_no_server(server, remote, tmp_path):
    (tmp_path / ".a.bin.part").write_bytes(DATA)
    assert get(remote, tmp_path).read_bytes() == DATA
    assert server.asked == []


def test_a_whole_part_of_unknown_size_is_not_fetched_again(server, remote, tmp_path):
    unknown = RemoteFile(remote.filename, remote.url, remote.checksum)
    (tmp_path / ".a.bin.part").write_bytes(DATA)
    assert get(unknown, tmp_path).read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server, remote, tmp_path):
    unknown = RemoteFile(remote.filename, remote.url, remote.checksum)
    (tmp_path / ".a.bin.part").write_bytes(DATA + b"more")
    assert get(unknown, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server, remote, tmp_path, kind):
    wrong = RemoteFile(remote.filename, remote.url, f"{kind}:{'0' * 64}", remote.size)
    with pytest.raises(UserError, match=rf"a.bin has {kind} \w+\.\.\., not 0000"):
        get(wrong, tmp_path)
    assert names(tmp_path) == []


def test_a_wrong_file_that_lies_there_is_not_touched(server, remote, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a.bin has 4 bytes, not 1,024,000: remove it"):
        get(remote, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine" and server.asked == []


def test_a_missing_file_is_not_asked_for_again(server, remote, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match=r"the server answers 404 .* put it into"):
        get(remote, tmp_path)
    assert len(server.asked) == 1 and names(tmp_path) == []


def test_a_server_in_trouble_is_asked_again(server, remote, tmp_path):
    server.status = 503
    with pytest.raises(UserError, match=r"broke off 5 times \(503"):
        get(remote, tmp_path)
    assert len(server.asked) == ATTEMPTS


def test_what_has_no_address_is_to_be_put_there(tmp_path):
    with pytest.raises(UserError, match=r"b.rar cannot be downloaded: put it into"):
        fetch(RemoteFile("b.rar"), tmp_path)
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(RemoteFile("b.rar", "file:///etc/hostname"), tmp_path)
