"""How large a suite may be: every limit with its reason, and the check of a file before it is validated.

A suite may come from a stranger. The limits lie far above any benchmark that can be run, and low enough for `plan` to
answer in seconds with a few hundred megabytes, whatever the file contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from advseg_bench.errors import SpecError, expected, is_tidy, tidy

MOST_BYTES = 2**18
"""Size of a file: 50 times the largest shipped suite."""

MOST_DOTS = 64
"""Dots in one key of TOML, since the parser takes the square of their number."""

MOST_FILES = 16
"""Files that extend each other."""

MOST_VALUES = 20_000
"""Keys and entries of lists in one file, since each is validated and may be named in a message."""

MOST_LEVELS = 16
"""Tables and lists inside each other; the deepest shipped suite has four."""

LONGEST_KEY = 64
"""Characters of a key, such as the name of a profile or a setting."""

LONGEST_TEXT = 2_000
"""Characters of a text, such as the note of a suite: half a page."""

LONGEST_NAME = 100
"""Characters of a name that becomes part of names of files, which file systems limit to 255 bytes with all suffixes."""

LONGEST_CLASS = 100
"""Characters of a class or channel, which head columns of tables."""

LONGEST_PATTERN = 200
"""Characters of a regular expression, whose search is limited in time."""

MOST_NAMES = 1_000
"""Classes, channels or scans in one list."""

LARGEST_INTEGER = 2**63 - 1
"""What random generators and files of numbers can hold."""

MOST_MODELS, MOST_ATTACKS = 200, 500
"""Tables of a suite; each attack is planned on each model."""

MOST_RADII, MOST_LOSSES, MOST_DRAWS = 1_000, 200, 1_000
"""Lists and repeats of one attack, which multiply each other to its cells."""

MOST_BATTERY_RADII = 100
"""Radii of a battery, whose cells each name those at smaller radii."""

MOST_COMBINATIONS = 2_000
"""Combinations of `vary` of one attack."""

MOST_CELLS = 20_000
"""Cells of a plan, counted before they are made: their rows for 1,000 images are already hundreds of megabytes."""

MOST_NUMBERS = 2**29
"""Values of one image, which are 2 GiB in float32: a volume of 812 pixels per edge, or of 512 with four channels."""

MOST_SCANS = 100_000
"""Slices of generated phantom data."""

LARGEST_BATCH = 2**16
"""Images of one batch."""

LARGEST_STEP = 2**20
"""Epochs of a training, every n-th slice and other counts that nothing is allocated for."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEPARATORS = re.compile(r"[\n,=\[\]{}]")


def check_text(text: str, where: str) -> None:
    """Refuse text that the parser of TOML takes too long for.

    Args:
        text: Content of a suite file.
        where: Its name, for messages.

    Raises:
        SpecError: If it is too large, or has keys of too many parts.
    """
    if len(text) > MOST_BYTES:
        remedy = "A suite has data, models and attacks only; keep other content elsewhere."
        raise SpecError(expected(where, f"a suite of at most {MOST_BYTES:,} characters", f"{len(text):,}", remedy))
    if (dots := max(part.count(".") for part in _SEPARATORS.split(text))) > MOST_DOTS:
        remedy = "Shorten it."
        raise SpecError(expected(where, f"keys with at most {MOST_DOTS} dots", f"{dots} without a separator", remedy))


def check_values(tables: dict[str, Any], where: str) -> None:
    """Refuse a file with too many, too large or unprintable values; nothing is expanded or converted.

    Args:
        tables: The parsed file.
        where: Its name, for messages.

    Raises:
        SpecError: If a limit is exceeded; the message names the key.
    """
    count = 0
    left: list[tuple[str, Any, int]] = [("", tables, 1)]
    while left:
        place, value, level = left.pop()
        start = f"{where}: {place}" if place else where
        if isinstance(value, (dict, list)):
            count += len(value)
            if level > MOST_LEVELS:
                what = f"at most {MOST_LEVELS} tables and lists inside each other"
                raise SpecError(expected(start, what, "more", "Flatten it."))
            if count > MOST_VALUES:
                what = f"at most {MOST_VALUES:,} keys and entries of lists"
                raise SpecError(expected(where, what, "more", "Split it into several suites."))
            pairs: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in pairs:
                if isinstance(key, str) and not is_tidy(key, LONGEST_KEY):
                    what = f"keys of at most {LONGEST_KEY} visible characters"
                    raise SpecError(expected(start, what, key, "Rename it."))
                left.append((f"{place}.{key}" if place else f"{key}", entry, level + 1))
        elif isinstance(value, str):
            check_string(value, start)
        elif isinstance(value, int) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
            remedy = "Use a smaller number."
            raise SpecError(expected(start, "an integer of at most 64 bits", f"{value.bit_length()} bits", remedy))


def check_string(text: str, where: str) -> None:
    """Refuse a text that is too long, or holds characters that steer a terminal or the direction of writing."""
    if len(text) > LONGEST_TEXT:
        raise SpecError(expected(where, f"at most {LONGEST_TEXT:,} characters", f"{len(text):,}", "Shorten it."))
    if not is_tidy("".join(text.splitlines()).replace("\t", ""), LONGEST_TEXT):
        raise SpecError(expected(where, "text without unprintable characters", tidy(text, 80), "Remove them."))


def is_file_name(name: str) -> bool:
    """Whether a name of a profile can be part of a file's name, see `check_name`."""
    usual = _NAME.fullmatch(name) and not _RESERVED.fullmatch(name) and not name.endswith(".")
    return len(name) <= LONGEST_NAME and bool(usual)


def check_name(name: str) -> str:
    """Refuse a name that no file should have: one such as "nul", which Windows reserves, or one that ends in a dot."""
    if _RESERVED.fullmatch(name) or name.endswith("."):
        raise ValueError(
            "expected a name that a file can have everywhere, no device of Windows and without a dot at the end"
        )
    return name


def check_place(place: Path) -> Path:
    """Refuse a path that no file system can hold."""
    if len(str(place).encode(errors="replace")) > 4095 or any(len(part.encode()) > 255 for part in place.parts):
        raise ValueError("expected a path of at most 4,095 bytes, with at most 255 for each of its names")
    return place


FileName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(check_name)]
"""A name that becomes part of names of files; add a pattern."""

Pattern = Annotated[str, Field(max_length=LONGEST_PATTERN)]
Place = Annotated[Path, AfterValidator(check_place)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Label = Annotated[str, Field(min_length=1, max_length=LONGEST_CLASS)]
"""Name of a class or a channel."""
