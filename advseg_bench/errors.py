"""The errors a user can cause. Each is one line: where, what was expected, what was found, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line and exits with code 2."""


class SpecError(UserError):
    """A suite, model or attack specification is wrong."""


class SettingError(SpecError, ValueError):
    """A setting of an attack has no meaning."""


class DataError(UserError):
    """A data set is missing, damaged or does not match its description."""


class PluginError(UserError):
    """A name from the catalogue, an entry point or `package.module:object` could not be loaded."""


class IncompatibleError(UserError):
    """Two parts that are each sound do not fit together, such as a loss and a task."""


class TrainingError(UserError):
    """A model could not be trained to anything worth attacking."""


class WorkerError(UserError):
    """A worker process died."""


class QueryLimitError(UserError):
    """An attack asked a model for more than it may."""


class RecordError(UserError):
    """A run directory is damaged, occupied, or belongs to something else."""


def one_line(error: BaseException, longest: int = 300) -> str:
    """Word any exception as part of one line: the message of a `UserError`, else the class's name and the message.

    Args:
        error: Raised by anybody's code; its message may have several lines or none.
        longest: Characters of the message to keep.

    Returns:
        Text without line breaks and, unless it is a `UserError`'s, without a full stop at its end.
    """
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split()):.{longest}}".rstrip(" :.")


def expected(where: object, what: str, value: object, remedy: str = "") -> str:
    """Word an error message the way every module does.

    Args:
        where: The place the user can go to: a file, a key, a model's name.
        what: What was expected there.
        value: What was found; shown by `repr`.
        remedy: What to do about it, as a full sentence.

    Returns:
        One line.
    """
    return f"{where}: expected {what}, got {value!r}. {remedy}".rstrip()


def unknown(where: object, kind: str, name: str, known: Iterable[str]) -> str:
    """Word an unknown-name message: it lists the known names and the nearest one.

    Args:
        where: The place the user can go to; "" if the caller puts it in front.
        kind: What the name should have named, such as "attack".
        name: The name that was given.
        known: Every name that would have been accepted.

    Returns:
        One line.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    prefix = f"{where}: " if where else ""
    return f"{prefix}unknown {kind} {name!r}.{hint} Known: {shown}."
