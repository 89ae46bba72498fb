"""ONNX: the same numbers as torch, and the units' names and selectivity inside."""

import json

import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from torch import nn

from mde_utils.activations import tap
from mde_utils.dissection import dissect
from mde_utils.models import build_model
from mde_utils.views import export
from mde_utils.views.export import export_onnx

LAYERS = ["enc_4", "dec_3"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("meter_xxs").train()
    rooms = [{"image": torch.rand(3, 64, 64), "depth": 1 + 8 * torch.rand(1, 64, 64)}] * 2
    found = dissect(model, rooms, ["dec_2", *LAYERS])
    path = tmp_path_factory.mktemp("onnx") / "deep" / "meter.onnx"
    assert export_onnx(model, path, dissection=found, layers=LAYERS, size=(64, 128)) == path
    assert model.training and not model._forward_hooks
    assert [p.name for p in path.parent.iterdir()] == ["meter.onnx"]
    return model, found, path


@pytest.mark.parametrize("number", [1, 4])
def test_the_same_as_torch(exported, number):
    model, _, path = exported
    image = torch.rand(number, 3, 64, 128)
    with torch.no_grad(), tap(model.eval(), LAYERS) as acts:
        depth = model(image)
    session = onnxruntime.InferenceSession(str(path))
    assert [x.name for x in session.get_outputs()] == ["depth", *LAYERS]
    found = session.run(None, {"image": image.numpy()})
    for given, expected in zip(found, (depth, *(acts[k] for k in LAYERS)), strict=True):
        given = torch.from_numpy(given)
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_units_keep_their_names_and_selectivity(exported):
    _, dissection, path = exported
    about = {x.key: x.value for x in onnx.load(path).metadata_props}
    assert about["model"] == "meter_xxs" and about["scale"] == "metric"
    assert json.loads(about["dissection"])["images"] == 2
    assert {key for key in about if key.startswith("units/")} == {f"units/{k}" for k in LAYERS}
    for layer in LAYERS:
        expected = dissection.to_frame().query("layer == @layer").drop(columns="layer")
        found = pd.DataFrame(json.loads(about[f"units/{layer}"]))
        pd.testing.assert_frame_equal(
            found, expected.reset_index(drop=True), check_dtype=False, rtol=1e-6
        )


def test_what_differs_from_torch_is_refused(exported, tmp_path):
    _, _, path = exported
    images = torch.rand(2, 3, 64, 128)
    for depth in (torch.zeros(2, 1, 16, 32), torch.zeros(2, 1, 8, 8)):
        with pytest.raises(ValueError, match="depth .* differs from torch's .* for 1 images"):
            export._check(path, images, {"depth": depth})


@pytest.mark.parametrize(
    "model, options, says",
    [
        ("meter_xxs", {"size": (60, 64)}, "impossible height"),
        ("meter_xxs", {"layers": ["dec_9"]}, "Unknown layer 'dec_9'"),
        ("cspn_resnet18", {}, "takes sparse_depth beside the image"),
        (nn.Conv2d(3, 1, 1), {}, "At which size"),
        ("meter_xxs", {"size": 64}, "size is .height, width"),
    ],
)
def test_clear_errors_before_any_work(model, options, says, tmp_path):
    model = build_model(model) if isinstance(model, str) else model
    with pytest.raises(ValueError, match=says):
        export_onnx(model, tmp_path / "a.onnx", **options)
    assert not [*tmp_path.iterdir()]


def test_without_the_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript onnxruntime"):
        export_onnx(build_model("meter_xxs"), tmp_path / "a.onnx")


def test_an_exporter_too_old_is_named_with_its_version(monkeypatch, tmp_path):
    """torch 2.6's: 'tuple' object has no attribute 'dtype'."""

    def fails(*_, **__):
        raise AttributeError("'tuple' object has no attribute 'dtype'")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(RuntimeError, match=f"with torch {torch.__version__[:3]}.*dtype.*2.11"):
        export_onnx(build_model("meter_xxs"), tmp_path / "a.onnx", size=(64, 64))
    assert not list(tmp_path.iterdir())
