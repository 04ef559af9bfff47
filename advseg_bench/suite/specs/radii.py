"""Radii of attacks as a suite states them: numbers, fractions such as "0.5/255", and their limit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from advseg_bench.suite.specs.limits import LARGEST_INTEGER
from advseg_bench.types import Norm

PLACED: Literal["placed"] = "placed"
"""Type of an error whose message begins with the place."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_FORM = 'expected a number or a fraction such as "4/255" or "0.5/255"'


def read_eps(value: object) -> object:
    """Parse a radius such as "4/255", "0.25/255", "1e-2" or .0157.

    Args:
        value: A string or a number.

    Returns:
        The radius.

    Raises:
        ValueError: If it is no finite number of at least 0.

    Example:
        >>> read_eps("0.5/255") == 0.5 / 255, read_eps("1e-2")
        (True, 0.01)
    """
    if isinstance(value, str):
        parts = value.replace(" ", "").split("/")
        if len(parts) > 2 or not all(len(part) <= 40 and _NUMBER.fullmatch(part) for part in parts):
            raise ValueError(_FORM)
        try:
            above, below = (*map(Fraction, parts), Fraction(1))[:2]
            value = float(above / below)
        except (ZeroDivisionError, OverflowError):
            raise ValueError(_FORM) from None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(_FORM)
    if value < 0 or value > LARGEST_INTEGER or not math.isfinite(value):
        raise ValueError("expected a finite eps >= 0")
    return float(value)


def check_radii(attacks: Sequence[tuple[Norm, Sequence[float]]], bounds: tuple[float, float] | None) -> None:
    """Refuse an L_inf radius that reaches every intensity from every other.

    Args:
        attacks: Norm and radii of each attack of a suite.
        bounds: Range of the intensities; None if only the data have it.

    Raises:
        PydanticCustomError: Of type `PLACED`, whose message begins with the key.
    """
    for index, (norm, radii) in enumerate(attacks):
        if problem := find_excess(norm, radii, bounds):
            raise PydanticCustomError(PLACED, "{message}", {"message": f"attacks.{index}: eps: {problem}"})


def find_excess(norm: Norm, radii: Sequence[float], bounds: tuple[float, float] | None = (0.0, 1.0)) -> str:
    """Describe the first L_inf radius that is as large as the range of the intensities, with the remedy; "" if none is.

    Args:
        norm: Norm of the radii; others have no limit.
        radii: The radii.
        bounds: Range of the intensities; None if only the data have it.
    """
    lower, upper = bounds or (0.0, math.inf)
    eps = next((eps for eps in radii if norm == "linf" and eps >= upper - lower), None)
    if eps is None:
        return ""
    if (lower, upper) != (0, 1):
        limit = f"{upper - lower:g}, the width of the bounds [{lower:g}, {upper:g}]"
        return f"expected L_inf radii below {limit}, got {eps:g}. Lower the radius."
    hint = f'For {eps:g} of 255 grey levels, write "{eps:g}/255".' if eps < 255 else 'Write "n/255".'
    return f"expected L_inf radii below 1, in units of the image (0 to 1), got {eps:g}. {hint}"


Eps = Annotated[float, BeforeValidator(read_eps)]
