# Finds mde_utils and scenes: installed, in a parent folder, or in an attached input.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = ""
PACKAGES = ("mde_utils", "scenes")  # they lie side by side
if not all(getattr(find_spec(name), "origin", None) for name in PACKAGES):
    here, attached, clone = Path.cwd(), Path("/kaggle/input"), Path("mde_suite").absolute()
    homes = [here, *here.parents, clone]
    homes += [m.parent for n in range(5) for m in attached.glob("*/" * n + PACKAGES[0])]

    def whole(home):
        return all((home / name / "__init__.py").is_file() for name in PACKAGES)

    if REPOSITORY and not any(map(whole, homes)):
        subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, str(clone)])
    home = next(filter(whole, homes), None)
    if home is None:
        inputs = ", ".join(sorted(p.name for p in attached.glob("*"))) or "nothing"
        raise ModuleNotFoundError(
            f"No folder with {' and '.join(PACKAGES)}. Searched: {here}, the folders above it "
            f"and {attached} ({inputs}). Open this notebook in its checkout, upload both folders "
            "beside it, or attach a Kaggle data set that holds both (not their contents alone)."
        )
    sys.path.insert(0, str(home))

import mde_utils

print(mde_utils.about())
