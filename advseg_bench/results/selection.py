"""Selects the results to show: the reference budget, the strongest attack on a model, its best and worst case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from advseg_bench.results.arms import CURVE, WORST, is_arm, name_values, read_arm
from advseg_bench.results.run import Run
from advseg_bench.suite.battery import KEPT_SMALLER, SKIPPED
from advseg_bench.suite.cells import Arm

REFERENCE_EPS = 4 / 255
"""The budget that summaries use, if the sweep has it."""

LONGEST_SWEEP = 5
"""Largest number of budgets at which a case is shown, besides the clean image."""


OWN_IMAGE = pl.col("flags").list.set_intersection([SKIPPED, KEPT_SMALLER]).list.len() == 0
"""Condition for rows whose image the cell made itself, so that running the cell alone makes it again."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """A norm, its budgets in the run, and the budget that summaries use.

    Attributes:
        norm: "linf" or "l2".
        eps: Budgets above 0, ascending.
        reference: 4/255 where it was used, else the middle one (the lower of two).
        width: Width of the range of intensities, which 1/255 refers to.
    """

    norm: str
    eps: tuple[float, ...]
    reference: float
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Rival:
    """An attack on a model, ranked among others at the reference budget.

    Attributes:
        arm: The attack.
        drop: Its row of `Run.table("drop")`.
        swept: Whether it has rows at several budgets.
    """

    arm: Arm
    drop: Mapping[str, Any]
    swept: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One budget at which a case is shown.

    Attributes:
        cell: Id of the cell.
        eps: Radius in image units.
        dice: Dice of the image at this budget.
    """

    cell: str
    eps: float
    dice: float


@dataclass(frozen=True, slots=True)
class Extreme:
    """The image with the largest or the smallest drop of Dice under the attacks on a model.

    Attributes:
        kind: "worst" for the largest drop, "best" for the smallest.
        model: The model's name.
        image: The image's name.
        cell: Id of the cell at the reference budget.
        arm: The attack; of the worst case over the attacks, the one that is the worst of this image.
        eps: The reference budget.
        dice_clean: Dice of the clean image.
        dice_attacked: Dice at the reference budget.
        sweep: The budgets at which the case is shown, ascending: up to `LONGEST_SWEEP` for the worst case, including
            `eps`; only `eps` for the best case.
    """

    kind: Literal["worst", "best"]
    model: str
    image: str
    cell: str
    arm: Arm
    eps: float
    dice_clean: float
    dice_attacked: float
    sweep: tuple[Step, ...]

    def as_record(self) -> dict[str, Any]:
        """Return the case as JSON values, which are stored with its images; the file name is a hash of them."""
        named = {name: getattr(self, name) for name in ("kind", "model", "image", "cell")}
        scores = {name: getattr(self, name) for name in ("eps", "dice_clean", "dice_attacked")}
        sweep = [{"cell": step.cell, "eps": step.eps, "dice": step.dice} for step in self.sweep]
        return named | name_values(self.arm) | scores | {"sweep": sweep}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Extreme:
        """Restore a case from the output of `as_record`; missing entries raise `KeyError` or `TypeError`."""
        names = ("kind", "model", "image", "cell", "eps", "dice_clean", "dice_attacked")
        sweep = tuple(Step(step["cell"], step["eps"], step["dice"]) for step in record["sweep"])
        return cls(arm=read_arm(record), sweep=sweep, **{name: record[name] for name in names})


def choose_reference(eps: Iterable[float]) -> float | None:
    """Return 4/255 if it is among the budgets, else the middle one of those above 0; None if there are none."""
    values = sorted({value for value in eps if value > 0})
    near = [value for value in values if abs(value - REFERENCE_EPS) < 1e-9]
    return near[0] if near else values[(len(values) - 1) // 2] if values else None


def list_budgets(run: Run) -> tuple[Budgets, ...]:
    """Return the budgets of each norm of a run, "linf" first; empty if no attack has a row yet."""
    swept = run.measured_cells.filter((pl.col("attack") != "none") & (pl.col("eps") > 0))
    found = []
    for norm in sorted(swept["norm"].unique().to_list(), key=lambda name: (name != "linf", name)):
        eps = sorted(swept.filter(pl.col("norm") == norm)["eps"].unique().to_list())
        reference = choose_reference(eps)
        assert reference is not None, "only budgets above 0 were kept"
        found.append(Budgets(norm, tuple(eps), reference, run.about.data.width))
    return tuple(found)


def rank_attacks(run: Run, budgets: Budgets) -> dict[str, tuple[Rival, ...]]:
    """Rank the single attacks on each model by their mean drop at the reference budget, the largest first.

    Attacks that exceeded eps on any image are left out, since they are not comparable at equal eps. The ranking uses
    the same images as the reported values, so the largest drop is slightly overestimated.

    Returns:
        Model -> its attacks; models without any attack are left out.
    """
    table = run.table("drop", by=CURVE, where={"norm": budgets.norm, "eps": budgets.reference})
    at_reference = (pl.col("norm") == budgets.norm, pl.col("eps") == budgets.reference)
    flagged = run.rows.lazy().filter(pl.col("flags").list.len() > 0).filter(*at_reference)
    wild = flagged.filter(pl.col("flags").list.contains("beyond_eps")).select(CURVE).unique().collect()
    beyond = set(wild.iter_rows())
    swept = run.measured_cells.filter(pl.col("norm") == budgets.norm, pl.col("eps") > 0)
    counts = swept.group_by(CURVE).agg(pl.col("eps").n_unique())
    budgets_of = {tuple(curve): eps for *curve, eps in counts.iter_rows()}
    others = sorted({*run.controls, WORST})
    attacks = table.filter(~pl.col("attack").is_in(others) & pl.col("mean").is_not_null())
    ranked: dict[str, list[Rival]] = {}
    for row in sorted(attacks.to_dicts(), key=lambda row: -row["mean"]):
        curve = tuple(row[name] for name in CURVE)
        if curve not in beyond:
            ranked.setdefault(row["model"], []).append(Rival(read_arm(row), row, budgets_of[curve] > 1))
    return {model: tuple(rivals) for model, rivals in ranked.items()}


def choose_strongest(ranked: Mapping[str, Sequence[Rival]], *, swept: bool = False) -> dict[str, Rival]:
    """Return the strongest attack on each model.

    Args:
        ranked: The output of `rank_attacks`.
        swept: Whether to prefer attacks with rows at several budgets, for display over eps.

    Returns:
        Model -> its strongest attack.
    """
    return {model: max(rivals, key=lambda rival: swept and rival.swept) for model, rivals in ranked.items()}


def find_worst_cases(run: Run, budgets: Budgets) -> dict[str, Rival]:
    """Return the worst case over the attacks on each model at the reference budget, see the module `worst`.

    Returns:
        Model -> its worst case; models with fewer than two attacks are left out.
    """
    where = {"attack": WORST, "norm": budgets.norm}
    points = run.table("drop", by=(*CURVE, "eps"), where=where).filter(pl.col("mean").is_not_null())
    swept = {model for (model,), rows in points.group_by("model") if len(rows) > 1}
    at_reference = points.filter(pl.col("eps") == budgets.reference).to_dicts()
    return {row["model"]: Rival(read_arm(row), row, row["model"] in swept) for row in at_reference}


def choose_shown(ranked: Mapping[str, Sequence[Rival]], worst: Mapping[str, Rival]) -> dict[str, Rival]:
    """Return the attack on each model that is displayed over eps.

    It is the worst case over the attacks if that is known at several budgets or no attack is, else the strongest
    attack among those with several budgets.

    Args:
        ranked: The output of `rank_attacks`.
        worst: The output of `find_worst_cases`.

    Returns:
        Model -> the worst case or its strongest attack.
    """
    single = choose_strongest(ranked, swept=True)
    return single | {m: each for m, each in worst.items() if each.swept or (m in single and not single[m].swept)}


def find_extremes(run: Run) -> tuple[Extreme, ...]:
    """Find the images with the largest and the smallest drop of Dice under each model's attack of `choose_shown`.

    Only images with clean Dice at or above the threshold are eligible; if there are none, all are. Of the worst case
    over the attacks, the attack is the one that is the worst of this image at the reference budget.

    Returns:
        The cases in the order of the models, the worst before the best.
    """
    budgets = list_budgets(run)[:1]
    return tuple(case for share in run.split() for case in _find_cases(share, budgets[0])) if budgets else ()


def _find_cases(run: Run, budgets: Budgets) -> list[Extreme]:
    """Find the cases of some models at the reference budget."""
    shown = choose_shown(rank_attacks(run, budgets), find_worst_cases(run, budgets))
    by_worst = any(rival.arm.attack == WORST for rival in shown.values())
    members = run.find_members(norm=budgets.norm, eps=budgets.reference) if by_worst else run.rows.clear()
    cases: list[Extreme] = []
    for model in run.model_names:
        if model not in shown:
            continue
        arm = shown[model].arm
        chosen = members.filter(pl.col("norm") == arm.norm) if arm.attack == WORST else run.scores().filter(is_arm(arm))
        rows = chosen.filter(
            pl.col("model") == model,
            pl.col("drop").is_not_null(),
            pl.col("eps") == budgets.reference,
            OWN_IMAGE,
        )
        eligible = rows.filter(pl.col("dice_below").is_not_null())
        ranked = (eligible if len(eligible) else rows).sort("drop", "image", "draw").to_dicts()
        if not ranked:
            continue
        worst, best = ranked[-1], ranked[0]
        same_image = [pl.col(name) == worst[name] for name in ("model", "image", "draw")]
        sweep = run.scores().filter(pl.col("eps") > 0, OWN_IMAGE, is_arm(read_arm(worst)), *same_image)
        steps = _thin_sweep(sweep.sort("eps").to_dicts(), worst["eps"])
        cases += [_describe_case("worst", worst, steps), _describe_case("best", best, [best])]
    return cases


def _thin_sweep(rows: Sequence[dict[str, Any]], reference: float) -> list[dict[str, Any]]:
    """Select at most `LONGEST_SWEEP` rows of a sweep, evenly by rank, with the first, the last and the reference."""
    if len(rows) <= LONGEST_SWEEP:
        return list(rows)
    middle = next(i for i, row in enumerate(rows) if row["eps"] == reference)
    last = len(rows) - 1
    places = [round(i * last / (LONGEST_SWEEP - 1)) for i in range(LONGEST_SWEEP)]
    inner = range(1, LONGEST_SWEEP - 1)
    if middle not in places:
        places[min(inner, key=lambda i: abs(places[i] - middle))] = middle
    return [rows[i] for i in places]


def _describe_case(kind: Literal["worst", "best"], row: dict[str, Any], steps: Sequence[dict[str, Any]]) -> Extreme:
    """Describe a case from its row and the rows of the same image at other budgets."""
    return Extreme(
        kind=kind,
        model=row["model"],
        image=row["image"],
        cell=row["cell"],
        arm=read_arm(row),
        eps=row["eps"],
        dice_clean=row["dice_clean"],
        dice_attacked=row["dice"],
        sweep=tuple(Step(step["cell"], step["eps"], step["dice"]) for step in steps),
    )
