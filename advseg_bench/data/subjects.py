"""The subject that a name of a file shows, by a regular expression of the user, in bounded time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from advseg_bench.errors import DataError, expected

SECONDS = 10.0
"""Time limit of the search in all names; a pattern that takes longer would take years."""

_REPEATING = "*+?{|"
_SEARCH = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
pattern, names = json.load(sys.stdin)
found = (re.search(pattern, name) for name in names)
json.dump([match[1] if match else None for match in found], sys.stdout)
"""


def check_pattern(pattern: str | None, where: str) -> None:
    """Refuse a pattern for subjects that is not a regular expression with one group; None means no pattern."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the syntax may change in a later version of Python
            groups = re.compile(pattern or "()").groups
    except (re.error, OverflowError, RecursionError) as error:
        remedy = "Correct `subject`."
        raise DataError(expected(where, f"a regular expression in `subject` ({error})", pattern, remedy)) from None
    if groups != 1:
        remedy = "Put parentheses around the part that names the subject, such as '(s[0-9]+)_'."
        raise DataError(expected(where, "one group in the regular expression `subject`", pattern, remedy))


def find_subjects(names: Sequence[str], pattern: str | None, paths: Sequence[Path]) -> list[str]:
    """Find the subject in each name; without a pattern it is the name.

    Args:
        names: Names of cases or stems of files.
        pattern: A pattern that `check_pattern` accepts, or None.
        paths: The files, for messages.

    Returns:
        One subject for each name.

    Cost:
        A process of Python for patterns of more than one repetition or alternative, which may take exponential time.

    Raises:
        DataError: If the pattern does not match a name, or takes longer than `SECONDS`; the message names the file.
    """
    if pattern is None:
        return list(names)
    subjects = []
    for name, path, found in zip(names, paths, _search(pattern, names, paths), strict=True):
        if not found:
            remedy = "Correct the regular expression `subject`."
            raise DataError(expected(path, f"a name that matches {pattern!r}", name, remedy))
        subjects.append(found)
    return subjects


def _search(pattern: str, names: Sequence[str], paths: Sequence[Path]) -> list[str | None]:
    """Return the group of the pattern in each name; None where it does not match."""
    if sum(map(pattern.count, _REPEATING)) <= 1:  # at most the square of the length of a name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [match[1] if (match := re.search(pattern, name)) else None for name in names]
    command = [sys.executable, "-I", "-S", "-c", _SEARCH]
    try:
        done = subprocess.run(
            command, input=json.dumps([pattern, names]), capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        what = f"names that {pattern!r} searches in {SECONDS:g} s"
        remedy = "Write `subject` without repetitions inside each other, such as '(a+)+'."
        raise DataError(expected(paths[0].parent, what, "more time", remedy)) from None
    except subprocess.CalledProcessError as error:
        what = f"names that {pattern!r} can be searched in"
        raise DataError(expected(paths[0].parent, what, error.stderr[-100:], "Correct `subject`.")) from None
    found: list[str | None] = json.loads(done.stdout)
    return found
