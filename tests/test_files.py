import errno
import http.server
import io
import resource
import tempfile
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from mde_utils.files import atomic, download


def test_a_failed_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half of the sec")
        raise RuntimeError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Cannot write 'a.txt' into the folder .*file"):
        with atomic(tmp_path / "file" / "a.txt"):
            pass

    def denied(**_):  # root may write anywhere, so the refusal is played
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(PermissionError, match="Permission denied.*can be written"):
        with atomic(tmp_path / "a.txt"):
            pass


def grow(path, size, write):
    """Written where no file may grow beyond 3,000 bytes, which the system itself refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with atomic(path) as temporary:
            write(temporary, size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, size: path.write_bytes(bytes(size)),
        lambda path, size: save_file({"x": torch.zeros(size // 4)}, path),
    ],
)
def test_a_full_disk_is_named_and_leaves_the_former_file(tmp_path, write):
    path = tmp_path / "a.bin"
    grow(path, 1000, write)
    former = path.read_bytes()
    with pytest.raises(OSError, match=r"'a.bin' .*too large; [\d,.]+ MB free") as caught:
        grow(path, 100_000, write)
    assert caught.value.errno == errno.EFBIG and str(tmp_path) in str(caught.value)
    assert path.read_bytes() == former and list(tmp_path.iterdir()) == [path]


def test_a_path_too_long_is_named_with_its_length(tmp_path):
    for path in (tmp_path / ("n" * 300), tmp_path.joinpath(*["folder"] * 800) / "a"):
        with pytest.raises(OSError, match="too long") as caught, atomic(path):
            pass
        assert caught.value.errno == errno.ENAMETOOLONG
        assert f"{len(str(path))} characters" in str(caught.value)


def test_other_errors_of_the_block_pass(tmp_path):
    with pytest.raises(PermissionError, match="^.Errno 13. locked$"), atomic(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "locked")
    assert not list(tmp_path.iterdir())


class Web(http.server.BaseHTTPRequestHandler):
    """/whole, and answers that are cut, without a length, endless or slow."""

    def do_GET(self):
        self.send_response(404 if self.path == "/none" else 200)
        if self.path in ("/whole", "/cut"):
            self.send_header("Content-Length", "3000")
        self.end_headers()
        self.wfile.write(bytes(1000 if self.path == "/cut" else 3000))
        while self.path == "/slow":
            self.wfile.write(b".")
            time.sleep(0.02)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_downloads_are_whole_or_an_error(web):
    for path in ("/whole", "/no-length"):
        file = io.BytesIO()
        download(web + path, file)
        assert file.getvalue() == bytes(3000)
    for path, error, says, options in (
        ("/cut", ConnectionError, "/cut .*1,000 of 3000", {}),
        ("/none", ConnectionError, "/none .*404", {}),
        ("/whole", ValueError, "/whole is larger", {"limit": 2999}),
        ("/no-length", ValueError, "/no-length is larger", {"limit": 2999}),
        ("/slow", ConnectionError, "/slow .*after 0.3 s", {"seconds": 0.3}),
    ):
        with pytest.raises(error, match=says):
            download(web + path, io.BytesIO(), **options)


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://a.org/b", "b.pth"])
def test_only_the_web_is_downloaded_from(address):
    with pytest.raises(ValueError, match="no http"):
        download(address, io.BytesIO())
