import gzip
import hashlib
import http.server
import io
import socket
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vanishjax.training.data import DataError, download, fetch, load_dataset
from vanishjax.training.data.download import REMOTES, Remote, RemoteFile, cache_folder
from vanishjax.training.data.idx import FILES

DEAD = "http://127.0.0.1:9"  # the discard port: refused at once


def contents():
    rng = np.random.default_rng(0)
    shapes = ((30, 2, 2), (30,), (20, 2, 2), (20,))
    for file, shape in zip(FILES, shapes, strict=True):
        array = rng.integers(0, 256, shape) if "images" in file else np.arange(shape[0]) % 10
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        yield file, header + array.astype(np.uint8).tobytes()


CONTENTS = dict(contents())


class Server:
    """A mirror on this machine; `files` may be spoilt by a test."""

    def __init__(self):
        self.files = {f"/good/{name}.gz": gzip.compress(data) for name, data in CONTENTS.items()}
        self.asked = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                body = server.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/good"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    files = tuple(
        RemoteFile(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in CONTENTS.items()
    )
    server = Server()
    monkeypatch.setitem(REMOTES, "mnist", Remote((server.address,), files))
    yield server
    server.http.shutdown()
    server.http.server_close()


def cached(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_arrive_decompressed_and_once(tmp_path, server):
    folder = fetch("mnist", tmp_path)
    assert folder == tmp_path / "mnist"
    assert cached(folder) == CONTENTS
    assert len(server.asked) == 4
    assert fetch("mnist", tmp_path) == folder
    assert len(server.asked) == 4


def test_a_spoilt_cache_is_mended(tmp_path, server):
    folder = fetch("mnist", tmp_path)
    (folder / FILES[1]).write_bytes(b"short")
    fetch("mnist", tmp_path)
    assert cached(folder) == CONTENTS
    assert len(server.asked) == 5


def test_other_bytes_of_the_right_size_are_not_used(tmp_path, server):
    folder = fetch("mnist", tmp_path)
    spoilt = folder / FILES[0]
    spoilt.write_bytes(FLIPPED)
    with pytest.raises(DataError, match=f"{FILES[0]} is not the file it should be, and cannot"):
        fetch("mnist", tmp_path, mirrors=(DEAD,))
    assert spoilt.read_bytes() == FLIPPED
    fetch("mnist", tmp_path)
    assert cached(folder) == CONTENTS
    assert len(server.asked) == 5


def test_a_dead_mirror_is_followed_by_the_next(tmp_path, server):
    folder = fetch("mnist", tmp_path, mirrors=(DEAD, server.address + "/"))
    assert cached(folder) == CONTENTS


def test_progress(tmp_path, server):
    calls = []
    fetch("mnist", tmp_path, progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[1] == call[2]] == [
        (name, len(data), len(data)) for name, data in CONTENTS.items()
    ]


GOOD = CONTENTS[FILES[0]]
FLIPPED = GOOD[:-1] + bytes([GOOD[-1] ^ 1])
EMPTY_BLOCKS = gzip.compress(b"", mtime=0)[:10] + b"\0\0\0\xff\xff" * 40_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            gzip.compress(FLIPPED, mtime=0),
            "corrupted: SHA-256 [0-9a-f]{64} instead of [0-9a-f]{64}",
        ),
        (gzip.compress(GOOD, mtime=0)[:-20], "truncated: [0-9]+ of 136 bytes"),
        (gzip.compress(GOOD[:-1], mtime=0), "truncated: 135 of 136 bytes"),
        (gzip.compress(GOOD + bytes(10**6), mtime=0), "more than the 136 bytes"),
        (EMPTY_BLOCKS, "more than the 136 bytes"),
        (b"<html>sorry</html>", "incorrect header check"),
        (b"", "truncated: 0 of 136 bytes"),
        (None, "HTTP Error 404"),
    ],
)
def test_a_bad_file_is_refused_and_leaves_nothing(tmp_path, server, body, words):
    server.files[f"/good/{FILES[0]}.gz"] = body
    with pytest.raises(DataError, match=words) as raised:
        fetch("mnist", tmp_path)
    assert f"{server.address}/{FILES[0]}.gz" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert cached(tmp_path / "mnist") == {}
    for name, data in CONTENTS.items():
        server.files[f"/better/{name}.gz"] = gzip.compress(data)
    better = server.address.replace("/good", "/better")
    assert cached(fetch("mnist", tmp_path, mirrors=(server.address, better))) == CONTENTS


def test_offline_says_what_was_tried_and_what_to_do(tmp_path, server):
    with pytest.raises(DataError) as raised:
        fetch("mnist", tmp_path, mirrors=(DEAD, "file:///etc"))
    message = str(raised.value)
    for words in (
        f"{DEAD}/{FILES[0]}.gz (",
        "refused",
        f"file:///etc/{FILES[0]}.gz (not an http address)",
        "data_dir (--data-dir)",
        *FILES,
    ):
        assert words in message


def test_a_bomb_is_not_inflated():
    file = RemoteFile("bomb", 100, "")
    bomb = io.BytesIO(gzip.compress(bytes(30_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match="more than the 100 bytes"):
        download._inflate(bomb, io.BytesIO(), file, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_unknown_names_are_not_looked_for(tmp_path):
    with pytest.raises(DataError, match="cannot download 'cifar'; only mnist, fashion_mnist"):
        fetch("cifar", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_silent_mirror_times_out(tmp_path, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match="timed out"):
            fetch("mnist", tmp_path, mirrors=(mirror,), timeout=0.2)


def test_an_unusable_cache(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot make the cache.*VANISHJAX_CACHE"):
        fetch("mnist", tmp_path / "file")


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("VANISHJAX_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/own")
    assert cache_folder("/given") == Path("/given")
    monkeypatch.delenv("VANISHJAX_CACHE")
    assert cache_folder() == Path("/shared/vanishjax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "vanishjax"


def test_load_dataset_downloads_into_the_cache(tmp_path, server, monkeypatch):
    monkeypatch.setenv("VANISHJAX_CACHE", str(tmp_path))
    calls = []
    data = load_dataset("mnist", progress=lambda *call: calls.append(call))
    assert (data.classes, data.image_shape, len(data.test)) == (10, (2, 2), 20)
    assert calls
    assert cached(tmp_path / "mnist") == CONTENTS


def test_the_real_remotes_are_whole():
    for name, remote in download.REMOTES.items():
        assert len(remote.mirrors) >= 2, name
        assert [file.name for file in remote.files] == list(FILES)
        assert [file.size for file in remote.files] == [47040016, 60008, 7840016, 10008]
        assert all(len(bytes.fromhex(file.sha256)) == 32 for file in remote.files)
