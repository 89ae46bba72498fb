"""The part of a network behind edited layers, run alone, against the whole network."""

import random
import warnings
from contextlib import ExitStack
from itertools import islice

import pytest
import torch
from torch import nn
from toys import items, one_thread

from mde_utils.activations import edit, evaluating, tap
from mde_utils.dissection import dissect
from mde_utils.edits import ablate, correct
from mde_utils.evaluation import evaluate
from mde_utils.interventions import _Removal, ablation_curve, correction_effects
from mde_utils.models import build_model
from mde_utils.replay import Remainder

pytestmark = pytest.mark.filterwarnings("ignore:Neither the data set nor the model")
threads = pytest.fixture(autouse=True, scope="module")(one_thread)


class Depths(list):
    depth_range = (0.75, 10.0)
    name = "toys"


DATA, BATCH = Depths(items(5)), torch.stack([item["image"] for item in items(5)])
DEPTH = torch.stack([item["depth"] for item in items(5)])


def run(model, image):
    with evaluating(model):
        return model(image)


class Blocks(nn.Module):
    """What real networks do behind a layer: other branches, in-place steps, views, groups."""

    def __init__(self, last=None):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 4, 3, 2, 1)
        self.join = nn.Conv2d(15, 8, 3, 1, 1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.straight = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.ReLU(inplace=True))
        self.again = nn.Conv2d(8, 1, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = last

    def forward(self, image):
        a, b = self.a(image), self.b(image)
        x = self.relu(self.norm(self.join(torch.cat([b, a, image[:, :, ::2, ::2]], 1))))
        tokens = x.flatten(2).mT
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        x = x + tokens.mT.unflatten(2, x.shape[2:])
        x += self.straight(a)
        x[:, :4].mul_(0.5)
        if self.last is not None:
            x = self.last(x, image)
        return self.again(x) + 3


def whole(model, image, edits):
    with evaluating(model), edit(model, edits):
        return model(image)


def setting(chosen, fill):
    def replaced(act):
        out = act.clone()
        out[:, chosen] = fill[chosen].to(act)[:, None, None]
        return out

    return replaced


def removed_one_by_one(model, layers, image, seed=0):
    """Found and expected after each removal, in random order; updated convolutions."""
    model.eval()
    with tap(model, layers) as acts:
        run(model, image)
        units = [(layer, k) for layer in layers for k in range(acts[layer].shape[1])]
    fills = {layer: torch.rand(acts[layer].shape[1]).double() for layer in layers}
    random.Random(seed).shuffle(units)
    with evaluating(model):
        rest = Remainder(model, layers, image, {})
        removal = _Removal(rest, fills)
        for n in range(0, len(units) + 1):
            gone = {layer: [k for name, k in units[:n] if name == layer] for layer in layers}
            with ExitStack() as stack:
                for layer, chosen in gone.items():
                    stack.enter_context(edit(model, {layer: setting(chosen, fills[layer])}))
                expected = model(image)
            yield removal(units[:n]), expected, len(rest.convolutions)


@pytest.mark.parametrize(
    ("name", "layers", "convolutions"),
    [
        ("blocks", ["a"], 1),
        ("blocks", ["b", "a"], 1),
        ("blocks", ["a", "join", "straight"], 1),
        ("blocks", ["norm"], 0),
        ("meter_xxs", ["dec_3"], 1),
        ("meter_xxs", ["enc_8", "enc_9", "dec_1"], 1),
        ("mff_resnet18", ["D", "MFF"], 1),
        ("mff_resnet18", ["MFF", "Rconv0"], 1),
    ],
)
def test_the_rest_alone_gives_what_the_network_gives(name, layers, convolutions):
    model = Blocks() if name == "blocks" else build_model(name)
    for module in model.modules():  # as trained: running statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.3, 2)
    image = torch.rand(2, 3, 64, 64)
    plain = run(model, image)
    moved = 0
    for found, expected, updated in islice(removed_one_by_one(model, layers, image), 20):
        moved = max(moved, (expected - plain).abs().max())
        # The network without these units, to float rounding: not just the whole network.
        assert (found - expected).abs().max() <= 1e-5 * max(moved, expected.abs().max())
        assert updated == convolutions
    assert moved > 1e-3 * plain.abs().max()
    with evaluating(model):
        halve = {layer: lambda act: act * 0.5 for layer in layers}
        rest = Remainder(model, layers, image, {})
        for edits in (halve, {}, {layers[0]: torch.sin}, halve):
            found, expected = rest.run(edits), whole(model, image, edits) if edits else plain
            assert torch.equal(found, expected)  # nothing but the recorded operations


def test_the_rest_under_autocast():
    model, image = Blocks(), torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16), evaluating(model):
        rest = Remainder(model, ["a"], image, {})
        edits = {"a": lambda act: act * 0.5}
        assert torch.equal(rest.run(edits), whole(model, image, edits))
    assert torch.equal(rest.run({}), rest.run({}))


class Decides(nn.Module):
    def forward(self, x, image):
        return x if x.mean() > 0 else -x


class Selects(nn.Module):
    def forward(self, x, image):
        return x * len(x[x > 0])


class Leaves(nn.Module):
    """For numpy, which no recording sees."""

    def forward(self, x, image):
        return torch.from_numpy(x.detach().numpy() ** 2) + x


class Writes(nn.Module):
    def forward(self, x, image):
        buffer = torch.zeros_like(image[:, :1, ::2, ::2]).expand(-1, 8, -1, -1).clone()
        buffer += x
        return buffer


class Overwrites(nn.Module):
    """Changes something fixed after it was used."""

    def forward(self, x, image):
        small = image[:, :1, ::2, ::2].clone()
        x = x + small
        small.zero_()
        return x


@pytest.mark.parametrize("last", [Decides, Selects, Leaves, Writes, Overwrites])
def test_what_cannot_run_alone_runs_whole_and_says_so(last):
    model = Blocks(last()).eval()
    seen = dissect(model, DATA, ["a"])
    with pytest.warns(UserWarning, match="part of Blocks behind a cannot be run alone.*slower"):
        curve = ablation_curve(model, DATA, seen, ["a"], orders="most", points=[0, 3, 8])
    order = curve.units[0]
    for removed, rms in zip(curve.points, curve.frame["rms"], strict=True):
        units = {"a": [k for _, k in order[:removed]]}
        with ablate(model, units) if removed else warnings.catch_warnings():
            assert rms == pytest.approx(evaluate(model, DATA)["rms"], rel=1e-5)
    with pytest.warns(UserWarning, match="slower"):
        effects = correction_effects(model, DATA, seen, ["a"], controls="truth", blends=[1])
    with correct(model, seen, DEPTH, ["a"]):
        expected = evaluate(model, DATA)
    assert effects["rms"][1] == pytest.approx(expected["rms"], rel=1e-5)


def test_layers_that_run_twice_or_never():
    shared = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="'0' runs more than once"):
        Remainder(nn.Sequential(shared, shared), ["0"], BATCH, {})
    model = Blocks()
    model.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="'unused' is never called"):
        Remainder(model, ["unused"], BATCH, {})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
