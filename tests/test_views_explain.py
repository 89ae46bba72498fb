"""One call for a picture of one's own: the numbers, every kind of picture, and what is refused."""

import http.server
import threading
import urllib.request

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mde_utils import views
from mde_utils.activations import tap
from mde_utils.dissection import dissect
from mde_utils.edits import ablate
from mde_utils.models import DepthModel, adapt, build_model
from mde_utils.views.explain import explain, explain_folder

H, W = 48, 64


class Net(DepthModel):
    """Six units; brighter is nearer."""

    multiple, image_size = 8, (H, W)

    def __init__(self):
        super().__init__("net", {"deep": "deep", "wide": "wide"}, depth_range=(0.75, 10))
        torch.manual_seed(0)
        self.deep = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU())
        self.out = nn.Conv2d(6, 1, 1)

    def forward_raw(self, x):
        self.fed = tuple(x.shape[-2:])
        return self.out(self.wide(self.deep(x))) + 4


@pytest.fixture(scope="module")
def rooms():
    torch.manual_seed(0)
    data = []
    for _ in range(4):
        depth = 1 + 8 * F.interpolate(torch.rand(1, 1, 4, 5), (H, W), mode="bilinear")[0]
        data.append({"image": (1 - depth / 10).expand(3, -1, -1), "depth": depth, "name": "x/y"})
    return data


@pytest.fixture
def model():
    return Net().train()


@pytest.fixture
def dissection(model, rooms):
    return dissect(model, rooms, ["deep", "wide"])


@pytest.fixture
def ask(model, dissection):
    def explained(image, **options):
        return explain(image, model, **{"dissection": dissection, "verbose": False, **options})

    return explained


def photo(size=(H, W), seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype="u1")


def test_the_numbers(model, dissection, rooms, ask, capsys):
    image = rooms[0]["image"]
    found = ask(image, num_units=4, verbose=True)
    assert model.training
    model.eval()
    with torch.no_grad(), tap(model, ["deep", "wide"]) as acts:
        depth = model(image[None])
    upsampled = F.interpolate(depth, (H, W), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found.depth, upsampled)
    assert torch.equal(found.image, image)

    frame = dissection.to_frame().set_index(["layer", "unit"])
    share = {}
    for layer, unit in frame.index:
        strongest = dissection.response[layer][unit].abs().max()
        above = acts[layer][0, unit].abs() > strongest / 2
        share[layer, unit] = above.float().mean().item() if strongest > 0 else 0.0
    firing = [key for key in frame.index if share[key] >= 0.01]
    firing.sort(key=lambda key: -frame.selectivity[key])
    pairs = [*zip(found.units["layer"], found.units["unit"], strict=True)]
    assert pairs == firing[:4]
    for i, (layer, unit) in enumerate(pairs):
        row = found.units.iloc[i]
        assert row.fires == pytest.approx(share[layer, unit])
        with torch.no_grad(), ablate(model, {layer: [unit]}, answer="mean", dissection=dissection):
            other = model(image[None])
        torch.testing.assert_close(found.changes[i], (other - depth)[0, 0], atol=1e-5, rtol=1e-4)
        assert row.change == pytest.approx((other - depth).abs().mean().item(), abs=1e-5)
        ratio = torch.maximum(other / depth, depth / other)
        assert row.fails == pytest.approx((ratio >= 1.25).float().mean().item(), abs=2e-3)
        part = found.by_depth.query("layer == @layer and unit == @unit")
        assert (part["share"] * part["change"]).sum() == pytest.approx(row.change, abs=1e-5)
        bins = dissection.bins[layer].discretize(depth)
        for _, one in part.iterrows():
            number = (dissection.bins[layer].edges[:-1] == one["from"]).nonzero().item()
            inside = (other - depth).abs()[bins == number]
            assert one["change"] == pytest.approx(inside.mean().item(), abs=1e-5)
        assert row.worst_from == part.loc[part["change"].idxmax(), "from"]
    by_layer = {k: [u for j, u in pairs if j == k] for k in dict(pairs)}
    with torch.no_grad(), ablate(model, by_layer, answer="mean", dissection=dissection):
        other = model(image[None])
    assert found.together["change"] == pytest.approx((other - depth).abs().mean().item(), abs=1e-5)
    said = capsys.readouterr().out
    assert said.strip() == str(found) and "Depth: metric" in said and "image: 48x64" in said


def test_every_form_of_an_image(ask, tmp_path):
    pixels = photo()
    path = tmp_path / "a photo.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    item = {"image": tensor / 255, "name": "rooms/3"}
    forms = (path, str(path), pixels, pixels / 255, tensor, tensor / 255, item)
    found = [ask(form) for form in (*forms, Image.fromarray(pixels))]
    for one in found:
        torch.testing.assert_close(one.depth, found[0].depth)
        pd.testing.assert_frame_equal(one.units, found[0].units)
    assert [one.name for one in found[:3]] == ["a photo", "a photo", "image"]
    assert found[6].name == "rooms_3"


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK", "RGBA", "LA", "P", "1"])
def test_every_kind_of_picture(mode, ask, tmp_path):
    grey = photo()[..., 0]
    path = tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}"
    if mode == "I;16":
        picture = Image.fromarray(grey.astype("u2") * 257)
        assert picture.mode == mode
    else:
        picture = Image.fromarray(photo()).convert(mode)
    picture.save(path)
    found = ask(path)
    assert found.image.shape == (3, H, W) and found.depth.shape == (1, H, W)
    if mode == "I;16":  # white is 65535
        assert torch.equal(found.image, torch.from_numpy(grey / 255).float().expand(3, -1, -1))


def test_turned_as_the_camera_says(ask, tmp_path):
    pixels, exif = photo(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = ask(tmp_path / "a.png")
    upright = torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1) / 255
    assert torch.equal(found.image, upright)


@pytest.mark.parametrize(
    "size, kept, fed, says",
    [
        ((48, 64), (48, 64), (48, 64), "image: 48x64."),
        ((300, 400), (300, 400), (48, 64), "300x400; the network is shown 48x64"),
        ((400, 300), (400, 300), (64, 48), "400x300; the network is shown 64x48"),
        ((1000, 12000), (171, 2048), (16, 192), "1000x12000, resized to 171x2048; the network is"),
        ((40, 60), (40, 60), (48, 64), "40x60; the network is shown"),
    ],
)
def test_any_size_is_brought_to_the_networks_and_back(size, kept, fed, says, model, ask):
    found = ask(torch.rand(3, *size))
    assert found.depth.shape == (1, *kept) and found.image.shape == (3, *kept)
    assert model.fed == fed and says in str(found)
    if size == (300, 400):
        ask(torch.rand(3, *size), size=(32, 40))
        assert model.fed == (32, 40)


def test_any_module_may_say_its_own_size(model, dissection):
    class Wrapper(nn.Sequential):  # such as a compiled network
        name, multiple, image_size = "net", 8, (H, W)

    wrapped = Wrapper(model)
    wrapped.taps = {k: f"0.{path}" for k, path in model.taps.items()}
    explain(torch.rand(3, 300, 400), wrapped, dissection=dissection, verbose=False)
    assert model.fed == (H, W)


@pytest.mark.parametrize(
    "name", ["meter_xxs", "mff_resnet18", "bts_resnet50", "cspn_resnet18", "epcdepth_resnet18"]
)
def test_every_network_takes_what_it_is_shown(name):
    with torch.device("meta"):  # shapes alone
        model = build_model(name).eval()
    for h, w in ((480, 640), (4000, 3000), (375, 1242)):
        fed = model.fitting_size(h, w)
        inputs = {key: torch.rand(1, 1, *fed, device="meta") for key in model.input_names}
        with torch.no_grad():
            assert model(torch.rand(1, 3, *fed, device="meta"), **inputs).shape[1] == 1
        wanted = model.image_size[0] * model.image_size[1]
        assert 0.7 * wanted < fed[0] * fed[1] < 1.5 * wanted


def test_from_an_address(ask, tmp_path):
    Image.fromarray(photo()).save(tmp_path / "far.png")
    (tmp_path / "page.html").write_text("<p>no picture</p>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    before = urllib.request._opener
    urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
    try:
        found = ask(f"{address}/far.png?a=b")
        assert found.name == "far" and torch.equal(found.depth, ask(tmp_path / "far.png").depth)
        with pytest.raises(ConnectionError, match="404.*Download the picture elsewhere"):
            ask(f"{address}/none.png")
        with pytest.raises(ValueError, match="page.html as a picture: it is no image"):
            ask(f"{address}/page.html")
    finally:
        server.shutdown()
        server.server_close()
    try:
        with pytest.raises(ConnectionError, match="Cannot reach .*Download the picture elsewhere"):
            ask(f"{address}/far.png")
    finally:
        urllib.request.install_opener(before)


def text(folder):
    (folder / "a.jpg").write_text("not a picture")
    return folder / "a.jpg"


def cut_off(folder):
    Image.fromarray(photo()).save(folder / "a.png")
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])
    return folder / "a.png"


@pytest.mark.parametrize(
    "image, error, says",
    [
        (text, ValueError, "a.jpg as a picture: it is no image"),
        (cut_off, ValueError, "a.png, it is damaged"),
        (lambda folder: folder / "none.png", FileNotFoundError, "There is no picture .*none.png"),
        (lambda folder: folder, ValueError, "is a folder: explain_folder"),
        (photo((1, 1)), ValueError, "1x1 pixels, in which no depth can be seen: 32x32"),
        (photo((32, 1000)), ValueError, "one side may be at most 16 times"),
        (photo() / 1.0, ValueError, "Divide 8-bit values by 255"),
        (photo() / 255 * np.nan, ValueError, r"lies in \[0, 1\]"),
        (photo().astype("i8"), ValueError, "uint8, or float"),
        (photo()[..., 0], ValueError, r"\(H, W, 3\), uint8 or float in \[0, 1\]; got \(48, 64\)"),
        (torch.rand(1, 3, H, W), ValueError, r"\(3, H, W\), uint8 or float in \[0, 1\]; got"),
        (7, TypeError, "a path, an address, an array .*got int"),
        ({"depth": 1}, ValueError, "has no 'image'"),
    ],
)
def test_what_is_no_picture(image, error, says, ask, tmp_path):
    with pytest.raises(error, match=says):
        ask(image(tmp_path) if callable(image) else image)


class Returns(Net):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, image):
        return self.fn(super().forward(image))


@pytest.mark.parametrize(
    "fn, says",
    [
        (lambda d: {"depth": d, "confidence": d}, r"dict of 'depth' \(1, 1, 24, 32\).*adapt"),
        (lambda d: (d, d), "tuple of 0 .*Say which"),
        (lambda d: d.expand(-1, 8, -1, -1), "8 channels are logits"),
        (lambda d: d * torch.nan, "holds NaN"),
    ],
)
def test_what_is_no_depth(fn, says, dissection):
    with pytest.raises(ValueError, match=says):
        explain(photo(), Returns(fn), dissection=dissection)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"num_units": 0}, "at least 1"),
        ({"layers": ["out"]}, "out"),
        ({"layers": []}, "at least one layer"),
        ({"size": 64}, "size is .height, width"),
    ],
)
def test_what_cannot_be_asked(options, says, ask):
    with pytest.raises(ValueError, match=says):
        ask(photo(), **options)


def test_a_dissection_of_another_model(dissection):
    class Wider(Net):
        def __init__(self):
            super().__init__()
            self.wide = nn.Sequential(nn.Conv2d(8, 7, 1), nn.ReLU())
            self.out = nn.Conv2d(7, 1, 1)

    with pytest.raises(ValueError, match="has 7 units, in the dissection 6"):
        explain(photo(), Wider(), dissection=dissection, layers=["wide"])


def test_what_a_network_takes_beside_the_image(dissection):
    class Guided(Net):
        input_names = ("sparse_depth",)

        def forward_raw(self, x, sparse_depth):
            return super().forward_raw(x) + sparse_depth[..., ::2, ::2]

    model = Guided()
    with pytest.raises(ValueError, match="takes sparse_depth beside the image: give an item"):
        explain(photo(), model, dissection=dissection)
    item = {"image": torch.rand(3, H, W), "sparse_depth": torch.full((1, H, W), 2.0)}
    with pytest.raises(ValueError, match="has no 'sparse_depth'"):
        explain({"image": item["image"]}, model, dissection=dissection)
    found = explain(item, model, dissection=dissection, verbose=False)
    plain = explain(item["image"], Net(), dissection=dissection, verbose=False)
    torch.testing.assert_close(found.depth, plain.depth + 2)


@pytest.mark.parametrize("unit", ["up to scale", "up to scale and shift", None])
def test_the_scale_is_said_and_never_guessed(unit, model, dissection, capsys):
    net = model if unit is None else nn.Sequential()
    if unit is None:
        net = nn.Sequential(model)  # a plain module says nothing
        options = {"dissection": dissect(net, [*sample()], ["0.wide"], bins="nyu")}
    else:
        taps = {"deep": "deep", "wide": "wide"}
        zero, one = (0, 0, 0), (1, 1, 1)
        net = adapt(model, mean=zero, std=one, output="disparity", unit=unit, taps=taps, name="net")
        options = {"dissection": dissection}
    found = explain(photo(), net, **options)
    said = capsys.readouterr().out
    assert found.scale == (unit or "unknown") and "metric" not in said.split("Depth:")[1]
    assert (unit or "of unknown scale").replace("up to", "up to an unknown") in said
    edges = found.by_depth[["from", "to"]].to_numpy()
    assert len(found.by_depth) <= 10 * len(found.units) and (edges[:, 0] < edges[:, 1]).all()
    texts = [ax.get_ylabel() for ax in found.figure().axes]
    assert "depth [model’s unit]" in texts and "depth [m]" not in texts
    plt.close("all")


def sample():
    for seed in range(2):
        image = torch.from_numpy(photo(seed=seed)).permute(2, 0, 1) / 255
        yield {"image": image, "depth": 1 + 8 * image.mean(0, keepdim=True)}


def test_a_layer_that_never_fires(model, dissection, capsys):
    with torch.no_grad():
        model.wide[0].weight.zero_()
        model.wide[0].bias.fill_(-1)
    silent = dissect(model, [*sample()], ["wide"])
    found = explain(photo(), model, dissection=silent)
    assert found.units.empty and found.together == {"change": 0.0, "fails": 0.0}
    assert "No unit of wide fires on this picture" in capsys.readouterr().out
    words = [t.get_text() for ax in found.figure().axes for t in ax.texts]
    assert words == ["no unit fires on it"]
    plt.close("all")


def test_without_a_dissection_one_is_made(monkeypatch):
    monkeypatch.setattr(views.explain, "IMAGES", 2)
    found = explain(photo(), Net(), verbose=False)
    assert set(found.units["layer"]) <= {"wide"} and "2 rendered rooms" in str(found)
    plain = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Softplus())
    with pytest.raises(ValueError, match="Which units. Sequential names no layers"):
        explain(photo((64, 64)), plain)


def test_a_shipped_network_on_a_street(real):
    path = sorted((real / "kitti").rglob("*_rgb.png"))[0]
    model = build_model("meter_xxs", weights="rooms", variant="assign")
    data = [{"image": torch.rand(3, 64, 64), "depth": 1 + 8 * torch.rand(1, 64, 64)}]
    found = explain(path, model, dissection=dissect(model, data, ["dec_3"]), verbose=False)
    assert found.depth.shape[1:] == (375, 1242) and "shown 128x416" in str(found)
    assert len(found.units) == 5 and bool((found.units.change > 0).all())


# ---- pictures and files ----------------------------------------------------------------------


def test_the_figure_shows_what_was_found(ask):
    found = ask(photo(), num_units=3)
    figure = found.figure()
    titles = [ax.get_title() for ax in figure.axes]
    assert {"RGB", "predicted depth", "all units below wrong", "where it fires"} <= {*titles}
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert "depth [m]" in labels and "change [m]" in labels
    rows = [label for label in labels if "unit" in label]
    for label, (_, row) in zip(rows, found.units.iterrows(), strict=True):
        assert label.startswith(f"{row.layer}, unit {row.unit}\nDS {row.selectivity:.2f}")
    lines = [ax.lines[0] for ax in figure.axes if ax.lines]
    for line, (_, part) in zip(
        lines, found.by_depth.groupby(["layer", "unit"], sort=False), strict=True
    ):
        np.testing.assert_allclose(line.get_ydata(), part["change"])
    assert "depth: metric" in figure.get_suptitle()
    plt.close("all")


def test_saved(ask, tmp_path):
    found = ask(photo())
    folder = found.save(tmp_path / "new" / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["image.csv", "image.npy", "image.png"]
    np.testing.assert_array_equal(np.load(folder / "image.npy"), found.depth[0])
    pd.testing.assert_frame_equal(pd.read_csv(folder / "image.csv"), found.units, check_dtype=False)
    assert Image.open(folder / "image.png").width == 850
    assert not plt.get_fignums()


def test_a_folder_gives_a_folder_and_one_page(model, dissection, tmp_path, capsys):
    source, target = tmp_path / "mine", tmp_path / "below" / "out"
    source.mkdir()
    for name, size in (("a & b.png", (48, 64)), ("c.jpg", (64, 48))):
        Image.fromarray(photo(size)).save(source / name)
    page = explain_folder(source, model, target, dissection=dissection, num_units=2)
    assert page == target / "index.html" and "2 pictures, depth metric" in capsys.readouterr().out
    names = [f"{stem}.{end}" for stem in ("a & b", "c") for end in ("csv", "npy", "png")]
    assert sorted(p.name for p in target.iterdir()) == sorted([*names, "index.html"])
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 2 and "http" not in html
    assert " src=" not in html.replace(' src="data:', "")
    assert '<h2 id="a &amp; b">' in html and 'href="#a &amp; b"' in html
    alone = explain(source / "c.jpg", model, dissection=dissection, num_units=2, verbose=False)
    np.testing.assert_array_equal(np.load(target / "c.npy"), alone.depth[0])
    with pytest.raises(FileExistsError, match="holds something already"):
        explain_folder(source, model, target, dissection=dissection)


@pytest.mark.parametrize(
    "files, error, says",
    [
        (None, FileNotFoundError, "There is no folder .*mine"),
        ([], FileNotFoundError, "No picture lies in .*mine.*.png, .jpg"),
        (["a.png", "a.jpg"], ValueError, "2 pictures are called a"),
        (["a.png", "z.png:cut"], ValueError, "z.png, it is damaged"),
        (["a.png", "z.png:small"], ValueError, "4x4 pixels"),
    ],
)
def test_a_folder_that_cannot_be_explained_leaves_nothing(
    files, error, says, model, dissection, tmp_path
):
    source = tmp_path / "mine"
    if files is not None:
        source.mkdir()
        (source / "notes.txt").write_text("not a picture")
    for name in files or ():
        name, _, flaw = name.partition(":")
        Image.fromarray(photo((4, 4) if flaw == "small" else (H, W))).save(source / name)
        if flaw == "cut":
            data = (source / name).read_bytes()
            (source / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(error, match=says):
        explain_folder(source, model, tmp_path / "out", dissection=dissection)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"] * (files is not None)


@pytest.mark.parametrize("shift, share", [(-4.5, "100%"), (-1.5, r"\d\d%")])
def test_a_prediction_that_is_mostly_no_depth_is_refused(shift, share, dissection, monkeypatch):
    model = Returns(
        lambda depth: (
            depth.new_zeros(depth.shape) + torch.linspace(shift, shift + 3, depth.shape[-1])
        )
    )
    with pytest.raises(
        ValueError, match=f"{share} of the prediction for image is 0 or below.*adapt"
    ):
        explain(photo(), model, dissection=dissection)


def test_no_ratio_is_said_of_depth_that_is_but_an_order(model, dissection, capsys, tmp_path):
    relative = adapt(
        model,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        output="depth",
        unit="up to scale and shift",
        taps={"deep": "deep", "wide": "wide"},
        name="net",
    )
    found = explain(photo(), relative, dissection=dissection)
    assert found.units["fails"].isna().all() and np.isnan(found.together["fails"])
    assert "ratio" not in found.said and "nan" not in found.said
    said = " ".join(t.get_text() for t in found.figure().findobj(plt.Text))
    assert "ratio" not in said and "mean |change|" in said
    Image.fromarray(photo()).save(tmp_path / "a.png")
    page = explain_folder(tmp_path, relative, tmp_path / "out", dissection=dissection)
    assert "unknown" in page.read_text() and "nan%" not in page.read_text()


@pytest.mark.parametrize("options", [{"num_units": 0}, {"size": (0, 1)}])
def test_a_folder_is_refused_before_anything_is_rendered(options, model, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("rendered")

    monkeypatch.setattr(views.explain, "_rendered", never)
    Image.fromarray(photo()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="num_units|size"):
        explain_folder(tmp_path, model, tmp_path / "out", **options)
    model.input_names = ("focal",)
    with pytest.raises(ValueError, match="takes focal beside the image"):
        explain_folder(tmp_path, model, tmp_path / "out")
