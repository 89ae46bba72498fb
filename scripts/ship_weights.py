"""Takes a finished run into mde_utils/weights, with its config and its numbers on the test rooms.

python scripts/ship_weights.py runs/NAME VARIANT
"""

import argparse
import json
from pathlib import Path

from notebook_tools import write_text

from mde_utils import build_model, dissect, evaluate, load_dataset, save_weights
from mde_utils.checkpoints import read_metadata
from mde_utils.environment import versions
from mde_utils.models import WEIGHTS
from mde_utils.training import TrainConfig

TEST_ROOMS = 654


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("variant", help="baseline, reg or assign")
    arguments = parser.parse_args()

    config = TrainConfig.load(arguments.run / "config.json")
    model = build_model(config.model, weights=arguments.run / "best.safetensors")
    rooms = load_dataset("rooms", "test", limit=TEST_ROOMS, fields=("image", "depth"))
    seen = dissect(model, rooms, list(model.taps))
    about = {"config": config.identity()}
    if config.weights:  # a second stage: how the first was trained stands in its file
        about["config"]["weights"] = "the first stage"
        about["first_stage"] = read_metadata(config.weights).get("config")
    about |= {
        "test": {
            "data": f"{rooms.name}, {len(rooms)} images, 192x256",
            "protocol": "imde",
            "metrics": {k: round(v, 4) for k, v in evaluate(model, rooms).items()},
            "definition": "paper",
            "selectivity": {layer: round(seen.mean(layer), 4) for layer in seen.layers},
        },
        "versions": versions(),
    }
    path = WEIGHTS / f"{config.model}_rooms_{arguments.variant}.safetensors"
    save_weights(model, path, metadata=about)
    write_text(path.with_suffix(".json"), json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(about["test"], indent=2))


if __name__ == "__main__":
    main()
