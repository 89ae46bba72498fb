"""The world of streets: each is built from the road outwards."""

from __future__ import annotations

from ..drawing import Dice
from ..world import World
from .lots import distance, fields, houses, kerbside
from .road import ground, markings, parked, people, traffic
from .roadside import LABELS
from .sensor import CAMERA, MAX_DEPTH, lidar
from .street import Street

RENDERER_VERSION = 2  # raise it when pictures change: caches are keyed by it

SKY = LABELS.index("sky")
_FAR = 500.0  # beyond the ground's end and the sun


def build(street):
    ground(street)
    markings(street)
    traffic(street)
    for s in (1, -1):
        parked(street, s)
    people(street)
    for s in (1, -1):
        if street.kind == "country":
            fields(street, s)
        else:
            houses(street, s)
    distance(street)
    for s in (1, -1):
        kerbside(street, s)
    return street


def make_streets(split, indices) -> list[Street]:
    return [build(Street(Dice("streets", split, index))) for index in indices]


# --------------------------------------------------------------------------------------- data set

FIELDS = ("image", "depth", "normal", "label", "sparse_depth")


def _make(split, indices, device):
    return [(street.scene, street.camera) for street in make_streets(split, indices)]


def _measure(item, view, split, index, sensor):
    sky = item["label"] < 0
    item["label"] = item["label"].masked_fill(sky, SKY)
    item["normal"] = item["normal"].masked_fill(sky, 0.0)
    item["depth"] = item["depth"].masked_fill(sky | (item["depth"] > MAX_DEPTH), 0.0)
    item["sparse_depth"] = lidar(
        item["depth"], Dice("lidar", split, index), image=item["image"], normal=item["normal"],
        gloss=view["gloss"],
    )  # fmt: skip
    return item


STREETS = World(
    "streets", RENDERER_VERSION, _make, CAMERA, _measure,
    lengths={"train": 4000, "val": 400, "test": 652}, fields=FIELDS, far=_FAR,
    shadows=lambda height: min(max(128, 2 * height), 768), reach=4.0, contrast=(1.2, 1.6),
    grey=(0.0, 0.5),
)  # fmt: skip
