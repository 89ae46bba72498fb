"""Tables as a reader wants them: what is published beside what was measured, and answers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from pandas.io.formats.style import Styler

from mde_utils.dissection import Dissection
from mde_utils.paper import TABLES, comparison
from mde_utils.passes import name_of

if TYPE_CHECKING:
    from mde_utils.training import History

# Metrics, in the order of their columns.
WORDS = {
    "train_selectivity": "selectivity, train",
    "selectivity": "selectivity, test",
    "d1": "δ1",
    "d1_corrected": "δ1, corrected",
    "d2": "δ2",
    "d3": "δ3",
    "d1.02": "δ 1.02",
    "d1.05": "δ 1.05",
    "d1.10": "δ 1.10",
    "rms": "RMS [m]",
    "rms_corrected": "RMS, corrected [m]",
    "rel": "REL",
    "log10": "log10",
}
RUN = "{group} · {size} · {images:.0f} images · {seeds:.0f} seeds · {scored}"


def measured(
    table: str | int, rows: pd.DataFrame | None = None, *, metrics: Sequence[str] = (*WORDS,)
) -> Styler:
    """One of the paper's tables: a row a network and run, and for each metric the published number
    beside the measured one, "mean (low–high)" over its seeds. What is neither has no column.

    Args:
        table: a key of `paper.TABLES`.
        rows: measurements; None = those that come with the suite. See `paper.comparison`.
        metrics: keys of `WORDS`, those that are shown.
    """
    found = comparison(table, rows)
    found = found[found.metric.isin(list(metrics))]
    scored = found.protocol.where(found.protocol != "", found.definition)
    found = found.assign(scored=scored, published=found.published.map(_number))
    records = found.to_dict("records")
    found["run"] = [RUN.format(**row) if pd.notna(row["mean"]) else "" for row in records]
    found["measured"] = [_spread(row) if pd.notna(row["mean"]) else "" for row in records]
    index = ["model", "dataset", "layers", "method", "run"]
    wide = found.pivot(index=index, columns="metric", values=["published", "measured"])
    order = pd.MultiIndex.from_frame(found[index]).unique()
    wide = wide.swaplevel(axis=1).fillna("").reindex(order)
    pairs = [(metric, kind) for metric in metrics for kind in ("published", "measured")]
    wide = wide[[pair for pair in pairs if pair in wide and (wide[pair] != "").any()]]
    return show(wide.rename(columns=WORDS), f"Table {table}: {TABLES[str(table)]}")


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _spread(row: Mapping) -> str:
    """Mean (low–high); of one seed the mean."""
    mean, ends = _number(row["mean"]), f" ({row['low']:.3f}–{row['high']:.3f})"
    return mean + ends if row["seeds"] > 1 else mean


def answers(
    dissections: Mapping[str, Dissection],
    layers: Sequence[str],
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    *,
    shown: Sequence[str] = ("d1", "rms", "rel"),
    runs: Mapping[str, History] | None = None,
) -> pd.DataFrame:
    """A row a network: its accuracy and the mean selectivity of each layer; then, of units without
    any tuning at the last one's bins, flat and random ones (`selectivity_floors`).

    Args:
        dissections: network → dissection.
        layers: of which to tell the selectivity.
        metrics: network → its metrics, see `evaluate`; None = none.
        shown: which of them.
        runs: network → its training: adds what became of the units, and the epoch that was kept.
    """
    rows = {}
    for name, seen in dissections.items():
        own = {} if metrics is None else {WORDS[key]: metrics[name][key] for key in shown}
        rows[name] = own | {f"selectivity {layer}": seen.mean(layer) for layer in layers}
        if runs is not None:
            units, run = seen.to_frame().query("layer in @layers"), runs[name]
            rows[name] |= {
                "… at the assigned bin": units.groupby("layer").assigned_selectivity.mean().mean(),
                "units without response": f"{(units.best_response == 0).sum()} of {len(units)}",
                "epoch kept": f"{run.best_epoch} of {run.config.num_epochs}",
            }
    floors = {layer: seen.floors(layer) for layer in layers}
    for kind, key in {"flat": "flat", "random": "uniform"}.items():
        row = {f"selectivity {layer}": floors[layer][key] for layer in layers}
        rows[f"units without tuning: {kind}"] = row
    return pd.DataFrame(rows).T


def accuracy(
    metrics: Mapping[Hashable, Mapping[str, float]], shown: Sequence[str] = ("d1", "rms", "rel")
) -> pd.DataFrame:
    """A row for each set of metrics, by network, or by (protocol, network)."""
    return pd.DataFrame({k: {WORDS[m]: found[m] for m in shown} for k, found in metrics.items()}).T


def selectivity(
    found: Mapping[str, Mapping[str, Dissection]], layers: Sequence[str]
) -> pd.DataFrame:
    """The mean selectivity of layers: a row a network, then random units; a column a layer, for
    each kind of images.

    Args:
        found: kind of images → network → dissection.
    """
    table = {}
    for images, dissections in found.items():
        for layer in layers:
            own = {name: seen.mean(layer) for name, seen in dissections.items()}
            floor = next(iter(dissections.values())).floors(layer)["uniform"]
            table[images, layer] = own | {"units without tuning: random": floor}
    return pd.DataFrame(table)


def caption(dataset, *, protocol: str = "", definition: str = "", seed: int | None = None) -> str:
    """What a table is of: its images, and how what was measured is defined."""
    parts = [f"{name_of(dataset)}, {len(dataset)} images"]
    parts += [f"metrics: protocol {protocol}"] * bool(protocol)
    parts += [f"selectivity: definition {definition}"] * bool(definition)
    parts += [f"seed {seed}"] * (seed is not None)
    return "; ".join(parts)


def show(table: pd.DataFrame, caption: str = "") -> Styler:
    """A table with three digits, nothing where there is no number, and its caption."""
    return table.style.format(precision=3, na_rep="").set_caption(caption)
