"""Two networks side by side: what the notebooks that measure trained networks start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import pandas as pd
from torch.utils.data import Dataset

from .checkpoints import Published, fetch, read_metadata
from .data import load_dataset, source_options
from .environment import pick_device
from .models import DepthModel, build_model, shipped_weights

#: What is shown of a network's training: keys of its config.
SHOWN = ("dataset", "neuron_selective", "imde_alpha", "cfg_layers", "num_epochs", "seed")


@dataclass(frozen=True)
class Pair:
    """What `load_pair` returns.

    Attributes:
        models: by name, `baseline` and `selective`, on the device that there is, in eval mode.
        about: what their files say of their training, a column a network; NaN where they say
            nothing.
        data_set: the data set's name.
        size: (h, w) of its images.
    """

    models: dict[str, DepthModel]
    about: pd.DataFrame
    data_set: str
    size: tuple[int, int]
    options: dict = field(default_factory=dict)

    def data(self, split: str, limit: int | None = None) -> Dataset:
        """The data set's `split`, `limit` images of it, at the networks' size."""
        return load_dataset(self.data_set, split, size=self.size, limit=limit, **self.options)


def load_pair(
    name: str,
    baseline: str | Path = "",
    selective: str | Path = "",
    *,
    data_set: str = "rooms",
    size: tuple[int, int] | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Pair:
    """Two trained networks of one kind and the data to measure them on.

    Args:
        name: as `build_model` knows it.
        baseline, selective: weights: a shipped variant (`"reg"`), a path or a URL; "" are the
            shipped `baseline` and `assign`.
        size: (h, w) of the images; None = what the second network was trained at.
        root, download: of NYU Depth V2 or KITTI; rendered data needs neither.
    """
    models, about = {}, {}
    world = "streets" if data_set in ("streets", "kitti") else "rooms"
    for key, given in {"baseline": baseline, "selective": selective or "assign"}.items():
        file = _file(name, str(given or key), world)
        said = read_metadata(file)
        model = build_model(name, weights=file, **said.get("options", {}))
        models[key], about[key] = model.to(pick_device()).eval(), said.get("config", {})
    size = size or about["selective"].get("data_options", {}).get("size") or model.image_size
    options = source_options(data_set, root, download)
    return Pair(models, pd.DataFrame(about).reindex(SHOWN), data_set, tuple(size), options)


def _file(name: str, given: str, data: str) -> Path:
    """A shipped variant, what an address gives, or a path."""
    if urlparse(given).scheme in ("http", "https"):
        return fetch(Published(given))
    path = Path(given)
    variant = not path.suffix and path.parent == Path(".")  # "reg"; of a folder "./reg"
    return shipped_weights(name, given, data=data) if variant else path
