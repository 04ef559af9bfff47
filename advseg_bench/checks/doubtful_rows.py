"""Doubts about the attacks of a run, from its scored rows: each is a comparison of arms on the same images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
import polars as pl
from numpy.typing import NDArray

from advseg_bench.checks.doubts import DOUBTS, TRACED, ZERO_SHARE, Finding, Reason
from advseg_bench.checks.points import IMAGE, Floats, Point, read_points
from advseg_bench.registry import ascents, catalogue

MARGIN = 0.01
"""Smallest difference of mean Dice that counts."""

WIDE_MARGIN = 0.05
"""Smallest difference of the Dice of one image that counts."""

SHARE = 0.05
"""A doubt about single images is raised if more than this share of them shows it."""

SLOW_SHARE = 0.1
"""The same for images whose objective still increases at the end."""

UNBOUNDED_DICE = 0.1
"""Largest mean Dice under an attack without an effective budget."""

CLEAN_GAP = 0.15
"""Largest accepted difference between the validation Dice and the clean test Dice."""


def find_doubts(
    scored: pl.DataFrame,
    controls: Collection[str] = (),
    *,
    width: float = 1.0,
    validation: Mapping[str, float | None] | None = None,
) -> tuple[Finding, ...]:
    """Find the doubts about the rows of a run.

    Args:
        scored: Rows with scores, as `Run.scores` returns them.
        controls: Names of the attacks that are noise baselines.
        width: Width of the intensity range of the images.
        validation: Model -> its Dice in the training log, or None where there is none.

    Returns:
        The findings by model, in the order of `doubts.DOUBTS`; those about several radii of an arm are one.
    """
    found = list(compare_with_log(scored, validation or {}))
    for model in scored["model"].unique().to_list():  # one after the other, which takes less memory
        points = read_points(scored, model, controls)
        for _, group in groupby(points, key=lambda point: point.arm[3]):
            rivals = list(group)
            found += [*find_ties(rivals), *find_rising_curves(rivals)]
            found += [finding for point in rivals for finding in judge_point(point, rivals, width)]
    return _merge(found)


def judge_point(point: Point, rivals: Sequence[Point], width: float) -> Iterator[Finding]:
    """Find the doubts about one arm at one radius, by itself and among the other points of its model and norm."""
    at_eps = [other for other in rivals if other.eps == point.eps and other is not point]
    noises = [other for other in at_eps if other.role == "noise"]
    reasons: dict[str, Reason | None] = dict(find_marked(point, noises))
    if point.role != "noise" and point.lowers_dice:
        reasons["weaker_than_noise"] = _find_worse(point, noises)
        reasons["weaker_than_one_step"] = _find_worse(point, [o for o in at_eps if _is_one_step_of(o, point)])
        reasons["weaker_than_prefix"] = _find_worse(point, [o for o in at_eps if _is_prefix(o, point)])
        reasons["gradient_masking"] = find_masking(point, at_eps)
        reasons["unbounded_attack_fails"] = judge_unbounded(point, width)
    reasons["short_steps"] = measure_path(point)
    for name, reason in reasons.items():
        if reason is not None:
            yield point.find(name, reason)


def compare_with_log(scored: pl.DataFrame, validation: Mapping[str, float | None]) -> Iterator[Finding]:
    """Find the models whose mean clean Dice is far below that of the training log."""
    clean = scored.filter(pl.col("attack") == "none").select(pl.col("model").cast(pl.String), *IMAGE, "dice")
    for name, logged in sorted(validation.items()):
        dice = clean.filter(pl.col("model") == name)["dice"].drop_nulls()
        mean = dice.mean()
        if logged is not None and isinstance(mean, float) and mean < logged - CLEAN_GAP:
            observed = f"clean Dice {mean:.3f}, {logged:.3f} in the training log"
            yield Finding("clean_unlike_log", name, observed, images=len(dice))


def find_marked(point: Point, noises: Sequence[Point]) -> Iterator[tuple[str, Reason]]:
    """Find the flags of rows that concern more than a few images.

    A gradient attack that returned the clean image counts as one with a gradient of 0. So does a signed step that
    moved hardly any value that random signs can move: these leave out half of the values at the bounds.
    """
    known = ~np.isnan(point.clean)
    for name in TRACED:
        marked = point.marks[name] > 0
        if name == "zero_gradient" and point.role == "gradient":
            marked = marked | (point.marks["unchanged"] > 0) | _find_unmoved(point, noises)
        images = int((marked & known).sum())
        share = SLOW_SHARE if name == "incomplete" else SHARE
        if images > max(0 if name == "zero_gradient" else 1, share * known.sum()):
            yield name, (f"{images} of {known.sum()} images", images)


def _find_unmoved(point: Point, noises: Sequence[Point]) -> NDArray[np.bool_]:
    """Return the images of which a signed step moved at most a tenth of the values inside the bounds."""
    signs = [noise for noise in noises if noise.arm[0] == "random_sign"]
    if not signs or point.arm[3] != "linf" or point.options.get("random_start"):
        return np.zeros(len(point.unmoved), dtype=bool)
    at_bounds = np.minimum(2 * signs[0].unmoved, 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(point.unmoved - at_bounds > ZERO_SHARE * (1 - at_bounds))


def find_ties(points: Sequence[Point]) -> Iterator[Finding]:
    """Find different arms of gradient attacks with equal counts on all images, where they lower Dice and leave some."""
    eligible = [
        point
        for point in points
        if point.role in ("gradient", "unknown")
        and point.images > 1
        and _mean(point.clean - point.dice) >= MARGIN
        and _mean(point.dice) > MARGIN
    ]
    for i, point in enumerate(eligible):
        for other in eligible[:i]:
            if (point.eps, point.counts) == (other.eps, other.counts):
                settings = f" {other.arm[2]}" if other.arm[2] != point.arm[2] else ""
                reason = f"the same counts as {other.label}{settings} on all images", point.images
                yield point.find("tie", reason)
                break


def find_rising_curves(points: Sequence[Point]) -> Iterator[Finding]:
    """Find radii at which mean Dice is clearly higher than at a smaller radius of the same arm, or than without one."""
    for _, group in groupby(points, key=lambda point: point.arm):
        curve = sorted(group, key=lambda point: point.eps)
        if curve[0].role == "noise" or not curve[0].lowers_dice:
            continue
        for i, point in enumerate(curve):
            smaller = [("without an attack", point.clean), *((f"at eps {p.eps:.4g}", p.dice) for p in curve[:i])]
            if reason := _find_higher(point.dice, smaller):
                yield point.find("rising_curve", reason)


def find_masking(point: Point, at_eps: Sequence[Point]) -> Reason | None:
    """Judge whether an attack without gradients is stronger than all with gradients, on more than a few images."""
    rivals = [other.dice for other in at_eps if other.role in ("gradient", "unknown")]
    if point.role != "free" or not rivals:
        return None
    strongest = np.fmin.reduce(rivals, axis=0)
    known = ~np.isnan(point.dice) & ~np.isnan(strongest)
    lower = int((point.dice[known] < strongest[known] - WIDE_MARGIN).sum())
    if lower <= max(1, SHARE * known.sum()):
        return None
    return f"Dice lower than under every attack with gradients on {lower} of {known.sum()} images", lower


def judge_unbounded(point: Point, width: float) -> Reason | None:
    """Judge an iterative L_inf attack whose eps is the whole intensity range."""
    is_iterative = point.steps is not None and point.steps > 1
    if point.role != "gradient" or point.arm[3] != "linf" or point.eps < width * (1 - 1e-6) or not is_iterative:
        return None
    mean, images = _mean(point.dice), int((~np.isnan(point.dice)).sum())
    return (f"mean Dice {mean:.3f}", images) if mean > UNBOUNDED_DICE else None


def measure_path(point: Point) -> Reason | None:
    """Judge whether the steps of an attack of the catalogue can cross the ball; the default step sizes can."""
    entry, options = catalogue.ATTACKS.get(point.arm[0]), point.options
    size = options.get("step_size")
    if entry is None or entry.shared or not isinstance(size, (int, float)):
        return None
    given = {name: value for name, value in options.items() if name in ("steps", "keep")}
    moves = ascents.ascent_traits(given).backwards or 0
    needed = 2 if entry.traits_of(options).random else 1
    path = size * moves
    if path >= needed - 1e-6:
        return None
    return f"steps of {size:.3g} eps x {moves:g} = {path:.3g} eps of {needed} eps", point.images


def _is_one_step_of(other: Point, point: Point) -> bool:
    """Whether a point is FGSM of the loss of an iterative attack."""
    iterative = point.role == "gradient" and point.arm[0] != "fgsm" and (point.steps or 0) > 1
    return iterative and other.arm[:2] == ("fgsm", point.arm[1]) and other.options == {}


def _is_prefix(other: Point, point: Point) -> bool:
    """Whether a point is the same attack with fewer steps."""
    ours, theirs = point.options, other.options
    more, fewer = (each.pop("steps", ascents.ASCENT_STEPS) for each in (ours, theirs))
    is_same = other.arm[:2] == point.arm[:2] and ours == theirs
    return is_same and isinstance(more, int) and isinstance(fewer, int) and fewer < more


def _find_worse(point: Point, others: Sequence[Point]) -> Reason | None:
    """Compare a point with several others."""
    return _find_higher(point.dice, [(f"under {_name(other, point)}", other.dice) for other in others])


def _name(other: Point, point: Point) -> str:
    """Name a point, with its steps where only these differ."""
    steps = other.options.get("steps", ascents.ASCENT_STEPS)
    return f"{other.label} of {steps} steps" if other.arm[:2] == point.arm[:2] else other.label


def _mean(values: Floats) -> float:
    """Return the mean of the values that are known, 0 without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _find_higher(dice: Floats, others: Sequence[tuple[str, Floats]]) -> Reason | None:
    """Return by how much mean Dice exceeds the lowest of several others, if clearly, over the images of each pair."""
    found: list[tuple[float, str, int]] = []
    for name, other in others:
        differences = (dice - other)[~np.isnan(dice - other)]
        if n := len(differences):
            mean = float(differences.mean())
            error = float(differences.std(ddof=1)) / n**0.5 if n > 1 else 0.0
            if mean > max(MARGIN, 2 * error):
                found.append((mean, f"mean Dice {mean:.3f} higher than {name}", n))
    worst = max(found, default=None)
    return None if worst is None else worst[1:]


def _merge(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Make one finding of those about several radii of an arm; the clause is that of the radius with most images."""
    merged = []
    for _, group in groupby(sorted(found, key=_sort), key=_sort):
        same = list(group)
        first = max(same, key=lambda finding: finding.images)
        eps = tuple(sorted({radius for finding in same for radius in finding.eps}))
        merged.append(Finding(first.doubt, first.model, first.observed, first.arm, eps, first.images))
    return tuple(merged)


def _sort(finding: Finding) -> tuple[str, int, tuple[str, ...]]:
    """Return the sort key of a finding: model, doubt, arm."""
    return finding.model, list(DOUBTS).index(finding.doubt), finding.arm
