"""Trainings that somebody published, as settings of a `TrainConfig`."""

from __future__ import annotations

from typing import NamedTuple


class Recipe(NamedTuple):
    """Settings of a training that somebody published."""

    source: str
    settings: dict


_BTS = {
    "model": "bts_densenet161",
    "weights": "imagenet",
    "num_epochs": 50,
    "batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 1e-2,
    "decay_prefix": "encoder.",
    "adam_epsilon": 1e-3,
    "schedule": "polynomial",
    "decay_factor": 0.1,
    "imde_alpha": -0.1,
    "cfg_layers": ("iconv1",),
}

#: By name.
RECIPES = {
    "meter_notebook": Recipe(
        "the METER notebook with the selectivity loss: AdamW 1e-4, no schedule, no augmentation; "
        "imde_alpha -0.1 on dec_3 and enc_4",
        {
            "model": "meter_xxs",
            "depth_loss": "balanced",
            "num_epochs": 20,
            "batch_size": 64,
            "learning_rate": 1e-4,
            "weight_decay": 1e-2,
            "schedule": "constant",
            "imde_alpha": -0.1,
            "cfg_layers": ("dec_3", "enc_4"),
        },
    ),
    "meter_paper": Recipe(
        "METER's publication (Papa et al., TCSVT 2023, arXiv 2403.08368), as public "
        "re-implementations quote it: AdamW 1e-3, betas .9 and .999, x0.1 every 20 of 60 epochs",
        {
            "model": "meter_xxs",
            "depth_loss": "balanced",
            "num_epochs": 60,
            "batch_size": 128,
            "learning_rate": 1e-3,
            "weight_decay": 1e-2,
            "schedule": "step",
            "decay_every": 20,
            "decay_factor": 0.1,
            "data_options": {"train": {"augment": "meter"}},
        },
    ),
    "mff_paper": Recipe(
        "MFF's publication (Hu et al., WACV 2019, section 4.1): Adam 1e-4, L2 decay 1e-4, x0.1 "
        "every 5 of 20 epochs, batch 8 on one GPU; layers and alpha as in the interpretability "
        "paper (You et al. 2021), whose code has batch 16 and drops the rate an epoch earlier",
        {
            "model": "mff_resnet50",
            "weights": "imagenet",
            "depth_loss": "mff",
            "num_epochs": 20,
            "batch_size": 8,
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "weight_decay": 1e-4,
            "schedule": "step",
            "decay_every": 5,
            "decay_factor": 0.1,
            "imde_alpha": -0.1,
            "cfg_layers": ("D", "MFF"),
            "data_options": {
                "size": [240, 320],
                "train": {"augment": "mff"},
                "val": {"augment": "mff_crop"},
            },
        },
    ),
    "bts_paper_nyu": Recipe(
        "BTS's publication (Lee et al., arXiv 1907.10326, section 4) with the constants of its "
        "argument files: AdamW, epsilon 1e-3, 1e-4 to 1e-5 by a polynomial of power 0.9, decay "
        "1e-2 of the encoder alone, first convolution and norms frozen, batch 4, 50 epochs; alpha "
        "and layer as in the interpretability paper (You et al. 2021, table 8: one of iconv1, "
        "upconv1, upconv2, upconv3 at a time), whose code has 30 epochs and epsilon 1e-6",
        {
            **_BTS,
            "model_options": {"freeze": True},
            "dataset": "nyu",
            "depth_loss": "silog",
            "data_options": {"size": [480, 640], "train": {"augment": "bts"}},
        },
    ),
    "bts_paper_kitti": Recipe(
        "as bts_paper_nyu, on KITTI's Eigen split",
        {
            **_BTS,
            "model_options": {"dataset": "kitti", "freeze": True},
            "dataset": "kitti",
            "depth_loss": "silog_kitti",
            "data_options": {"train": {"augment": "bts_kitti"}},
        },
    ),
    "cspn_paper": Recipe(
        "CSPN's publication (Cheng et al., ECCV 2018) on NYU as released: SGD 1e-2 with Nesterov's "
        "momentum 0.9, L2 decay 1e-4, x0.1 after more than 3 epochs without a better validation "
        "error (here REL), batch 8, 40 epochs, 500 sparse samples; alpha and layer as in the "
        "interpretability paper (You et al. 2021, table 6). Images are the whole frame at 228x304, "
        "where the original has the centre of 240x320",
        {
            "model": "cspn_resnet50",
            "weights": "imagenet",
            "dataset": "nyu",
            "depth_loss": "l1",
            "num_epochs": 40,
            "batch_size": 8,
            "optimizer": "sgd",
            "learning_rate": 1e-2,
            "weight_decay": 1e-4,
            "schedule": "plateau",
            "decay_every": 3,
            "decay_factor": 0.1,
            "best_by": "rel",
            "imde_alpha": -0.1,
            "cfg_layers": ("layer4",),
            "data_options": {
                "size": [228, 304],
                "sparse_samples": 500,
                "train": {"augment": "cspn"},
            },
        },
    ),
    "epc_paper": Recipe(
        "EPCDepth's publication (Peng et al., ICCV 2021) on KITTI's stereo pairs, without ground "
        "truth: Adam 1e-4, x0.1 for the last 5 of 20 epochs, batch 8, the encoder from ImageNet, "
        "depth hints, data grafting, full scale, self-distillation. Images are 192x640, of which "
        "the publication's better results have 320x1024, the size at which all hints are matched. "
        "It has no selectivity term; the layers are ours",
        {
            "model": "epcdepth_resnet18",
            "weights": "imagenet",
            "dataset": "kitti",
            "depth_loss": "stereo",
            "num_epochs": 20,
            "batch_size": 8,
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "schedule": "step",
            "decay_every": 15,
            "decay_factor": 0.1,
            "cfg_layers": ("stage1d", "stage2d"),
            "data_options": {
                "size": [192, 640],
                "crop": "none",
                "right": True,
                "train": {"augment": "epc", "hints": [320, 1024]},
            },
        },
    ),
}
