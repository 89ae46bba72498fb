"""Tables as a reader wants them."""

from types import SimpleNamespace

import pandas as pd
import pytest
from toys import TRAIN, items, net

from mde_utils import dissect, evaluate, tables
from mde_utils.paper import MEASURED, read_measured


def test_published_stands_beside_measured_with_its_range():
    shown = tables.measured(4)
    table = shown.data
    assert "Table 4" in shown.caption and list(table.columns.unique(1)) == ["published", "measured"]
    published = table.xs("mff_resnet50").loc[("nyu", "Rconv1", "assign", "")]
    assert published["selectivity, test", "published"] == "0.670"
    own = read_measured().query("table == '4' and metric == 'selectivity'").iloc[0]
    cells = table["selectivity, test", "measured"].tolist()
    assert f"{own['mean']:.3f} ({own.low:.3f}–{own.high:.3f})" in cells
    assert cells.count("") == (table["selectivity, test", "published"] != "").sum()


@pytest.mark.parametrize("number", ["1", "2", "3", "5", "6", "7", "8", "mff"])
def test_every_table_is_shown(number):
    table = tables.measured(number).data
    assert len(table) and table.index.is_unique and not table.isna().any(axis=None)
    assert set(table.columns.get_level_values(0)) <= set(tables.WORDS.values())


def test_own_rows_one_seed_and_chosen_metrics():
    row = dict.fromkeys(MEASURED, "") | {
        "table": "5", "dataset": "rooms", "model": "mine", "metric": "d1", "protocol": "imde",
        "mean": 0.5, "low": 0.5, "high": 0.5, "seeds": 1, "images": 4,
    }  # fmt: skip
    rows = pd.DataFrame([row, row | {"metric": "rms", "mean": 0.25}])
    table = tables.measured(5, rows, metrics=["d1"]).data
    assert list(table.columns) == [("δ1", "published"), ("δ1", "measured")]
    assert table.loc["mine"].iloc[0].tolist() == ["", "0.500"]


def test_answers_end_with_units_without_tuning():
    model, data = net(), items(3)
    seen, metrics = dissect(model, data, ["wide", "deep"]), evaluate(model, data)
    table = tables.answers({"net": seen}, ["wide"], {"net": metrics})
    assert list(table) == ["δ1", "RMS [m]", "REL", "selectivity wide"]
    assert table.loc["net"].tolist() == [
        *(metrics[k] for k in ("d1", "rms", "rel")),
        seen.mean("wide"),
    ]
    floors = table.loc[["units without tuning: flat", "units without tuning: random"]]
    assert floors["selectivity wide"].tolist() == [
        seen.floors("wide")[k] for k in ("flat", "uniform")
    ]
    assert floors["δ1"].isna().all()
    assert list(tables.answers({"net": seen}, ["deep"])) == ["selectivity deep"]
    runs = {"net": SimpleNamespace(best_epoch=2, config=SimpleNamespace(num_epochs=3))}
    row = tables.answers({"net": seen}, ["wide"], runs=runs).loc["net"]
    units = seen.to_frame().query("layer == 'wide'")
    silent = f"{(units.best_response == 0).sum()} of {len(units)}"
    assert row.tolist()[1:] == [units.assigned_selectivity.mean(), silent, "2 of 3"]
    caption = tables.caption(TRAIN, protocol="imde", definition="paper", seed=0)
    assert caption == (
        "list, 10 images; metrics: protocol imde; selectivity: definition paper; seed 0"
    )
    assert caption in tables.show(table, caption).to_html()


def test_accuracy_by_network_and_protocol_and_selectivity_by_layer():
    model, data = net(), items(3)
    seen, metrics = dissect(model, data, ["wide", "deep"]), evaluate(model, data)
    table = tables.accuracy({("imde", "net"): metrics}, ["rel", "d1"])
    assert table.loc[("imde", "net")].to_dict() == {"REL": metrics["rel"], "δ1": metrics["d1"]}
    table = tables.selectivity({"test": {"net": seen}}, ["deep", "wide"])
    assert list(table) == [("test", "deep"), ("test", "wide")]
    assert table["test", "wide"].tolist() == [seen.mean("wide"), seen.floors("wide")["uniform"]]
