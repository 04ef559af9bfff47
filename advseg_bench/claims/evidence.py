"""The evidence for claims: scores of arms, paired image by image and averaged over each subject's images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from advseg_bench.results.arms import ARM, is_arm, read_arm
from advseg_bench.results.run import Run
from advseg_bench.results.selection import choose_reference
from advseg_bench.stats import PairedTest, compare_paired
from advseg_bench.suite.cells import Arm
from advseg_bench.types import Norm

NORM: Norm = "linf"
SCORES = ("drop", "dice", "dice_clean")


def make_arm(attack: str, loss: str = "", settings: Mapping[str, Any] | None = None) -> Arm:
    """Return an arm under an L_inf budget, with settings as in the suite."""
    return Arm(attack, loss, json.dumps(dict(settings or {}), sort_keys=True), NORM)


def name_arm(arm: Arm) -> str:
    """Return attack, loss and settings of an arm as text."""
    return " ".join(part for part in (arm.attack, arm.loss, *map(str, arm.options.values())) if part)


class Evidence:
    """The results of a run on which claims are judged: L_inf attacks at one budget.

    Args:
        run: The run.

    Attributes:
        run: The run.
        eps: The budget of FGSM: 4/255 where it was used, else the middle one; None if FGSM has no result.
        arms: The arms that have results at this budget.
        models: The models that have results, in the order of the suite.
        training_loss: The loss that the models were trained with.
        reference: The arm that represents FGSM: as defined, with the training loss if it was run, else with the first.
        controls: All noise arms of equal norm, of any loss, without those that exceeded eps.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        rows = run.scores().lazy().filter((pl.col("norm") == NORM) & (pl.col("attack") != "none"))
        fgsm = rows.filter(pl.col("attack") == "fgsm").select("settings", "eps").unique().collect()
        defined = fgsm.filter(pl.col("settings") == "{}")
        self.eps = choose_reference(defined["eps"]) or choose_reference(fgsm["eps"])
        self._values: dict[tuple[str, Arm, str], pl.DataFrame] = {}
        names = ("model", *ARM, "image", "subject", "linf", *SCORES, "flags")
        self._rows = rows.filter(pl.col("eps") == pl.lit(self.eps)).select(names).collect()
        keys = self._rows.select(ARM).unique(maintain_order=True)
        self.arms = frozenset(read_arm(row) for row in keys.iter_rows(named=True))
        there = set(self._rows["model"])
        self.models = tuple(name for name in run.model_names if name in there)
        self.training_loss = run.about.suite.training_loss
        planned = dict.fromkeys(cell.arm for cell in run.about.cells)
        losses = [arm.loss for arm in planned if arm in self.arms and arm == make_arm("fgsm", arm.loss)]
        chosen = self.training_loss if self.training_loss in losses else next(iter(losses), None)
        self.reference = None if chosen is None else make_arm("fgsm", chosen)
        noise = [arm for arm in self.arms if arm.attack in run.controls]
        beyond = set(self._rows.filter(pl.col("flags").list.contains("beyond_eps"))["attack"]) - {"fgsm"}
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
        mine = self._rows.filter(pl.col("model") == model, is_arm(arm), pl.col(score).is_not_null())
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
        fgsm = self._rows.filter(pl.col("attack") == "fgsm")
        return fgsm.filter(pl.col("flags").list.contains("unchanged")).height, fgsm.height

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
