"""BTS against the facts of its publication, and over other backbones."""

import hashlib
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mde_utils.activations import edit, tap
from mde_utils.checkpoints import load_weights, save_weights
from mde_utils.dissection import dissect
from mde_utils.evaluation import evaluate
from mde_utils.models import build_model
from mde_utils.models.bts import local_planar_guidance, plane_of

LAYERS = ["upconv3", "upconv2", "iconv2", "upconv1", "iconv1"]
SMALL = "bts_mobilenetv3_small_050"


def on_meta(name, **options):
    """Shapes alone: the large networks cost nothing."""
    with torch.device("meta"):
        return build_model(name, **options)


def seen(model):
    """With the running statistics of a network that has seen something."""
    with torch.no_grad():
        model.train().decoder(model.encoder(torch.randn(2, 3, 64, 64)))
    return model.eval()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return seen(build_model(SMALL))


@pytest.fixture(scope="module")
def driving():
    torch.manual_seed(0)
    return seen(build_model(SMALL, dataset="kitti"))


# ---------------------------------------------------------------------------- the originals


def test_parameters_keys_and_shapes_are_the_originals():
    """SHA-256 of the sorted lines "key [shape]" of the original module."""
    model = on_meta("bts_densenet161")
    assert sum(p.numel() for p in model.parameters()) == 47_000_688
    state = model.state_dict()
    assert len(state) == 1075
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in sorted(state.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "6f96f39a904478a39a28b8e4ea55b377493aaa2ecebfa257f4621bc313b5583f"


def test_resnet50_has_the_classifier_of_the_original_unused_and_not_trained():
    model = on_meta("bts_resnet50")
    assert sum(p.numel() for p in model.parameters()) == 49_530_968
    state = model.state_dict()
    assert {"encoder.base_model.fc.weight", "encoder.base_model.layer4.2.bn3.running_var"} <= {
        *state
    }
    assert not model.encoder.base_model.fc.weight.requires_grad
    whole = {f"module.{key}": value for key, value in state.items()}
    report = load_weights(model, {"model": whole})
    assert report.ok and not report.ignored


@pytest.mark.parametrize(
    "name, channels, units",
    [
        ("bts_densenet161", (96, 96, 192, 384, 2208), (128, 64, 64, 32, 32)),
        ("bts_resnet50", (64, 256, 512, 1024, 2048), (128, 64, 64, 32, 32)),
        ("bts_resnet18", (64, 64, 128, 256, 512), (32, 16, 16, 8, 8)),
        ("bts_densenetblur121d", (64, 64, 128, 256, 1024), (32, 16, 16, 8, 8)),  # 3 in its stem
        (SMALL, (16, 8, 16, 24, 288), (32, 16, 16, 8, 8)),
    ],
)
def test_maps_have_the_publications_units_and_sizes(name, channels, units):
    model = on_meta(name)
    image = torch.rand(1, 3, 352, 704, device="meta")
    maps = model.encoder(image)
    assert [tuple(x.shape) for x in maps] == [
        (1, c, 352 // s, 704 // s) for c, s in zip(channels, (2, 4, 8, 16, 32), strict=True)
    ]
    with tap(model, LAYERS) as acts:
        assert model(image).shape == (1, 1, 352, 704)
    assert list(model.taps) == LAYERS
    assert [tuple(acts[name].shape) for name in LAYERS] == [
        (1, k, 352 // s, 704 // s) for k, s in zip(units, (4, 2, 2, 1, 1), strict=True)
    ]


def test_the_decoders_width_is_an_option():
    with tap(model := on_meta("bts_resnet18", width=256), LAYERS) as acts:
        model(torch.rand(1, 3, 64, 64, device="meta"))
    assert [acts[name].shape[1] for name in LAYERS] == [64, 32, 32, 16, 16]


def test_a_densenets_maps_are_those_around_its_first_pooling_and_behind_the_transitions():
    torch.manual_seed(0)
    model = build_model("bts_densenet121").eval()
    net, x = model.encoder.base_model, torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.encoder(x)
        first = F.relu(F.batch_norm(
            net.conv0(x), net.norm0.running_mean, net.norm0.running_var, net.norm0.weight,
            net.norm0.bias,
        ))  # fmt: skip
        torch.testing.assert_close(maps[0], first)
        assert torch.equal(maps[1], F.max_pool2d(maps[0], 3, 2, 1))
        assert torch.equal(maps[2], net.transition1(net.denseblock1(maps[1])))
        assert torch.equal(maps[3], net.transition2(net.denseblock2(maps[2])))
        last = net.denseblock4(net.transition3(net.denseblock3(maps[3])))
        assert torch.equal(maps[4], net.norm5(last)) and maps[4].min() == 0


# ---------------------------------------------------------------------------- guidance


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.tuples(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02), st.floats(0.9, 3.0)),
)
def test_one_plane_is_found_again_at_every_pixel(size, h, w, plane):
    """Inverse depth of a plane is linear in the image: 1/z = a x + b y + c."""
    a, b, c = plane
    y, x = torch.meshgrid(*(torch.arange(n * size).double() for n in (h, w)), indexing="ij")
    inverse = a * x + b * y + c
    assume(inverse.min() > 0.1)  # else it may go through the camera
    depth = 1 / inverse
    centre = [(torch.arange(n).double() + 0.5) * size - 0.5 for n in (h, w)]
    row, column = torch.meshgrid(*centre, indexing="ij")
    normal = torch.stack(
        [torch.full_like(row, a * size), torch.full_like(row, b * size), a * column + b * row + c]
    )
    length = normal.norm(dim=0)
    found = local_planar_guidance(torch.cat([normal / length, 1 / length[None]])[None], size)
    torch.testing.assert_close(found[0, 0], depth)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_a_plane_is_a_unit_normal_within_60_degrees_and_a_distance(parameters):
    n1, n2, n3, n4 = plane_of(torch.tensor(parameters).view(1, 3, 1, 1)).flatten().tolist()
    theta, phi, distance = (1 / (1 + math.exp(-p)) for p in parameters)
    theta, phi = theta * math.pi / 3, phi * 2 * math.pi
    expected = [math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)]
    assert [n1, n2, n3, n4] == pytest.approx([*expected, distance], abs=1e-5)
    assert n1**2 + n2**2 + n3**2 == pytest.approx(1, abs=1e-5) and n3 >= 0.5 - 1e-5


def test_the_steepest_planes_stay_numbers_with_gradients():
    """Facing away at a corner, where the denominator goes through 0."""
    x = torch.full((1, 3, 8, 64), 20.0)
    x[:, 1] = torch.linspace(-4, 4, 512).view(1, 8, 64)
    x[:, 0] = torch.linspace(1.5, 20, 8)[:, None]
    x = x.double().float().requires_grad_()
    depth = local_planar_guidance(plane_of(x), 8)
    assert depth.isfinite().all() and depth.min() < 0 and depth.abs().max() <= 1000
    depth.sum().backward()
    assert x.grad.isfinite().all()
    flat = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 4, 1, 1)  # denominator 0 at the centre
    assert local_planar_guidance(flat, 1).item() == pytest.approx(1000)


# ---------------------------------------------------------------------------- decoder, taps


def literally(decoder, maps):
    """The publication's stages, one by one: sections 3.1 to 3.4."""
    skip0, skip1, skip2, skip3, x = maps

    def up(name, x):
        weight = getattr(decoder, name).conv.weight
        return F.elu(F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, padding=1))

    def elu(name, *parts):
        return F.elu(F.conv2d(torch.cat(parts, 1), getattr(decoder, name)[0].weight, padding=1))

    def guide(name, x, k):
        out = getattr(decoder, name)(x)
        sigmoid = 1 / (1 + torch.exp(-out))
        theta, phi, distance = (
            (sigmoid[:, i] * scale).repeat_interleave(k, 1).repeat_interleave(k, 2)
            for i, scale in enumerate((math.pi / 3, 2 * math.pi, 1))
        )
        place = (torch.arange(out.shape[3] * k) % k - (k - 1) / 2) / k
        down = (torch.arange(out.shape[2] * k) % k - (k - 1) / 2) / k
        slope = theta.sin() * (phi.cos() * place + phi.sin() * down[:, None]) + theta.cos()
        return (distance / slope)[:, None]

    out = {}
    x = decoder.bn5(up("upconv5", F.relu(x)))
    x = elu("conv5", x, skip3)
    dense = torch.cat([decoder.bn4(up("upconv4", x)), skip2], 1)
    x = decoder.bn4_2(elu("conv4", dense))
    d3 = decoder.daspp_3(x)
    d6 = decoder.daspp_6(torch.cat([dense, d3], 1))
    d12 = decoder.daspp_12(torch.cat([dense, d3, d6], 1))
    d18 = decoder.daspp_18(torch.cat([dense, d3, d6, d12], 1))
    d24 = decoder.daspp_24(torch.cat([dense, d3, d6, d12, d18], 1))
    x = elu("daspp_conv", x, d3, d6, d12, d18, d24)
    depth8 = guide("reduc8x8", x, 8)
    out["upconv3"] = decoder.bn3(up("upconv3", x))
    quarter = F.interpolate(depth8, scale_factor=0.25, mode="nearest")
    x = elu("conv3", out["upconv3"], skip1, quarter)
    depth4 = guide("reduc4x4", x, 4)
    out["upconv2"] = decoder.bn2(up("upconv2", x))
    half = F.interpolate(depth4, scale_factor=0.5, mode="nearest")
    out["iconv2"] = elu("conv2", out["upconv2"], skip0, half)
    depth2 = guide("reduc2x2", out["iconv2"], 2)
    out["upconv1"] = up("upconv1", out["iconv2"])
    depth1 = decoder.reduc1x1(out["upconv1"])
    out["iconv1"] = elu("conv1", out["upconv1"], depth1, depth2, depth4, depth8)
    last = F.conv2d(out["iconv1"], decoder.get_depth[0].weight, padding=1)
    return out, 1 / (1 + torch.exp(-last))


def test_taps_and_depth_are_the_publications(small):
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad(), tap(small, LAYERS) as acts:
        depth = small(image)
        kept = dict(acts)
        expected, last = literally(small.decoder, small.encoder((image - small.mean) / small.std))
    for layer in LAYERS:
        torch.testing.assert_close(kept[layer], expected[layer], msg=layer)
        assert kept[layer].min() < 0 < kept[layer].max(), layer  # signed
        # Putting back what was there changes nothing; other values do.
        with torch.no_grad(), edit(small, {layer: lambda _, layer=layer: kept[layer]}):
            assert torch.equal(small(image), depth), layer
        with torch.no_grad(), edit(small, {layer: torch.zeros_like}):
            assert not torch.equal(small(image), depth), layer
    torch.testing.assert_close(depth, 10 * last)


def test_every_parameter_learns_and_statistics_are_counted_once():
    model = build_model(SMALL).train()
    with tap(model, LAYERS, detach=False) as acts:
        depth = model(torch.rand(2, 3, 64, 64))
        (depth.mean() + sum(a.mean() for a in acts.values())).backward()
    counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts and all(v == 1 for v in counts.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("options, farthest", [({}, 10.0), ({"dataset": "kitti"}, 80.0)])
def test_depth_lies_between_zero_and_the_largest(options, farthest):
    torch.manual_seed(1)
    model = build_model(SMALL, **options).eval()
    assert model.depth_range[1] == farthest
    focal = {"focal": 715.0873} if options else {}
    with torch.no_grad():
        model.decoder.get_depth[0].weight.mul_(30)
        depth = model(torch.rand(2, 3, 64, 96), **focal)
    assert depth.dtype == torch.float32 and depth.min() > 0
    assert 0.9 * farthest < depth.max() <= farthest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(small, dtype):
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        depth = small(image)
        with torch.autocast("cpu", dtype):
            mixed = small(image)
        half = build_model(SMALL).to(dtype).eval()
        half.load_state_dict(small.state_dict())
        whole = half(image.to(dtype))
    near = 0.02 if dtype == torch.float16 else 0.15
    for other in (mixed, whole):
        assert other.dtype == torch.float32
        assert ((other - depth).abs() / depth).mean() < near


def test_channels_last_gives_the_same(small):
    image = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        plain = small(image)
        last = build_model(SMALL).eval().to(memory_format=torch.channels_last)
        last.load_state_dict(small.state_dict())
        found = last(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, found, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------- focal


def test_depth_is_proportional_to_focal(driving):
    image = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        plain = driving(image, focal=715.0873)
        found = driving(image, focal=torch.tensor([707.0912, 721.5377], dtype=torch.float64))
    expected = plain * torch.tensor([707.0912, 721.5377]).view(2, 1, 1, 1) / 715.0873
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert found.dtype == torch.float32


def test_a_resized_image_with_its_own_reference_keeps_its_depth(driving, tmp_path):
    """Both numbers are in the image's pixels, so resizing alone leaves depth as it is."""
    path = save_weights(driving, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"focal_reference=715.0873.*focal_reference=120.0"):
        build_model(SMALL, dataset="kitti", focal_reference=120.0, weights=path)
    resized = build_model(SMALL, dataset="kitti", focal_reference=715.0873 / 6).eval()
    resized.load_state_dict(driving.state_dict())
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        one, two = driving(image, focal=721.5377), resized(image, focal=721.5377 / 6)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "inputs, error, says",
    [
        ({}, TypeError, "needs the focal length.*focal=.*pixels"),
        ({"focal": torch.ones(3) * 715}, ValueError, r"focal of shape \(2,\).*got \(3,\)"),
        ({"focal": torch.ones(2, 1) * 715}, ValueError, r"got \(2, 1\)"),
        ({"focal": 120.0}, ValueError, "120 pixels.*715.087.*0.168 times.*focal_reference="),
        ({"focal": torch.tensor([715.0, 2262.0])}, ValueError, "2262 pixels"),
        ({"focal": math.nan}, ValueError, "nan pixels"),
        ({"focal": 0.0}, ValueError, "0 pixels"),
        ({"sparse_depth": 1}, TypeError, "Unknown input of .*'sparse_depth'.*focal"),
    ],
)
def test_wrong_focal_lengths_are_refused(driving, inputs, error, says):
    with pytest.raises(error, match=says):
        driving(torch.rand(2, 3, 32, 64), **inputs)


def test_nyu_takes_no_focal(small):
    with pytest.raises(TypeError, match="Unknown input of .*'focal'.*image alone"):
        small(torch.rand(1, 3, 32, 64), focal=518.86)


def test_items_bring_their_focal_along(driving):
    items = [
        {"image": torch.rand(3, 32, 64), "depth": torch.rand(1, 32, 64) * 60 + 1, "focal": 720.0}
        for _ in range(3)
    ]
    assert evaluate(driving, items)["n"] == 3
    assert dissect(driving, items, ["iconv1"]).bins["iconv1"].edges[-1] == 80
    del items[1]["focal"]
    with pytest.raises(ValueError, match="has no 'focal'"):
        evaluate(driving, items)


# ---------------------------------------------------------------------------- weights


def test_an_old_checkpoint_gives_the_same_depth(small, tmp_path):
    """As DataParallel and an old torch wrote it."""
    state = small.state_dict().items()
    content = {f"module.{k}": v for k, v in state if not k.endswith("num_batches_tracked")}
    path = tmp_path / "model-50000-best_rms_0.39"
    torch.save(
        {"global_step": 50000, "model": content, "optimizer": {"state": {}}},
        path,
        _use_new_zipfile_serialization=False,
    )
    other = build_model(SMALL, weights=path).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(image), small(image))
    del content["module.decoder.bn3.running_mean"]
    with pytest.raises(ValueError, match=r"1 missing:\s+decoder.bn3.running_mean"):
        load_weights(other, {"model": content})


@pytest.mark.parametrize(
    "name, expected, key",
    [
        ("bts_densenet161", "densenet161.tv_in1k", "denseblock1.denselayer1.norm1.weight"),
        ("bts_resnet50", "resnet50.tv_in1k", "layer1.0.conv1.weight"),
        ("bts_resnet18.tv_in1k", "resnet18.tv_in1k", "layer4.1.bn2.bias"),
    ],
)
def test_imagenet_weights_are_timms_under_explicit_tags(monkeypatch, name, expected, key):
    create, asked = timm.create_model, []

    def fake(backbone, *, pretrained=False, **options):
        model = create(backbone, pretrained=False, **options)
        if pretrained:
            asked.append(backbone)
            for parameter in model.parameters():
                parameter.data.fill_(0.25)
        return model

    model = on_meta(name)
    monkeypatch.setattr(timm, "create_model", fake)
    if "resnet18" in name:
        model = build_model(name, weights="imagenet")
        values = model.state_dict()[f"encoder.base_model.{key}"]
        assert torch.equal(values, torch.full_like(values, 0.25))
        assert not (model.decoder.conv1[0].weight == 0.25).any()
    else:
        with torch.device("meta"):
            model.load_imagenet()
    assert asked == [expected]
    assert f"encoder.base_model.{key}" in model.state_dict()


def test_the_decoder_starts_as_xavier_has_it():
    torch.manual_seed(0)
    weight = build_model("bts_resnet18").decoder.upconv5.conv.weight
    bound = math.sqrt(6 / (9 * (weight.shape[0] + weight.shape[1])))
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_freezing_holds_the_first_convolution_and_the_encoders_norms():
    model = on_meta("bts_densenet161", freeze=True)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    expected = {
        n
        for n, _ in model.named_parameters()
        if n.startswith("encoder.") and (".norm" in n or ".conv0." in n)
    }
    assert frozen == expected and len(frozen) == 1 + 2 * 161
    assert all(p.requires_grad for p in on_meta("bts_densenet161").parameters())
    resnet = on_meta("bts_resnet50", freeze=True)
    frozen = {n for n, p in resnet.named_parameters() if not p.requires_grad}
    assert {"encoder.base_model.conv1.weight", "encoder.base_model.bn1.bias"} < frozen
    assert len(frozen) == 1 + 2 * 53 + 2  # the last two of the classifier


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("bts_resnet5", {}, "Unknown backbone.*bts_resnet5'.*'bts_resnet50'"),
        ("bts_", {}, "Unknown backbone.*bts_<timm name>"),
        ("bts_resnet18.tv_in22k", {}, "no weights 'resnet18.tv_in22k'.*resnet18.tv_in1k"),
        ("bts_vit_tiny_patch16_224", {}, "BTS takes maps at strides 2, 4, 8, 16 and 32, but"),
        ("bts_convnext_atto", {}, "has 4, 8, 16, 32.*bts_resnet18"),
        ("bts_resnet18", {"dataset": "rooms"}, "Unknown dataset of .*'rooms'.*nyu, kitti"),
        ("bts_resnet18", {"focal_reference": 120.0}, "with dataset='kitti' alone"),
        ("bts_resnet18", {"dataset": "kitti", "focal_reference": 0.0}, "positive number"),
        ("bts_resnet18", {"width": 100}, "multiple of 64.*got 100"),
        ("bts_resnet18", {"width": 0}, "multiple of 64.*got 0"),
    ],
)
def test_what_will_not_do_is_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        build_model(name, **options)


@pytest.mark.parametrize(
    "size, nearest",
    [
        ((375, 1242), "height 375 .nearest: 352 or 384. and width 1242 .nearest: 1216 or 1248"),
        ((64, 208), "width 208 .nearest: 192 or 224"),
        ((20, 64), "height 20 .nearest: 32."),
        ((480, 639), "width 639 .nearest: 608 or 640"),
    ],
)
def test_impossible_sizes_are_refused_before_any_work(size, nearest):
    with pytest.raises(ValueError, match=f"impossible {nearest}.*Multiples of 32"):
        on_meta("bts_densenet161")(torch.rand(1, 3, *size, device="meta"))
