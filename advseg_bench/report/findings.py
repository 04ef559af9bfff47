"""What the numbers say, in sentences that are true of any numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from advseg_bench.report.contrasts import SMALLEST_NOISE, Contrast, choose_control
from advseg_bench.report.document import show_budget, show_number, show_plural, show_times
from advseg_bench.report.means import Row
from advseg_bench.report.series import NORMS
from advseg_bench.report.summary import Summary
from advseg_bench.stats import FEWEST_SUBJECTS


def write_findings(summary: Summary, most: int | None = None, *, intervals: bool = True) -> tuple[str, ...]:
    """Say in a few sentences what was found at the reference budget, and how far it reaches.

    Args:
        summary: Of the run.
        most: Names in a row that are listed; all if None.
        intervals: Whether the numbers beside the sentences have theirs, where there are any.
    """
    contrasts = summary.contrasts
    if not contrasts:
        return ("No attack has a result yet.", *_say_reach(summary, intervals))
    return (
        _say_drop(summary),
        *_say_noise(contrasts, most),
        _say_which_loss(contrasts, most),
        *_say_best_model(contrasts),
        *_say_reach(summary, intervals),
    )


def shorten_list(names: Sequence[str], most: int | None) -> str:
    """Write the first of many names, and how many more there are."""
    more = 0 if most is None else len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _say_drop(summary: Summary) -> str:
    """How much the strongest attack takes, and how much noise does."""
    contrasts, budgets = summary.contrasts, summary.budgets[0]
    budget = f"{show_budget(budgets.reference)} ({NORMS.get(budgets.norm, budgets.norm)})"
    lowered = _span(c.drop for c in contrasts)
    text = f"At eps {budget} the strongest attack on each model lowers mean Dice by {lowered}"
    if any(c.noise for c in contrasts):
        text += f"; {choose_control(summary.run)} of the same budget lowers it by {_span(c.noise for c in contrasts)}"
    return text + "."


def _span(rows: Iterable[Row | None]) -> str:
    """The smallest and the largest mean of a list of rows."""
    means = [row["mean"] for row in rows if row]
    low, high = show_number(min(means)), show_number(max(means))
    return low if low == high else f"{low} to {high}"


def _say_noise(contrasts: Sequence[Contrast], most: int | None) -> list[str]:
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
        names = shorten_list([c.model for c in worse if c.ratio is None], most)
        sentences.append(f"On {names} the attack lowers Dice; the noise does so by less than {SMALLEST_NOISE:g}.")
    if same:
        sentences.append(
            f"On {shorten_list(same, most)} the attack's drop is not more than the noise's: "
            "no evidence of adversarial vulnerability at this budget."
        )
    return sentences


def _say_which_loss(contrasts: Sequence[Contrast], most: int | None) -> str:
    """Which attack and loss is strongest, and on how many models."""
    votes = Counter(c.label for c in contrasts).most_common()
    if len(votes) == 1:
        where = "" if len(contrasts) == 1 else f" on all {len(contrasts)} models"
        return f"The strongest attack{where} is {votes[0][0]}."
    listed = [f"{label} on {show_plural(count, 'model')}" for label, count in votes]
    return f"The strongest attack is {shorten_list(listed, most)}."


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


def _say_reach(summary: Summary, intervals: bool) -> list[str]:
    """For whom the numbers speak."""
    subjects = summary.subjects
    if subjects >= FEWEST_SUBJECTS and not intervals:
        return [f"Means are over {subjects} subjects; their 95 % intervals are in the report."]
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
