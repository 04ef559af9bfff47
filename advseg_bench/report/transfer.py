"""The transfer matrix: what the adversarial images of each model do to every other one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from advseg_bench.registry import catalogue
from advseg_bench.report.document import NOTHING, Column, Table, show_budget, thin
from advseg_bench.report.means import Row, write_mean
from advseg_bench.report.summary import Summary
from advseg_bench.results.selection import Budgets

WHITE = "white-box"


def make_transfer_table(summary: Summary, budgets: Budgets) -> Table | None:
    """Make the transfer matrix of a norm at its reference budget, or None without transfer attacks.

    Args:
        summary: The numbers of the run.
        budgets: The budgets of the norm; the CSV has all of them.
    """
    if not any(s.arm.attack == "transfer" and s.arm.norm == budgets.norm for s in summary.series):
        return None
    found = summary.points["drop"].frame.filter(pl.col("norm") == budgets.norm)
    rows = [_read(row) for row in found.iter_rows(named=True) if row["eps"] > 0 and row["mean"] is not None]
    made = [row for row in rows if row["attack"] == "transfer"]
    kinds = list(dict.fromkeys((row["loss"], row["others"]) for row in made))
    entries: dict[tuple[Any, ...], Row] = {
        (kind, row["eps"], row["source"], row["model"]): row
        for kind in kinds
        for row in made
        if (row["loss"], row["others"]) == kind
    }
    for kind in kinds:
        for eps in budgets.eps:
            for model in summary.run.model_names:
                white = _find_white_box(rows, kind[0], eps, model)
                if white is not None:
                    entries.setdefault((kind, eps, model, model), white)
    names = [name for name in summary.run.model_names if any(name in key[2:] for key in entries)]
    keys = [(kind, source) for kind in kinds for source in names if _has(entries, kind, budgets.reference, source)]
    columns = [Column("Made for", tuple(source for _, source in keys), number=False)]
    if len(kinds) > 1:
        columns.insert(0, Column("Transfer with", thin([_name(kind) for kind, _ in keys]), number=False))
    for name in names:
        cells = [entries.get((kind, budgets.reference, source, name)) for kind, source in keys]
        columns.append(Column(f"On {name}", tuple(map(write_mean, cells))))
    shown = show_budget(budgets.reference, budgets.norm, budgets.width)
    caption = (
        f"eps = {shown}. Mean drop of Dice of the model of each column under the adversarial images made for the model "
        "of each row, over classes, images and subjects. Diagonal: the transfer attack on the model itself if it was "
        f"run; else APGD with the same loss, else the {WHITE} attack with the largest mean drop, chosen on these "
        f"images. A model on which an entry beside the diagonal is larger may hide its gradient. {NOTHING}: no result."
    )
    name = "transfer" if budgets.norm == "linf" else f"transfer_{budgets.norm}"
    return Table(name, f"Transfer between models at eps {shown}", caption, tuple(columns), _list_all(entries))


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the means with the source of a transfer attack and its other settings."""
    settings = json.loads(row["settings"])
    source = settings.pop("source", "") if row["attack"] == "transfer" else ""
    return dict(row) | {"source": str(source), "others": json.dumps(settings, sort_keys=True)}


def _find_white_box(rows: list[dict[str, Any]], loss: str, eps: float, model: str) -> dict[str, Any] | None:
    """The white-box result for the diagonal: APGD with a loss, else the attack with the largest mean drop."""
    here = [row for row in rows if (row["eps"], row["model"]) == (eps, model) and _is_white_box(row)]
    alike = [row for row in here if (row["attack"], row["loss"]) == ("apgd", loss)]
    return max(alike or here, key=lambda row: float(row["mean"]), default=None)


def _is_white_box(row: Mapping[str, Any]) -> bool:
    """Whether an attack of the package differentiates the attacked model to lower its scores."""
    entry, settings = catalogue.ATTACKS.get(row["attack"]), json.loads(row["settings"])
    aims = not settings.get("targeted", False) and settings.get("label", "true") == "true"
    return entry is not None and entry.traits.gradient and not entry.traits.control and aims


def _has(entries: Mapping[tuple[Any, ...], Row], kind: tuple[str, str], eps: float, source: str) -> bool:
    """Whether images made for a model were scored on any model."""
    return any(key[:3] == (kind, eps, source) for key in entries)


def _name(kind: tuple[str, str]) -> str:
    """The loss and the settings of a transfer attack, without its source."""
    loss, others = kind
    return " ".join([loss, *(f"{name}={value}" for name, value in json.loads(others).items())])


def _list_all(entries: Mapping[tuple[Any, ...], Row]) -> pl.DataFrame:
    """All entries at all budgets for the CSV; `made_by` is the attack that made the images."""
    values = ("norm", "eps", "mean", "lower", "upper", "n_images", "n_subjects")
    listed = [
        {"source": source, "model": model, "loss": kind[0], "settings": kind[1]}
        | {"made_by": " ".join(filter(None, (row["attack"], row["loss"])))}
        | {name: row[name] for name in values}
        for (kind, _, source, model), row in entries.items()
    ]
    return pl.DataFrame(listed, schema_overrides={"lower": pl.Float64, "upper": pl.Float64}, infer_schema_length=None)
