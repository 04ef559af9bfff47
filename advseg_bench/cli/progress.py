"""Progress of a run: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from advseg_bench.running.benchmark import Event
from advseg_bench.running.launching import PROGRESS

TEXT = {"load": "loading", "train": "training", "ready": "training", "attack": "attacking", "panels": "panels"}
COMPLETE = "nothing to do: the run is complete"


@contextmanager
def show_progress(console: Console) -> Iterator[Callable[[Event], None]]:
    """Provide a callback for `advseg_bench.run(progress=...)`."""
    if not console.is_terminal:
        yield lambda event: _print_line(console, event)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(event: Event) -> None:
            if event.stage == "complete":
                bars.console.print(COMPLETE)
                return
            if event.stage == "note":
                _print_note(bars.console, event.what)
                return
            name = event.what if event.stage in ("train", "ready") else ""
            text = f"{TEXT[event.stage]} {name}".strip()
            if text not in tasks:
                tasks[text] = bars.add_task(escape(text))
            shown = f"{text} {event.cell}" if event.cell else text
            bars.update(tasks[text], completed=event.done, total=event.total, description=escape(shown))

        yield show


def _print_line(console: Console, event: Event) -> None:
    """One line when loading starts, when a model is ready, when all rows are written, and if none was missing."""
    if os.environ.get(PROGRESS) == "all" and event.stage in ("train", "attack", "panels"):
        name = event.what if event.stage == "train" else ""
        console.print(f"{TEXT[event.stage]} {name}".strip(), f"{event.done}/{event.total}", highlight=False)
    if event.stage == "note":
        _print_note(console, event.what)
    elif event.stage == "load":
        console.print("loading data and libraries")
    elif event.stage == "complete":
        console.print(COMPLETE)
    elif event.stage == "ready":
        console.print(f"model {event.what} is ready", highlight=False)
    elif event.stage == "attack" and event.done == event.total and not event.cell:
        console.print(f"{event.done} rows written", highlight=False)


def _print_note(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
