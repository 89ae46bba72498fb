"""Draws the README's pictures from the shipped weights: `python scripts/pictures.py`."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from notebook_tools import ROOT

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
    for name, dissection in seen.items():
        figure = plots.plot_units(dissection, LAYER)
        figure.suptitle(f"{name} · {figure.get_suptitle()}", fontsize=9)
        figure.savefig(ROOT / "docs" / f"units_{name}.png", dpi=90)


if __name__ == "__main__":
    main()
