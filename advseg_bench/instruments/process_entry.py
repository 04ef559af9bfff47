"""The form of an entry in the tables of process state, and the flag of a change. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["flagged", "restored", "imports"]


CHANGED = "process_changed"
"""The flag of a row whose attack changed the process; a second flag, "process_changed:NAME", names the state."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One part of the state of a process.

    Attributes:
        name: Name in flags and messages, such as "torch threads".
        read: Returns the state; two states are equal if their values are.
        write: Restores a value that `read` returned; None if that is not possible.
        kind: What a change means: "flagged" is restored and flagged. "restored" is not flagged, since honest code makes
            the change as well. "imports" is "flagged", unless modules were imported: libraries set it when they are,
            and it is left to them.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None
    kind: Kind = "flagged"
