"""A record of what the suite computes, so that its code can be moved without changing a number.

``GOLDEN=write python -m pytest tests/test_golden.py`` writes it anew, where a change is meant;
``GOLDEN=exact`` compares to the last bit, which holds on one machine alone: elsewhere a sum may
have another order, so numbers are compared to rounding, and pictures by their means over blocks.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import toys
from torch.nn.functional import adaptive_avg_pool2d

from mde_utils import ablate, correct, dissect, evaluate, fgsm, load_dataset
from mde_utils.models import build_model
from mde_utils.training import TrainConfig, fit

RECORD = Path(__file__).with_name("golden.json")
MODE = os.environ.get("GOLDEN", "")
BLOCKS = (4, 6)

ROOMS, STREETS = {"size": (48, 64)}, {"size": (32, 104)}
KINDS = {
    "rooms": ("rooms", ROOMS),
    "rooms, pairs": ("rooms", ROOMS | {"baseline": 0.1}),
    "rooms, kinect": ("rooms", ROOMS | {"sensor": "kinect"}),
    "streets": ("streets", STREETS),
    "streets, pairs": ("streets", STREETS | {"baseline": 0.54}),
}
ITEMS = [
    (kind, split, index)
    for kind in KINDS
    for split, index in (("train", 0), ("train", 7), ("val", 1), ("test", 2))
]
FIELDS = {
    "rooms": ("image", "depth", "normal", "label"),
    "streets": ("image", "depth", "normal", "label", "sparse_depth"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    yield from toys.one_thread()


@pytest.fixture(scope="module")
def record():
    """What is recorded; with GOLDEN=write it is filled, and written at the end."""
    found = {} if MODE == "write" else json.loads(RECORD.read_text())
    yield found
    if MODE == "write":
        RECORD.write_text(json.dumps(found, indent=1) + "\n")


def check(record, name, value, rel=1e-4, atol=1e-6):
    """`value`: a hash, or a list of numbers."""
    if MODE == "write":
        record[name] = value
    elif MODE == "exact" or isinstance(value, str):
        assert value == record[name], name
    else:
        assert value == pytest.approx(record[name], rel=rel, abs=atol, nan_ok=True), name


@pytest.mark.parametrize("kind, split, index", ITEMS, ids=lambda x: str(x).replace(" ", "_"))
def test_rendered_items(record, kind, split, index):
    name, options = KINDS[kind]
    dataset = load_dataset(
        name, split, limit=index + 1, fields=FIELDS[name], cache=False, **options
    )
    item = dataset[index]
    key = f"{kind}, {split}, {index}"
    tensors = {k: v for k, v in item.items() if isinstance(v, torch.Tensor)}
    assert {*FIELDS[name], "intrinsics"} <= {*tensors}
    for field, value in tensors.items():
        if value.ndim == 3 or field == "label":
            blocks = adaptive_avg_pool2d(value.float().reshape(-1, *value.shape[-2:]), BLOCKS)
            # A pixel on an edge may fall to the other side elsewhere: 1 of 128 in a block.
            atol = {"image": 0.004, "right": 0.004, "normal": 0.02, "label": 0.2}.get(field, 0.1)
            numbers = [round(x, 6) for x in blocks.flatten().tolist()]
            check(record, f"{key}, {field}", numbers, rel=0, atol=atol)
    if MODE in ("write", "exact"):
        digest = hashlib.sha256()
        for field in sorted(tensors):
            digest.update(field.encode() + tensors[field].contiguous().numpy().tobytes())
        check(record, key, digest.hexdigest())


NETWORKS = {  # name: size, layers, inputs
    "meter_xxs": ((64, 128), ("dec_3", "enc_4"), {}),
    "mff_test_resnet": ((64, 96), ("D", "MFF"), {}),
    "bts_test_resnet": ((64, 96), ("iconv1",), {}),
    "cspn_test_resnet": ((64, 96), ("layer4",), {"sparse_samples": 50}),
    "epcdepth_test_resnet": ((64, 96), ("stage1d",), {}),
}


@pytest.fixture(scope="module", params=NETWORKS)
def measured(request):
    """A network of random weights with data: name, model, items, layers, dissection."""
    size, layers, options = NETWORKS[request.param]
    torch.manual_seed(0)
    model = build_model(request.param)
    items = load_dataset(
        "rooms", "test", size=size, limit=4, fields=("image", "depth"), cache=False, **options
    )
    items = [items[i] for i in range(len(items))]
    return request.param, model, items, layers, dissect(model, items, layers, bins="rooms")


def numbers_of(metrics):
    return [metrics[key] for key in ("d1", "rms", "rel", "log10")]


def test_dissection(record, measured):
    name, _, _, layers, seen = measured
    for layer in layers:
        check(record, f"{name}, selectivity, {layer}", seen.selectivity[layer].tolist())
        check(record, f"{name}, response, {layer}", seen.response[layer][:4].flatten().tolist())


def test_evaluation(record, measured):
    name, model, items, *_ = measured
    for protocol, metrics in evaluate(model, items, protocol=("imde", "mff")).items():
        check(record, f"{name}, {protocol}", numbers_of(metrics))


def test_edits(record, measured):
    name, model, items, layers, seen = measured
    layer = layers[0]
    with ablate(model, {layer: [1, 3]}):
        check(record, f"{name}, ablated", numbers_of(evaluate(model, items)))
    with ablate(model, {layer: [1, 3]}, answer="mean", dissection=seen):
        check(record, f"{name}, ablated to the mean", numbers_of(evaluate(model, items)))
    depth = torch.stack([item["depth"] for item in items])
    with correct(model, seen, depth, [layer]):
        check(record, f"{name}, corrected", numbers_of(evaluate(model, items)))


def test_attack(record, measured):
    name, model, items, *_ = measured
    keys = ("image", "depth", "sparse_depth")
    batch = {k: torch.stack([i[k] for i in items]) for k in keys if k in items[0]}
    attacked = fgsm(model, batch, epsilon=0.05)
    changed = [item | {"image": x} for item, x in zip(items, attacked, strict=True)]
    # A sign may turn where a gradient is next to nothing.
    check(record, f"{name}, attacked", numbers_of(evaluate(model, changed)), rel=2e-3)


@pytest.mark.parametrize("method", [None, "assign", "reg"])
def test_training(record, method):
    config = TrainConfig(
        model="net",
        neuron_selective=method is not None,
        method=method or "assign",
        imde_alpha=-1.0,
        cfg_layers=("wide",),
        num_epochs=2,
        batch_size=4,
        learning_rate=0.01,
        schedule="cosine",
    )
    frame = fit(toys.net(), toys.items(12), toys.items(4, seed=1), config).frame
    for column in ("loss", "depth_loss", "selectivity_term", "val_rms", "val_selectivity_wide"):
        check(record, f"training, {method}, {column}", frame[column].tolist(), rel=1e-3)
