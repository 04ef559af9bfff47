"""The findings in sentences, worded so that they are correct for any numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from advseg_bench.report.contrasts import SMALLEST_NOISE, Contrast
from advseg_bench.report.document import show_budget, show_number, show_plural, show_times
from advseg_bench.report.means import Row
from advseg_bench.report.series import NORMS
from advseg_bench.report.summary import Summary
from advseg_bench.stats import FEWEST_SUBJECTS

ALONE = " A worst case needs at least two attacks at this eps."
"""A remark on runs with one attack."""


def write_findings(summary: Summary, most: int | None = None, *, intervals: bool = True) -> tuple[str, ...]:
    """Describe the findings at the reference budget, and the population that they apply to.

    Args:
        summary: The summary of the run.
        most: Largest number of names in a list; all if None.
        intervals: Whether the numbers beside the sentences are shown with their intervals, if they have any.

    Returns:
        The sentences.
    """
    contrasts = summary.contrasts
    if not contrasts:
        return ("No attack has a result yet.", *_describe_scope(summary, intervals))
    return (
        _describe_drop(summary),
        *_describe_left_out(contrasts),
        *_describe_noise(contrasts, most),
        _describe_strongest(contrasts, most),
        *_describe_best_model(contrasts),
        *_describe_scope(summary, intervals),
    )


def shorten_list(names: Sequence[str], most: int | None) -> str:
    """Write the first names of a list and the number of the others."""
    more = 0 if most is None else len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _describe_drop(summary: Summary) -> str:
    """Describe the drop under the strongest attack and under noise."""
    contrasts, budgets = summary.contrasts, summary.budgets[0]
    budget = f"{show_budget(budgets.reference, budgets.norm, budgets.width)} ({NORMS.get(budgets.norm, budgets.norm)})"
    change = _describe_change("mean Dice", (c.drop for c in contrasts))
    text = f"At eps {budget} the strongest attack on each model {change}"
    if any(c.worst for c in contrasts):
        shown = _describe_change("mean Dice", (c.shown_drop for c in contrasts))
        text = f"At eps {budget} the worst case over the attacks on each model {shown}"
        text += f"; the strongest single attack {_describe_change('it', (c.drop for c in contrasts))}"
    if any(c.noise for c in contrasts):
        text += f"; {contrasts[0].control} of the same budget {_describe_change('it', (c.noise for c in contrasts))}"
    return text + "."


def _describe_change(what: str, rows: Iterable[Row | None]) -> str:
    """Write by how much mean Dice is lowered or raised, over the mean drops of some rows."""
    drops = [round(row["mean"], 3) for row in rows if row]
    low, high = min(drops), max(drops)
    if low < 0 < high:
        return f"changes {what} by {show_number(-high)} to +{show_number(-low)}"
    verb = "raises" if low < 0 else "lowers"
    ends = sorted({show_number(abs(low)), show_number(abs(high))})
    return f"{verb} {what} by {' to '.join(ends)}"


def _describe_noise(contrasts: Sequence[Contrast], most: int | None) -> list[str]:
    """Describe on which models the drop under the attack exceeds that under noise."""
    known = [c for c in contrasts if c.beyond_noise is not None]
    if not known:
        return ["No noise baseline was run, so these drops may be no larger than those under noise of the same budget."]
    worse = [c for c in known if c.beyond_noise]
    same = [c.model for c in known if not c.beyond_noise]
    sentences = []
    ratios = [c.ratio for c in worse if c.ratio is not None]
    if ratios:
        low, high = (show_times(end).removesuffix("x") for end in (min(ratios), max(ratios)))
        span = low if low == high else f"{low} to {high}"
        which = "every model" if len(ratios) == len(known) else f"{len(ratios)} of {show_plural(len(known), 'model')}"
        sentences.append(f"On {which} the attack's drop is {span} times that of the noise.")
    least = {c.model: c.least_ratio for c in worse if c.ratio is None and c.least_ratio is not None}
    if least:
        times = show_times(min(least.values()), least=True).removesuffix("x")
        sentences.append(
            f"On {shorten_list(list(least), most)} the attack's drop is at least {times} times that of the noise, "
            "whose 95 % interval includes 0."
        )
    rest = [c for c in worse if c.ratio is None and c.model not in least]
    silent = [c.model for c in rest if not c.includes_zero]
    unclear = [c.model for c in rest if c.includes_zero]
    if silent:
        names = shorten_list(silent, most)
        sentences.append(f"On {names} the attack lowers Dice; the noise does not, or by less than {SMALLEST_NOISE:g}.")
    if unclear:
        names = shorten_list(unclear, most)
        sentences.append(f"On {names} the attack lowers Dice more than the noise, whose 95 % interval includes 0.")
    tested = [c.model for c in known if not c.beyond_noise and c.tested]
    if tested:
        sentences.append(
            f"On {shorten_list(tested, most)} the attack's drop is not significantly larger than that of the noise: "
            "no evidence of adversarial vulnerability at this budget."
        )
    if same := [model for model in same if model not in tested]:
        sentences.append(
            f"On {shorten_list(same, most)} the attack's drop does not exceed that of the noise: "
            "no evidence of adversarial vulnerability at this budget."
        )
    return sentences


def _describe_left_out(contrasts: Sequence[Contrast]) -> list[str]:
    """Describe that attack and noise lack the scores of some images, which the worst case counts as clean."""
    left_out = max(c.left_out for c in contrasts)
    if not left_out:
        return []
    worst = any(c.worst for c in contrasts)
    under = ("the strongest single attack" if worst else "the attack") + " and noise" * any(c.noise for c in contrasts)
    text = (
        f"The drops under {under} leave out up to {show_plural(left_out, 'image')} of a model without a score, such as "
        "results that equal the clean image."
    )
    return [text + " The worst case counts these images, so its drop may be smaller." * worst]


def _describe_strongest(contrasts: Sequence[Contrast], most: int | None) -> str:
    """Name the strongest attack and loss, and the number of models on which it is strongest."""
    votes = Counter(c.label for c in contrasts).most_common()
    what, end = ("strongest single attack", "") if any(c.worst for c in contrasts) else ("strongest attack", ALONE)
    if len(votes) == 1:
        where = "" if len(contrasts) == 1 else f" on all {len(contrasts)} models"
        return f"The {what}{where} is {votes[0][0]}.{end}"
    listed = [f"{label} on {show_plural(count, 'model')}" for label, count in votes]
    return f"The {what} is {shorten_list(listed, most)}.{end}"


def _describe_best_model(contrasts: Sequence[Contrast]) -> list[str]:
    """Describe whether the model with the best clean Dice loses the largest share of it, as the study asks."""
    if len(contrasts) < 2:
        return []
    best = max(contrasts, key=lambda c: c.shown_clean)
    if not any(c.shown_drop["mean"] > 0 for c in contrasts):
        return [f"The model with the best clean Dice is {best.model}; no attack lowers the mean Dice of a model."]
    most = max(contrasts, key=lambda c: c.shown_drop["mean"] / c.shown_clean if c.shown_clean > 0 else 0.0)
    if best is most:
        return [
            f"The model with the best clean Dice, {best.model}, is also the one that loses the largest share of it."
        ]
    return [
        f"The model with the best clean Dice is {best.model}; {most.model} loses the largest share of its clean Dice."
    ]


def _describe_scope(summary: Summary, intervals: bool) -> list[str]:
    """Describe the population that the numbers apply to."""
    subjects = summary.subjects
    if summary.run.about.data.by_image:
        return [_describe_images(subjects, intervals)] if subjects else []
    if subjects >= FEWEST_SUBJECTS and not intervals:
        return [f"Means are over {subjects} subjects; their 95 % intervals are in the report."]
    if subjects >= FEWEST_SUBJECTS:
        return [
            f"Means are over {subjects} subjects; in brackets a 95 % interval for the population mean "
            "(studentised bootstrap over subjects)."
        ]
    if not subjects:
        return []
    count = "One subject" if subjects == 1 else f"{subjects} subjects"
    return [
        f"{count}: no population interval. The numbers describe these images and "
        f"{'this subject' if subjects == 1 else 'these subjects'}, not a population."
    ]


def _describe_images(images: int, intervals: bool) -> str:
    """Describe what the numbers apply to if no subjects are known."""
    text = f"Means are over {show_plural(images, 'image')}. No subjects were given, so each image counts by itself"
    if images < FEWEST_SUBJECTS:
        return f"{text}; there is no interval."
    where = "in brackets" if intervals else "in the report"
    return f"{text}; the 95 % intervals {where} are too narrow if images show the same patient."
