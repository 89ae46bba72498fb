"""Files that are written or downloaded whole or not at all, and what is said when they cannot
be."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import URLError
from urllib.parse import urlparse

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
REMEDY = "Choose a folder that can be written and has room."


@contextmanager
def atomic(path: str | Path, remedy: str = REMEDY) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends without an error:
    `with atomic("a.json") as temporary: temporary.write_text(text)`. After an error the former
    file is as it was and the temporary one is gone. Folders are made.

    Errors of the block itself pass through, but for a full disk (see `refusals`).
    """
    path = Path(path)
    with refusals(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
    os.close(handle)
    temporary = Path(name)
    try:
        with refusals(path, remedy, only=FULL):
            yield temporary
        with refusals(path, remedy):
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def refusals(
    path: Path, remedy: str = REMEDY, *, only: Collection[int] | None = None
) -> Iterator[None]:
    """What the file system says against writing `path`, in words that help: where, why, how much
    room there is, what to do. Of an `OSError` (a `PermissionError` where it is about rights) and of
    the errors of libraries that write themselves.

    only: the numbers (`errno`) that are reworded; other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        said = re.search(r"os error (\d+)|Os { code: (\d+)", str(error))  # safetensors' ways
        number = getattr(error, "errno", None) or (int(said[1] or said[2]) if said else None)
        if number is None or (only is not None and number not in only):
            raise
        why = getattr(error, "strerror", None) or os.strerror(number)
        place = f"{path.name!r} into the folder {path.parent}"
        if number in FULL:
            there = next((one for one in path.parents if one.is_dir()), Path.cwd())
            free = shutil.disk_usage(there).free / 1e6
            words = f"No room to write {place} ({why}; {free:,.1f} MB free)."
        elif number == errno.ENAMETOOLONG:
            words = (
                f"The path has {len(str(path))} characters, its last part {len(path.name)}, and is "
                f"too long for this system (most take 4,095 and, of a part, 255): cannot write "
                f"{place}."
            )
        else:
            words = f"Cannot write {place} ({why})."
        kind = PermissionError if number in DENIED else OSError
        raise kind(number, f"{words} {remedy}") from error


def download(url: str, file: BinaryIO, *, limit: int = 2**30, seconds: float = 900) -> None:
    """Copy what an http(s) address answers into an open file: all of it, or a `ConnectionError`
    (no answer, broken off, not done in `seconds`) or `ValueError` (more than `limit` bytes)."""
    if urlparse(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} is no http or https address.")
    deadline, size = time.monotonic() + seconds, 0
    request = urllib.request.Request(url, headers={"User-Agent": "mde_utils"})
    try:
        with urllib.request.urlopen(request, timeout=min(20, seconds)) as answer:
            length = answer.headers.get("Content-Length")
            while chunk := answer.read1(2**16):
                size += len(chunk)
                if max(size, int(length or 0)) > limit:
                    raise ValueError(f"{url} is larger than {limit / 2**20:,.0f} MiB.")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not done after {seconds:g} s")
                file.write(chunk)
            if length is not None and size < int(length):
                raise ConnectionError(f"broken off after {size:,} of {length} bytes")
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"Cannot reach {url} ({error}).") from None
