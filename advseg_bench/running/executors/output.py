"""What worker processes write to stdout and stderr: shown in part, and the end of it kept for messages."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

SHOWN = 100_000
"""Most bytes of output that are shown in a run, of all workers together."""
LONGEST_LINE = 500
"""Most bytes of a line that are shown."""
KEPT = 16_000
"""Bytes at the end of a job's output that are kept; the report of a crash by `faulthandler` fits in."""
AT_ONCE = 1 << 20
"""Most bytes that are read from one worker before it is the turn of the others."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FATAL = "Fatal Python error: "
"""Begin of the report of a crash by `faulthandler`."""
_FATAL = re.compile(rf"{FATAL}.*")
_FRAME = re.compile(r'^\s*File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
FRAMES = 3
"""Number of innermost frames of a crash in a message."""
LAST_LINES = 3
"""Number of last lines in the message about a process that ended without the report of a crash."""


@dataclass(slots=True)
class Budget:
    """Bytes of output that may still be shown; shared by the workers of a run."""

    left: int = SHOWN

    def show(self, line: bytes) -> None:
        """Print a line to stderr, without unprintable characters and cut, or the note that no more is shown.

        Args:
            line: The line, without its end.
        """
        if self.left <= 0:
            return
        text = clean(line[: LONGEST_LINE + 1].decode(errors="replace"))
        if len(line) > LONGEST_LINE:
            text = text[:LONGEST_LINE] + " ..."
        self.left -= min(len(line), LONGEST_LINE) + 1
        print(text, file=sys.stderr, flush=True)
        if self.left <= 0:
            print(f"Further output of workers is not shown, after {SHOWN:,} bytes.", file=sys.stderr, flush=True)


class Output:
    """The output of one worker process, read from a pipe.

    Args:
        end: The file descriptor of the pipe's end; it is closed with this object.
        budget: What may be shown.
    """

    def __init__(self, end: int, budget: Budget) -> None:
        os.set_blocking(end, False)
        self.end: int | None = end
        self._budget = budget
        self._kept = bytearray()
        self._line = b""
        self._crashed = False

    def read(self) -> None:
        """Read what is there without waiting."""
        if self.end is None:
            return
        for _ in range(AT_ONCE >> 16):
            try:
                chunk = os.read(self.end, 1 << 16)
            except BlockingIOError:
                return
            if not chunk:  # closed by all that could write
                self.close()
                return
            self._kept = (self._kept + chunk)[-KEPT:]
            self._show(chunk)

    def forget(self) -> None:
        """Keep nothing of what was written before."""
        self.read()
        self._kept.clear()

    def find_last_words(self) -> str:
        """Return the report of a crash, or else the last lines, as one line; "" if nothing was written."""
        self.read()
        text = self._kept.decode(errors="replace")
        if fatal := list(_FATAL.finditer(text)):
            thread = text[fatal[-1].start() :].partition("\nCurrent thread ")[2].partition("\n\n")[0]
            frames = [f"{Path(file).name}:{line} {name}" for file, line, name in _FRAME.findall(thread)[:FRAMES]]
            what = fatal[-1].group().removeprefix(FATAL)
            return clean(f"{what} in {', '.join(frames)}" if frames else what)
        lines = [line for line in (clean(line).strip() for line in text.splitlines()) if line]
        return " | ".join(lines[-LAST_LINES:])[-LONGEST_LINE:]

    def close(self) -> None:
        """Show an unfinished line, and close the pipe."""
        if self.end is not None:
            os.close(self.end)
            self.end = None
            if self._line:
                self._budget.show(self._line)
            self._line = b""

    def _show(self, chunk: bytes) -> None:
        if self._crashed or self._budget.left <= 0:
            self._line = b""
            return
        begin = chunk.find(FATAL.encode())
        if begin >= 0:  # the message of the failure has the essence
            self._crashed = True
            chunk = chunk[:begin]
        first, *lines = chunk.split(b"\n")
        self._line += first[: LONGEST_LINE + 1 - len(self._line)] if len(self._line) <= LONGEST_LINE else b""
        for line in lines:
            self._budget.show(self._line)
            self._line = line[: LONGEST_LINE + 1]


def clean(text: str) -> str:
    """Return a line without unprintable characters; of a line that overwrites itself, such as a progress bar, the end.

    Args:
        text: One line.
    """
    return _CONTROL.sub("", text.rstrip("\r").rpartition("\r")[2])
