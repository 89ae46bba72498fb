"""The networks that come with the suite: name → configs of its stages, in order.

The table is also the order of the queue. Coarse pictures first (128x192: half the time of 192x256),
then the size that the network is shipped for.
"""

from scenes.rooms import ROOMS
from scenes.streets import STREETS

RENDERER = {world.name: world.version for world in (ROOMS, STREETS)}

DECODER = ["dec_1", "dec_2", "dec_3"]
MANY = 12_000  # 3,000 rooms level off at δ1 .82 to .84


def rooms(size, images=MANY, **settings):
    """Augmented by mirroring and colour alone: with as many pictures as one likes there is no need
    for METER's crops, which show things larger at the same depth."""
    return {
        "dataset": "rooms",
        "data_options": {
            "size": list(size),
            "fields": ["image", "depth"],
            "train": {"limit": images, "augment": "epc"},
            "val": {"limit": 200},
        },
        "batch_size": 16,
        "schedule": "cosine",
        **settings,
    }


def selective(method, alpha=-3.0, warmup=0.0):
    return {
        "neuron_selective": True,
        "method": method,
        "imde_alpha": alpha,
        "imde_warmup": warmup,
    }


def meter(coarse=None, fine=None):
    """METER-XXS: coarse, then fine."""
    common = {"model": "meter_xxs", "cfg_layers": DECODER, "depth_loss": "balanced"}
    return [
        rooms((128, 192), **common, num_epochs=24, learning_rate=2e-3, **(coarse or {})),
        rooms((192, 256), **common, num_epochs=8, learning_rate=1e-3, **(fine or {})),
    ]


NETWORKS = {
    "meter_xxs_rooms_baseline": meter(),
    # From the first epochs on: units are more malleable early than late.
    "meter_xxs_rooms_assign": meter(selective("assign", warmup=4.0), selective("assign")),
    "meter_xxs_rooms_reg": meter(selective("reg", warmup=4.0), selective("reg")),
}
