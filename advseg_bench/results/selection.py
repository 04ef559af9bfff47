"""Which of many results to show: the reference budget, the strongest attack on a model, its best and worst case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from advseg_bench.registry import catalogue

if TYPE_CHECKING:
    from advseg_bench.results.run import Run

REFERENCE_EPS = 4 / 255
"""The budget that summaries speak of, where a sweep has it."""

LONGEST_SWEEP = 5
"""Budgets at which pictures show a case, beside the clean image."""


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
    """Return the attacks that are there to be compared with: shipped controls, and what asks no model and has no loss.

    An attack that follows a loss without asking the model may have asked another one.
    """
    shipped = {name for name, entry in catalogue.ATTACKS.items() if entry.traits.control}
    cost = pl.col("forwards").fill_null(1) + pl.col("backwards").fill_null(1)
    attacked = rows.lazy().filter(pl.col("attack") != "none").group_by("attack")
    attacks = attacked.agg(cost.max().alias("cost"), (pl.col("loss") == "").all().alias("aimless")).collect()
    free = attacks.filter(((pl.col("cost") == 0) & pl.col("aimless")) | pl.col("attack").is_in(sorted(shipped)))
    return frozenset(free["attack"].to_list())


def choose_reference(eps: Iterable[float]) -> float | None:
    """Return 4/255 if it is among the budgets, else the middle one above 0; None if there is none."""
    values = sorted({value for value in eps if value > 0})
    near = [value for value in values if abs(value - REFERENCE_EPS) < 1e-9]
    return near[0] if near else values[(len(values) - 1) // 2] if values else None


def list_budgets(run: Run) -> tuple[Budgets, ...]:
    """Return the budgets of each norm of a run, "linf" first; none if no attack has a row yet."""
    distinct = run.rows.select("attack", "norm", "eps").unique()
    swept = distinct.filter((pl.col("attack") != "none") & (pl.col("eps") > 0))
    found = []
    for norm in sorted(swept["norm"].unique().to_list(), key=lambda name: (name != "linf", name)):
        eps = sorted(swept.filter(pl.col("norm") == norm)["eps"].unique().to_list())
        reference = choose_reference(eps)
        assert reference is not None, "only budgets above 0 were kept"
        found.append(Budgets(norm, tuple(eps), reference))
    return tuple(found)


def find_strongest(run: Run, budgets: Budgets, *, swept: bool = False) -> dict[str, dict[str, Any]]:
    """Return, for each model, the attack, loss and settings with the largest mean drop at the reference
    budget.

    Attacks that moved any image beyond eps are left out: at equal eps they are no rivals. The choice is made on the
    same images that are reported, so the largest of several drops is slightly too large.

    Args:
        run: Where the rows are.
        budgets: Norm and reference budget.
        swept: Choose among attacks with rows at several budgets, where the model has any: what is shown over eps.
    Returns: Model -> row of `run.table("drop", ...)`. Models without such rows are left out.
    """
    keys = ("model", "attack", "loss", "settings")
    table = run.table("drop", by=keys, where={"norm": budgets.norm, "eps": budgets.reference})
    beyond = run.rows.select(*keys, "norm", "eps", "flags").filter(
        pl.col("flags").list.contains("beyond_eps"),
        pl.col("norm") == budgets.norm,
        pl.col("eps") == budgets.reference,
    )
    left_out = set(beyond.select(keys).iter_rows())
    attacks = table.filter(~pl.col("attack").is_in(sorted(run.controls)) & pl.col("mean").is_not_null())
    some = run.rows.lazy().filter(pl.col("norm") == budgets.norm, pl.col("eps") > 0)
    several = some.group_by(keys).agg(pl.col("eps").n_unique()).filter(pl.col("eps") > 1).collect()
    sweeps = set(several.select(keys).iter_rows())
    rivals = [row for row in attacks.to_dicts() if tuple(row[name] for name in keys) not in left_out]
    ranked = sorted(
        rivals,
        key=lambda row: (swept and tuple(row[name] for name in keys) not in sweeps, -row["mean"]),
    )
    return {row["model"]: row for row in reversed(ranked)}


def find_extremes(run: Run) -> list[dict[str, Any]]:
    """Find the image that each model's strongest swept attack harms most, and the one that it harms least.

    Only images at or above the Dice threshold when clean are eligible, unless no image is.

    Returns: One dict per case, in the order of the models, the worst before the best: "kind" ("worst" or "best"),
        "model", "image", "cell", "attack", "loss", "settings", "norm", "eps", "dice_clean", "dice_attacked", and
        "sweep": the budgets at which to show it, ascending, as dicts of "cell", "eps" and "dice". The worst case has
        up to `LONGEST_SWEEP` budgets, "eps" among them; the best has "eps" alone.
    """
    budgets = list_budgets(run)[:1]
    strongest = find_strongest(run, budgets[0], swept=True) if budgets else {}
    cases = []
    for model in run.model_names:
        if model not in strongest:
            continue
        same = {name: strongest[model][name] for name in ("model", "attack", "loss", "settings")}
        same |= {"norm": budgets[0].norm}
        sweep = run.scores().filter(pl.col("eps") > 0, *(pl.col(k) == v for k, v in same.items()))
        rows = sweep.filter(pl.col("drop").is_not_null(), pl.col("eps") == budgets[0].reference)
        eligible = rows.filter(pl.col("dice_below").is_not_null())
        ranked = (eligible if len(eligible) else rows).sort("drop", "image", "draw").to_dicts()
        worst, best = ranked[-1], ranked[0]
        same_image = [pl.col(name) == worst[name] for name in ("image", "draw")]
        steps = _thin_sweep(sweep.filter(*same_image).sort("eps").to_dicts(), worst["eps"])
        cases += [_describe_case("worst", worst, steps), _describe_case("best", best, [best])]
    return cases


def _thin_sweep(rows: Sequence[dict[str, Any]], reference: float) -> list[dict[str, Any]]:
    """At most `LONGEST_SWEEP` rows of a sweep, evenly by rank: the first, the last and the reference among them."""
    if len(rows) <= LONGEST_SWEEP:
        return list(rows)
    middle = next(i for i, row in enumerate(rows) if row["eps"] == reference)
    last = len(rows) - 1
    places = [round(i * last / (LONGEST_SWEEP - 1)) for i in range(LONGEST_SWEEP)]
    inner = range(1, LONGEST_SWEEP - 1)
    if middle not in places:
        places[min(inner, key=lambda i: abs(places[i] - middle))] = middle
    return [rows[i] for i in places]


def _describe_case(kind: str, row: dict[str, Any], steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What pictures of a row, and of the same image at other budgets, must say."""
    names = ("model", "image", "cell", "attack", "loss", "settings", "norm", "eps", "dice_clean")
    sweep = [{name: step[name] for name in ("cell", "eps", "dice")} for step in steps]
    return {"kind": kind, **{name: row[name] for name in names}, "dice_attacked": row["dice"], "sweep": sweep}
