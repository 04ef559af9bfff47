"""Each model's strongest single attack compared with noise of the same budget, beside the worst case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import polars as pl

from advseg_bench.claims import ALPHA
from advseg_bench.report.document import show_times
from advseg_bench.report.means import Row
from advseg_bench.report.series import Series, find_label
from advseg_bench.results.arms import ARM, CURVE, is_arm, read_arm
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets, Rival
from advseg_bench.stats import PairedTest, compare_paired, joint_sign_flip_ps, subject_interval, subject_means
from advseg_bench.suite.cells import Arm

SMALLEST_NOISE = 0.0005
"""A mean drop below this is shown as 0.000; a ratio to it would be meaningless."""


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The worst case over the attacks on one model, image by image.

    Attributes:
        arm: Its arm, of the attack `arms.WORST`.
        clean: Mean clean Dice of its images.
        drop: Its row of `Run.table("drop")`.
    """

    arm: Arm
    clean: float
    drop: Row


@dataclass(frozen=True, slots=True)
class Contrast:
    """One model's strongest single attack compared with noise of the same budget, beside the worst case.

    The worst case is chosen image by image, so its drop exceeds that of noise even if no attack is better than noise.
    Ratio and test are therefore those of the strongest single attack.

    Attributes:
        model: The model's name.
        arm: The attack.
        label: Label of its series.
        clean: Mean clean Dice of the attacked images.
        drop: Row of `Run.table("drop")` for the attack.
        noise: The same row for the noise baseline, or None if there is none.
        test: Paired test of `drop` minus `noise` over subjects; None without a noise baseline, or if no
            subjects were given.
        p: p of `test`, adjusted for the choice of the attack among all those on this model (`joint_sign_flip_ps`).
        left_out: Number of images of the attack or of the noise without a score under the other, such as results that
            equal the clean image; `clean`, `drop` and `noise` are over the other images.
        control: Name of the noise baseline: the one that lowers mean Dice most, on average over models.
        worst: The worst case over the attacks; None if there are not two of them.
    """

    model: str
    arm: Arm
    label: str
    clean: float
    drop: Row
    noise: Row | None
    test: PairedTest | None = None
    p: float | None = None
    left_out: int = 0
    control: str | None = None
    worst: WorstCase | None = None

    @property
    def shown_arm(self) -> Arm:
        """The arm of the worst case, else the strongest attack."""
        return self.worst.arm if self.worst else self.arm

    @property
    def shown_clean(self) -> float:
        """Mean clean Dice of the images of `shown_drop`."""
        return self.worst.clean if self.worst else self.clean

    @property
    def shown_drop(self) -> Row:
        """The drop of the worst case, else of the strongest attack."""
        return self.worst.drop if self.worst else self.drop

    @property
    def tested(self) -> bool:
        """Whether there are enough subjects for a significant difference between attack and noise."""
        return self.test is not None and self.test.smallest_p <= ALPHA

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the attack lowers the mean Dice, and more than noise does; None without a noise baseline.

        The difference must be significant for the largest of all attacks on this model, unless there are too few
        subjects for that; then it describes these images. Several models are not adjusted for.
        """
        if self.noise is None:
            return None
        larger = bool(self.drop["mean"] > max(self.noise["mean"], 0))
        return larger and (not self.tested or self.p is None or self.p <= ALPHA)

    @property
    def ratio(self) -> float | None:
        """The ratio of the drop under the attack to that under noise; None where noise does not lower Dice.

        That is, where its mean drop is negligible or its interval, if it has one, includes 0.
        """
        if self.noise is None or self.noise["mean"] < SMALLEST_NOISE or self.includes_zero:
            return None
        return float(self.drop["mean"] / self.noise["mean"])

    @property
    def includes_zero(self) -> bool:
        """Whether the interval of the drop under noise includes 0."""
        noise = self.noise
        return noise is not None and noise["lower"] is not None and bool(noise["lower"] <= 0 <= noise["upper"])

    @property
    def least_ratio(self) -> float | None:
        """The ratio of the drop to the upper end of the noise's interval, where this interval includes 0.

        None where it does not, and where the ratio is at most 1.
        """
        if self.noise is None or not self.includes_zero or self.noise["upper"] < SMALLEST_NOISE:
            return None
        least = float(self.drop["mean"] / self.noise["upper"])
        return least if least > 1 else None


@dataclass(frozen=True, slots=True)
class Compared:
    """The strongest attacks on some models, compared with each noise baseline of the run.

    Attributes:
        noises: Noise baseline -> model -> its row of `Run.table("drop")`.
        contrasts: Noise baseline, and None for none -> model -> its contrast, without a label.
    """

    noises: Mapping[str, Mapping[str, Row]]
    contrasts: Mapping[str | None, Mapping[str, Contrast]]


def compare_models(
    run: Run, budgets: Budgets, ranked: Mapping[str, Sequence[Rival]], worst: Mapping[str, Rival]
) -> Compared:
    """Compare each model's strongest attack at the reference budget with each noise baseline of that budget.

    Args:
        run: The run of some models.
        budgets: Norm and reference budget.
        ranked: Model -> its attacks, the strongest first.
        worst: Model -> the worst case over its attacks.
    """
    where = {"norm": budgets.norm, "eps": budgets.reference}
    noises = {
        control: {
            row["model"]: row
            for row in run.table("drop", by="model", where=where | {"attack": control}).to_dicts()
            if row["mean"] is not None
        }
        for control in sorted(run.controls)
    }
    table = run.table("dice_clean", by=CURVE, where=where)
    clean = {(row["model"], read_arm(row)): row["mean"] for row in table.iter_rows(named=True)}
    names = ("model", *ARM, "subject", "image", "drop", "dice_clean")
    at_reference = (pl.col("norm") == budgets.norm, pl.col("eps") == budgets.reference)
    scored = run.scores().lazy().filter(*at_reference).select(names).collect()
    cases = {m: WorstCase(r.arm, clean[m, r.arm], dict(r.drop)) for m, r in worst.items()}
    contrasts: dict[str | None, dict[str, Contrast]] = {control: {} for control in (None, *noises)}
    for model, rivals in ranked.items():
        arm, mine = rivals[0].arm, scored.filter(pl.col("model") == model)
        plain = Contrast(model, arm, "", clean[model, arm], dict(rivals[0].drop), None, worst=cases.get(model))
        for control, found in contrasts.items():
            noisy = mine.filter(pl.col("attack") == (control or ""))
            noise = noises[control].get(model) if control else None
            contrast = _pair(replace(plain, noise=noise, control=control), mine.filter(is_arm(arm)), noisy)
            if run.about.data.by_image:
                contrast = replace(contrast, test=None)
            elif contrast.tested:
                contrast = replace(contrast, p=_adjust(mine, noisy, [rival.arm for rival in rivals]))
            found[model] = contrast
    return Compared(noises, contrasts)


def choose_contrasts(run: Run, series: Sequence[Series], compared: Sequence[Compared]) -> tuple[Contrast, ...]:
    """Return the contrast of each model with the noise baseline that lowers mean Dice most, in the order of the suite.

    Args:
        run: The run.
        series: The series of the run, for the labels.
        compared: The comparisons of all its models.
    """
    noises = {control: {m: row for c in compared for m, row in c.noises[control].items()} for control in run.controls}
    control = _find_most_harmful({name: noises[name] for name in sorted(noises)})
    found = {model: contrast for each in compared for model, contrast in each.contrasts[control].items()}
    chosen = [found[model] for model in run.model_names if model in found]
    return tuple(replace(contrast, label=find_label(series, contrast.arm)) for contrast in chosen)


def _find_most_harmful(noises: Mapping[str, Mapping[str, Row]]) -> str | None:
    """Return the noise baseline with the largest mean drop over models; of equal ones, random signs, as in FGSM."""
    drops = {name: fmean(row["mean"] for row in rows.values()) for name, rows in noises.items() if rows}
    return max(drops, key=lambda name: (drops[name], name == "random_sign"), default=None)


def _adjust(attacked: pl.DataFrame, noisy: pl.DataFrame, arms: Sequence[Arm]) -> float:
    """Return p of the first of some attacks minus noise, adjusted for the choice among them.

    Each attack is compared over the images that have a score under it and the noise. A subject without such an image
    adds nothing to the mean of this attack.
    """
    keys, drop = ("subject", "image"), pl.col("drop").mean()
    attacked, noisy = (rows.filter(pl.col("drop").is_not_null()) for rows in (attacked, noisy))
    noise = noisy.group_by(keys).agg(drop.alias("noise"))
    images = attacked.group_by(*ARM, *keys).agg(drop).join(noise, on=keys)
    means = images.group_by(*ARM, "subject").agg((pl.col("drop") - pl.col("noise")).mean().alias("difference"))
    found: dict[Arm, dict[str, float]] = {arm: {} for arm in arms}
    for row in means.iter_rows(named=True):
        if (arm := read_arm(row)) in found:
            found[arm][row["subject"]] = row["difference"]
    subjects = sorted(set().union(*found.values()))
    table = [[each.get(s, 0.0) / len(each) for s in subjects] for each in found.values() if each]
    return float(joint_sign_flip_ps(np.array(table))[0])


def _pair(contrast: Contrast, attacked: pl.DataFrame, noisy: pl.DataFrame) -> Contrast:
    """Compare an attack with noise on the images that have a score under both.

    Images without a clean score, such as those whose truth lacks every class, are in no mean and not counted.
    """
    attacked, noisy = (rows.filter(pl.col("dice_clean").is_not_null()) for rows in (attacked, noisy))
    keys, drop = ("subject", "image"), pl.col("drop").mean()
    ours = attacked.filter(pl.col("drop").is_not_null()).group_by(keys).agg(drop, pl.col("dice_clean").mean())
    if contrast.noise is None:
        there = attacked["image"].n_unique()
        if there == len(ours):
            return contrast
        clean = _average(ours.sort(keys), "dice_clean")["mean"]
        return replace(contrast, clean=clean, left_out=there - len(ours))
    theirs = noisy.filter(pl.col("drop").is_not_null()).group_by(keys).agg(drop.alias("noise"))
    both = ours.join(theirs, on=keys).sort(keys)
    images = pl.concat([attacked.select(keys), noisy.select(keys)]).n_unique()
    left_out = images - len(both)
    if both.is_empty():
        return replace(contrast, noise=None, left_out=left_out)
    differences, _ = subject_means((both["drop"] - both["noise"]).to_list(), both["subject"].to_list())
    contrast = replace(contrast, test=compare_paired(differences), left_out=left_out)
    if not left_out:
        return contrast
    clean = _average(both, "dice_clean")["mean"]
    return replace(contrast, clean=clean, drop=contrast.drop | _average(both, "drop"), noise=_average(both, "noise"))


def _average(images: pl.DataFrame, score: str) -> Row:
    """Return the mean of a score over the images of each subject and then over subjects, as a row of `Run.table`."""
    values, subjects = images[score].to_list(), images["subject"].to_list()
    means, _ = subject_means(values, subjects)
    ends = subject_interval(values, subjects)
    row: Row = {"mean": float(means.mean()), "lower": ends and ends.lower, "upper": ends and ends.upper}
    return row | {"n_images": len(images), "n_subjects": len(means)}


def show_ratio(contrast: Contrast) -> str:
    """Write the ratio of a contrast, or its lower limit as ">= 3.1x"."""
    least = contrast.least_ratio
    if contrast.ratio is None and least is not None:
        return f">= {show_times(least, least=True)}"
    return show_times(contrast.ratio)
