"""The published numbers, and that no measurement is ever taken from them."""

import pkgutil
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mde_utils.paper import (
    KEYS,
    MEASURED,
    TABLES,
    WHERE,
    comparison,
    published_tables,
    read_measured,
)


def measurement(**changes):
    row = {
        "table": "1", "dataset": "nyu", "model": "mff_resnet50", "layers": "D+MFF",
        "method": "assign", "metric": "selectivity", "protocol": "", "group": "mff",
        "size": "228x304", "mean": 0.5, "low": 0.4, "high": 0.6, "seeds": 3, "images": 654,
        "definition": "paper",
    }  # fmt: skip
    return row | changes


def frame(*rows):
    return pd.DataFrame(list(rows), columns=MEASURED)


def test_every_table_is_whole():
    table = published_tables()
    cells = {"1": 12, "2": 36, "3": 16, "4": 24, "5": 32, "6": 20, "7": 32, "8": 40, "mff": 18}
    assert table.groupby("table").size().to_dict() == cells
    assert list(TABLES) == list(cells)
    assert not table.duplicated(KEYS).any()
    assert table["value"].notna().all() and table["source"].str.contains("20").all()
    selective = table["metric"].str.contains("selectivity")
    assert (table.loc[selective, "protocol"] == "").all()
    assert set(table.loc[~selective, "protocol"]) == {"imde", "mff", "sparse-500"}
    assert set(table["method"]) == {"baseline", "reg", "assign"}
    shares = selective | table["metric"].str.match("d[123]")
    assert table.loc[shares, "value"].between(0.2, 1).all()


@pytest.mark.parametrize(
    "table, model, dataset, layers, method, metric, value",
    [
        ("1", "mff_resnet50", "nyu", "D+MFF", "assign", "selectivity", 0.7529),
        ("1", "mff_senet154", "nyu", "D+MFF", "reg", "train_selectivity", 0.7314),
        ("2", "mff_senet154", "nyu", "D+MFF", "baseline", "d2", 0.979),
        ("3", "mff_resnet50", "nyu", "D+MFF", "baseline", "d1_corrected", 0.779),
        ("3", "mff_senet154", "nyu", "D+MFF", "assign", "rms_corrected", 0.354),
        ("4", "mff_resnet50", "nyu", "Rconv1", "assign", "selectivity", 0.6701),
        ("5", "mff_senet154", "nyu", "Rconv1", "assign", "rel", 0.108),
        ("5", "mff_resnet50", "nyu", "", "baseline", "log10", 0.054),
        ("6", "cspn_resnet50", "nyu", "", "assign", "d1.02", 0.860),
        ("7", "bts_densenet161", "kitti", "upconv2", "baseline", "selectivity", 0.4181),
        ("8", "bts_densenet161", "kitti", "upconv3", "assign", "rms", 2.415),
        ("mff", "mff_densenet161", "nyu", "", "baseline", "rms", 0.544),
    ],
)
def test_numbers_of_the_tables(table, model, dataset, layers, method, metric, value):
    t = comparison(table, frame())
    keys = {"model": model, "dataset": dataset, "layers": layers, "method": method}
    row = t[(t[[*keys, "metric"]] == [*keys.values(), metric]).all(axis=1)]
    assert row["published"].tolist() == [value]


def test_tables_agree_where_they_repeat_each_other():
    t = published_tables().query("layers == 'D+MFF'").drop(columns=["protocol", "source"])
    wide = t.pivot(index=["model", "method", "metric"], columns="table", values="value")
    for first, second in (("1", "4"), ("2", "3"), ("2", "5")):
        both = wide[[first, second]].dropna()
        assert len(both) >= 4 and (both[first] == both[second]).all()


def test_a_measurement_stands_beside_its_number_or_alone():
    rows = [
        measurement(),
        measurement(dataset="rooms", mean=0.3),
        measurement(definition="reference", mean=0.7),
        measurement(table=1, method="reg", protocol="imde"),  # selectivity has no protocol
        measurement(table="2", metric="d1", protocol="imde", mean=0.8),
        measurement(table="2", metric="d1", protocol="mff", mean=0.81),
    ]
    t = comparison(1, frame(*rows))
    assert len(t) == 12 + 2
    assert t["mean"].count() == 4
    own = t[(t["method"] == "assign") & (t["metric"] == "selectivity")]
    published = own.set_index(["model", "dataset", "definition"])["published"].dropna().to_dict()
    assert published[("mff_resnet50", "nyu", "paper")] == 0.7529
    assert published[("mff_resnet50", "nyu", "reference")] == 0.7529
    assert t.loc[t["mean"] == 0.3, "published"].isna().all()
    t = comparison("2", frame(*rows)).dropna(subset="mean").set_index("protocol")
    assert t.loc["imde", "published"] == 0.861
    assert pd.isna(t.loc["mff", "published"])  # no number of that protocol is in table 2


numbers = st.floats(0, 1).map(lambda x: round(x, 3))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(list(TABLES)),
    st.data(),
)
def test_what_was_not_run_stays_empty(table, data):
    known = published_tables()
    known = known[known["table"] == table]
    run = data.draw(st.sets(st.sampled_from(list(known.index)), max_size=5), "numbers measured")
    rows = [measurement(**known.loc[i, KEYS], mean=data.draw(numbers)) for i in sorted(run)]
    alone = data.draw(st.booleans(), "one that is not published")
    others = [measurement(table=table, model="meter_xxs", mean=0.25)] * alone
    t = comparison(table, frame(*rows, *others))
    assert len(t) == len(known) + len(others)
    assert t["published"].dropna().tolist() == known["value"].tolist()
    beside = t.iloc[: len(known)]
    assert beside["mean"].dropna().tolist() == [row["mean"] for row in rows]
    empty = beside["mean"].isna()
    assert (
        beside.loc[empty, ["low", "high", "seeds", "images", "size", "group"]].isna().all(axis=None)
    )
    assert t.iloc[len(known) :]["published"].isna().all()


def test_measurements_come_from_files(tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    frame(measurement(), measurement(layers=None)).to_csv(first, index=False)
    frame(measurement(model="meter_xxs")).assign(more=1).to_csv(second, index=False)
    both = read_measured(first, second)
    assert list(both) == MEASURED and len(both) == 3
    assert both["layers"].tolist() == ["D+MFF", "", "D+MFF"]
    own = read_measured()  # those that come with the suite
    assert list(own) == MEASURED and {"1", "2", "3", "4", "5", "6", "7", "8"} == set(own["table"])
    assert comparison("1")["mean"].count() == (own["table"] == "1").sum()
    assert comparison("1", both)["mean"].count() == 3
    with pytest.raises(FileNotFoundError, match="third.csv"):
        read_measured(first, tmp_path / "third.csv")
    both.drop(columns="seeds").to_csv(first, index=False)
    with pytest.raises(ValueError, match="first.csv lacks seeds.*definition"):
        read_measured(first)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: comparison("9", frame()), "Unknown table '9'.*Known: 1, 2, .*, mff"),
        (lambda: comparison(1, frame().drop(columns=["mean"])), "lacks mean"),
        (lambda: comparison(1, frame(measurement(), measurement(mean=0.7))), "there twice.*assign"),
    ],
)
def test_clear_errors(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("what", WHERE)
def test_what_the_paper_says_is_where_it_is_said_to_be(what):
    found = pkgutil.resolve_name(f"mde_utils.{WHERE[what]}")
    assert callable(found)
    if what.startswith("equation"):
        assert re.search(rf"equations?\b[^.]*\b{what[-1]}\b", found.__doc__)
