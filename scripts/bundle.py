"""Packs what a hosted notebook needs into one file: `python scripts/bundle.py [target.zip]`.

The packages with their networks and tables, the notebooks, the requirements. Unpacked beside a
notebook (Colab) or attached as a data set (Kaggle unpacks it), the bootstrap cell finds it.
"""

import argparse
import zipfile
from pathlib import Path

from notebook_tools import ROOT, find_notebooks, relative

from mde_utils.files import atomic

FOLDERS = ("mde_utils", "scenes")
FILES = ("requirements.txt", "README.md", "LICENSE")


def contents() -> list[Path]:
    """Every file of the bundle; no caches, no runs, nothing hidden."""
    inside = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("[!.]*"))]
    inside = [path for path in inside if path.is_file() and path.suffix != ".pyc"]
    return [*inside, *find_notebooks(), *(ROOT / name for name in FILES)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT / "dist" / "mde-suite.zip"
    parser.add_argument("target", nargs="?", type=Path, default=default)
    target = parser.parse_args(argv).target
    with atomic(target) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bundle:
            for path in contents():
                bundle.write(path, path.relative_to(ROOT))
    print(f"{relative(target)}: {target.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
