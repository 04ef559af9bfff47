"""Errors that a user can cause. Each message is one line: where, what was expected, what was found, the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_MESSAGE = 500
"""Most characters of a message: it stays readable in a terminal, and no file can flood a log through it."""

LONGEST_NAME = 100
"""Most characters of a name inside a message."""

LONGEST_VALUE = 200
"""Most characters of a value inside a message, so that its remedy is not cut off."""

_BREAKS = re.compile(r"[\t-\r\x1c-\x1e\x85\u2028\u2029]+")
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # C0 and C1: escape sequences of terminals
    r"\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # order and width of the text around
    r"\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"  # what no file can hold, and hidden tags
)


def tidy(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Return text from anywhere in a form that is safe to show: one line of visible characters, of limited length.

    Args:
        text: Text, or an object that `str` describes.
        longest: Most characters; a longer text loses its middle, since a message ends with its remedy.

    Returns:
        Text in which a line break is a space, and a character that steers a terminal or the direction of writing
        is U+FFFD.

    Example:
        >>> tidy("\\x1b[31mred\\nliver")
        '\ufffd[31mred liver'
        >>> tidy("a" * 30 + "z", longest=9)
        'aa ... az'
    """
    shown = str(text)
    if len(shown) > 4 * longest:  # whatever is cut need not be cleaned
        shown = shown[: 2 * longest] + shown[-2 * longest :]
    shown = _UNSEEN.sub("\ufffd", _BREAKS.sub(" ", shown))
    if len(shown) <= longest:
        return shown
    start = (longest - 5) - (longest - 5) // 2
    return f"{shown[:start]} ... {shown[len(shown) - (longest - 5 - start) :]}"


def is_tidy(text: str, longest: int) -> bool:
    """Whether `tidy` would leave a text as it is."""
    return len(text) <= longest and not _UNSEEN.search(text) and not _BREAKS.search(text)


class UserError(Exception):
    """An error that the user can fix. The command line prints it as one line and exits with code 2."""

    def __str__(self) -> str:
        """Return the message, see `tidy`."""
        return tidy(super().__str__())


class SpecError(UserError):
    """A suite, model or attack specification is wrong."""


class SettingError(SpecError, ValueError):
    """A setting of an attack has an invalid value."""


class DataError(UserError):
    """A data set is missing, damaged or does not match its description."""


class PluginError(UserError):
    """A name from the catalogue, an entry point or `package.module:object` could not be loaded."""


class IncompatibleError(UserError):
    """Two valid parts do not fit together, such as a loss and a task."""


class TrainingError(UserError):
    """Training a model did not reach a useful accuracy."""


class WorkerError(UserError):
    """A worker process died."""


class QueryLimitError(UserError):
    """An attack used more model evaluations than its limit."""


class TaintedError(UserError):
    """Code left the process in a state that cannot be restored, so that nothing may be computed in it any more."""


class RecordError(UserError):
    """A run directory is damaged, in use, or not a run directory of this suite."""


class HeldError(RecordError):
    """Another process holds the lease of a folder, or has taken it over from this one."""


def one_line(error: BaseException, longest: int = LONGEST_MESSAGE) -> str:
    """Format an exception for a one-line message: that of a `UserError`, else the name of its class and its message.

    Args:
        error: Any exception; its message may have several lines or none.
        longest: Maximum number of characters.

    Returns:
        Text without line breaks; without a final full stop unless it is a `UserError`.
    """
    name = tidy(type(error).__name__, longest // 2)
    try:
        if isinstance(error, UserError):
            return str(error)
        message = tidy(" ".join(str(error)[: 4 * longest].split()), longest - len(name) - 2)
    except BaseException:  # an exception of user code, whose own formatting fails
        message = ""
    return f"{name}: {message}".rstrip(" :.")


def _show(value: object) -> str:
    """Format a value on one line, even if its `__repr__` fails or returns several lines."""
    try:
        text = repr(value)
    except BaseException:
        text = f"{type(value).__name__} object"
    return tidy(text if "\n" not in text else " ".join(text.split()), LONGEST_VALUE)


def expected(where: object, what: str, value: object, remedy: str = "") -> str:
    """Format an error message as "where: expected X, got Y. Remedy."

    Args:
        where: What the user can change: a file, a key, the name of a model.
        what: What was expected.
        value: What was found; formatted by `repr`.
        remedy: How to fix it, as a full sentence.

    Returns:
        One line.
    """
    return f"{where}: expected {what}, got {_show(value)}. {remedy}".rstrip()


def unknown(where: object, kind: str, name: str, known: Iterable[str]) -> str:
    """Format the message for an unknown name, with the known names and the closest match, in which case is ignored.

    Args:
        where: What the user can change; "" if the caller prepends it.
        kind: What the name refers to, such as "attack".
        name: The name that was given.
        known: All valid names.

    Returns:
        One line.
    """
    names = sorted(known)
    name = tidy(name, LONGEST_NAME)  # the search for a similar name takes its time in the square of its length
    folded = {known_name.casefold(): known_name for known_name in reversed(names)}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    shown = ", ".join(tidy(each, LONGEST_NAME) for each in names[:20]) + (", ..." if len(names) > 20 else "")
    prefix = f"{where}: " if where else ""
    return f"{prefix}unknown {kind} {name!r}.{hint} Known: {shown}."
