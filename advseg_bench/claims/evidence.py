"""The evidence for claims: scores of arms, paired image by image and averaged over each subject's images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from advseg_bench.results.arms import ARM, CURVE, WORST, is_arm, read_arm
from advseg_bench.results.run import Run
from advseg_bench.results.selection import choose_reference
from advseg_bench.results.tables import Tables
from advseg_bench.stats import PairedTest, compare_paired
from advseg_bench.suite.cells import Arm
from advseg_bench.types import Norm

NORM: Norm = "linf"
SCORES = ("drop", "dice", "dice_clean")
RELEASED = ("dice_released_clean", "dice_released", "diff_released")


def make_arm(attack: str, loss: str = "", settings: Mapping[str, Any] | None = None) -> Arm:
    """Return an arm under an L_inf budget, with settings as in the suite."""
    return Arm(attack, loss, json.dumps(dict(settings or {}), sort_keys=True), NORM)


def name_arm(arm: Arm) -> str:
    """Return attack, loss and settings of an arm as text."""
    return " ".join(part for part in (arm.attack, arm.loss, *map(str, arm.options.values())) if part)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the claims need of the rows of some models.

    Attributes:
        rows: Model -> the rows of FGSM, noise and the worst case at the budget, with `ARM`, `image`, `subject`, scores,
            `linf`, and whether they are `unchanged` or `beyond_eps`.
        arms: All arms with rows at the budget.
        subjects: All subjects with rows.
        released: Score of `RELEASED` -> its table by `CURVE`.
    """

    rows: Mapping[str, pl.DataFrame]
    arms: frozenset[Arm]
    subjects: frozenset[str]
    released: Tables


def choose_budget(run: Run) -> float | None:
    """Return the budget of FGSM: 4/255 where it was used, else the middle one; None if FGSM has no result."""
    fgsm = run.measured_cells.filter(pl.col("norm") == NORM, pl.col("attack") == "fgsm")
    return choose_reference(fgsm.filter(pl.col("settings") == "{}")["eps"]) or choose_reference(fgsm["eps"])


def gather(run: Run, eps: float | None) -> Gathered:
    """Gather what the claims need of a run, or of some of its models.

    Args:
        run: The run.
        eps: The budget.
    """
    flags = {name: pl.col("flags").list.contains(name).alias(name) for name in ("unchanged", "beyond_eps")}
    known = run.scores().lazy().filter(pl.col("norm") == NORM, pl.col("attack") != "none", pl.col("eps") == pl.lit(eps))
    found = known.select("model", *ARM, "image", "subject", "linf", *SCORES, *flags.values()).collect()
    arms = frozenset(read_arm(row) for row in found.select(ARM).unique().iter_rows(named=True))
    needed = found.filter(pl.col("attack").is_in(["fgsm", WORST, *sorted(run.controls)]))
    rows = {model: needed.filter(pl.col("model") == model) for model in found["model"].unique().to_list()}
    where = {"norm": NORM, "eps": eps, "attack": "fgsm"}
    released = {} if eps is None else run.tables(RELEASED, CURVE, where=where)
    return Gathered(rows, arms, frozenset(run.rows["subject"].unique().to_list()), released)


class Evidence:
    """The results of a run on which claims are judged: L_inf attacks at one budget.

    Args:
        run: The run.
        gathered: What was gathered of all its models at the budget of `choose_budget`; done here if None.

    Attributes:
        run: The run.
        eps: The budget of FGSM, see `choose_budget`.
        arms: The arms that have results at this budget.
        models: The models that have results, in the order of the suite.
        subjects: Number of subjects with a row.
        released: Score of `RELEASED` -> model and arm -> its row of `Run.table`, of FGSM.
        training_loss: The loss that the models were trained with.
        reference: The arm that represents FGSM: as defined, with the training loss if it was run, else with the first.
        controls: All noise arms of equal norm, of any loss, without those that exceeded eps.
    """

    def __init__(self, run: Run, gathered: Sequence[Gathered] | None = None) -> None:
        self.run, self.eps = run, choose_budget(run)
        parts = [gather(share, self.eps) for share in run.split()] if gathered is None else gathered
        self._values: dict[tuple[str, Arm, str], pl.DataFrame] = {}
        self._rows = {model: rows for part in parts for model, rows in part.rows.items()}
        self.arms = frozenset[Arm]().union(*(part.arms for part in parts))
        self.models = tuple(name for name in run.model_names if name in self._rows)
        self.subjects = len(frozenset[str]().union(*(part.subjects for part in parts)))
        self.released = {
            score: {(row["model"], read_arm(row)): row for part in parts for row in part.released[score].to_dicts()}
            for score in (RELEASED if self.eps is not None else ())
        }
        self.training_loss = run.about.suite.training_loss
        planned = dict.fromkeys(cell.arm for cell in run.about.cells)
        losses = [arm.loss for arm in planned if arm in self.arms and arm == make_arm("fgsm", arm.loss)]
        chosen = self.training_loss if self.training_loss in losses else next(iter(losses), None)
        self.reference = None if chosen is None else make_arm("fgsm", chosen)
        noise = [arm for arm in self.arms if arm.attack in run.controls]
        beyond = {name for rows in self._rows.values() for name in set(rows.filter("beyond_eps")["attack"])} - {"fgsm"}
        usable = [arm for arm in noise if arm.attack not in beyond]
        self.controls = tuple(sorted(usable, key=lambda arm: (arm.attack != "random_sign", arm.attack, arm.loss)))

    def values(self, model: str, arm: Arm, score: str = "drop") -> pl.DataFrame:
        """Return an arm's score on a model.

        Args:
            model: The model's name.
            arm: The attack.
            score: "drop", "dice", "dice_clean" or "linf".

        Returns:
            One row per image with a score: `image`, `subject`, `value` (the mean over repeats).
        """
        key = (model, arm, score)
        if key not in self._values:
            self._values[key] = self._find_values(*key)
        return self._values[key]

    def _find_values(self, model: str, arm: Arm, score: str) -> pl.DataFrame:
        """Compute what `values` returns."""
        mine = self._rows[model].filter(is_arm(arm), pl.col(score).is_not_null())
        return mine.group_by("image", "subject").agg(pl.col(score).mean().alias("value")).sort("image")

    def find_gaps(self, arms: Sequence[Arm]) -> str:
        """Name the arms without any score on some model: not run, failed, or equal to the clean images.

        Returns:
            A clause that names them; "" if there are none.
        """
        gaps = [
            f"{name_arm(arm)} on {model}" for model in self.models for arm in arms if self.values(model, arm).is_empty()
        ]
        return f"no image has a score under {', '.join(gaps)}" if gaps else ""

    def count_unchanged(self) -> tuple[int, int]:
        """Return how many results of FGSM at the budget equal the clean image, and how many results there are."""
        fgsm = [rows.filter(pl.col("attack") == "fgsm") for rows in self._rows.values()]
        return sum(int(rows["unchanged"].sum()) for rows in fgsm), sum(map(len, fgsm))

    def list_weak_models(self) -> list[str]:
        """Return the models whose mean clean Dice is below the threshold of the run's scoring."""
        if self.reference is None:
            return []
        clean = {m: self.compare(average(self.reference, [m], "dice_clean")).mean for m in self.models}
        return [m for m, dice in clean.items() if dice is not None and dice < self.run.scoring.dice_threshold]

    def compare(self, contrast: Contrast) -> PairedTest:
        """Estimate a contrast and test whether it is zero, with the subject as the unit.

        Only images with a score under every arm and model of the contrast are used.
        """
        return compare_paired(_average(self._join(contrast.terms, contrast.size)))

    def _join(self, terms: Sequence[Term], size: int) -> pl.DataFrame:
        """Return the weighted sum of terms divided by `size` for each image for which every term has a value."""
        total: pl.DataFrame | None = None
        for model, arm, score, weight in terms:
            term = self.values(model, arm, score).with_columns(pl.col("value") * weight / size)
            if total is None:
                total = term
                continue
            joined = total.join(term, on=("image", "subject"), suffix="_more")
            total = joined.select("image", "subject", pl.col("value") + pl.col("value_more"))
        assert total is not None, "a contrast has terms"
        return total.sort("image")


Term = tuple[str, Arm, str, float]
"""Model, arm, score and weight."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A weighted sum of scores, image by image.

    Attributes:
        terms: The terms of the sum.
        size: The divisor of the sum: the number of models that are averaged.
    """

    terms: tuple[Term, ...]
    size: int = 1

    def __sub__(self, other: Contrast) -> Contrast:
        """Return the difference of two contrasts of equal size."""
        assert self.size == other.size, "a difference needs contrasts over equally many models"
        return Contrast((*self.terms, *((m, a, s, -w) for m, a, s, w in other.terms)), self.size)

    def __truediv__(self, number: float) -> Contrast:
        """Return the contrast divided by a number."""
        return Contrast(tuple((m, a, s, w / number) for m, a, s, w in self.terms), self.size)


def average(arm: Arm, models: Sequence[str], score: str = "drop") -> Contrast:
    """Return a score under an arm, by default the drop of Dice, averaged over models."""
    return Contrast(tuple((model, arm, score, 1.0) for model in models), len(models))


def _average(images: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return subject means, ordered by subject."""
    means = images.group_by("subject").agg(pl.col("value").mean()).sort("subject")
    return means["value"].to_numpy()
