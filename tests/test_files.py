import errno
import resource
import tempfile

import pytest
import torch
from safetensors.torch import save_file

from mde_utils.files import atomic


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
