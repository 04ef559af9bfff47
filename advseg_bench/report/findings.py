"""What the numbers say, in sentences that are true of any numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from advseg_bench.report.document import show_budget, show_number, show_plural, show_times
from advseg_bench.report.series import NORMS, Series, find_label
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets, find_strongest
from advseg_bench.stats import FEWEST_SUBJECTS

SMALLEST_NOISE = 0.0005
"""A mean drop under this prints as 0.000; a ratio to it would say nothing."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One model's strongest attack beside noise of the same budget.

    Attributes:
        model: The model's name.
        label: The series of the attack.
        clean: Mean clean Dice of the attacked images.
        drop: Row of `Run.table("drop")` for the attack.
        noise: The same for the control, or None if there is none.
    """

    model: str
    label: str
    clean: float
    drop: dict[str, Any]
    noise: dict[str, Any] | None

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the attack lowers the mean Dice, and more than noise does; None without a control."""
        return None if self.noise is None else self.drop["mean"] > max(self.noise["mean"], 0)

    @property
    def ratio(self) -> float | None:
        """The attack's drop over the noise's, where the noise lowers Dice at all."""
        if self.noise is None or self.noise["mean"] < SMALLEST_NOISE:
            return None
        return float(self.drop["mean"] / self.noise["mean"])


def choose_control(run: Run) -> str | None:
    """Return the control that attacks are compared with: random signs if they were run, for they have FGSM's norm."""
    return "random_sign" if "random_sign" in run.controls else min(run.controls, default=None)


def contrast_models(run: Run, budgets: Budgets, series: tuple[Series, ...]) -> list[Contrast]:
    """Compare each model's strongest attack at the reference budget with noise of that budget."""
    where = {"norm": budgets.norm, "eps": budgets.reference}
    control = choose_control(run)
    noise: dict[str, dict[str, Any]] = {}
    if control is not None:
        table = run.table("drop", by="model", where=where | {"attack": control})
        noise = {row["model"]: row for row in table.to_dicts() if row["mean"] is not None}
    strongest = find_strongest(run, budgets)
    contrasts = []
    for model in run.model_names:
        if model not in strongest:
            continue
        top = strongest[model]
        key = {name: top[name] for name in ("attack", "loss", "settings")}
        clean = run.table("dice_clean", by="model", where=where | key | {"model": model})["mean"][0]
        label = find_label(series, **key, norm=budgets.norm)
        contrasts.append(Contrast(model, label, clean, top, noise.get(model)))
    return contrasts


def write_findings(run: Run, budgets: Budgets, contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    """Say in a few sentences what was found at the reference budget, and how far it reaches."""
    if not contrasts:
        return ("No attack has a result yet.", *_say_reach(run))
    return (
        _say_drop(run, budgets, contrasts),
        *_say_noise(contrasts),
        *_say_which_loss(contrasts),
        *_say_best_model(contrasts),
        *_say_reach(run),
    )


def _say_drop(run: Run, budgets: Budgets, contrasts: Sequence[Contrast]) -> str:
    """How much the strongest attack takes, and how much noise does."""
    budget = f"{show_budget(budgets.reference)} ({NORMS.get(budgets.norm, budgets.norm)})"
    text = f"At eps {budget} the strongest attack on each model lowers mean Dice by {_span(contrasts, 'drop')}"
    if any(c.noise for c in contrasts):
        text += f"; {choose_control(run)} of the same budget lowers it by {_span(contrasts, 'noise')}"
    return text + "."


def _span(contrasts: Sequence[Contrast], what: str) -> str:
    """The smallest and the largest mean of a list of rows."""
    rows = [getattr(c, what) for c in contrasts]
    low, high = (show_number(f(row["mean"] for row in rows if row)) for f in (min, max))
    return low if low == high else f"{low} to {high}"


def _say_noise(contrasts: Sequence[Contrast]) -> list[str]:
    """Whether each model loses more to the attack than to noise."""
    known = [c for c in contrasts if c.beyond_noise is not None]
    if not known:
        return ["No noise control was run, so these drops cannot be told from those of any change of that size."]
    worse = [c for c in known if c.beyond_noise]
    same = [c.model for c in known if not c.beyond_noise]
    sentences = []
    ratios = [c.ratio for c in worse if c.ratio is not None]
    if ratios:
        low, high = (show_times(end).removesuffix("x") for end in (min(ratios), max(ratios)))
        span = low if low == high else f"{low} to {high}"
        which = "every model" if len(ratios) == len(known) else f"{len(ratios)} of {show_plural(len(known), 'model')}"
        sentences.append(f"On {which} the attack's drop is {span} times that of the noise.")
    if len(ratios) < len(worse):
        names = ", ".join(c.model for c in worse if c.ratio is None)
        sentences.append(f"On {names} the attack lowers Dice; the noise does so by less than {SMALLEST_NOISE:g}.")
    if same:
        sentences.append(
            f"On {', '.join(same)} the attack's drop is not more than the noise's: "
            "no evidence of adversarial vulnerability at this budget."
        )
    return sentences


def _say_which_loss(contrasts: Sequence[Contrast]) -> list[str]:
    """Which attack and loss is strongest, and on how many models."""
    votes = Counter(c.label for c in contrasts).most_common()
    if len(votes) == 1:
        where = "" if len(contrasts) == 1 else f" on all {len(contrasts)} models"
        return [f"The strongest attack{where} is {votes[0][0]}."]
    listed = ", ".join(f"{label} on {show_plural(count, 'model')}" for label, count in votes)
    return [f"The strongest attack is {listed}."]


def _say_best_model(contrasts: Sequence[Contrast]) -> list[str]:
    """Whether the best model is also the one that loses most, which the study asked."""
    if len(contrasts) < 2:
        return []
    best = max(contrasts, key=lambda c: c.clean)
    most = max(contrasts, key=lambda c: c.drop["mean"] / c.clean if c.clean > 0 else 0.0)
    if best is most:
        return [
            f"The model with the best clean Dice, {best.model}, is also the one that loses the largest share of it."
        ]
    return [f"The model with the best clean Dice is {best.model}; {most.model} loses the largest share of its own."]


def _say_reach(run: Run) -> list[str]:
    """For whom the numbers speak."""
    subjects = run.rows["subject"].n_unique()
    if subjects >= FEWEST_SUBJECTS:
        return [
            f"Means are over {subjects} subjects; in brackets a 95 % interval for the population they come from "
            "(studentised bootstrap over subjects)."
        ]
    if not subjects:
        return []
    count = "One subject" if subjects == 1 else f"{subjects} subjects"
    return [
        f"{count}: no population interval. The numbers describe these images and "
        f"{'this subject' if subjects == 1 else 'these subjects'}, not people in general."
    ]
