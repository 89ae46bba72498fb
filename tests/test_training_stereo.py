"""Training from pairs, without ground truth: it learns, goes on bit for bit, and says what is wrong
with pairs before it begins."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import toys
from toys import RandomItems, assert_same, assert_same_frames, in_two, net

from mde_utils.data import load_dataset
from mde_utils.dissection import dissect
from mde_utils.evaluation import photometric
from mde_utils.models import build_model
from mde_utils.training import TrainConfig, fit

one_thread = pytest.fixture(autouse=True)(toys.one_thread)

SIZE = (48, 96)
FOCAL, BASELINE = 50.0, 0.54
ALONE = ("image", "right", "intrinsics", "baseline", "hint", "name")


def pairs(n, seed=0, *, fields=(*ALONE, "depth"), baseline=BASELINE):
    """A textured wall, at another distance in each: FOCAL · baseline / whole pixels."""
    generator = torch.Generator().manual_seed(seed)
    h, w = SIZE
    k = torch.tensor([[FOCAL, 0, w / 2], [0, FOCAL, h / 2], [0, 0, 1]])
    data = []
    for i in range(n):
        shift = 2 + i % 5
        coarse = torch.rand(1, 3, h // 3, (w + 12) // 3, generator=generator)
        wide = F.interpolate(coarse, (h, w + 12), mode="bicubic")[0].clamp(0, 1)
        depth = torch.full((1, h, w), FOCAL * baseline / shift)
        item = {
            "image": wide[..., :w],
            "right": wide[..., shift : shift + w],
            "intrinsics": k,
            "baseline": baseline,
            "hint": depth,
            "depth": depth,
            "name": f"p{i}",
        }
        data.append({name: item[name] for name in fields})
    return data


def epcdepth(seed=0, **options):
    torch.manual_seed(seed)
    options = {"baseline": BASELINE, "width": 32} | options
    return build_model("epcdepth_test_resnet", **options)


CONFIG = TrainConfig.recipe(
    "epc_paper",
    model="epcdepth_test_resnet",
    num_epochs=2,
    batch_size=2,
    learning_rate=1e-3,
    decay_every=1,
)
PHOTOMETRIC = replace(CONFIG, best_by="photometric", cfg_layers=())

# ------------------------------------------------------------------ learning


def correlation(model, dataset):
    """Of the logarithms of predicted and true depth, where there is any."""
    model.eval()
    with torch.no_grad():
        found = [model(x["image"][None])[0][x["depth"] > 0] for x in dataset]
    true = [x["depth"][x["depth"] > 0] for x in dataset]
    return torch.corrcoef(torch.stack([torch.cat(found), torch.cat(true)]).log())[0, 1].item()


def test_depth_is_learned_from_streets_without_ground_truth():
    options = {"size": (48, 160), "baseline": BASELINE, "limit": 8}
    train = load_dataset("streets", "train", hints=True, augment="epc", **options)
    plain = load_dataset("streets", "train", **options)
    model = epcdepth()
    before = photometric(model, plain), correlation(model, plain)
    config = replace(
        PHOTOMETRIC, num_epochs=9, learning_rate=2e-3, decay_every=9, stereo={"graft": False}
    )
    frame = fit(model, train, plain, config).frame
    first, last = frame.iloc[0], frame.iloc[-1]
    assert last.depth_loss < 0.8 * first.depth_loss
    parts = last.train_photometric + last.train_hint + last.train_distillation
    assert last.depth_loss == pytest.approx(parts, rel=1e-5)
    assert last.val_d1 > first.val_d1 and last.val_rms < first.val_rms
    assert photometric(model, plain) < 0.7 * before[0]
    assert correlation(model, plain) > before[1] + 0.2


@pytest.mark.parametrize(
    "switched, lost",
    [
        ({"hints": False}, "train_hint"),
        ({"distillation": 0.0}, "train_distillation"),
        ({"smooth": 0.1}, None),
        ({"automask": False}, None),
        ({"graft": False}, None),
        ({"scales": 5}, None),
    ],
)
def test_each_part_can_be_switched_off(switched, lost, whole):
    model = epcdepth()
    heads = {k: v.clone() for k, v in model.state_dict().items() if "encoder_disps" in k}
    frame = fit(model, pairs(4), pairs(2), replace(PHOTOMETRIC, stereo=switched)).frame
    parts = {"train_photometric", "train_hint", "train_distillation"}
    parts = parts - {lost} | ({"train_smoothness"} if "smooth" in switched else set())
    assert {c for c in frame if c.startswith("train_")} == parts
    assert frame.depth_loss[0] != whole.depth_loss[0]
    trained = not all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())
    assert trained == ("scales" not in switched)


@pytest.fixture(scope="module")
def whole():
    return fit(epcdepth(), pairs(4), pairs(2), PHOTOMETRIC).frame


def test_no_field_of_depth_is_looked_at(whole):
    """Nor is it needed: by photometric error the best epoch is found without."""
    model = epcdepth()
    without = pairs(4, fields=ALONE), pairs(2, fields=ALONE)
    history = fit(model, *without, PHOTOMETRIC)
    same = [c for c in history.frame if c not in toys.TIMES]
    assert history.frame[same].equals(whole[same])
    assert {"val_d1", "val_rms"} < set(whole) and not {"val_d1", "val_rms"} & set(history.frame)
    assert history.best_epoch == history.frame.epoch[history.frame.val_photometric.idxmin()]
    best = photometric(model, without[1])
    assert history.best["val_photometric"] == pytest.approx(best, rel=1e-5)


def test_a_supervised_network_may_be_chosen_by_pairs():
    config = replace(PHOTOMETRIC, depth_loss="l1", stereo={}, num_epochs=1)
    frame = fit(epcdepth(), pairs(4), pairs(2), config).frame
    assert {"val_photometric", "val_d1", "depth_loss"} < set(frame)


# ------------------------------------------------------------------ selectivity


@pytest.mark.filterwarnings("ignore:The selectivity term is")
def test_units_become_selective_without_labels():
    config = replace(PHOTOMETRIC, num_epochs=8, imde_depth="own", cfg_layers=("stage2d",))
    data = pairs(8, fields=ALONE), pairs(2, fields=ALONE)
    # Near enough from the start that its own depth lies in the bins.
    plain = fit(epcdepth(depth_range=(1.0, 20.0)), *data, config).frame
    strong = replace(config, neuron_selective=True, imde_alpha=-20.0)
    frame = fit(epcdepth(depth_range=(1.0, 20.0)), *data, strong).frame
    ends = [f.train_term_stage2d.iloc[-2:].mean() for f in (plain, frame)]
    assert ends[1] > ends[0] + 0.1
    assert "val_selectivity_stage2d" not in frame


@pytest.mark.filterwarnings("ignore:The selectivity term is")
def test_ground_truth_is_for_selectivity_alone():
    config = replace(CONFIG, num_epochs=1, neuron_selective=True, imde_alpha=-2.0)
    frame = fit(epcdepth(depth_range=(1.0, 20.0)), pairs(4), pairs(2), config).frame
    row = frame.iloc[0]
    term = row.train_term_stage1d + row.train_term_stage2d
    assert row.selectivity_term == pytest.approx(term, rel=1e-5) and term != 0
    assert row.loss == pytest.approx(row.depth_loss - 2 * term, rel=1e-5)
    assert {"val_selectivity_stage1d", "val_assigned_stage2d", "val_d1"} < set(frame)


def test_the_networks_own_depth_is_that_of_forward():
    """And what it dissects by is no target: with the layers frozen there is no gradient."""
    model = epcdepth(depth_range=(1.0, 20.0))
    config = replace(
        PHOTOMETRIC,
        num_epochs=1,
        batch_size=4,
        learning_rate=1e-12,
        imde_depth="own",
        cfg_layers=("stage1d",),
        stereo={"graft": False},
    )
    data = pairs(4, fields=ALONE)
    frame = fit(model, data, data, config).frame
    model.train()
    with torch.no_grad():
        depth = model(torch.stack([x["image"] for x in data]))
    own = [x | {"depth": d} for x, d in zip(data, depth, strict=True)]
    truth = fit(epcdepth(depth_range=(1.0, 20.0)), own, own, replace(config, imde_depth="truth"))
    for column in ("train_term_stage1d", "train_coverage_stage1d", "gradient_ratio"):
        assert frame[column][0] == pytest.approx(truth.frame[column][0], rel=0.05), column
    assert dissect(model, own, ["stage1d"], bins=(1.0, 20.0)).counts["stage1d"].sum() > 0


# ------------------------------------------------------------------ resume, processes


def test_a_run_goes_on_bit_for_bit(tmp_path):
    """Grafting, the noise of auto-masking and the augmentation draw what they would have drawn."""

    def run(name, hours):
        config = replace(
            PHOTOMETRIC,
            run_dir=str(tmp_path / name),
            max_hours=hours,
            save_minutes=1e-9,
            imde_depth="own",
            cfg_layers=("stage1d",),
        )
        model = epcdepth()
        history = fit(model, RandomItems(pairs(4)), pairs(2), config)
        return history.finished, history.frame, model.state_dict()

    expected = run("whole", 0.0)
    parts = [run("parts", hours) for hours in (1e-9, 1e-9, 1e-9, 0.0)]
    assert [finished for finished, *_ in parts] == [False, False, False, True]
    assert_same_frames(parts[-1][1], expected[1])
    assert_same(parts[-1][2], expected[2])


def run_shared(rank, config):
    model = epcdepth()
    history = fit(model, pairs(4), pairs(2), config)
    return history.frame, dict(model.state_dict())


@pytest.mark.parametrize("stereo", [{}, {"scales": 5}])
def test_two_processes_end_with_one_network(stereo):
    config = replace(
        PHOTOMETRIC,
        batch_size=4,
        stereo=stereo,
        neuron_selective=True,
        imde_depth="own",
        cfg_layers=("stage1d",),
    )
    (first, weights), (second, others) = in_two(run_shared, config)
    assert_same(weights, others)
    assert_same_frames(first, second)
    start = epcdepth().state_dict()
    moved = {
        k for k, v in weights.items() if v.is_floating_point() and not torch.equal(v, start[k])
    }
    assert any("encoder_disps" in k for k in moved) == (not stereo)
    assert any("depth_decoder.stage5d" in k for k in moved)


# ------------------------------------------------------------------ what is wrong with pairs


def changed(**changes):
    """Pairs whose first item is another one; None leaves a field out."""
    data = pairs(4)
    data[0] = {k: v for k, v in (data[0] | changes).items() if v is not None}
    return data


def other_size(x):
    return x[..., :-2]


@pytest.mark.parametrize(
    "train, changes, says",
    [
        (changed(right=None), {}, "set lack right, they have image, .*'kitti' with right=True"),
        (changed(intrinsics=None), {}, "Pairs need image, .*training set lack intrinsics"),
        (changed(baseline=None), {}, "Pairs need image, .*training set lack baseline"),
        (changed(hint=None), {}, "set lack hint, .*hints=True, or the config stereo={'hints': F"),
        (changed(baseline=0.0), {}, "calibration of p0 of the training set.*other than 0"),
        (changed(right=torch.rand(3, 48, 90)), {}, "p0 .* differ in size, 48x96 and 48x90"),
        (changed(hint=torch.ones(1, 24, 48)), {}, r"hint of p0 .* must be \(1, 48, 96\)"),
        (pairs(4, baseline=0.1), {}, "to be 0.54 m apart.*are 0.1 m apart.*baseline=0.1"),
        (pairs(4), {"imde_depth": "own", "depth_loss": "l1"}, "imde_depth='own' are about"),
        (pairs(4), {"stereo": {"graft": False}, "depth_loss": "l1"}, "leave out both, or take"),
        (pairs(4, fields=ALONE), {"cfg_layers": ("stage1d",)}, "training set.*imde_depth='own'"),
        (pairs(4, fields=ALONE), {"depth_loss": "l1"}, "training set.*Pairs need none, with dep"),
        ([], {}, "The training set is empty"),
    ],
)
def test_what_is_wrong_is_said_before_the_run(train, changes, says, tmp_path):
    config = replace(PHOTOMETRIC, run_dir=str(tmp_path / "run"), **changes)
    with pytest.raises(ValueError, match=f"(?s){says}"):
        fit(epcdepth(), train, pairs(2), config)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_validated_is_said_before_the_run():
    blind = pairs(2, fields=ALONE)
    for val, config, says in (
        (blind, replace(PHOTOMETRIC, best_by="d1"), "validation set.*best_by='photometric'"),
        (changed(right=None), PHOTOMETRIC, "validation set lack right"),
        (pairs(2, baseline=0.1), PHOTOMETRIC, "0.54 m apart"),
    ):
        with pytest.raises(ValueError, match=says):
            fit(epcdepth(), pairs(4), val, config)
    # Pairs are needed there for that alone.
    depth = pairs(2, fields=("image", "depth"))
    assert "val_d1" in fit(epcdepth(), pairs(4), depth, replace(CONFIG, num_epochs=1)).frame


def test_which_networks_it_cannot_train():
    with pytest.raises(ValueError, match="by its disparities .*; Net says depth alone"):
        fit(net(), pairs(4), pairs(2), PHOTOMETRIC)
    for scales, output in ((2, 2), (2, -1)):
        with pytest.raises(ValueError, match=rf"scales=2 .*\(output_scale={output}\)"):
            config = replace(PHOTOMETRIC, stereo={"scales": scales})
            fit(epcdepth(output_scale=output), pairs(4), pairs(2), config)


def test_a_pair_of_another_baseline_is_found_later_too():
    data = pairs(3) + pairs(1, baseline=0.6)
    with pytest.raises(ValueError, match="at the images p.*p0.*0.54 m apart.*are 0.6 m apart"):
        fit(epcdepth(), data, pairs(2), replace(PHOTOMETRIC, batch_size=4))
    near = pairs(4, baseline=0.5327)  # KITTI's, for which the publication says 0.54
    fit(epcdepth(), near, pairs(2), replace(PHOTOMETRIC, num_epochs=1))
