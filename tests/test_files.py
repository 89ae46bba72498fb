import errno
import tempfile

import pytest

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
