"""Errors that a user can cause. Each message is one line: where, what was expected, what was found, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix. The command line prints it as one line and exits with code 2."""


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


class TaintedError(UserError):
    """A job left its process in a state that cannot be restored, such as a foreign thread that keeps running."""


class QueryLimitError(UserError):
    """An attack used more model evaluations than its limit."""


class RecordError(UserError):
    """A run directory is damaged, in use, or not a run directory of this suite."""


def one_line(error: BaseException, longest: int = 300) -> str:
    """Format an exception for a one-line message: that of a `UserError`, else the name of its class and its message.

    Args:
        error: Any exception; its message may have several lines or none.
        longest: Maximum number of characters of the message.

    Returns:
        Text without line breaks; without a final full stop unless it is a `UserError`.
    """
    if isinstance(error, UserError):
        return str(error)
    try:
        message = " ".join(str(error).split())
    except Exception:  # an exception of user code, whose own formatting fails
        message = ""
    return f"{type(error).__name__}: {message:.{longest}}".rstrip(" :.")


def _show(value: object, longest: int = 300) -> str:
    """Format a value on one line, even if its `__repr__` fails or returns several lines."""
    try:
        text = repr(value)
    except Exception:
        text = f"{type(value).__name__} object"
    return text if "\n" not in text else f"{' '.join(text.split()):.{longest}}"


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
    folded = {known_name.casefold(): known_name for known_name in reversed(names)}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    prefix = f"{where}: " if where else ""
    return f"{prefix}unknown {kind} {name!r}.{hint} Known: {shown}."
