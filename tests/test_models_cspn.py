"""CSPN against the facts of its publication, and propagation against its formula."""

import hashlib
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mde_utils.activations import edit, tap
from mde_utils.checkpoints import load_weights
from mde_utils.edits import ablate
from mde_utils.models import build_model
from mde_utils.models.cspn import NoSparseDepth, UpConv2d, propagate

# Of the sorted lines "key [shape]" of the original module without what nothing uses.
DIGEST = "e5f9c50a1b4593a87dd470dde83b955fcb0bd7d6bcab6e556783b3ac785f2ac8"
LAYERS = ["layer1", "layer2", "layer3", "layer4"]
OFFSETS = [(1, 1), (1, 0), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1)]
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def on_meta(name="cspn_resnet50", **options):
    """Shapes alone: the large network costs nothing."""
    with torch.device("meta"):
        return build_model(name, **options)


def sparse_of(image, share=0.05):
    depth = 1 + 8 * torch.rand(len(image), 1, *image.shape[-2:])
    return torch.where(torch.rand_like(depth) < share, depth, 0.0)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = build_model("cspn_test_resnet")
    with torch.no_grad():  # running statistics of a network that has seen something
        image = torch.rand(4, 3, 48, 64)
        model.train()(image, sparse_depth=sparse_of(image))
    return model.eval()


# ---------------------------------------------------------------------------- propagation


def shifted(x, row, column):
    """x read at p + (row, column), 0 outside."""
    h, w = x.shape[-2:]
    return F.pad(x, (1, 1, 1, 1))[..., 1 + row : 1 + row + h, 1 + column : 1 + column + w]


def literal(guidance, coarse, sparse, *, steps=24, anchor="sparse", positive=False):
    """The formula, neighbour by neighbour and step by step."""
    guidance = guidance.abs() if positive else guidance
    read = [shifted(guidance[:, k : k + 1], *o) for k, o in enumerate(OFFSETS)]
    total = sum(g.abs() for g in read)
    weights = [torch.where(total > 0, g / total.where(total > 0, 1), 0) for g in read]
    mask = sparse.sign()
    held = sparse if anchor == "sparse" else coarse
    depth = coarse
    for _ in range(steps):
        taken = sum(w * shifted(depth, *o) for w, o in zip(weights, OFFSETS, strict=True))
        depth = taken + (1 - sum(weights)) * coarse
        depth = (1 - mask) * depth + mask * held
    return depth


def case(size, seed=0, *, batch=2, dtype=torch.float64, share=0.2):
    g = torch.Generator().manual_seed(seed)
    guidance = torch.randn(batch, 8, *size, generator=g, dtype=dtype)
    coarse = 0.5 + 9 * torch.rand(batch, 1, *size, generator=g, dtype=dtype)
    depth = 0.5 + 9 * torch.rand(batch, 1, *size, generator=g, dtype=dtype)
    keep = torch.rand(batch, 1, *size, generator=g) < share
    return guidance, coarse, torch.where(keep, depth, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    st.integers(0, 999),
    st.integers(1, 24),
    st.sampled_from(["sparse", "coarse"]),
    st.booleans(),
)
def test_propagation_is_the_formula_and_so_are_its_gradients(size, seed, steps, anchor, positive):
    guidance, coarse, sparse = case(size, seed)
    guidance[0, :, : size[0] // 2] = 0  # some pixels without any weight
    options = {"steps": steps, "anchor": anchor, "positive": positive}
    leaves = [x.requires_grad_() for x in (guidance, coarse, sparse)]
    found, expected = propagate(*leaves, **options), literal(*leaves, **options)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((x * probe).sum(), leaves, allow_unused=True, materialize_grads=True)
        for x in (found, expected)
    )
    # The formula's own gradient by the mask, sign(sparse), is 0 everywhere.
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7)
    with torch.no_grad():  # keeps no maps
        assert torch.equal(propagate(guidance, coarse, sparse, **options), found)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (57, 76)])
def test_single_precision_is_near_enough_at_all_24_steps(size):
    given = case(size, dtype=torch.float32, share=0.01)
    exact = literal(*(x.double() for x in given))
    assert (propagate(*given) - exact).abs().max() < 1e-5


@pytest.mark.parametrize("anchor", ["sparse", "coarse"])
@pytest.mark.parametrize("positive", [False, True])
def test_gradient_by_finite_differences(anchor, positive):
    guidance, coarse, sparse = case((4, 3))
    guidance = guidance + 0.3 * guidance.sign()  # away from the kink of |G|
    fixed = sparse > 0

    def run(guidance, coarse, measured):
        sparse = torch.where(fixed, measured, 0.0)
        return propagate(guidance, coarse, sparse, steps=3, anchor=anchor, positive=positive)

    leaves = [x.requires_grad_() for x in (guidance, coarse, sparse + 1)]
    assert torch.autograd.gradcheck(run, leaves)


def test_measurements_are_kept_to_the_last_digit_and_their_neighbours_hear_of_them():
    guidance, coarse, sparse = case((12, 14), dtype=torch.float32, share=0.05)
    fixed = sparse > 0
    kept = propagate(guidance, coarse, sparse)
    assert torch.equal(kept[fixed], sparse[fixed])
    moved = propagate(guidance, coarse, torch.where(fixed, sparse + 1, 0.0))
    assert ((kept != moved) & ~fixed).any()
    back = propagate(guidance, coarse, sparse, anchor="coarse")
    assert torch.equal(back[fixed], coarse[fixed])
    other = propagate(guidance, coarse, torch.where(fixed, sparse + 1, 0.0), anchor="coarse")
    assert torch.equal(back, other)


def test_positive_weights_average_and_leave_the_centre_none():
    guidance, coarse, sparse = case((9, 11), share=0)
    assert torch.equal(
        propagate(guidance, coarse, sparse, positive=True),
        propagate(guidance.abs(), coarse, sparse),
    )
    found = propagate(guidance, coarse, sparse, positive=True)
    assert coarse.min() <= found.min() and found.max() <= coarse.max()
    torch.testing.assert_close(
        propagate(guidance, torch.full_like(coarse, 3), sparse, positive=True),
        torch.full_like(coarse, 3),
    )
    signed = propagate(-guidance.abs(), coarse, sparse)  # the centre's weight is 2
    assert not torch.allclose(signed, found)


def test_no_guidance_leaves_the_coarse_depth():
    guidance, coarse, sparse = case((5, 6), share=0)
    guidance = torch.zeros_like(guidance).requires_grad_()
    found = propagate(guidance, coarse, sparse)
    assert torch.equal(found, coarse)
    found.sum().backward()
    assert guidance.grad.isfinite().all()


def test_a_map_of_depth_a_step_is_all_that_training_keeps():
    guidance, coarse, sparse = case((30, 40), batch=1, dtype=torch.float32)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        propagate(guidance.requires_grad_(), coarse, sparse)
    assert sum(kept.values()) / coarse.nbytes < 1.2 * (25 + 8 + 6)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"steps": 0}, "at least 1 step, got 0"),
        ({"anchor": "dense"}, "Unknown anchor 'dense'. Known: sparse, coarse"),
        ({"guidance": torch.rand(2, 9, 4, 5)}, r"guidance \(b, 8, h, w\).*got \(2, 9, 4, 5\)"),
        ({"sparse": torch.rand(2, 1, 4, 4)}, r"and \(2, 1, 4, 4\)"),
    ],
)
def test_wrong_arguments_of_propagation(change, says):
    given = dict(zip(("guidance", "coarse", "sparse"), case((4, 5)), strict=True)) | change
    with pytest.raises(ValueError, match=says):
        propagate(given.pop("guidance"), given.pop("coarse"), given.pop("sparse"), **given)


# ---------------------------------------------------------------------------- the network


def test_parameters_keys_and_shapes_are_the_originals_without_what_nothing_uses():
    model = on_meta()
    assert sum(p.numel() for p in model.parameters()) == 256_078_272 - 37_956_352
    state = model.state_dict()
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in sorted(state.items()))
    assert len(state) == 416
    assert hashlib.sha256(lines.encode()).hexdigest() == DIGEST


@pytest.mark.parametrize(
    "name, size, units, maps",
    [
        (
            "cspn_resnet50",
            (228, 304),
            (1024, 512, 256, 64),
            [(15, 19), (29, 38), (57, 76), (114, 152)],
        ),
        ("cspn_resnet18", (48, 64), (256, 128, 64, 64), [(3, 4), (6, 8), (12, 16), (24, 32)]),
        ("cspn_resnet18", (37, 51), (256, 128, 64, 64), [(3, 4), (5, 7), (10, 13), (19, 26)]),
        ("cspn_resnet18", (1, 1), (256, 128, 64, 64), [(1, 1)] * 4),
    ],
)
def test_maps_have_the_publications_units_and_sizes(name, size, units, maps):
    model = on_meta(name).eval()
    image, sparse = torch.rand(1, 3, *size, device="meta"), torch.rand(1, 1, *size, device="meta")
    assert list(model.taps) == LAYERS
    with tap(model, LAYERS) as acts:
        assert model(image, sparse_depth=sparse).shape == (1, 1, *size)
    shapes = [(1, k, *hw) for k, hw in zip(units, maps, strict=True)]
    assert [tuple(acts[layer].shape) for layer in LAYERS] == shapes


def test_depth_is_finite_at_odd_sizes_and_keeps_the_measurements(small):
    for size in ((48, 64), (37, 51), (5, 1)):
        image = torch.rand(2, 3, *size)
        sparse = sparse_of(image, 0.5)
        with torch.no_grad():
            depth = small(image, sparse_depth=sparse)
        assert depth.shape == (2, 1, *size) and depth.dtype == torch.float32
        assert depth.isfinite().all() and depth.abs().max() < 1e3
        assert torch.equal(depth[sparse > 0], sparse[sparse > 0])


def test_options_reach_the_propagation(small):
    image = torch.rand(1, 3, 24, 32)
    sparse, coarse, guidance = sparse_of(image, 0.2), [], []
    kept = {"gud_up_proj_layer5": coarse, "gud_up_proj_layer6": guidance}
    for options in ({}, {"anchor": "coarse"}, {"positive": True}):
        model = build_model("cspn_test_resnet", **options).eval()
        model.load_state_dict(small.state_dict())
        with torch.no_grad(), tap(model, kept) as acts:
            depth = model(image, sparse_depth=sparse)
        given = acts["gud_up_proj_layer6"], acts["gud_up_proj_layer5"], sparse
        torch.testing.assert_close(depth, literal(*given, **options))
        assert model.options.items() >= options.items()


def test_taps_are_behind_their_relu_and_act_on_depth(small):
    image = torch.rand(1, 3, 48, 64)
    given = {"sparse_depth": sparse_of(image)}
    with torch.no_grad(), tap(small, LAYERS) as acts:
        depth = small(image, **given)
        kept = dict(acts)
    for layer in LAYERS:
        assert kept[layer].min() == 0 and kept[layer].max() > 0, layer
        with torch.no_grad(), edit(small, {layer: torch.zeros_like}):
            assert not torch.equal(small(image, **given), depth), layer
    with torch.no_grad(), ablate(small, {"layer4": [0]}):
        assert not torch.equal(small(image, **given), depth)


def test_a_step_of_training_reaches_every_parameter():
    model = build_model("cspn_test_resnet").train()
    image = torch.rand(2, 3, 40, 56)
    model(image, sparse_depth=sparse_of(image)).mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters())
    last = build_model("cspn_test_resnet").to(memory_format=torch.channels_last)
    last.load_state_dict(model.state_dict())
    image = image.contiguous(memory_format=torch.channels_last)
    sparse = sparse_of(image)
    with torch.no_grad():
        torch.testing.assert_close(
            last.eval()(image, sparse_depth=sparse),
            model.eval()(image, sparse_depth=sparse),
            rtol=1e-4,
            atol=1e-4,
        )


@settings(max_examples=25, deadline=None)
@given(
    SIZES,
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([3, 5]),
    st.integers(0, 99),
)
def test_convolving_an_unpooled_map_without_unpooling_it(size, odd, kernel, seed):
    torch.manual_seed(seed)
    layer = UpConv2d(3, 2, kernel).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    unpooled = torch.zeros(2, 3, 2 * size[0], 2 * size[1], dtype=torch.float64)
    unpooled[..., ::2, ::2] = x
    height, width = (2 * n - o for n, o in zip(size, odd, strict=True))
    expected = F.conv2d(unpooled[..., :height, :width], layer.weight, padding=kernel // 2)
    torch.testing.assert_close(layer(x, (height, width)), expected)


@pytest.mark.parametrize("value, byte", [(-2.1, 233), (-1.0, 1), (-0.5, 129), (2.6, 151)])
def test_the_original_weights_see_normalised_images_through_eight_bits(value, byte):
    model = build_model("cspn_test_resnet", normalisation="wrapped").eval()
    # An image whose normalised red is the value; what reaches the first convolution is looked at.
    image = (model.mean + value * model.std).expand(1, 3, 8, 8)
    seen = []
    hook = model.conv1_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NoSparseDepth)
        model._check = lambda *_: None  # 2.6 is brighter than white
        model(image, sparse_depth=torch.zeros(1, 1, 8, 8))
    hook.remove()
    assert seen[0].shape == (1, 4, 8, 8) and (seen[0][:, 3] == 0).all()
    torch.testing.assert_close(seen[0][:, :3], torch.full((1, 3, 8, 8), byte / 255))


def test_normalised_image_and_metres_reach_the_network(small):
    image = torch.rand(1, 3, 16, 16)
    sparse = sparse_of(image, 0.3)
    x = torch.cat([(image - small.mean) / small.std, sparse], dim=1)
    with torch.no_grad():
        assert torch.equal(small(image, sparse_depth=sparse), small.forward_raw(x))


# ---------------------------------------------------------------------------- weights


def test_an_original_checkpoint_loads_and_its_dead_keys_are_reported(small, tmp_path):
    content = {f"module.{key}": value for key, value in small.state_dict().items()}
    dead = {
        "up_proj_layer1.conv1.weight": torch.rand(5, 10, 5, 5),
        "up_proj_layer4.sc_bn1.running_mean": torch.rand(4),
        "conv3.weight": torch.rand(1, 12, 3, 3),
        "post_process_layer.sum_conv.weight": torch.ones(1, 8, 1, 1, 1),
    }
    path = tmp_path / "best_model.pth"
    torch.save(content | {f"module.{key}": value for key, value in dead.items()}, path)
    other = build_model("cspn_test_resnet")
    report = load_weights(other, path)
    assert report.ok and set(report.ignored) == set(dead)
    image = torch.rand(1, 3, 24, 32)
    given = {"sparse_depth": sparse_of(image)}
    with torch.no_grad():
        assert torch.equal(other.eval()(image, **given), small(image, **given))
    del content["module.gud_up_proj_layer2.conv1_1.weight"]
    with pytest.raises(ValueError, match=r"1 missing:\s+gud_up_proj_layer2.conv1_1.weight"):
        load_weights(other, content)


def test_imagenet_weights_fill_the_encoder_and_leave_the_sparse_channel(monkeypatch):
    create = timm.create_model

    def fake(backbone, *, pretrained=False, **options):
        model = create(backbone, pretrained=False, **options)
        if pretrained:
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data.fill_(1)
        return model

    monkeypatch.setattr(timm, "create_model", fake)
    torch.manual_seed(0)
    before = build_model("cspn_test_resnet").state_dict()
    torch.manual_seed(0)
    after = build_model("cspn_test_resnet", weights="imagenet").state_dict()
    encoder = ("conv1_1.", "bn1.", "layer")
    first = next(key for key in after if key.startswith("conv1_1."))
    for key, value in after.items():
        if key == first:
            assert (value[:, :3] == 1).all() and torch.equal(value[:, 3], before[key][:, 3])
        elif key.startswith(encoder):
            assert (value == 1).all(), key
        else:
            assert torch.equal(value, before[key]), key


# ---------------------------------------------------------------------------- bad input


def test_without_any_measurement_it_answers_and_says_so_once_a_call(small):
    image = torch.rand(3, 3, 24, 32)
    sparse = sparse_of(image)
    sparse[1] = 0
    with torch.no_grad():
        with pytest.warns(NoSparseDepth, match="1 of 3 images .* by the image alone") as caught:
            depth = small(image, sparse_depth=sparse)
        assert len(caught) == 1 and depth.isfinite().all()
        with pytest.warns(NoSparseDepth, match="3 of 3"):
            assert small(image, sparse_depth=torch.zeros_like(sparse)).isfinite().all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            small(image, sparse_depth=sparse_of(image, 0.5))


@pytest.mark.parametrize(
    "sparse, error, says",
    [
        (None, TypeError, "takes sparse_depth .* got NoneType.*sparse_samples=500"),
        (torch.zeros(1, 1, 24, 32, dtype=torch.int64), TypeError, "float .* got torch.int64"),
        (torch.zeros(1, 1, 12, 16), ValueError, r"shape \(1, 1, 24, 32\).* got \(1, 1, 12, 16\)"),
        (torch.zeros(1, 24, 32), ValueError, r"got \(1, 24, 32\)"),
        (torch.full((1, 1, 24, 32), -1.0), ValueError, "768 negative, infinite or NaN"),
        (torch.full((1, 1, 24, 32), torch.nan), ValueError, "768 negative, infinite or NaN"),
        (torch.full((1, 1, 24, 32), torch.inf), ValueError, "768 negative, infinite or NaN"),
    ],
)
def test_sparse_depth_that_will_not_do(small, sparse, error, says):
    with pytest.raises(error, match=says):
        small(torch.rand(1, 3, 24, 32), sparse_depth=sparse)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("cspn_resnet5", {}, "Unknown backbone.*cspn_resnet5'.*'cspn_resnet50'"),
        ("cspn_mobilenetv3_small_050", {}, "encoder is a ResNet, .* is a MobileNetV3"),
        ("cspn_test_resnet", {"anchor": "none"}, "Unknown anchor 'none'"),
        ("cspn_test_resnet", {"normalisation": "none"}, "Known: imagenet, wrapped"),
    ],
)
def test_networks_that_there_are_not(name, options, says):
    with pytest.raises(ValueError, match=says):
        on_meta(name, **options)
