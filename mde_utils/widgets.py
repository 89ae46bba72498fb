"""Interactive views: controls over functions of `plots`, for a running notebook.

Each picture stands in the notebook without them first: a widget is not seen on a page or in a file.
"""

from __future__ import annotations

import io

import ipywidgets
import matplotlib.pyplot as plt
from torch import Tensor

from mde_utils import plots

DEGREES = {"min": -60, "max": 60, "step": 5}


def turn_point_cloud(
    image: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    *,
    farthest: float = 40.0,
    points: int = 20_000,
    title: str | None = None,
) -> ipywidgets.VBox:
    """`plots.plot_point_cloud` with sliders for the view and for the farthest depth that is drawn.

    Args:
        image, depth, intrinsics, title: as there.
        farthest: where the slider begins, metres; it goes to the farthest depth.
        points: about so many at most, fewer than in a still picture, so that it turns at once.

    Raises:
        ValueError: no pixel has a depth.
    """
    known = depth[depth > 0]
    if not len(known):
        raise ValueError("No pixel has a depth: there is no point to draw.")
    near, far = known.min().item(), known.max().item()

    def slider(value: float, words: str, **options) -> ipywidgets.FloatSlider:
        # Drawn when the handle is let go: a picture takes longer than a move of the mouse.
        return ipywidgets.FloatSlider(
            value,
            description=words,
            continuous_update=False,
            style={"description_width": "initial"},
            **options,
        )

    controls = {
        "turn": slider(12, "turn [°]", **DEGREES),
        "rise": slider(14, "rise [°]", **DEGREES | {"min": 0, "max": 80}),
        "farthest": slider(min(farthest, far), "farthest [m]", min=1.01 * near, max=far, step=0.5),
    }
    # Not an Output widget: what it captures can leave a headless run waiting for good.
    picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})

    def draw(_change=None) -> None:
        view = {name: control.value for name, control in controls.items()}
        figure = plots.plot_point_cloud(
            image, depth, intrinsics, points=points, title=title, **view
        )
        with io.BytesIO() as png:
            figure.savefig(png, format="png", dpi=100)
            picture.value = png.getvalue()
        plt.close(figure)

    for control in controls.values():
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([*controls.values(), picture])
