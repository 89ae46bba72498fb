"""The one loop that runs a model over a data set, and predictions."""

import pytest
import torch
from torch import nn
from toys import Net, items, net

from mde_utils.evaluation import evaluate, image_metrics
from mde_utils.losses import post_process_disparity
from mde_utils.models import build_model
from mde_utils.passes import forward, model_batches, name_of, predict, sum_over


class Echo(nn.Module):
    input_names = ("sparse_depth", "focal")

    def forward(self, image, sparse_depth, focal):
        return image[:, :1] + sparse_depth * focal.view(-1, 1, 1, 1)


def echo_item(size=(4, 8)):
    sparse = {"sparse_depth": torch.rand(1, *size), "focal": 2.0}
    return {"image": torch.rand(3, *size), "depth": torch.ones(1, *size), **sparse}


def test_one_item_and_many_of_any_size():
    data = [echo_item(), echo_item(), echo_item((6, 4))]
    expected = [x["image"][:1] + 2 * x["sparse_depth"] for x in data]
    for found in (predict(Echo(), data), [predict(Echo(), x) for x in data]):
        for depth, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(depth, wanted)
    with pytest.raises(ValueError, match="image 0 has no 'focal'; it has image"):
        predict(Echo(), {"image": torch.rand(3, 4, 8), "sparse_depth": torch.rand(1, 4, 8)})


def test_evaluation_mode_without_gradient_is_put_back():
    model = net().train()
    model.deep.eval()
    depth = predict(model, items(1)[0])
    assert depth.shape == (1, 16, 20) and not depth.requires_grad
    assert model.training and model.wide.training and not model.deep.training
    with pytest.raises(ZeroDivisionError):
        sum_over(model, items(1), lambda *_: 1 / 0)
    assert model.training and not model.deep.training
    model.eval()
    torch.testing.assert_close(depth, model(items(1)[0]["image"][None])[0].detach())


def test_a_sum_is_over_every_item_once():
    data = items(5)

    def measure(names, batch):
        return {"n": torch.tensor(len(names)), "depth": batch["depth"].double().sum()}

    for size in (1, 2, 5):
        found = sum_over(net(), data, measure, batch_size=size)
        assert found["n"] == 5
        torch.testing.assert_close(found["depth"], sum(x["depth"].double().sum() for x in data))
    with pytest.raises(ValueError, match="data set is empty"):
        sum_over(net(), [], measure)


def test_a_batch_holds_what_is_asked_for():
    data = [{**x, "frame": torch.ones(4)} for x in items(2)]
    ((names, batch),) = model_batches(net(), data, fields=(), optional=["frame"])
    assert names == ["i0", "i1"] and set(batch) == {"image", "frame"}
    assert batch["image"].device == next(net().parameters()).device
    assert (name_of(Net()), name_of([])) == ("Net", "list")
    assert name_of(torch.utils.data.Subset(Net(), [0])) == "Net"


@torch.no_grad()
def test_post_processing_asks_the_mirrored_image_too():
    torch.manual_seed(0)
    model = build_model("epcdepth_test_resnet", width=32, baseline=0.54).eval()
    image = torch.rand(2, 3, 64, 96)
    mirrored = model(image.flip(-1)).flip(-1)
    expected = 1 / post_process_disparity(1 / model(image), 1 / mirrored)
    found = forward(model, {"image": image}, post_process=True)
    torch.testing.assert_close(found, expected)
    assert torch.equal(forward(model, {"image": image}), model(image))
    flipped = forward(model, {"image": image.flip(-1)}, post_process=True).flip(-1)
    torch.testing.assert_close(flipped, found)
    data = [{"image": x, "depth": torch.full((1, 64, 96), 3.0)} for x in image]
    torch.testing.assert_close(torch.stack(predict(model, data, post_process=True)), found)
    rels = [evaluate(model, data, cap=80.0, post_process=p)["rel"] for p in (False, True)]
    target = torch.full((2, 1, 64, 96), 3.0)
    for pred, rel in zip((model(image), found), rels, strict=True):
        wanted = image_metrics(pred, target, cap=80.0)["rel"].mean().item()
        assert rel == pytest.approx(wanted, rel=1e-5)
    assert rels[0] != rels[1]


def test_maps_are_mirrored_with_the_image():
    item = echo_item()
    found = predict(Echo(), item, post_process=True)
    torch.testing.assert_close(found, predict(Echo(), item))
