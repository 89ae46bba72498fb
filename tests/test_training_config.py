"""What may stand in a config, what is said of what may not, and what recipes mean."""

import inspect
import json
import math
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mde_utils.losses import stereo_loss_terms
from mde_utils.training.config import (
    GONE,
    HANDLING,
    LOSSES,
    RECIPES,
    SCHEDULES,
    Stereo,
    TrainConfig,
)

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"

A_CHANGE = {
    "model": "meter_s",
    "model_options": {"a": 1},
    "weights": "rooms",
    "dataset": "nyu",
    "data_options": {"limit": 3},
    "neuron_selective": True,
    "imde_alpha": -0.2,
    "cfg_layers": ("dec_3",),
    "method": "reg",
    "definition": "reference",
    "imde_warmup": 1.0,
    "num_epochs": 3,
    "batch_size": 3,
    "learning_rate": 0.1,
    "weight_decay": 0.2,
    "decay_prefix": "encoder.",
    "adam_epsilon": 1e-6,
    "depth_loss": "mff",
    "imde_depth": "own",
    "stereo": {"hints": False},
    "optimizer": "adam",
    "schedule": "step",
    "decay_every": 2,
    "decay_factor": 0.5,
    "best_by": "rms",
    "seed": 1,
    "mixed_precision": False,
    "run_dir": "elsewhere",
    "resume_from": "somewhere",
    "max_hours": 1.0,
    "save_minutes": 1.0,
    "num_workers": 2,
}


def test_a_name_of_a_run_differs_where_its_outcome_does():
    assert A_CHANGE.keys() == {f.name for f in fields(TrainConfig)}
    plain = TrainConfig()
    names = {key: replace(plain, **{key: value}).run_name() for key, value in A_CHANGE.items()}
    assert {key for key, name in names.items() if name == plain.run_name()} == set(HANDLING)
    assert len(set(names.values())) == len(names) - len(HANDLING) + 1
    assert names["neuron_selective"].startswith("meter_xxs-rooms-assign-0.1-seed0-")
    assert names["seed"].startswith("meter_xxs-rooms-baseline-seed1-")


def test_difference_names_both_sides_and_no_handling():
    here, there = TrainConfig(), TrainConfig(**A_CHANGE)
    lines = here.difference(there)
    assert len(lines) == len(A_CHANGE) - len(HANDLING)
    assert "batch_size: 64 here, 3 there" in lines
    assert here.difference(replace(here, run_dir="x", max_hours=2.0)) == []
    # A list in JSON is the tuple of the notebook.
    options = TrainConfig(data_options={"size": (64, 64)})
    assert options.difference(TrainConfig(data_options={"size": [64, 64]})) == []


# ------------------------------------------------------------------ values

WRONG = {  # by annotation: values, and what is allowed
    "str": ((3, None, ["assign"], True, {}), "string"),
    "str | None": ((3, False, ["runs"]), "string"),
    "Folder": ((3, False, ["runs"]), "string"),
    "bool": (("false", "true", 0, 1, None, 1.0), "boolean"),
    "int": ((2.5, "3", True, None, 3.0, [3], math.nan, -1), "integer|greater than or equal"),
    "float": (("0.1", True, None, [0.1], math.nan, math.inf, -math.inf, 10**400), "number"),
    "dict": (([], "size", None, 3), "dictionary"),
    "Layers": (([1], 3, None, {"dec_3": 1}, ["dec_3", None], True), "string|tuple"),
    "Literal": ((3, None, ["assign"], True, "asign"), "'[a-z0-9_]+'"),
}


def kind_of(annotation):
    """The name of an annotation in WRONG: that of a whole number from 1 on is "int"."""
    for name, kind in (("Count", "int"), ("NotNegative", "float"), ("Literal", "Literal")):
        if annotation.startswith(name):
            return kind
    return annotation.removeprefix("Annotated[").split(",")[0]


@pytest.mark.parametrize("field", fields(TrainConfig), ids=lambda field: field.name)
def test_values_of_another_kind_are_refused(field):
    values, allowed = WRONG[kind_of(field.type)]
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field.name}.* must be .*({allowed})") as caught:
            TrainConfig(**{field.name: value})
        assert f"got {value!r:.200} ({type(value).__name__})" in str(caught.value)


@pytest.mark.parametrize(
    "changes, facts",
    [
        ({"neuron_selective": True, "cfg_layers": []}, "cfg_layers.*empty"),
        ({"cfg_layers": ["a", 1]}, r"cfg_layers\[1\]"),
        ({"method": "asign"}, "method.*'assign' or 'reg'.*got 'asign'"),
        ({"definition": "x"}, "definition.*'paper' or 'reference'"),
        ({"depth_loss": "x"}, "depth_loss.*'balanced', 'balanced_kitti', 'mff'"),
        ({"imde_depth": "x"}, "imde_depth.*'truth' or 'own'"),
        ({"stereo": {"hint": False}}, "Unknown key 'hint' in stereo.*mean hints.*automask"),
        ({"stereo": {"graft": 1}}, "graft in stereo.*boolean.*got 1"),
        ({"stereo": {"scales": 0}}, "scales in stereo.*equal to 1.*got 0"),
        ({"stereo": {"scales": True}}, "scales in stereo.*integer.*got True"),
        ({"stereo": {"smooth": -0.1}}, "smooth in stereo.*equal to 0.*got -0.1"),
        ({"stereo": {"distillation": False}}, "distillation in stereo.*number"),
        ({"optimizer": "x"}, "optimizer.*'adamw', 'adam' or 'sgd'"),
        ({"schedule": "x"}, "schedule.*'constant', 'cosine', 'step'"),
        ({"best_by": "loss"}, "best_by.*'d1', 'rms', 'rel'"),
        ({"num_epochs": 0}, "num_epochs.*equal to 1.*got 0"),
        ({"batch_size": 0}, "batch_size.*equal to 1.*got 0"),
        ({"num_workers": -1}, "num_workers.*equal to 0.*got -1"),
        ({"seed": -1}, "seed.*equal to 0.*got -1"),
        ({"seed": 2**32}, "seed.*less than 4294967296"),
        ({"decay_every": 0}, "decay_every.*equal to 1"),
        ({"save_minutes": -1.0}, "save_minutes.*equal to 0.*got -1.0"),
        ({"max_hours": -1}, "max_hours.*equal to 0.*got -1"),
        ({"imde_warmup": -0.5}, "imde_warmup.*equal to 0"),
        ({"weight_decay": -0.5}, "weight_decay.*equal to 0"),
        ({"adam_epsilon": -1e-8}, "adam_epsilon.*equal to 0"),
        ({"learning_rate": 0.0}, "learning_rate.*greater than 0"),
        ({"decay_factor": 0.0}, "decay_factor.*greater than 0"),
        ({"decay_factor": 1.5}, "decay_factor.*less than or equal to 1"),
    ],
)
def test_values_out_of_range_are_refused(changes, facts):
    with pytest.raises(ValueError, match=facts) as caught:
        TrainConfig(**changes)
    assert "\n" not in str(caught.value)


def test_values_that_are_made_to_fit(tmp_path):
    assert TrainConfig(cfg_layers="dec_3").cfg_layers == ("dec_3",)
    assert TrainConfig(cfg_layers=["a", "b"]).cfg_layers == ("a", "b")
    assert TrainConfig(cfg_layers=()).cfg_layers == ()
    assert TrainConfig(run_dir=tmp_path, resume_from=tmp_path).run_dir == str(tmp_path)
    assert TrainConfig(learning_rate=1, imde_alpha=np.float64(-2)).learning_rate == 1


@pytest.mark.parametrize("alpha", [0.1, 0.0])
def test_a_weight_that_does_not_train_for_selectivity_is_warned_of(alpha, recwarn):
    TrainConfig(imde_alpha=alpha)
    assert not recwarn
    with pytest.warns(UserWarning, match="should be negative") as caught:
        TrainConfig(neuron_selective=True, imde_alpha=alpha)
    assert caught[0].filename == __file__


# ------------------------------------------------------------------ files


def test_a_file_holds_the_config(tmp_path):
    config = TrainConfig(**A_CHANGE)
    assert TrainConfig.load(config.save(tmp_path / "new" / "c.json")) == config
    assert json.loads((tmp_path / "new" / "c.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", r"must hold a JSON object of settings, not \[1, 2\]"),
        ('{"imde_alfa": -1}', "Unknown key 'imde_alfa'.*Did you mean imde_alpha"),
        ('{"layers": ["a"]}', "Unknown key 'layers'.*Did you mean cfg_layers.*Known keys: recipe"),
        ('{"qqqqq": 1}', r"Unknown key 'qqqqq' in the config\. Known keys: recipe, model,"),
        ('{"neuron_selective": "false"}', "neuron_selective.*boolean.*got 'false'"),
        ('{"learning_rate": NaN}', "learning_rate must be a finite number; got nan"),
        ('{"learning_rate": 1e999}', "learning_rate must be a finite number; got inf"),
        ('{"num_epochs": 20.0}', "num_epochs.*integer.*got 20.0"),
        ('{"recipe": "meter"}', "Unknown recipe 'meter'. Known: meter_notebook, meter_paper"),
        ('{"recipe": ["meter_paper"]}', "Unknown recipe"),
    ],
)
def test_a_file_with_a_mistake_is_named(text, message, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TrainConfig.load(tmp_path / "c.json")
    assert str(tmp_path / "c.json") in str(caught.value)


def test_a_file_that_is_no_text_or_not_there(tmp_path):
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not JSON"):
        TrainConfig.load(tmp_path / "c.json")
    for path in (tmp_path / "d.json", tmp_path):
        with pytest.raises(FileNotFoundError, match="No config"):
            TrainConfig.load(path)


# ------------------------------------------------------------------ recipes


def test_a_recipe_in_a_file_is_changed_by_the_other_keys(tmp_path):
    (tmp_path / "c.json").write_text('{"recipe": "meter_paper", "num_epochs": 3, "seed": 4}')
    config = TrainConfig.load(tmp_path / "c.json")
    assert config == TrainConfig.recipe("meter_paper", num_epochs=3, seed=4)
    assert (config.num_epochs, config.seed, config.batch_size) == (3, 4, 128)
    assert config.data_options["train"] == {"augment": "meter"}
    # As it was run, it no longer depends on what the recipe says.
    assert "recipe" not in asdict(TrainConfig.load(config.save(tmp_path / "run.json")))


def test_the_stereo_losss_switches_are_what_takes_them():
    given = inspect.signature(stereo_loss_terms).parameters
    for key, value in asdict(Stereo()).items():
        assert key == "graft" or given[key].default == value
    whole = TrainConfig(stereo=asdict(Stereo()))
    assert whole.stereo_settings() == TrainConfig().stereo_settings() == Stereo()
    assert TrainConfig(stereo={"scales": 5}).stereo == {"scales": 5}


def test_what_is_at_its_default_is_no_part_of_the_identity(tmp_path):
    """So an option that is added later changes no name; its absence in a file is the default."""
    assert TrainConfig().identity() == {}
    now = TrainConfig(num_epochs=3, stereo={"scales": 5}, data_options={"root": "here"})
    assert now.identity() == {"num_epochs": 3, "stereo": {"scales": 5}}
    path = now.save(tmp_path / "config.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: values[key] for key in ("num_epochs", "stereo")}))
    former = TrainConfig.load(path)
    assert former.run_name() == now.run_name() and former.difference(now) == []
    assert TrainConfig(num_epochs=3).difference(now) == ["stereo: {} here, {'scales': 5} there"]


def test_options_that_are_no_more():
    """A file that says one may be read where it was off."""
    former = TrainConfig().settings() | GONE
    assert TrainConfig.from_dict(former) == TrainConfig()
    for key, value in (("imde_ema", 0.9), ("imde_coverage", True)):
        with pytest.raises(ValueError, match=f"Unknown key '{key}'"):
            TrainConfig.from_dict(former | {key: value})


@pytest.mark.parametrize("name", sorted(path.name for path in RESULTS.glob("*.json")))
def test_committed_results_are_found_by_their_config(name):
    rows = json.loads((RESULTS / name).read_text()).get("rows", [])
    for row in rows:
        config = row.get("config") if isinstance(row, dict) else None
        if config and all(config.get(key, value) == value for key, value in GONE.items()):
            again = TrainConfig.from_dict(json.loads(json.dumps(config)))
            assert {**again.settings(), **config} == {**config, **again.settings()}


def test_shipped_networks_say_how_they_were_trained():
    files = [path for path in PROJECT.rglob("meter_xxs_rooms_*.json") if "weights" in path.parts]
    assert len(files) >= 3
    for path in files:
        stored = json.loads(path.read_text())
        for config in (stored["config"], stored.get("first_stage")):
            assert config is None or TrainConfig.from_dict(config).model == "meter_xxs"


def test_to_read_a_config_takes_no_network(tmp_path):
    path = TrainConfig().save(tmp_path / "c.json")
    code = (
        "import sys; from mde_utils.training import TrainConfig; TrainConfig.load(sys.argv[1]); "
        "names = {'timm', 'torchvision', 'mde_utils.models', 'mde_utils.data'}; "
        "sys.exit(str(names & sys.modules.keys()) if names & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_epcdepths_recipe():
    config = TrainConfig.recipe("epc_paper")
    assert [config.rate(epoch) for epoch in (1, 15, 16, 20)] == pytest.approx(
        [1e-4] * 2 + [1e-5] * 2
    )
    assert config.depth_loss == "stereo" and config.stereo == {} and config.optimizer == "adam"
    assert config.data_options["train"] == {"augment": "epc", "hints": [320, 1024]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_config_and_says_where_it_is_from(name):
    config = TrainConfig.recipe(name)
    assert config.depth_loss in LOSSES and len(RECIPES[name].source) > 20
    with pytest.raises(ValueError, match="Unknown key 'epochs'.*num_epochs"):
        TrainConfig.recipe(name, epochs=3)


def test_the_default_is_the_notebooks_recipe():
    assert TrainConfig() == TrainConfig.recipe("meter_notebook")


def test_changing_a_config_leaves_the_recipe():
    TrainConfig.recipe("meter_paper").data_options["train"]["augment"] = None
    assert TrainConfig.recipe("meter_paper").data_options == {"train": {"augment": "meter"}}


# ------------------------------------------------------------------ schedules


def test_the_papers_steps():
    config = TrainConfig.recipe("meter_paper")
    rates = {1: 1e-3, 20: 1e-3, 21: 1e-4, 40: 1e-4, 41: 1e-5, 60: 1e-5}
    assert {epoch: config.rate(epoch) for epoch in rates} == pytest.approx(rates)
    assert config.num_epochs == 60


def test_mffs_recipe():
    config = TrainConfig.recipe("mff_paper")
    rates = {1: 1e-4, 5: 1e-4, 6: 1e-5, 10: 1e-5, 11: 1e-6, 20: 1e-7}
    assert {epoch: config.rate(epoch) for epoch in rates} == pytest.approx(rates)
    assert (config.optimizer, config.weight_decay, config.batch_size) == ("adam", 1e-4, 8)
    assert (config.model, config.weights, config.depth_loss) == ("mff_resnet50", "imagenet", "mff")
    assert config.cfg_layers == ("D", "MFF")
    assert {config.data_options[split]["augment"] for split in ("train", "val")} == {
        "mff",
        "mff_crop",
    }


@pytest.mark.parametrize("name", ["bts_paper_nyu", "bts_paper_kitti"])
def test_btss_recipes(name):
    config = TrainConfig.recipe(name)
    rates = [config.rate(epoch) for epoch in (1, 26, 51)]
    assert rates == pytest.approx([1e-4, 1e-5 + 9e-5 * 0.5**0.9, 1e-5])
    assert (config.optimizer, config.adam_epsilon, config.batch_size) == ("adamw", 1e-3, 4)
    assert (config.weight_decay, config.decay_prefix) == (1e-2, "encoder.")
    assert config.model_options["freeze"] and config.weights == "imagenet"
    kitti = "kitti" in name
    assert config.dataset == config.model_options.get("dataset", "nyu") == name.split("_")[2]
    assert LOSSES[config.depth_loss].keywords["min_depth"] == 1 if kitti else True
    assert config.depth_loss == ("silog_kitti" if kitti else "silog")
    assert config.data_options["train"] == {"augment": "bts_kitti" if kitti else "bts"}


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 500), st.data())
def test_the_polynomial_counts_steps(epochs, steps, data):
    """lr(t) = (lr - end) (1 - t / T)^0.9 + end, with t whole steps of T."""
    config = TrainConfig(
        schedule="polynomial", num_epochs=epochs, learning_rate=0.1, decay_factor=0.25
    )
    done = data.draw(st.integers(0, epochs * steps - 1))
    expected = (0.1 - 0.025) * (1 - done / (epochs * steps)) ** 0.9 + 0.025
    found = config.rate(1 + done // steps + done % steps / steps)
    assert found == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]), max_size=30),
    st.integers(1, 4),
    st.sampled_from(["d1", "rel"]),
)
def test_a_plateau_is_what_torch_takes_for_one(values, patience, best_by):
    config = TrainConfig(schedule="plateau", decay_every=patience, best_by=best_by)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    mode = "max" if best_by == "d1" else "min"
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode, factor=config.decay_factor, patience=patience, threshold=0, eps=0
    )
    for epoch in range(len(values) + 1):
        found = config.rate(epoch + 1, values[:epoch])
        assert found == pytest.approx(optimiser.param_groups[0]["lr"])
        if epoch < len(values):
            scheduler.step(values[epoch])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "plateau"])
def test_other_schedules_are_per_epoch(schedule):
    config = TrainConfig(schedule=schedule, num_epochs=5, decay_every=2)
    for epoch in range(1, 6):
        assert config.rate(epoch + 0.99, [0.5] * epoch) == config.rate(epoch, [0.5] * epoch)


def test_every_schedule_starts_at_the_learning_rate_and_stays_positive():
    for schedule in SCHEDULES:
        config = TrainConfig(schedule=schedule, num_epochs=50, decay_every=7, learning_rate=0.5)
        rates = [config.rate(epoch) for epoch in range(1, 51)]
        assert rates[0] == 0.5 and min(rates) > 0 and rates == sorted(rates, reverse=True)
    cosine = TrainConfig(schedule="cosine", num_epochs=4, learning_rate=1.0)
    assert [cosine.rate(e) for e in (1, 3)] == pytest.approx([1, 0.5])


def test_the_weight_grows_over_the_warmup():
    config = TrainConfig(imde_alpha=-0.2, imde_warmup=2.0)
    weights = [config.alpha(epochs) for epochs in (0, 0.5, 1, 2, 3, 20)]
    assert weights == pytest.approx([0, -0.05, -0.1, -0.2, -0.2, -0.2])
    assert TrainConfig(imde_alpha=-0.2).alpha(0) == -0.2


def test_a_recipe_keeps_its_augmentation_beside_other_options():
    options = TrainConfig.recipe("meter_paper", data_options={"size": [64, 64]}).data_options
    assert options == {"size": [64, 64], "train": {"augment": "meter"}}


def test_where_the_data_lie_does_not_make_another_run():
    here = TrainConfig(data_options={"root": "a", "train": {"limit": 3, "cache": False}})
    there = TrainConfig(data_options={"root": "b", "download": True, "train": {"limit": 3}})
    assert here.run_name() == there.run_name() and not here.difference(there)
    fewer = TrainConfig(data_options={"train": {"limit": 2}})
    assert here.run_name() != fewer.run_name()
