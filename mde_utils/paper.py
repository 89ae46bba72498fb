"""Where the equations, tables and figures of You et al. 2021 are, and the numbers of their tables
beside what was measured here.

`results/published.csv` holds them in long form, a row a number, and those of Hu et al. 2019 for MFF
alone.
A measurement is a row of a table with the columns `MEASURED`. The two meet where table, data set,
model, layers, method, metric and protocol are the same, and nowhere else: a measurement on rooms is
a row of its own, and a cell of something that was not run is empty.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .checks import unknown

# What of the paper is computed where, below `mde_utils`.
WHERE = {
    "equation 1": "selectivity.average_response",
    "equation 2": "selectivity.depth_selectivity",
    "equation 3": "selectivity.selectivity_floors",
    "equation 4": "selectivity.SelectivityLoss",  # method="reg"
    "equation 5": "selectivity.SelectivityLoss",  # method="assign"
    "equation 6": "selectivity.assigned_bins",
    "tables 1, 4, 7": "dissection.Dissection.mean",
    "tables 2, 5, 6, 8": "evaluation.evaluate",
    "table 3": "interventions.correction_effects",
    "units by depth": "views.plots.plot_units",
    "selectivity by layer": "views.plots.plot_selectivity",
    "ablation by selectivity": "interventions.ablation_curve",
    "correction of units": "edits.correct",
    "FGSM": "attacks.fgsm",
}
RESULTS = Path(__file__).with_name("results")
MEASUREMENTS = ("paper_claims", "other_networks")  # tables 1 to 5, and 6 to 8

TABLES = {
    "1": "depth selectivity of MFF: baseline, direct regularisation (reg), assignment (assign)",
    "2": "depth of MFF, trained in these three ways",
    "3": "depth of MFF before and after its units are corrected by the true depth",
    "4": "depth selectivity of MFF, trained for one layer or another",
    "5": "depth of MFF, trained for one layer or another",
    "6": "selectivity and depth of CSPN, which completes sparse depth",
    "7": "depth selectivity of BTS, trained for one layer or another",
    "8": "depth of BTS, trained for one layer or another",
    "mff": "depth of MFF as its own authors published it",
}
# What a number is of. `layers` are joined by "+"; they are those trained for, so for the depth
# metrics of a baseline in tables 5, 8 and mff there are none. `metric`: the keys of `evaluate`;
# `selectivity` on test and `train_selectivity` on training images, the mean over layers of the
# mean over units; `d1_corrected`, `rms_corrected` after the correction.
KEYS = ["table", "dataset", "model", "layers", "method", "metric", "protocol"]
MEASURED = [*KEYS, "group", "size", "mean", "low", "high", "seeds", "images", "definition"]


def published_tables() -> pd.DataFrame:
    """A row a number: `KEYS`, `value`, `source`.

    Depth in metres. `protocol` is the one of the publication's released code, empty for
    selectivity; "sparse-500" for CSPN.
    """
    return _read(RESULTS / "published.csv")


def read_measured(*files: str | Path) -> pd.DataFrame:
    """The rows of tables of measurements; of none given, of those that come with the suite."""
    files = files or [RESULTS / f"{name}.csv" for name in MEASUREMENTS]
    frames = [_check(_read(Path(file)), str(file)) for file in files]
    return pd.concat(frames, ignore_index=True)


def comparison(table: str | int, measured: pd.DataFrame | None = None) -> pd.DataFrame:
    """The published numbers of one table, each beside its measurements; then the measurements of
    what the publication does not have.

    Args:
        table: a key of `TABLES`.
        measured: rows with the columns `MEASURED`, of any tables; None = `read_measured()`.

    Returns:
        `KEYS`, `published`, `source` and the other columns of `MEASURED`. What is not published
        or was not measured is NaN.
    """
    table = str(table)
    if table not in TABLES:
        raise ValueError(unknown("table", table, TABLES))
    known = published_tables().rename(columns={"value": "published"})
    known = known[known["table"] == table]
    measured = read_measured() if measured is None else measured
    rows = _check(measured, "The table of measurements")
    rows = rows[rows["table"].map(_label) == table]
    rows = rows.assign(table=table, **{c: rows[c].astype(object).fillna("") for c in KEYS[1:]})
    # Selectivity has a definition in place of a protocol.
    rows["protocol"] = rows["protocol"].mask(rows["metric"].str.contains("selectivity"), "")
    run = [*KEYS, "group", "size", "images", "definition"]
    if (twice := rows.duplicated(run)).any():
        first = rows.loc[twice, run].iloc[0].to_dict()
        raise ValueError(f"A measurement is there twice: {first}. Was one file given twice?")
    beside = known.merge(rows, on=KEYS, how="left")
    new = rows.merge(known[KEYS], on=KEYS, how="left", indicator=True)
    new = new[new.pop("_merge") == "left_only"]
    columns = [*KEYS, "published", "source", *(c for c in MEASURED if c not in KEYS)]
    return pd.concat([beside, new], ignore_index=True).reindex(columns=columns)


def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=dict.fromkeys(KEYS, str)).fillna(dict.fromkeys(KEYS, ""))


def _check(measured: pd.DataFrame, name: str) -> pd.DataFrame:
    if missing := [c for c in MEASURED if c not in measured]:
        raise ValueError(
            f"{name} lacks {', '.join(missing)}. It needs the columns {', '.join(MEASURED)}."
        )
    return measured[MEASURED]


def _label(table) -> str:
    """1, 1.0 and "1" are table 1."""
    return str(table).removesuffix(".0")
