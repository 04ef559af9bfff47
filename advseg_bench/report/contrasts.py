"""Each model's strongest attack compared with noise of the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from advseg_bench.report.means import Row
from advseg_bench.report.series import Series, find_label
from advseg_bench.results.arms import CURVE, read_arm
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets, Rival
from advseg_bench.suite.cells import Arm

SMALLEST_NOISE = 0.0005
"""A mean drop below this is shown as 0.000; a ratio to it would be meaningless."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One model's strongest attack compared with noise of the same budget.

    Attributes:
        model: The model's name.
        arm: The attack.
        label: Label of its series.
        clean: Mean clean Dice of the attacked images.
        drop: Row of `Run.table("drop")` for the attack.
        noise: The same row for the noise baseline, or None if there is none.
    """

    model: str
    arm: Arm
    label: str
    clean: float
    drop: Row
    noise: Row | None

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the attack lowers the mean Dice, and more than noise does; None without a noise baseline."""
        return None if self.noise is None else self.drop["mean"] > max(self.noise["mean"], 0)

    @property
    def ratio(self) -> float | None:
        """The ratio of the drop under the attack to that under noise; None where noise does not lower Dice."""
        if self.noise is None or self.noise["mean"] < SMALLEST_NOISE:
            return None
        return float(self.drop["mean"] / self.noise["mean"])


def choose_control(run: Run) -> str | None:
    """Return the noise baseline of the comparison: random signs if they were run, since they have FGSM's norm."""
    return "random_sign" if "random_sign" in run.controls else min(run.controls, default=None)


def contrast_models(
    run: Run, budgets: Budgets, series: Sequence[Series], strongest: Mapping[str, Rival]
) -> tuple[Contrast, ...]:
    """Compare each model's strongest attack at the reference budget with noise of that budget.

    Args:
        run: The run.
        budgets: Norm and reference budget.
        series: The series of the run, for the labels.
        strongest: Model -> its strongest attack.

    Returns:
        One contrast for each model with an attack, in the order of the suite.
    """
    where = {"norm": budgets.norm, "eps": budgets.reference}
    control = choose_control(run)
    noise: dict[str, Row] = {}
    if control is not None:
        table = run.table("drop", by="model", where=where | {"attack": control})
        noise = {row["model"]: row for row in table.to_dicts() if row["mean"] is not None}
    table = run.table("dice_clean", by=CURVE, where=where)
    clean = {(row["model"], read_arm(row)): row["mean"] for row in table.iter_rows(named=True)}
    contrasts = []
    for model in run.model_names:
        if model in strongest:
            arm, drop = strongest[model].arm, dict(strongest[model].drop)
            label = find_label(series, arm)
            contrasts.append(Contrast(model, arm, label, clean[model, arm], drop, noise.get(model)))
    return tuple(contrasts)
