"""Settings of attacks of several steps, for planning: their costs and balls. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from advseg_bench.errors import SettingError, expected
from advseg_bench.types import Traits

ASCENT_STEPS = 10
"""Default of the setting `steps` of the iterative attacks."""

TRANSFER_STEPS = 10
"""Default of the setting `steps` of `transfer`."""

SQUARE_QUERIES = 1000
"""Default of the setting `queries` of `square`."""

SHRINKING = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
"""The radius schedule "shrinking" (arXiv 2306.12941, section 3.5): multiples of eps and their shares of the steps."""

Schedule = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One ball that an ascent searches: its radius as a multiple of eps, and its number of steps."""

    radius: float
    count: int


def read_stages(schedule: object) -> Schedule | None:
    """Read the setting `radius_schedule`.

    Args:
        schedule: None, "shrinking", or pairs (multiple of eps, share of the steps).

    Returns:
        The pairs, or None.

    Raises:
        SettingError: It is none of these, a multiple is not positive or the last not 1, or shares do not add up to 1.
    """
    if schedule is None:
        return None
    what = '"shrinking", or pairs (multiple of eps, share of the steps), the last multiple 1 and the shares adding to 1'
    wrong = SettingError(expected("radius_schedule", what, schedule))
    if schedule == "shrinking":
        return SHRINKING
    try:
        pairs = tuple((float(radius), float(share)) for radius, share in cast(Sequence[Sequence[float]], schedule))
    except (TypeError, ValueError):
        raise wrong from None
    shares = sum(share for _, share in pairs)
    if not pairs or not all(radius > 0 and share > 0 for radius, share in pairs) or not math.isclose(shares, 1):
        raise wrong
    if pairs[-1][0] != 1:
        raise wrong
    return pairs


def split_steps(schedule: Schedule | None, steps: int) -> tuple[Stage, ...]:
    """Divide steps among the balls of a schedule; the last ball gets what rounding leaves."""
    if schedule is None:
        return (Stage(1.0, steps),)
    counts = [round(share * steps) for _, share in schedule[:-1]]
    counts.append(steps - sum(counts))
    return tuple(Stage(radius, count) for (radius, _), count in zip(schedule, counts, strict=True))


def ascent_traits(settings: Mapping[str, object], *, evaluates: bool = False) -> Traits:
    """Return the traits of projected gradient ascent for given settings.

    Args:
        settings: Settings of `attacks.ascent.ProjectedAscent`.
        evaluates: Whether every step has a gradient and one more forward evaluates the last iterate, as in APGD.
            Otherwise "steps" counts forwards, and with "keep" = "best" the last one has no gradient.
    """
    steps, restarts = _count(settings, "steps", ASCENT_STEPS), _count(settings, "restarts", 1)
    try:
        balls = len(split_steps(read_stages(settings.get("radius_schedule")), steps))
    except SettingError:
        balls = 1  # the attack itself refuses it
    best = settings.get("keep") == "best"
    forwards = steps + (balls if evaluates else restarts > 1 and not best)
    backwards = steps - (balls if best and not evaluates else 0)
    random = bool(settings.get("random_start", False)) or restarts > 1
    return Traits(random=random, forwards=restarts * forwards, backwards=restarts * backwards)


def transfer_traits(settings: Mapping[str, object]) -> Traits:
    """Return the traits of `attacks.transfer.Transfer`: all passes are those of the other model."""
    known = {"steps": TRANSFER_STEPS, "keep": "best"} | {k: v for k, v in settings.items() if k in ("steps", "keep")}
    return replace(ascent_traits(known, evaluates=True), gradient=False)


def square_traits(settings: Mapping[str, object]) -> Traits:
    """Return the traits of `attacks.square.Square` for given settings: "queries" is its number of forwards."""
    given = settings.get("queries", SQUARE_QUERIES)
    queries = given if isinstance(given, int) else SQUARE_QUERIES
    return Traits(gradient=False, random=True, forwards=queries, backwards=0)


def _count(settings: Mapping[str, object], name: str, default: int) -> int:
    """A whole number among settings; its default if the attack will refuse it."""
    given = settings.get(name, default)
    return given if isinstance(given, int) else default
