"""METER against the facts of its publication and of the published weights."""

import hashlib
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mde_utils.checkpoints import load_weights
from mde_utils.models import build_model
from mde_utils.models.base import check_size
from mde_utils.models.meter import Attention, MobileViT

# name -> parameters, tensors and SHA-256 of the sorted lines "key [shape]" of the original modules.
ORIGINALS = {
    "meter_xxs": (
        713_464,
        "8d83a19c45efa3abfe0e5b33a51d1333e55d69897cc4107d064ef9c4fcb89732",
    ),
    "meter_xs": (
        1_449_760,
        "1ad4fa49000bf210a7317f60c55c806c16671c14503bbbdbc0efd707c0b550dc",
    ),
    "meter_s": (
        3_295_168,
        "c5dd070d59cfde213c868bf1d8b5d215d4f18882d66809e945945ebdbbf62909",
    ),
}
UNITS = {
    "meter_xxs": (16, 16, 24, 24, 24, 48, 48, 64, 64, 80, 80, 160, 64, 32, 16, 8),
    "meter_xs": (16, 32, 48, 48, 48, 64, 64, 80, 80, 96, 96, 192, 128, 64, 32, 16),
    "meter_s": (16, 32, 64, 64, 64, 96, 96, 128, 128, 160, 160, 320, 128, 64, 32, 16),
}
STRIDES = (2, 2, 4, 4, 4, 8, 8, 16, 16, 32, 32, 32, 32, 16, 8, 4)


@pytest.fixture(scope="module")
def xxs():
    torch.manual_seed(0)
    return build_model("meter_xxs").eval()


@pytest.mark.parametrize("name", ORIGINALS)
def test_parameters_keys_and_shapes_are_the_originals(name):
    parameters, digest = ORIGINALS[name]
    model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    assert len(state) == 261
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


@pytest.mark.parametrize("name", UNITS)
def test_taps_have_the_publications_units_and_sizes(name):
    model = build_model(name).eval()
    shapes, handles = {}, []
    for tap, path in model.taps.items():
        hook = lambda _module, _inputs, out, tap=tap: shapes.update({tap: tuple(out.shape)})  # noqa: E731
        handles.append(model.get_submodule(path).register_forward_hook(hook))
    with torch.no_grad():
        model(torch.rand(1, 3, 192, 256))
    for handle in handles:
        handle.remove()
    expected = [f"enc_{i}" for i in range(11)] + ["enc_output"] + [f"dec_{i}" for i in range(4)]
    assert list(model.taps) == expected
    for tap, units, stride in zip(expected, UNITS[name], STRIDES, strict=True):
        assert shapes[tap] == (1, units, 192 // stride, 256 // stride), tap


@pytest.mark.parametrize(
    "size, out", [((192, 256), (48, 64)), ((192, 636), (48, 160)), ((61, 57), (16, 16))]
)
def test_output_is_a_quarter_in_metres(xxs, size, out):
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        depth = xxs(image)
    assert depth.shape == (1, 1, *out)
    assert depth.dtype == torch.float32


def test_conventions_of_the_published_weights(xxs):
    kitti = build_model("meter_xxs", dataset="kitti").eval()
    kitti.load_state_dict(xxs.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(kitti(image), xxs.forward_raw(image) * 0.1)
    assert xxs.metres_per_unit == 0.01
    assert (xxs.depth_range, kitti.depth_range) == ((0.75, 10.0), (3.0, 80.0))
    assert xxs.loss_scale == 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_sizes_run_or_name_the_nearest_that_do(height, width):
    check = partial(check_size, name="meter", multiple=32, slack=(3, 7))
    possible_heights = [h for k in range(1, 8) for h in range(32 * k - 3, 32 * k + 1)]
    possible_widths = [w for k in range(1, 8) for w in range(32 * k - 7, 32 * k + 1)]
    if height in possible_heights and width in possible_widths:
        check(torch.empty(3, height, width, device="meta"))
        return
    with pytest.raises(ValueError, match=f"{height}x{width}") as caught:
        check(torch.empty(3, height, width, device="meta"))
    for size, possible in ((height, possible_heights), (width, possible_widths)):
        below = [str(p) for p in possible if p < size][-1:]
        above = [str(p) for p in possible if p > size][:1]
        if size not in possible:
            assert f"{size} (nearest: {' or '.join(below + above)})" in str(caught.value)


def test_every_possible_size_runs(xxs):
    with torch.no_grad():
        for height, width in zip((61, 62, 63, 64) * 2, range(57, 65), strict=True):
            assert xxs(torch.rand(1, 3, height, width)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("size", [(160, 224), (32, 32), (96, 96), (29, 25), (93, 153)])
def test_sides_are_multiples_of_32(xxs, size):
    """Maps of odd sides are paired with their own last row or column."""
    height, width = (-(-n // 32) * 8 for n in size)
    with torch.no_grad():
        assert xxs(torch.rand(1, 3, *size)).shape == (1, 1, height, width)


def test_an_odd_map_is_its_own_edge_continued():
    torch.manual_seed(0)
    block = MobileViT(8, 6, 16).eval()
    x = torch.randn(2, 8, 5, 7)
    block.conv1, block.conv2, block.conv3, block.conv4 = (nn.Identity() for _ in range(4))
    with torch.no_grad():
        out = block(x)
        even = block(F.pad(x, (0, 1, 0, 1), mode="replicate"))
    assert torch.equal(out[:, :8], even[:, :8, :5, :7]) and torch.equal(out[:, 8:], x)


def test_impossible_size_is_refused_before_any_work(xxs):
    with pytest.raises(ValueError, match=r"228 \(nearest: 224 or 253\)"):
        xxs(torch.rand(1, 3, 228, 304))


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    layer, x = Attention(24), torch.randn(2, 6, 24)
    q, k, v = layer.to_qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(4):
        s = slice(8 * h, 8 * h + 8)
        weights = (q[..., s] @ k[..., s].transpose(1, 2) / math.sqrt(8)).softmax(-1)
        heads.append(weights @ v[..., s])
    torch.testing.assert_close(layer(x), layer.to_out(torch.cat(heads, -1)), rtol=1e-4, atol=1e-5)


def test_patch_positions_do_not_mix_in_the_transformer(xxs):
    """A change at one position of one 2x2 patch reaches that position of all patches, no other."""
    block = xxs.encoder.mvit[0]
    seen = []
    handle = block.transformer.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        block(torch.rand(1, 48, 4, 6))
        handle.remove()
        tokens = seen[0].clone()
        tokens[3, 5] += torch.rand(64)  # a constant would be undone by the norm
        moved = block.transformer(tokens) - block.transformer(seen[0])
    assert tokens.shape == (4, 6, 64)
    assert moved[:3].abs().max() == 0
    assert (moved[3].abs().amax(-1) > 0).all()


def test_channels_last_gives_the_same(xxs):
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = xxs(image)
        last = xxs.to(memory_format=torch.channels_last)(
            image.contiguous(memory_format=torch.channels_last)
        )
    xxs.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    model = build_model("meter_xxs")
    model(torch.rand(2, 3, 64, 128)).square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_nothing_overwrites_a_tapped_output(xxs):
    """Any module path can be tapped, so no later layer may work in place on what it gave."""
    kept, handles = [], []
    for module in xxs.modules():
        if not list(module.children()):
            hook = lambda _m, _i, out: kept.append((out, out.clone()))  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        xxs(torch.rand(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.parametrize("dataset", ["nyu", "kitti"])
def test_published_weights_load_strictly(real, dataset):
    path = real.parent / "weights" / f"meter_xxs_{dataset}.pth"
    report = load_weights(build_model("meter_xxs", dataset=dataset), path)
    assert report.ok and report.loaded == 261
