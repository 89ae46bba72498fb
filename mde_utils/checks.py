"""What refusals have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, given: object, known: Iterable[str], *, among: Iterable[str] = ()) -> str:
    """The message for a name that is not known: what was given, what is near, what is allowed.

    Args:
        kind: of thing the name should have named (`"protocol"`).
        given: what was given instead.
        known: the names that are allowed, all listed.
        among: further names that are allowed and too many to list; near ones are offered.
    """
    known = [*known]
    near = difflib.get_close_matches(str(given), dict.fromkeys([*known, *among]), n=3)
    return (
        f"Unknown {kind} {given!r}."
        + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")
        + (f" Known: {', '.join(known)}." if known else "")
    )
