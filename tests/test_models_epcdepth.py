"""EPCDepth against the facts of its publication, and over other backbones."""

import hashlib
import pickle

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mde_utils.activations import edit, tap
from mde_utils.checkpoints import load_weights, save_weights
from mde_utils.dissection import dissect
from mde_utils.models import build_model
from mde_utils.models.epcdepth import PUBLISHED_BACKBONES, RSU, mirrored
from mde_utils.stereo import disparity_to_depth

# name -> parameters, tensors and SHA-256 of the sorted lines "key [shape]" of the original modules.
ORIGINALS = {
    "epcdepth_resnet18": (
        26_861_058,
        342,
        "d5458ca79e5aaa75f9e65c3c114f623e7000e454e775d3b5c023947f94385a0e",
    ),
    "epcdepth_resnet50": (
        55_990_274,
        540,
        "9bd58a4e6459470a5931dfafac0a975c0aa742f3534a45ba0e477b8a8d7cc163",
    ),
}
SMALL = "epcdepth_test_resnet"
LAYERS = ["relu", "layer1", "layer2", "layer3", "layer4"]
LAYERS += ["stage5d", "stage4d", "stage3d", "stage2d", "stage1d"]


def on_meta(name, **options):
    """Shapes alone: the large networks cost nothing."""
    with torch.device("meta"):
        return build_model(name, **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


def seen(model):
    """With the running statistics of a network that has seen something."""
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return seen(build_model(SMALL, width=32))


# ---------------------------------------------------------------------------- the originals


@pytest.mark.parametrize("name", ORIGINALS)
def test_parameters_keys_and_shapes_are_the_originals(name):
    parameters, tensors, digest = ORIGINALS[name]
    model = on_meta(name)
    assert count(model) == parameters
    state = model.state_dict()
    assert len(state) == tensors
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    "name, encoder, decoder, heads, plain, gmac",
    [
        ("epcdepth_resnet18", 11_176_512, 15_171_546, 11_967_429, 3_152_724, 43.0),
        ("epcdepth_resnet50", 23_508_032, 30_433_242, 21_367_749, 9_014_100, 78.2),
    ],
)
def test_parts_and_cost_are_the_originals(name, encoder, decoder, heads, plain, gmac):
    model = on_meta(name)
    assert count(model.depth_decoder) == decoder
    assert count(model.depth_decoder.encoder_disps) == heads
    assert count(model.encoder) - count(model.encoder.encoder.fc) == encoder
    assert count(on_meta(name, inference=True)) == encoder + decoder - heads
    assert count(on_meta(name, decoder="plain").depth_decoder) == plain
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.disparities(torch.rand(1, 3, 320, 1024, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 1) == gmac


def test_the_numbers_of_the_docstring_are_true():
    text = " ".join(type(on_meta(SMALL)).__doc__.split())
    for name in ORIGINALS:
        full, bare = on_meta(name), on_meta(name, inference=True)
        for number in (count(full), count(full.encoder.encoder.fc), count(bare)):
            assert f"{number:,}" in text


@pytest.mark.parametrize("layers", [34, 101, 152])
def test_the_other_resnets(layers):
    model = on_meta(f"epcdepth_resnet{layers}")
    like = on_meta(f"epcdepth_resnet{18 if layers == 34 else 50}")
    assert count(model.depth_decoder) == count(like.depth_decoder)
    assert len(model.disparities(torch.rand(1, 3, 64, 64, device="meta"))) == 10


# ---------------------------------------------------------------------------- disparities


FULL = [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6), (2, 3), (4, 6), (8, 12), (16, 24), (32, 48)]


@pytest.mark.parametrize(
    "options, sizes",
    [({}, FULL), ({"inference": True}, FULL[:5]), ({"decoder": "plain"}, FULL[:4])],
)
@pytest.mark.parametrize("name", ["epcdepth_resnet18", SMALL])
def test_sizes_of_the_disparities(name, options, sizes):
    model = on_meta(name, **options)
    found = model.disparities(torch.rand(2, 3, 64, 96, device="meta"))
    assert [tuple(x.shape) for x in found] == [(2, 1, *size) for size in sizes]
    assert model(torch.rand(2, 3, 64, 96, device="meta")).shape == (2, 1, 64, 96)


def test_disparities_come_in_the_publications_order(small):
    """Decoder fine to coarse (its heads count the other way), then encoder coarse to fine."""
    heads = [f"depth_decoder.disps.{i}" for i in (4, 3, 2, 1, 0)]
    heads += [f"depth_decoder.encoder_disps.{i}" for i in (4, 3, 2, 1, 0)]
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad(), tap(small, heads) as acts:
        found = small.disparities(image)
        for x, layer in zip(found, heads, strict=True):
            assert x.dtype == torch.float32 and 0 < x.min() < x.max() < 1
            assert torch.equal(x, acts[layer].sigmoid())
        raw = small.forward_raw((image - 0.45) / 0.225)
    torch.testing.assert_close(raw, found)


@pytest.mark.parametrize("baseline, factor", [(None, 5.4), (0.1, 1.0), (2, 20.0)])
def test_depth_is_metric_through_the_baseline(baseline, factor):
    torch.manual_seed(0)
    model = build_model(SMALL, width=32, **({} if baseline is None else {"baseline": baseline}))
    seen(model)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        depth, finest = model(image), model.disparities(image)[0]
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth, factor / (0.01 + 9.99 * finest))


def test_the_disparity_that_becomes_depth_can_be_chosen(small):
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        finest = [
            F.interpolate(x, (64, 96), mode="bilinear", align_corners=False)
            for x in small.disparities(image)[:3]
        ]
        wanted = {0: finest[0], 1: finest[1], 2: finest[2], -1: sum(finest) / 3}
        for scale, sigma in wanted.items():
            other = build_model(SMALL, width=32, output_scale=scale).eval()
            other.load_state_dict(small.state_dict())
            torch.testing.assert_close(other(image), 5.4 * disparity_to_depth(sigma))


def test_depth_needs_no_head_on_the_encoder(small):
    bare = build_model(SMALL, width=32, inference=True).eval()
    report = load_weights(bare, small.state_dict())
    assert report.ok and all("encoder_disps" in key for key in report.ignored)
    image = torch.rand(1, 3, 64, 64)
    heads = [f"depth_decoder.encoder_disps.{i}" for i in range(5)]
    with torch.no_grad(), tap(small, heads) as acts:
        depth = small(image)
        assert not acts, "forward ran them"
        assert torch.equal(bare(image), depth)
        torch.testing.assert_close(bare.disparities(image), small.disparities(image)[:5])


# ---------------------------------------------------------------------------- blocks


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 2]))
def test_maps_of_any_size_are_mirrored_as_numpy_does(height, width, pad):
    x = torch.randn(2, 3, height, width, requires_grad=True)
    found = mirrored(x, pad)
    pads = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    assert np.array_equal(found.detach().numpy(), np.pad(x.detach().numpy(), pads, mode="reflect"))
    found.sum().backward()
    assert x.grad.sum() == found.numel()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 21), st.integers(1, 21))
def test_rsu_of_four_by_hand(height, width):
    block = RSU(4, 3, 2, 5).double()
    layers = dict(block.named_children())

    def conv(name, x, dilation=1):
        pads = ((0, 0), (0, 0), (dilation,) * 2, (dilation,) * 2)
        x = torch.from_numpy(np.pad(x.detach().numpy(), pads, mode="reflect"))
        layer = layers.pop(name).conv_s1
        return F.elu(F.conv2d(x, layer.weight, layer.bias, dilation=dilation))

    def pool(x):
        return F.max_pool2d(x, 2, stride=2, ceil_mode=True)

    def up(x, like):
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    first = conv("rebnconvin", x)
    one = conv("rebnconv1", first)
    two = conv("rebnconv2", pool(one))
    three = conv("rebnconv3", pool(two))
    four = conv("rebnconv4", three, dilation=2)  # no pooling before
    y = conv("rebnconv3d", torch.cat([four, three], 1))
    y = conv("rebnconv2d", torch.cat([up(y, two), two], 1))
    y = conv("rebnconv1d", torch.cat([up(y, one), one], 1))
    torch.testing.assert_close(block(x), y + first)
    assert not [name for name in layers if name.startswith("rebn")], "a layer that was not used"


def test_the_plain_decoder_by_hand():
    torch.manual_seed(0)
    model = seen(build_model(SMALL, width=32, decoder="plain"))
    layers, image = model.depth_decoder, torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = model.disparities(image)
        *skips, x = model.encoder((image - 0.45) / 0.225)
        for n in (5, 4, 3, 2, 1):
            x = getattr(layers, f"reduce{n}d")(x)
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = torch.cat([x, skips[n - 2]], 1) if n > 1 else x
            x = getattr(layers, f"stage{n}d")(x)
            if n < 5:
                torch.testing.assert_close(found[n - 1], layers.disps[4 - n](x).sigmoid())


# ---------------------------------------------------------------------------- taps


@pytest.mark.parametrize("decoder", ["rsu", "plain"])
def test_taps_are_what_the_next_layer_takes(decoder):
    torch.manual_seed(0)
    model = seen(build_model(SMALL, width=32, decoder=decoder))
    assert list(model.taps) == LAYERS
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad(), tap(model, LAYERS) as acts:
        depth = model(image)
        kept = dict(acts)
    for layer in LAYERS:
        assert (kept[layer].min() == 0) == (layer in LAYERS[:5]), layer  # ReLU, ELU
        # Putting back what was there changes nothing; other values do.
        with torch.no_grad(), edit(model, {layer: lambda _, layer=layer: kept[layer]}):
            assert torch.equal(model(image), depth), layer
        with torch.no_grad(), edit(model, {layer: torch.zeros_like}):
            assert not torch.equal(model(image), depth), layer
    sigma = model.depth_decoder.disps[-1](kept["stage1d"]).sigmoid()
    torch.testing.assert_close(depth, 5.4 * disparity_to_depth(sigma))


def test_units_and_sizes_of_the_taps():
    model = on_meta("epcdepth_resnet18")
    with tap(model, LAYERS) as acts:
        model(torch.rand(1, 3, 192, 640, device="meta"))
    units = [64, 64, 128, 256, 512, 256, 128, 64, 32, 16]
    for layer, k, i in zip(LAYERS, units, [1, 2, 3, 4, 5, 4, 3, 2, 1, 0], strict=True):
        assert acts[layer].shape == (1, k, 192 >> i, 640 >> i), layer


def test_all_but_the_classifier_learns_and_statistics_count_once():
    torch.manual_seed(0)
    model = build_model("epcdepth_resnet18", width=32).train()
    with tap(model, LAYERS, detach=False) as acts:
        found = model.disparities(torch.rand(2, 3, 64, 64))
        (sum(x.mean() for x in found) + sum(a.mean() for a in acts.values())).backward()
    lacking = [n for n, p in model.named_parameters() if p.grad is None]
    assert lacking == ["encoder.encoder.fc.weight", "encoder.encoder.fc.bias"]
    assert not any(p.requires_grad for p in model.encoder.encoder.fc.parameters())
    state = model.state_dict()
    counts = [v for k, v in state.items() if k.endswith("num_batches_tracked")]
    assert counts and all(v == 1 for v in counts)


def test_the_models_range_is_that_of_its_bins(small):
    items = [{"image": torch.rand(3, 64, 64), "depth": 1 + 70 * torch.rand(1, 64, 64)}] * 2
    found = dissect(small, items, ["stage1d", "layer4"])
    assert found.response["stage1d"].shape == (16, 16)
    assert small.depth_range == (3, 80)
    assert build_model(SMALL, depth_range="rooms").depth_range == (0.75, 10)
    assert build_model(SMALL, depth_range=[1, 20]).depth_range == (1, 20)


# ---------------------------------------------------------------------------- weights


def training_state(model):
    """What the publication's training writes: metrics are NumPy scalars."""
    some = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([some], lr=1e-4)
    some.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [15])
    metrics = {key: np.float64(0.1) for key in ("abs_rel", "sq_rel", "rmse", "rmse_log")}
    classifier = {"encoder.fc.weight": torch.ones(1000, 96), "encoder.fc.bias": torch.ones(1000)}
    return {
        "epoch": 19,
        **metrics,
        **{key: np.float32(0.9) for key in ("a1", "a2", "a3")},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "encoder": model.encoder.state_dict() | classifier,
        "depth_decoder": model.depth_decoder.state_dict(),
    }


@pytest.mark.parametrize("numpy", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("inference", [False, True])
def test_the_originals_file_is_read(small, tmp_path, numpy, inference):
    path = tmp_path / "model18.pth.tar"
    torch.save(training_state(small), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    other = numpy.replace(b".core", b"._core") if b"._" not in numpy else b"numpy.core"
    content = content.replace(b"c" + other + b".multi", b"c" + numpy + b".multi")
    assert numpy + b".multiarray\nscalar" in content and other + b".multi" not in content
    path.write_bytes(content)
    before = set(torch.serialization.get_safe_globals())
    model = build_model(SMALL, width=32, inference=inference, weights=path).eval()
    assert set(torch.serialization.get_safe_globals()) == before
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), small(image))
    ignored = load_weights(model, path).ignored
    assert {"encoder.encoder.fc.weight", "encoder.encoder.fc.bias"} <= set(ignored)


def test_the_originals_file_in_todays_container(small, tmp_path):
    torch.save(training_state(small), tmp_path / "a.pth.tar")
    model = build_model(SMALL, width=32)
    assert load_weights(model, tmp_path / "a.pth.tar").ok
    assert torch.equal(
        model.depth_decoder.disps[0][0].weight, small.depth_decoder.disps[0][0].weight
    )


class Trap:
    """Unpickling this creates the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("what", ["trap", "array"])
def test_other_objects_are_refused(small, tmp_path, what):
    path, sprung = tmp_path / "a.pth.tar", tmp_path / "sprung"
    extra = Trap(sprung) if what == "trap" else np.array([Trap(sprung)], dtype=object)
    torch.save(training_state(small) | {"extra": extra}, path)
    with pytest.raises(ValueError, match="holds a pickled object.*refused"):
        build_model(SMALL, width=32, weights=path)
    assert not sprung.exists()


def test_a_numpy_scalar_is_stood_in_for_and_never_made(tmp_path, monkeypatch, small):
    """Not even one whose bytes would be read by another pickle."""
    sprung = tmp_path / "sprung"
    inner = pickle.dumps(Trap(sprung), protocol=2)
    make = np.float64(1).__reduce__()[0]

    class Odd:
        def __reduce__(self):
            return (make, (np.dtype(object), inner))

    torch.save(training_state(small) | {"extra": Odd()}, tmp_path / "a.pth.tar")
    assert load_weights(build_model(SMALL, width=32), tmp_path / "a.pth.tar").ok
    assert not sprung.exists()


def test_weights_of_another_network_are_refused(small, tmp_path):
    torch.save(training_state(small), tmp_path / "a.pth.tar")
    with pytest.raises(ValueError, match="does not fit epcdepth_test_resnet, .*left as") as caught:
        build_model(SMALL, weights=tmp_path / "a.pth.tar")
    assert "disps.0.0.weight [1, 32, 3, 3], model [1, 64, 3, 3]" in str(caught.value)
    bare = {k: v for k, v in small.state_dict().items() if "encoder_disps" not in k}
    with pytest.raises(ValueError, match=r"missing:\s+depth_decoder.encoder_disps"):
        load_weights(build_model(SMALL, width=32), bare)


def test_weights_know_their_baseline(small, tmp_path):
    path = save_weights(build_model(SMALL, baseline=0.1), tmp_path / "rooms.safetensors")
    with pytest.raises(
        ValueError, match=r"baseline=0.1, .* baseline=0.54: its depth would be wrong"
    ):
        build_model(SMALL, weights=path)
    assert build_model(SMALL, weights=path, baseline=0.1, output_scale=-1).metres_per_unit == 1


@pytest.mark.parametrize(
    "name, expected, options",
    [
        ("epcdepth_resnet18", "resnet18.tv_in1k", {"width": 32}),
        ("epcdepth_resnet18", "resnet18.tv_in1k", {"width": 32, "inference": True}),
        ("epcdepth_resnet10t.c3_in1k", "resnet10t.c3_in1k", {}),
    ],
)
def test_imagenet_weights_are_timms_under_explicit_tags(monkeypatch, name, expected, options):
    create, asked = timm.create_model, []

    def fake(backbone, *, pretrained=False, **kwargs):
        model = create(backbone, pretrained=False, **kwargs)
        if pretrained:
            asked.append(backbone)
            for parameter in model.parameters():
                parameter.data.fill_(0.25)
        return model

    monkeypatch.setattr(timm, "create_model", fake)
    model = build_model(name, weights="imagenet", **options)
    assert asked == [expected]
    for parameter in model.encoder.parameters():
        assert torch.all(parameter == 0.25)
    assert not torch.all(model.depth_decoder.disps[0][0].weight == 0.25)


def test_timm_has_the_tags():
    for tag in PUBLISHED_BACKBONES.values():
        assert timm.is_model_pretrained(tag) and tag in timm.list_pretrained(f"{tag[:6]}*")


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "name, says",
    [
        ("epcdepth_resnet5", "Unknown backbone.*epcdepth_resnet5'.*'epcdepth_resnet50'"),
        ("epcdepth_", "Unknown backbone.*timm.list_models"),
        ("epcdepth_resnet18.tv_in22k", "no weights 'resnet18.tv_in22k'.*resnet18.tv_in1k"),
        (
            "epcdepth_mobilenetv3_small_050",
            "takes the ResNets.*is a MobileNetV3.*epcdepth_resnet10t",
        ),
        ("epcdepth_vit_tiny_patch16_224", "the ResNets.*is a VisionTransformer"),
        ("epcdept_resnet18", "Did you mean 'epcdepth_resnet18'.*Known: "),
    ],
)
def test_backbones_that_will_not_do(name, says):
    with pytest.raises(ValueError, match=says):
        build_model(name)


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"decoder": "unet"}, ValueError, "decoder of .*'unet'.*rsu, plain"),
        ({"output_scale": 3}, ValueError, "0, 1 or 2, or -1.*got 3"),
        ({"baseline": 0}, ValueError, "metres, a positive number.*got 0"),
        ({"baseline": -0.54}, ValueError, "got -0.54"),
        ({"baseline": float("nan")}, ValueError, "got nan"),
        ({"baseline": None}, ValueError, "got None"),
        ({"width": 100}, ValueError, "multiple of 32.*got 100"),
        ({"width": 0}, ValueError, "got 0"),
        ({"depth_range": "moon"}, ValueError, "Unknown depth range 'moon'"),
        ({"dataset": "kitti"}, TypeError, "Unknown option of .*'dataset'.*baseline.*output_scale"),
        ({"weights": "published"}, ValueError, "No published weights.*by hand"),
    ],
)
def test_options_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        build_model(SMALL, **options)


def test_grey_images_and_other_inputs_are_refused(small):
    for call in (small, small.disparities):
        with pytest.raises(ValueError, match=r"shape \(b, 3, h, w\), got \(1, 1, 64, 64\)"):
            call(torch.rand(1, 1, 64, 64))
    with pytest.raises(TypeError, match="Unknown input of .*'focal'"):
        small(torch.rand(1, 3, 64, 64), focal=1.0)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_sizes_below_a_pixel_of_the_coarsest_map_are_refused(small, size):
    for call in (small, small.disparities, small.forward_raw):
        with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*Any size from 32 on"):
            call(torch.rand(1, 3, *size))


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 100), st.integers(32, 100))
def test_images_of_any_other_size_pass(small, height, width):
    with torch.no_grad():
        found = small.disparities(torch.rand(1, 3, height, width))
    for x, i in zip(found, [0, 1, 2, 3, 4, 5, 4, 3, 2, 1], strict=True):
        assert x.shape[-2:] == (-(-height // 2**i), -(-width // 2**i))


def test_a_full_kitti_frame_and_the_smallest_image(small):
    with torch.no_grad():
        for size in ((375, 1242), (32, 32), (33, 63)):
            depth = small(torch.rand(1, 3, *size))
            assert depth.shape == (1, 1, *size)
            assert depth.isfinite().all() and 0.54 <= depth.min() <= depth.max() <= 540


@torch.no_grad()
def test_depth_on_another_curve(small):
    image = torch.rand(2, 3, 64, 96)
    sigma = small.disparities(image, full_scale=False)
    assert len(sigma) == 5
    for full, alone in zip(small.disparities(image)[:5], sigma, strict=True):
        assert torch.equal(full, alone)
    depth = small(image)
    assert torch.equal(small.metres(sigma, (64, 96)), depth)
    factor = small.metres_per_unit
    torch.testing.assert_close(small.remapped(depth, max_depth=100.0), depth)
    expected = disparity_to_depth(sigma[0], max_depth=10) * factor
    torch.testing.assert_close(small.remapped(depth, max_depth=10), expected)
