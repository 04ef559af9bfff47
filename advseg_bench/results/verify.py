"""Verifies a whole run directory: which files are as they were written, and which rows and pictures can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advseg_bench.errors import RecordError, expected
from advseg_bench.results import records
from advseg_bench.results.compaction import remove_replaced
from advseg_bench.results.descriptions import RESTORE
from advseg_bench.results.info import RunInfo, read_info
from advseg_bench.results.inspection import Inspection, inspect_parts
from advseg_bench.results.panels import list_panels, read_panel
from advseg_bench.results.parts import Damage, Part, count_rows
from advseg_bench.results.rules import Rules
from advseg_bench.results.run import Run

MOVED = "damaged"
"""Folder of a run to which damaged files are moved."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What the verification of a run has found.

    Attributes:
        damaged: The damaged files and those of other runs, sorted.
        parts: The parts with trustworthy rows.
        rows: Number of rows in them; a row in two parts counts twice.
        planned: Number of results of the suite.
        panels: Number of whole panels.
    """

    damaged: tuple[Damage, ...]
    parts: tuple[Part, ...]
    rows: int
    planned: int
    panels: int

    @property
    def labelled(self) -> int:
        """Number of whole parts that have a digest and a label; older versions wrote none."""
        return sum(part.label is not None for part in self.parts)


def verify_run(out: Path) -> Verification:
    """Verify every file of a run directory.

    Args:
        out: The run directory.

    Returns:
        What is damaged and what is whole. Without a readable `run.json`, nothing else can be judged.

    Raises:
        RecordError: There is no such folder, or it holds no run.

    Cost:
        Every file is read once; no model is run.
    """
    if not out.is_dir() or not (out / "run.json").exists():
        found = str(out) if out.is_dir() else "no folder"
        raise RecordError(expected(out, "the folder of a run", found, "Give the --out of a run."))
    try:
        info = records.read_description(out)
        about = read_info(info, out / "run.json")
        rules = Rules(about, info["images"])
        run = info.get("run", "")
        inspection = inspect_parts(out, rules, run)
    except RecordError as error:
        path = out / "run.json"
        reason = str(error).removeprefix(f"{path}: ").removesuffix(f" {RESTORE}").rstrip(".")
        return Verification((Damage(path, reason, f"{RESTORE} No other file was verified."),), (), 0, 0, 0)
    notes = records.read_notes(out, about.models, strict=False)[2]
    panels = list_panels(out)
    broken = find_damaged_panels(out, about, info["images"], run)
    damaged = sorted([*notes, *inspection.damaged, *broken], key=lambda each: each.path)
    return Verification(
        damaged=tuple(damaged),
        parts=inspection.parts,
        rows=count_rows(inspection.parts) if inspection.parts else 0,
        planned=len(rules.cells) * rules.images,
        panels=len(panels) - len(broken),
    )


def find_damaged_panels(out: Path, about: RunInfo, images: list[str], run: str) -> list[Damage]:
    """Return the panels of a run that are damaged or of another run; they are read one at a time."""
    names = frozenset(images)
    found = (read_panel(path, about, names, run) for path in list_panels(out))
    return [each for each in found if isinstance(each, Damage)]


def list_damaged(run: Run) -> tuple[Damage, ...]:
    """Return all files of a run that are left out, panels included; none if the run is read strictly or in memory."""
    if run.path is None or run.strict:
        return ()
    panels = find_damaged_panels(run.path, run.about, run.info["images"], run.info.get("run", ""))
    return (*run.damaged, *panels)


def set_aside(out: Path) -> tuple[list[str], Inspection]:
    """Move the damaged files of a run to its folder `damaged`, and delete what joined parts replace.

    Args:
        out: The run directory, owned by this process, whose `run.json` is whole.

    Returns:
        A line for each file that was moved, and the inspection of the parts that are left.

    Raises:
        RecordError: A file cannot be moved.
    """
    info = records.read_description(out)
    about = read_info(info, out / "run.json")
    run = info.get("run", "")
    inspection = inspect_parts(out, Rules(about, info["images"]), run)
    damaged = [
        *records.read_notes(out, about.models, strict=False)[2],
        *inspection.damaged,
        *find_damaged_panels(out, about, info["images"], run),
    ]
    lines = [_move(out, each) for each in damaged]
    remove_replaced(out, run)
    return lines, inspection


def _move(out: Path, damage: Damage) -> str:
    """Move one file, and return the line that reports it."""
    place = out / MOVED / damage.path.relative_to(out)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        numbered = (place.with_name(f"{place.name}.{n}") for n in range(1, 10**6))
        free = place if not place.exists() else next(each for each in numbered if not each.exists())
        damage.path.rename(free)
    except OSError as error:
        raise RecordError(f"{damage.path}: {damage.reason}, and cannot be moved away: {error.strerror}.") from None
    return f"{damage.path}: {damage.reason}. Moved to {free}; what it held is computed again."
