"""Which of many results to show: the reference budget, the strongest attack on a model, its best and worst case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from advseg_bench import catalogue

if TYPE_CHECKING:
    from advseg_bench.results import Run

REFERENCE_EPS = 4 / 255
"""The budget that summaries speak of, where a sweep has it."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """The norm that summaries speak of, its budgets in the run, and the one among them that stands for all.

    Attributes:
        norm: "linf" where it was used.
        eps: Budgets above 0, ascending.
        reference: 4/255 where it was used, else the middle one (the lower of two).
    """

    norm: str
    eps: tuple[float, ...]
    reference: float


def find_controls(rows: pl.DataFrame) -> frozenset[str]:
    """Return the attacks that are there to be compared with: shipped controls, and what never asks the model."""
    shipped = {name for name, entry in catalogue.ATTACKS.items() if entry.control}
    cost = pl.col("forwards").fill_null(1) + pl.col("backwards").fill_null(1)
    attacks = rows.filter(pl.col("attack") != "none").group_by("attack").agg(cost.max().alias("cost"))
    free = attacks.filter((pl.col("cost") == 0) | pl.col("attack").is_in(sorted(shipped)))
    return frozenset(free["attack"].to_list())


def choose_reference(eps: Iterable[float]) -> float | None:
    """Return 4/255 if it is among the budgets, else the middle one above 0; None if there is none."""
    values = sorted({value for value in eps if value > 0})
    near = [value for value in values if abs(value - REFERENCE_EPS) < 1e-9]
    return near[0] if near else values[(len(values) - 1) // 2] if values else None


def list_budgets(run: Run) -> tuple[Budgets, ...]:
    """Return the budgets of each norm of a run, "linf" first; none if no attack has a row yet."""
    swept = run.rows.filter((pl.col("attack") != "none") & (pl.col("eps") > 0))
    found = []
    for norm in sorted(swept["norm"].unique().to_list(), key=lambda name: (name != "linf", name)):
        eps = sorted(swept.filter(pl.col("norm") == norm)["eps"].unique().to_list())
        reference = choose_reference(eps)
        assert reference is not None, "only budgets above 0 were kept"
        found.append(Budgets(norm, tuple(eps), reference))
    return tuple(found)


def find_strongest(run: Run, budgets: Budgets) -> dict[str, dict[str, Any]]:
    """Return, for each model, the attack, loss and settings with the largest mean drop at the reference
    budget.

    Attacks that moved any image beyond eps are left out: at equal eps they are no rivals. The choice is made on the
    same images that are reported, so the largest of several drops is slightly too large.

    Returns: Model -> row of `run.table("drop", ...)`. Models without such rows are left out.
    """
    keys = ("model", "attack", "loss", "settings")
    table = run.table("drop", by=keys, where={"norm": budgets.norm, "eps": budgets.reference})
    beyond = run.rows.filter(
        pl.col("flags").list.contains("beyond_eps"),
        pl.col("norm") == budgets.norm,
        pl.col("eps") == budgets.reference,
    )
    table = table.join(beyond.select(keys).unique(), on=keys, how="anti", maintain_order="left")
    attacks = table.filter(~pl.col("attack").is_in(sorted(run.controls)) & pl.col("mean").is_not_null())
    ranked = attacks.sort("mean", descending=True, maintain_order=True)
    return {row["model"]: row for row in reversed(ranked.to_dicts())}


def find_extremes(run: Run) -> list[dict[str, Any]]:
    """Find the image that each model's strongest attack harms most, and the one that it harms least.

    Only images at or above the Dice threshold when clean are eligible, unless no image is.

    Returns: One dict per case, in the order of the models, the worst before the best: "kind" ("worst" or "best"),
        "model", "image", "cell", "attack", "loss", "norm", "eps", "dice_clean", "dice_attacked".
    """
    budgets = list_budgets(run)[:1]
    strongest = find_strongest(run, budgets[0]) if budgets else {}
    cases = []
    for model in run.model_names:
        if model not in strongest:
            continue
        same = {name: strongest[model][name] for name in ("model", "attack", "loss", "settings")}
        same |= {"norm": budgets[0].norm, "eps": budgets[0].reference}
        rows = run.scores().filter(pl.col("drop").is_not_null(), *(pl.col(k) == v for k, v in same.items()))
        eligible = rows.filter(pl.col("dice_below").is_not_null())
        ranked = (eligible if len(eligible) else rows).sort("drop", "image", "draw").to_dicts()
        cases += [_describe_case("worst", ranked[-1]), _describe_case("best", ranked[0])]
    return cases


def _describe_case(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """What a picture of a row must say."""
    names = ("model", "image", "cell", "attack", "loss", "norm", "eps", "dice_clean")
    return {"kind": kind, **{name: row[name] for name in names}, "dice_attacked": row["dice"]}
