"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name when the block ends without an error:
    ``with atomic("a.json") as temporary: temporary.write_text(text)``. After an error the former
    file is as it was and the temporary one is gone. Folders are made.

    Raises:
        OSError: its kind for the cause (PermissionError, …), naming the folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
    except OSError as error:
        raise OSError(
            error.errno,
            f"Cannot write {path.name!r} into the folder {path.parent} ({error.strerror}); "
            "choose a folder that can be written",
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
