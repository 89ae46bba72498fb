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


def streets(size, images, **settings):
    return rooms(size, images, **settings) | {"dataset": "streets"}


def mff(**settings):
    """MFF over EfficientNet-Lite0 from ImageNet; its two 5x5 convolutions make it slow."""
    common = {"model": "mff_tf_efficientnet_lite0", "weights": "imagenet", "depth_loss": "mff"}
    options = {"cfg_layers": ["D", "MFF"], "optimizer": "adam", "weight_decay": 1e-4}
    return [rooms((64, 96), **common, **options, num_epochs=8, learning_rate=5e-4, **settings)]


def bts(**settings):
    common = {"model": "bts_tf_efficientnet_lite0", "weights": "imagenet"}
    common["model_options"] = {"dataset": "kitti", "focal_reference": 185.903}  # pixels, of 96x320
    options = {"depth_loss": "silog_kitti", "decay_prefix": "encoder.", "adam_epsilon": 1e-6}
    options["cfg_layers"] = ["iconv1", "upconv1", "upconv2", "upconv3"]
    size, epochs = (96, 320), {"num_epochs": 12, "learning_rate": 5e-4}
    return [streets(size, 8_000, **common, **options, **epochs, **settings)]


def cspn(**settings):
    """Trained over densities, so that more points never make it worse."""
    common = {"model": "cspn_test_resnet", "depth_loss": "l1", "cfg_layers": ["layer3", "layer4"]}
    stage = rooms((96, 128), **common, num_epochs=12, learning_rate=1e-3, **settings)
    for split, points in (("train", [10, 1000]), ("val", 200)):
        stage["data_options"][split]["sparse_samples"] = points
    return [stage]


def epcdepth(**settings):
    """From pairs alone; hints are matched at twice the size."""
    common = {"model": "epcdepth_test_resnet", "depth_loss": "stereo"}
    common["cfg_layers"] = ["stage1d", "stage2d"]
    epochs = {"num_epochs": 12, "learning_rate": 1e-3, "optimizer": "adam", "weight_decay": 0.0}
    stage = streets((96, 320), 4_000, **common, **epochs, **settings)
    stage["data_options"] |= {"baseline": 0.54}
    stage["data_options"]["train"]["hints"] = [192, 640]
    return [stage]


NETWORKS = {
    "meter_xxs_rooms_baseline": meter(),
    # From the first epochs on: units are more malleable early than late.
    "meter_xxs_rooms_assign": meter(selective("assign", warmup=4.0), selective("assign")),
    "meter_xxs_rooms_reg": meter(selective("reg", warmup=4.0), selective("reg")),
    "mff_tf_efficientnet_lite0_rooms_baseline": mff(),
    "mff_tf_efficientnet_lite0_rooms_assign": mff(**selective("assign", warmup=2.0)),
    "mff_tf_efficientnet_lite0_rooms_reg": mff(**selective("reg", warmup=2.0)),
    "bts_tf_efficientnet_lite0_streets_baseline": bts(),
    "bts_tf_efficientnet_lite0_streets_assign": bts(**selective("assign", warmup=3.0)),
    "cspn_test_resnet_rooms_baseline": cspn(),
    "cspn_test_resnet_rooms_assign": cspn(**selective("assign", warmup=3.0)),
    "epcdepth_test_resnet_streets_baseline": epcdepth(),
    "epcdepth_test_resnet_streets_assign": epcdepth(
        **selective("assign", warmup=3.0), imde_depth="own"
    ),
}
