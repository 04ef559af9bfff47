"""Merges the directories of parts into one run directory: files of rows are linked or copied, never all in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from advseg_bench.cache import write_bytes
from advseg_bench.errors import RecordError
from advseg_bench.results.compaction import compact
from advseg_bench.results.coverage import Coverage, count_rows
from advseg_bench.results.descriptions import read_calibration, write_sealed
from advseg_bench.results.locking import own
from advseg_bench.results.machines import compare_machines, group_machines
from advseg_bench.results.mergeable import Entry, Source, check_same, open_source
from advseg_bench.results.parts import Part, write_part

__all__ = ["merge_files"]


def merge_files(folders: Sequence[Path], out: Path, *, partial: bool, mixed: bool, command: str) -> None:
    """Make one run directory of the directories of parts. It can be repeated with the same or with further parts.

    Rows, entries of models, failures, pictures and calibrations are taken over. The description is written last, so
    that a directory without one is the remainder of a merge that was interrupted, which is removed.

    Args:
        folders: Directories of parts, or of merged runs.
        out: The run directory; what was merged there before is kept.
        partial: Whether rows may be missing.
        mixed: Whether libraries and machines may differ.
        command: The command line, for the description.

    Raises:
        RecordError: If the parts do not belong together, rows are missing, or two parts hold different values of one
            row. Nothing is changed then.
    """
    _check_folders(folders, out)
    sources = sorted((open_source(folder) for folder in folders), key=lambda source: source.numbers)
    check_same(sources, mixed)
    with own(out, "merge"):
        earlier = [open_source(out)] if (out / "run.json").exists() else []
        sources = [_leave_out_known(source, earlier) for source in sources]
        everything = [*earlier, *sources]
        check_same(everything, mixed)
        found = count_rows(everything)
        if not partial:
            _check_complete(everything, found, out)
        repeated = _drop_repeated(found.repeated, {part.path for source in earlier for part in source.files})
        if not earlier:
            _empty(out)
        _copy_rows(sources, out, repeated, everything[0].info["run"])
        compact(out, everything[0].info["run"])
        _copy_rest(sources, earlier, out, found.complete)
        calibrations = _gather_calibrations(sources, out)
        info = _describe(everything, command)
        info["calibration"] = compare_machines(info, calibrations)
        if not (earlier and _is_same(earlier[0].info, info)):
            write_sealed(out / "run.json", info)


def _leave_out_known(source: Source, earlier: Sequence[Source]) -> Source:
    """Return a source without the files that were merged before, as they are or joined with others."""
    merged = [part for each in earlier for part in each.files]
    known = {part.path.name for part in merged}
    known |= {name for part in merged if part.label for name in part.label.replaces}
    return replace(source, files=[part for part in source.files if part.path.name not in known])


def _check_folders(folders: Sequence[Path], out: Path) -> None:
    """Check the arguments as paths."""
    if not folders:
        raise RecordError("merge: expected folders of parts, got none. Pass the --out of each part.")
    seen: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place in seen:
            raise RecordError(f"{folder}: expected each folder once, got it twice. Leave one out.")
        seen[place] = folder
    target = out.resolve()
    for place, folder in seen.items():
        if place == target or place in target.parents:
            raise RecordError(
                f"{out}: expected a folder outside the parts, got one in {folder}. Choose an --out beside them."
            )


def _check_complete(sources: Sequence[Source], found: Coverage, out: Path) -> None:
    """Raise `RecordError` if a part is not there or not finished."""
    n = sources[0].of
    absent = sorted({*range(1, n + 1)} - {number for source in sources for number in source.numbers})
    later = f"or pass --partial, and compute what is missing with --out {out}"
    if absent:
        names = ", ".join(map(str, absent[:8])) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        raise RecordError(
            f"merge: expected all {n} parts, got none of number {names}: {found.absent:,} rows are missing. "
            f"Add their folders, {later}."
        )
    if found.lacking:
        number, rows = min(found.lacking.items())
        folder = next(source.folder for source in sources if number in source.numbers)
        others = len(found.lacking) - 1
        more = f", and {others} more parts lack rows" if others else ""
        raise RecordError(
            f"{folder}: expected a finished part, got one that lacks {rows:,} rows{more}. Run it to its end, {later}."
        )


def _drop_repeated(pairs: Iterable[tuple[Part, Part]], present: set[Path]) -> dict[Path, pl.DataFrame]:
    """Compare rows that two files hold.

    Returns:
        File with repeated rows -> its other rows; files that are `present` already are left as they are.

    Raises:
        RecordError: If two files hold different values of one row.
    """
    left: dict[Path, pl.DataFrame] = {}
    for later, earlier in pairs:
        if later.path in present:
            continue
        new, old = (pl.read_parquet(part.path, glob=False) for part in (later, earlier))
        key = ["cell", "image"]
        both = new.join(old.select(key), on=key, how="semi").sort(key)
        same = old.join(new.select(key), on=key, how="semi").sort(key)
        if not both.equals(same):
            name = next(
                f"{a['model']} {a['attack']} on {a['image']}"
                for a, b in zip(both.iter_rows(named=True), same.iter_rows(named=True), strict=True)
                if a != b
            )
            raise RecordError(
                f"{later.path}: expected the row of {name} that {earlier.path} has, got another one. "
                "Compute this part again in a new folder, and leave out the wrong one."
            )
        left[later.path] = left.get(later.path, new).join(old.select(key), on=key, how="anti", maintain_order="left")
    return left


def _empty(out: Path) -> None:
    """Remove what an interrupted merge left."""
    for folder in ("parts", "models", "panels"):
        for path in (out / folder).iterdir():
            path.unlink()


def _copy_rows(sources: Iterable[Source], out: Path, repeated: dict[Path, pl.DataFrame], run: str) -> None:
    """Take over the files of rows; those with repeated rows, or with the label of another binding, are written anew."""
    for source in sources:
        for part in source.files:
            rows = repeated.get(part.path)
            if rows is None and part.label is not None and part.label.run == run:
                _place(part.path, out / "parts" / part.path.name)
                continue
            rows = pl.read_parquet(part.path, glob=False) if rows is None else rows
            if len(rows):
                write_part(out, rows, run)


def _place(path: Path, target: Path) -> None:
    """Link a file, or copy it to another file system; names contain a hash of the content, so equal names are equal."""
    if target.exists():
        return
    try:
        os.link(path, target)
    except OSError:
        write_bytes(target, path.read_bytes())


def _copy_rest(sources: Sequence[Source], earlier: Sequence[Source], out: Path, complete: set[str]) -> None:
    """Take over the entries of models, the failures of cells that lack rows, and the pictures of the same binding."""
    run = (*earlier, *sources)[0].info["run"]
    models: dict[str, Entry] = {}
    for source in sources:
        models = {**source.models, **models}
        same = source.info["run"] == run
        for path in sorted((source.folder / "panels").glob("*.npz")) if same else ():
            _place(path, out / "panels" / path.name)
    for name, entry in models.items():
        path = out / "models" / f"{name}.json"
        if not any(each.models.get(name) == entry for each in earlier):
            write_sealed(path, entry)
    info = sources[0].info
    order = [model["name"] for model in info["suite"]["models"]]
    lacking = {cell["model"] for cell in info["cells"] if cell["skip"] is None and cell["id"] not in complete}
    failures: list[Entry] = []
    for failure in (each for source in (*sources, *earlier) for each in source.failures):
        open_still = failure["model"] in lacking if failure["cell"] is None else failure["cell"] not in complete
        if open_still and failure not in failures:
            failures.append(failure)
    failures.sort(key=lambda failure: order.index(failure["model"]))
    if not (earlier and earlier[0].failures == failures):
        write_sealed(out / "failures.json", failures)


def _gather_calibrations(sources: Sequence[Source], out: Path) -> dict[str, Entry]:
    """Add the calibrations of sources to those of the run directory, by part."""
    known = read_calibration(out)
    found = dict(known)
    for source in sources:
        each = read_calibration(source.folder)
        found |= {str(source.info["part"]["part"]): each} if "part" in source.info else each
    found = dict(sorted(found.items(), key=lambda item: int(item[0])))
    if found != known:
        write_sealed(out / "calibration.json", found)
    return found


def _describe(sources: Sequence[Source], command: str) -> Entry:
    """The description of the merged run: that of the first source, with all machines."""
    first = sources[0].info
    info: dict[str, Any] = {name: value for name, value in first.items() if name not in ("part", "machines")}
    started = min(source.info.get("started", "") for source in sources)
    machines = group_machines([source.info for source in sources])
    return info | {"command": command, "started": started, "machines": machines}


def _is_same(old: Entry, new: Entry) -> bool:
    """Whether two descriptions differ in nothing but the command."""
    return old | {"command": ""} == new | {"command": ""}
