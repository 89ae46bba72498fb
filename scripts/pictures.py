"""Draws the pictures of docs/ from the shipped weights: `python scripts/pictures.py`."""

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from notebook_tools import ROOT
from PIL import Image

from mde_utils import build_model, dissect, load_dataset, plots

LAYER = "dec_3"


def contact_sheet(dataset, name: str, shape: tuple[int, int], height: float) -> None:
    figure, axes = plt.subplots(*shape, figsize=(12, height), layout="constrained")
    for ax, item in zip(axes.ravel(), dataset, strict=False):
        plots.show_image(ax, item["image"])
    figure.savefig(ROOT / "docs" / name, dpi=100, pil_kwargs={"quality": 85})


def main():
    rooms = load_dataset("rooms", "test", limit=654, fields=("image", "depth"))
    contact_sheet(rooms, "rooms.jpg", (3, 8), 3.5)
    streets = load_dataset("streets", "test", size=(112, 370), limit=12, fields=("image", "depth"))
    contact_sheet(streets, "streets.jpg", (4, 3), 5.0)

    models = {
        name: build_model("meter_xxs", weights="rooms", variant=name)
        for name in ("baseline", "assign")
    }
    seen = {name: dissect(model, rooms, [LAYER]) for name, model in models.items()}
    rows = []
    for name, dissection in seen.items():
        figure = plots.plot_units(dissection, LAYER)
        figure.suptitle(f"{name} · {figure.get_suptitle()}", fontsize=9)
        figure.savefig(drawn := io.BytesIO(), dpi=90)
        rows.append(np.asarray(Image.open(drawn).convert("RGB")))
    Image.fromarray(np.concatenate(rows)).save(ROOT / "docs" / "units.png", optimize=True)


if __name__ == "__main__":
    main()
