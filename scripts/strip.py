"""Readies executed notebooks for a commit: outputs stay, traces of the machine go.

Marks of the tools that ran them and of one machine's Python, and folders of this machine in text
outputs. Pictures are left alone.

    python scripts/strip.py [--check] [notebook ...]
"""

import argparse
import copy
import re
import sys
from pathlib import Path

import nbformat
from notebook_tools import ROOT, find_notebooks, read, relative, text_of, write_text

# Written apart, so that a search for machine paths does not find the searcher.
_PRIVATE = "|".join(("root", "home", "tmp", "mnt", "Users", "var/folders", *ROOT.parts[1:2]))
MACHINE_PATH = re.compile(rf"(?<![\w.~-])/(?:{_PRIVATE})/[^\s'\"<>:,;)\]]*")
# As `nbstripout --keep-output --keep-count` has it, and papermill's and the runner's.
TRACES = ("signature", "widgets", "papermill", "suite")
CELL_TRACES = (
    *("collapsed", "ExecuteTime", "execution", "heading_collapsed", "hidden", "scrolled"),
    "papermill",
)
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


def without_machine_paths(text: str, root: Path = ROOT) -> str:
    """`text` with folders of this machine made relative, or cut to their last part.

    The checkout becomes ".", an installed package starts at "site-packages", the home folder
    becomes "~", anything else below a private folder keeps its name alone.
    """
    text = text.replace(f"{root}/", "").replace(str(root), ".")
    text = re.sub(r"[^\s'\"<>]*/(?=site-packages/|dist-packages/)", "", text)
    text = text.replace(f"{Path.home()}/", "~/")
    return MACHINE_PATH.sub(lambda m: m[0].rstrip("/").rsplit("/", 1)[-1], text)


def _clean(value, root: Path):
    if isinstance(value, str):
        return without_machine_paths(value, root)
    if isinstance(value, list):
        return [_clean(v, root) for v in value]
    return value


def strip(nb: nbformat.NotebookNode, root: Path = ROOT) -> nbformat.NotebookNode:
    """`nb` as it is committed; `nb` itself is not changed."""
    nb = copy.deepcopy(nb)
    for key in TRACES:
        nb.metadata.pop(key, None)
    nb.metadata.kernelspec = KERNELSPEC
    nb.metadata.language_info = {"name": "python"}
    for cell in nb.cells:
        for key in CELL_TRACES:
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        for output in cell.get("outputs", []):
            for key in ("text", "traceback", "evalue"):
                if key in output:
                    output[key] = _clean(output[key], root)
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = _clean(value, root)
    return nb


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    arguments = parser.parse_args(argv)

    changed = []
    for path in arguments.notebooks or find_notebooks():
        text = text_of(strip(read(path)))
        if text != path.read_text(encoding="utf-8"):
            changed.append(path)
            if not arguments.check:
                write_text(path, text)
    for path in changed:
        print(f"{relative(path)}: {'run scripts/strip.py' if arguments.check else 'stripped'}")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
