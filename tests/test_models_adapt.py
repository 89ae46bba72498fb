"""Any network as a depth model: what its numbers mean, the forms it returns them in, tokens."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mde_utils.activations import edit, evaluating, tap
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import dissect
from mde_utils.edits import ablate
from mde_utils.evaluation import evaluate, photometric
from mde_utils.interventions import ablation_curve, unit_effects
from mde_utils.models import DepthModel, adapt
from mde_utils.models.adapt import FARTHEST
from mde_utils.replay import Remainder
from mde_utils.views.explorer import Explorer

os.environ["HF_HUB_OFFLINE"] = "1"
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}
METRES = {**PLAIN, "output": "depth", "unit": 1.0}


class Gives(nn.Module):
    """Returns what a function makes of its (b, 3, h, w) input."""

    def __init__(self, fn):
        super().__init__()
        self.fn, self.seen = fn, None

    def forward(self, x):
        self.seen = x
        return self.fn(x)


def one(x):
    return x[:, :1] + 0.5


def image(*size, seed=0):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_it_is_a_depth_model_in_metres():
    net = Gives(one)
    model = adapt(net, mean=(0.5, 0.4, 0.3), std=(2, 1, 1), output="depth", unit=0.001)
    x = image(6, 8)
    assert isinstance(model, DepthModel) and model.scale == "metric" and model.name == "Gives"
    torch.testing.assert_close(model(x), 1e-3 * ((x[:, :1] - 0.5) / 2 + 0.5))
    assert model.net is net and net.seen.shape == (2, 3, 6, 8)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        model(255 * x)


@given(
    word=st.sampled_from(["inverse_depth", "disparity"]),
    unit=st.floats(0.01, 1000),
    low=st.floats(-1, 0.5),
)
def test_inverse_depth(word, unit, low):
    value = torch.linspace(low, 3, 24).view(1, 1, 4, 6).expand(2, -1, -1, -1)
    model = adapt(Gives(lambda x: value[:, 0]), **PLAIN, output=word, unit=unit)
    depth = model(image(4, 6))
    torch.testing.assert_close(depth, unit / value.clamp(min=3 * FARTHEST))
    assert depth.shape == (2, 1, 4, 6) and bool(depth.isfinite().all())


def test_depth_of_logits_is_the_expected_one():
    logits = torch.randn(2, 5, 4, 6)
    centres = [1.0, 2, 3, 5, 8]
    model = adapt(Gives(lambda x: logits), **PLAIN, output="logits", centres=centres, unit=2)
    expected = 2 * torch.einsum("bkhw,k->bhw", logits.softmax(1), torch.tensor(centres))[:, None]
    torch.testing.assert_close(model(image(4, 6)), expected)


@pytest.mark.parametrize("words", ["up to scale", "up to scale and shift"])
def test_a_scale_that_nobody_knows_is_kept_as_words(words):
    model = adapt(Gives(one), **PLAIN, output="depth", unit=words)
    assert model.scale == words
    torch.testing.assert_close(model(image(4, 6)), one(image(4, 6)))


class Fields:
    def __init__(self, x):
        self.depth, self.other = x, None


@pytest.mark.parametrize(
    "fn, field, says",
    [
        (lambda x: {"out": one(x), "aux": x}, "out", r"dict of 'out' \(2, 1, 4, 6\), 'aux'"),
        (lambda x: (x, one(x)), 1, r"tuple of 0 \(2, 3, 4, 6\), 1 \(2, 1, 4, 6\)"),
        (lambda x: [x, one(x)], -1, "list of 0"),
        (lambda x: Fields(one(x)), "depth", r"Fields of 'depth' \(2, 1, 4, 6\), 'other' NoneType"),
    ],
)
def test_a_field_is_asked_for_and_read(fn, field, says):
    with pytest.raises(ValueError, match=says + ".*Say which"):
        adapt(Gives(fn), **METRES)(image(4, 6))
    torch.testing.assert_close(
        adapt(Gives(fn), **METRES, field=field)(image(4, 6)), one(image(4, 6))
    )
    with pytest.raises(ValueError, match="no field 'none', but .*Give another"):
        adapt(Gives(fn), **METRES, field="none")(image(4, 6))


@pytest.mark.parametrize(
    "options, says",
    [
        (PLAIN, "What does Gives give.*depth, inverse_depth, disparity, logits"),
        ({**PLAIN, "output": "metres", "unit": 1}, "got 'metres'"),
        ({**PLAIN, "output": "depth"}, "Of what unit is the depth of Gives.*'up to scale'"),
        ({**METRES, "unit": "mm"}, "got 'mm'"),
        ({**METRES, "unit": 0}, "above 0"),
        ({**METRES, "centres": [1]}, "centres"),
        ({**METRES, "output": "logits"}, "centres"),
        ({**METRES, "taps": ["bakbone"]}, "Unknown layer of Gives 'bakbone'"),
        ({**METRES, "tokens": {"x": 4}}, "tokens names 'x', which taps lacks"),
    ],
)
def test_what_is_not_said_is_asked(options, says):
    with pytest.raises(ValueError, match=says):
        adapt(Gives(one), **options)


@pytest.mark.parametrize(
    "fn, says",
    [
        (lambda x: torch.cat([x, x], 1), r"\(2, 6, 4, 6\); depth is .*6 channels are logits"),
        (lambda x: x.flatten(1), r"\(2, 72\); depth is \(b, 1, h, w\) or \(b, h, w\)"),
        (lambda x: None, "NoneType of nothing"),
    ],
)
def test_what_is_no_depth_is_refused(fn, says):
    with pytest.raises(ValueError, match=says):
        adapt(Gives(fn), **METRES)(image(4, 6))


@pytest.mark.parametrize(
    "size, fed", [((8, 8), (8, 8)), (4, (8, 12)), (14, (14, 14)), (None, (9, 11))]
)
def test_images_are_resized_to_what_it_takes(size, fed):
    net = Gives(one)
    x = image(9, 11).requires_grad_()
    adapt(net, **METRES, size=size)(x).sum().backward()
    expected = F.interpolate(x, fed, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(net.seen, x if fed == (9, 11) else expected)
    assert x.grad.abs().sum() > 0  # attacks go through


# ---- tokens --------------------------------------------------------------------------------


class ViT(nn.Module):
    """Patches of 4 pixels as tokens behind a class and a register token, and a head on them."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, 4)
        self.first, self.second = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 5), nn.GELU())
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        maps = self.patch(x)
        x = maps.flatten(2).transpose(1, 2)
        x = self.first(torch.cat([x[:, :1] * 0 + 7, x[:, :1] * 0 - 7, x], 1)).relu()
        x = self.second(x)
        depth = self.head(x)[:, 2:, 0] + x[:, :1, 0] + 5  # the class token takes part
        return depth.unflatten(1, maps.shape[-2:])


def vit(**options):
    torch.manual_seed(0)
    taps = {"a": "first", "b": "second"}
    tokens = {"a": (2, 4), "b": (2, 4)}
    return adapt(ViT(), **{**METRES, "size": 4, "taps": taps, "tokens": tokens, **options})


def direct(model, x):
    """(b, n, c) tokens of both layers, by hand."""
    net, seen = model.net, {}
    handles = [
        getattr(net, path).register_forward_hook(lambda _m, _i, out, k=k: seen.update({k: out}))
        for k, path in (("a", "first"), ("b", "second"))
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@given(h=st.integers(1, 5), w=st.integers(1, 5))
def test_tokens_are_maps_of_any_grid(h, w):
    model, x = vit(), image(4 * h, 4 * w)
    seen = direct(model, x)
    with torch.no_grad(), tap(model, ["a", "net.second"]) as acts:
        model(x)
    for layer, key, c in (("a", "a", 6), ("net.second", "b", 5)):
        assert acts[layer].shape == (2, c, h, w)
        for i in range(h):
            for j in range(w):
                assert torch.equal(acts[layer][:, :, i, j], seen[key][:, 2 + i * w + j])


def test_dissection_of_tokens_is_that_of_the_map():
    class Maps(nn.Module):
        """The same units as a map already."""

        def __init__(self, model):
            super().__init__()
            self.model, self.map = model, nn.Identity()

        def forward(self, x):
            tokens = direct(self.model, x)["a"]
            return self.map(tokens[:, 2:].transpose(1, 2).unflatten(2, (3, 4)))

    model = vit(depth_range=(0.75, 10))
    data = [{"image": x, "depth": 1 + 8 * torch.rand(1, 12, 16)} for x in image(12, 16)]
    found = dissect(model, data, ["a"])
    expected = dissect(Maps(model), data, ["map"], bins=(0.75, 10))
    assert torch.equal(found.sums["a"], expected.sums["map"])
    assert torch.equal(found.selectivity["a"], expected.selectivity["map"])


def test_edits_of_tokens_leave_the_prefix_as_it_is():
    model, x = vit(), image(12, 16)
    seen = direct(model, x)["b"].clone()
    with torch.no_grad(), ablate(model, {"b": [1, 3]}):
        found = model(x)
    seen[:, 2:, [1, 3]] = 0
    expected = model.net.head(seen)[:, 2:, 0] + seen[:, :1, 0] + 5
    torch.testing.assert_close(found, expected.unflatten(1, (3, 4))[:, None])
    with pytest.raises(ValueError, match=r"keep the shape \(2, 5, 3, 4\); it gave \(2, 5, 3, 3\)"):
        with torch.no_grad(), edit(model, {"b": lambda act: act[..., 1:]}):
            model(x)


def test_what_is_behind_tokens_runs_alone():
    model, x = vit(), image(12, 16)
    edits = {"a": lambda act: act * 0.5, "b": lambda act: act.flip(1)}
    with evaluating(model):
        rest = Remainder(model, ["a", "b"], x, {})
        for chosen in ({}, {"a": edits["a"]}, edits):
            with edit(model, chosen) if chosen else evaluating(model):
                torch.testing.assert_close(rest.run(chosen), model(x))


def test_a_wrong_side_of_the_patches_is_an_error():
    model = vit(tokens={"a": (2, 2)})
    with pytest.raises(ValueError, match="'a' gives 14 tokens, but the grid"):
        with tap(model, ["a"]):
            model(image(12, 16))


# ---- networks of others --------------------------------------------------------------------


def depth_anything():
    from transformers import DepthAnythingConfig, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=14,
        image_size=42,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    return DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=12,
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        depth_estimation_type="metric",
        max_depth=10,
    )


def dpt():
    from transformers import DPTConfig

    return DPTConfig(
        hidden_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )


def glpn():
    from transformers import GLPNConfig

    return GLPNConfig(
        hidden_sizes=[4, 8, 8, 8],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=8,
        num_attention_heads=[1, 1, 2, 2],
    )


@pytest.mark.parametrize(
    "config, size, path, tokens, grid",
    [
        (depth_anything, 14, "backbone.encoder.layer.3", (1, 14), (3, 5)),
        (dpt, (64, 64), "dpt.encoder.layer.3", (1, 16), (4, 4)),
        (glpn, 32, "glpn.encoder.layer_norm.2", 16, (2, 4)),
    ],
)
def test_hugging_face(config, size, path, tokens, grid):
    from transformers import AutoModelForDepthEstimation

    torch.manual_seed(0)
    net = AutoModelForDepthEstimation.from_config(config())
    for weight in net.parameters():  # as they are made, networks this small give nothing
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.2)
    with pytest.raises(ValueError, match=r"DepthEstimatorOutput of 'predicted_depth' \(1, "):
        adapt(net, **METRES, size=size).eval()(image(40, 70)[:1])
    model = adapt(
        net, **METRES, field="predicted_depth", size=size, taps=[path], tokens={path: tokens}
    )
    depth = 1 + 8 * torch.rand(1, 40, 70)
    found = dissect(model, [{"image": image(40, 70)[0], "depth": depth}], [path], bins="nyu")
    assert model.grids[path][1:] == grid and len(found.sums[path]) in (8, 12)
    with evaluating(model):
        before = model(image(40, 70))
        assert before.ndim == 4 and before.shape[1] == 1
        with edit(model, {path: lambda act: act + torch.randn(act.shape[-2:])}):
            assert not torch.equal(model(image(40, 70)), before)


def test_torchvision():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    def make(classes):
        return lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes
        ).eval()

    with pytest.raises(ValueError, match="OrderedDict of 'out'.*Say which"):
        adapt(make(1), **METRES)(image(32, 32))
    with pytest.raises(ValueError, match="21 channels are logits"):
        adapt(make(21), **METRES, field="out")(image(32, 32))
    model = adapt(make(1), **METRES, field="out", taps={"low": "backbone.4"})
    with torch.no_grad(), tap(model, ["low"]) as acts:
        assert model(image(32, 32)).shape == (2, 1, 32, 32)
    assert acts["low"].ndim == 4


def test_the_size_that_it_was_trained_on_is_said():
    assert adapt(Gives(one), **METRES, image_size=(518, 518), size=14).image_size == (518, 518)
    assert adapt(Gives(one), **METRES, size=(8, 12)).image_size == (8, 12)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
def test_centres_of_any_kind(kind):
    centres = [1.0, 2, 3, 5, 8]
    logits = torch.randn(2, 5, 4, 6)
    net = Gives(lambda x: logits)
    expected, found = (
        adapt(net, **PLAIN, output="logits", centres=c, unit=1)(image(4, 6))
        for c in (centres, kind(centres))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("words", ["up to scale", "up to scale and shift"])
def test_depth_that_is_not_in_metres_is_not_compared_with_metres(words):
    net = Gives(lambda x: one(net.layer(x)))
    net.layer = nn.Identity()
    model = adapt(net, **PLAIN, output="depth", unit=words, taps=["layer"])
    data = [
        {"image": image(12, 16)[0], "depth": 2 * one(image(12, 16))[0], "name": "a",
         "right": image(12, 16)[0], "intrinsics": torch.eye(3), "baseline": 0.1}
    ]  # fmt: skip
    seen = dissect(model, data, ["layer"], bins={"layer": DepthBins.sid(3, 0.1, 10)})
    for what in (
        lambda: evaluate(model, data, cap=10),
        lambda: photometric(model, data),
        lambda: Explorer(model, data, seen),
        lambda: unit_effects(model, data, seen, "layer"),
        lambda: ablation_curve(model, data, seen, ["layer"]),
    ):
        with pytest.raises(ValueError, match=f"is known {words}, not in metres"):
            what()
    if words == "up to scale":
        assert evaluate(model, data, protocol="epc-nyu")["rel"] < 1e-3
    else:
        with pytest.raises(ValueError, match="not in metres"):
            evaluate(model, data, protocol="epc-nyu")
