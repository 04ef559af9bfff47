"""Which of the errors of a validation are mistakes of the user, and which follow from them."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

MOST_COMPARED = 200
"""Most errors that are compared with each other; of more, all are listed."""


def list_causes(error: ValidationError) -> list[Any]:
    """Return the errors of a validation that do not follow from another one.

    A list is too short because its items are invalid, and a key is missing because it is misspelt.

    Args:
        error: The error of a validation.

    Returns:
        Its errors, as pydantic describes them, in order; at least one.
    """
    found = error.errors()
    if len(found) > MOST_COMPARED:
        return found
    return [each for each in found if not any(_follows(each, other) for other in found)]


def _follows(error: Any, other: Any) -> bool:
    """Return whether an error is a consequence of another one."""
    place, cause = error["loc"], other["loc"]
    if error["type"] == "too_short":
        return len(cause) > len(place) and cause[: len(place)] == place
    if error["type"] == "missing" and other["type"] == "extra_forbidden" and place[:-1] == cause[:-1]:
        return bool(difflib.get_close_matches(str(place[-1]), [str(cause[-1])], cutoff=0.6))
    return False
