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
