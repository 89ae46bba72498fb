"""Reading what others saved, refusing what is not a checkpoint, writing whole files."""

import errno
import io
import json
import os
import pickle
import tempfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mde_utils.checkpoints import LoadReport, load_weights, read_metadata, save_weights


class Net(nn.Sequential):
    name = "net"
    options = {"dataset": "nyu"}
    dead_keys = ("dead.",)

    def __init__(self, width=4):
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))


def fresh(seed=1, **kwargs):
    torch.manual_seed(seed)
    model = Net(**kwargs)
    nn.init.uniform_(model[1].running_mean)
    return model


def same(a, b):
    b = b.state_dict()
    return all(torch.equal(value, b[key]) for key, value in a.state_dict().items())


@pytest.fixture
def source():
    return fresh(0)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


CONTAINERS = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "global_step": 7, "optimizer": {"state": {}}},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "rmse": 0.9},
    "module.": lambda s: prefixed(s, "module."),
    "model, module.": lambda s: {"model": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled, module.": lambda s: prefixed(s, "module._orig_mod."),
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "dead keys": lambda s: s | {"dead.weight": torch.ones(3)},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_originals_containers(tmp_path, source, container, zipped):
    path = tmp_path / "original.pth.tar"
    torch.save(
        CONTAINERS[container](source.state_dict()), path, _use_new_zipfile_serialization=zipped
    )
    model = fresh()
    report = load_weights(model, path)
    assert report.ok and same(source, model)
    assert report.ignored == (("dead.weight",) if container == "dead keys" else ())


def test_encoder_and_depth_decoder(tmp_path):
    def net():
        return nn.ModuleDict({"encoder": nn.Linear(2, 3), "depth_decoder": nn.Linear(3, 1)})

    source, model = net(), net()
    parts = {key: source[key].state_dict() for key in source}
    torch.save({"epoch": 4, "optimizer": {}, **parts}, tmp_path / "a.pth")
    assert load_weights(model, tmp_path / "a.pth").ok and same(source, model)


def test_a_state_dict_is_a_source_too(source):
    model = fresh()
    assert load_weights(model, source.state_dict()).loaded == 9
    assert same(source, model)


def test_keys_that_begin_with_module_by_right():
    source, model = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    assert load_weights(model, source.state_dict()).ok and same(source, model)


def test_two_keys_that_become_one_are_refused(source):
    """Without a word the later one won."""
    state = source.state_dict()
    model = fresh()
    with pytest.raises(ValueError, match="'0.weight' and 'module.0.weight'.*both '0.weight'"):
        load_weights(model, state | {"module.0.weight": torch.zeros(4, 3, 3, 3)})
    assert same(fresh(), model)


def test_half_precision_is_taken_into_the_models(source):
    model = fresh()
    state = source.state_dict().items()
    load_weights(model, {k: v.half() if v.is_floating_point() else v for k, v in state})
    assert model[0].weight.dtype == torch.float32
    torch.testing.assert_close(model[0].weight, source[0].weight, atol=1e-3, rtol=1e-3)


def test_tensors_saved_on_a_gpu(tmp_path, source):
    """Rewrites the location tag as a GPU would have left it; no GPU is needed to read it."""
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer, _use_new_zipfile_serialization=False)
    tag, gpu = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    assert tag in buffer.getvalue()
    (tmp_path / "gpu.pth").write_bytes(buffer.getvalue().replace(tag, gpu))
    model = fresh()
    load_weights(model, tmp_path / "gpu.pth")
    assert same(source, model) and model[0].weight.device.type == "cpu"


# ---------------------------------------------------------------------------- refusals


class Trap:
    """Unpickling this creates the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickled_object_is_refused_and_nothing_runs(tmp_path, source, how):
    path, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    content = {"model": source.state_dict(), "config": Trap(sprung)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    model = fresh()
    with pytest.raises(ValueError, match="trap.pth holds a pickled object.*refused.*[Nn]othing"):
        load_weights(model, path)
    assert not sprung.exists()
    assert same(fresh(), model)


def test_a_whole_pickled_model_is_refused(tmp_path, source):
    torch.save(source, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="pickled object"):
        load_weights(fresh(), tmp_path / "whole.pth")


def damaged(folder, source):
    torch.save(source.state_dict(), folder / "zip.pth")
    torch.save(source.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    save_weights(source, folder / "ours.safetensors")
    for file in list(folder.iterdir()):
        content = file.read_bytes()
        for part in (0.05, 0.5, 0.98):
            (folder / f"cut{part}_{file.name}").write_bytes(content[: int(len(content) * part)])
        file.unlink()
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.pth").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (folder / "junk.pth").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4)
    (folder / "brace.safetensors").write_bytes(bytes(8) + b"{" + bytes(50))
    return sorted(folder.iterdir())


def test_damaged_files_are_refused(tmp_path, source):
    files = damaged(tmp_path, source)
    assert len(files) == 15
    for file in files:
        model = fresh()
        with pytest.raises(ValueError, match=f"{file.name}.*(damaged|not a checkpoint)"):
            load_weights(model, file)
        assert same(fresh(), model)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], torch.ones(2), {"model": {"a": 1}}])
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_weights(fresh(), tmp_path / "a.pth")


def test_missing_files_say_what_is_there(tmp_path):
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="bets.safetensors.*best.safetensors"):
        load_weights(fresh(), tmp_path / "bets.safetensors")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_weights(fresh(), tmp_path / "runs" / "best.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_weights(fresh(), tmp_path)


def test_weights_of_another_model_are_refused_with_keys_and_shapes(tmp_path):
    save_weights(fresh(0, width=6), tmp_path / "a.safetensors", metadata={"model": "wide"})
    model = fresh()
    with pytest.raises(ValueError) as caught:
        load_weights(model, tmp_path / "a.safetensors")
    message = str(caught.value)
    assert "weights of wide" in message and "does not fit net" in message
    assert "0.weight [6, 3, 3, 3], model [4, 3, 3, 3]" in message
    assert "… and 2 more" in message
    assert same(fresh(), model)


def test_loading_what_fits(source):
    state = source.state_dict()
    state["extra.weight"] = torch.ones(2, 5)
    state["2.weight"] = torch.ones(1, 9, 1, 1)
    del state["0.bias"]
    model = fresh()
    with pytest.raises(ValueError, match="strict=False"):
        load_weights(model, state)
    report = load_weights(model, state, strict=False)
    assert report == LoadReport(
        loaded=7,
        missing=(("0.bias", (4,)),),
        unexpected=(("extra.weight", (2, 5)),),
        mismatched=(("2.weight", (1, 9, 1, 1), (1, 4, 1, 1)),),
    )
    assert not report.ok
    assert str(report).splitlines() == [
        "7 tensors fit",
        "  1 missing:",
        "    0.bias [4]",
        "  1 unexpected:",
        "    extra.weight [2, 5]",
        "  1 of another shape:",
        "    2.weight [1, 9, 1, 1], model [1, 4, 1, 1]",
    ]
    assert torch.equal(model[0].weight, source[0].weight)
    assert torch.equal(model[2].weight, fresh()[2].weight)


def test_nothing_that_fits_is_an_error_even_if_not_strict():
    with pytest.raises(ValueError, match="0 tensors fit"):
        load_weights(fresh(), {"a": torch.ones(1)}, strict=False)


# ---------------------------------------------------------------------------- our own files


def test_round_trip_with_metadata(tmp_path, source):
    path = tmp_path / "new" / "folder" / "net.safetensors"
    metadata = {"metrics": {"d1": 0.79, "rms": 0.53}, "layers": ["dec_3"], "note": "é"}
    assert save_weights(source, path, metadata=metadata) == path
    expected = {"model": "net", "options": {"dataset": "nyu"}, **metadata}
    assert read_metadata(path) == expected
    model = fresh()
    assert load_weights(model, path).ok and same(source, model)
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    assert json.loads(json.loads(header)["__metadata__"]["metrics"]) == metadata["metrics"]


def test_channels_last_and_wrappers_leave_no_trace(tmp_path, source):
    model = nn.DataParallel(source.to(memory_format=torch.channels_last))
    save_weights(model, tmp_path / "a.safetensors")
    loaded = fresh()
    assert load_weights(loaded, tmp_path / "a.safetensors").ok and same(source, loaded)


def test_metadata_of_other_origin(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "a.pth")
    assert read_metadata(tmp_path / "a.pth") == {}
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors", metadata={"by": "plain text"})
    assert read_metadata(tmp_path / "b.safetensors") == {"by": "plain text"}


def test_metadata_that_json_cannot_hold(tmp_path, source):
    with pytest.raises(TypeError, match=r"metadata\['x'\]"):
        save_weights(source, tmp_path / "a.safetensors", metadata={"x": object()})
    assert not list(tmp_path.iterdir())


def test_weights_for_other_options_are_refused(tmp_path, source):
    path = save_weights(source, tmp_path / "a.safetensors")
    model = fresh()
    model.options = {"dataset": "kitti"}
    with pytest.raises(ValueError, match="made with dataset='nyu'"):
        load_weights(model, path)
    assert same(fresh(), model)


def test_a_failed_write_leaves_the_former_file(tmp_path, source, monkeypatch):
    path = save_weights(source, tmp_path / "a.safetensors")
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_weights(fresh(), path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_no_permission(tmp_path, source, monkeypatch):
    def denied(**_):  # root may write anywhere, so the refusal is played
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(PermissionError, match="Cannot write 'a.safetensors' into the folder"):
        save_weights(source, tmp_path / "a.safetensors")
