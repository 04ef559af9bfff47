"""The rows of a run, read from its parts and checked.

A run directory has `run.json` (suite, data, cells, environment; written once), `models/*.json`, `parts/*.parquet`
(the rows), `panels/*.npz` (images for the report), `failures.json` and `report/`. One process at a time
holds its lease, and only that process writes to it. The modules `locking`, `descriptions` and `parts` have one of these
each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

from advseg_bench.errors import RecordError, expected
from advseg_bench.instruments.profiling import timed
from advseg_bench.results.descriptions import (
    RUN_SCHEMA,
    describe,
    read_description,
    read_failures,
    read_model,
    read_notes,
    write_sealed,
)
from advseg_bench.results.inspection import Inspection, Seen, inspect_parts
from advseg_bench.results.locking import own
from advseg_bench.results.numbering import find_distinct
from advseg_bench.results.parts import (
    NULLABLE,
    READ_SCHEMA,
    ROW_SCHEMA,
    UNREADABLE,
    Damage,
    Part,
    count_rows,
    find_parts,
    first_line,
    read_columns,
    refuse,
    scan_parts,
    write_part,
)
from advseg_bench.results.rules import GROUPS, KEYS, NAMES, Rules, list_gaps

__all__ = [
    "NULLABLE",
    "READ_SCHEMA",
    "ROW_SCHEMA",
    "RUN_SCHEMA",
    "arrange_rows",
    "describe",
    "own",
    "read_checked",
    "read_description",
    "read_failures",
    "read_model",
    "read_notes",
    "read_rows",
    "scan_parts",
    "scan_rows",
    "scan_whole",
    "write_part",
    "write_sealed",
]


def scan_rows(out: Path, run: str = "") -> pl.LazyFrame:
    """Return the rows of a run as a lazy frame, of which only the columns that are used are read.

    The rows are not compared with the rules of the run, see `inspection.inspect_parts` and `scan_whole`.

    Args:
        out: The run directory.
        run: Id of the run, see `parts.find_parts`.

    Returns:
        A frame of `READ_SCHEMA` in no particular order, with each row once: parts that another one replaces are left
        out, and of a row that two parts hold the first part's is kept.

    Raises:
        RecordError: Naming a part that is damaged or belongs to another run. A part with a digest cannot fail later.

    Cost:
        Every byte of the parts is hashed, and cells and images are read once to find rows that two parts hold.
    """
    found, damaged = find_parts(out, run)
    refuse(damaged)
    return _keep_first(found, True)


def scan_whole(inspection: Inspection) -> pl.LazyFrame:
    """Return the rows of the whole parts of a run as a lazy frame, as `scan_rows` does."""
    return _keep_first(inspection.parts, inspection.twice)


def _keep_first(found: Sequence[Part], twice: bool) -> pl.LazyFrame:
    """Return the rows of parts as a lazy frame; of rows that may be there `twice`, the first one."""
    rows = scan_parts(found)
    if not twice or not found:
        return rows
    keys = _collect(found, KEYS)
    first = find_distinct(keys, KEYS)[1]
    if len(first) == len(keys):
        return rows
    place = pl.Series("place", first)
    return rows.with_row_index("place").filter(pl.col("place").is_in(place.implode())).drop("place")


@timed("records")
def read_rows(
    out: Path, columns: Sequence[str] | None = None, cells: Collection[str] | None = None, run: str = ""
) -> pl.DataFrame:
    """Read all rows of a run, one per cell and image, sorted by both; they are not compared with the rules of the run.

    Args:
        out: The run directory.
        columns: The columns to read, including "cell" and "image"; all if None.
        cells: Ids of the run's cells; a part with any other cell is rejected. Not checked if None.
        run: Id of the run, see `parts.find_parts`.

    Returns:
        A frame of `READ_SCHEMA`.

    Raises:
        RecordError: Naming a part that is truncated, has another schema, lacks values, or belongs to another run.
    """
    found, damaged = find_parts(out, run)
    refuse(damaged)
    rows = collect_rows(found, columns)
    if cells is not None and not set(rows["cell"].unique()) <= set(cells):
        foreign = next(part for part in found if not set(_collect([part], ("cell",))["cell"]) <= set(cells))
        refuse([Damage(foreign.path, "holds rows of another run")])
    return rows


@timed("records")
def read_checked(out: Path, rules: Rules, run: str = "", *, strict: bool = True) -> tuple[pl.DataFrame, Inspection]:
    """Read all rows of a run and compare each with the rules of the run, in one reading if nothing is wrong.

    Args:
        out: The run directory.
        rules: The rules of the run.
        run: Id of the run, see `parts.find_parts`.
        strict: Whether a damaged part is an error; otherwise its rows are left out.

    Returns:
        A frame as from `read_rows`, and what was found.

    Raises:
        RecordError: Naming a damaged part, if `strict`; or the run is too large.
    """
    found, damaged = find_parts(out, run)
    if not damaged and (rows := collect_if_sound(found, rules)) is not None:
        return rows, Inspection(tuple(found), (), False)
    inspection = inspect_parts(out, rules, run)
    if strict:
        refuse(inspection.damaged)
    return collect_rows(inspection.parts), inspection


def collect_if_sound(found: Sequence[Part], rules: Rules) -> pl.DataFrame | None:
    """Read the rows of parts, one per cell and image, sorted by both; None if any row breaks a rule."""
    seen = Seen(rules)
    if not found:
        return collect_rows(found)
    try:
        if count_rows(found) > len(rules.cells) * rules.images:
            return None
        keys = read_columns(found, KEYS)
        cells, images, broken = rules.place(keys)
        if broken or not seen.add(cells, images):
            return None
        order = pl.Series(find_distinct(keys, KEYS)[1])
        rows = _put_in_order(keys, order)
        for names in GROUPS:
            frame = read_columns(found, names)
            if rules.check(frame, cells) or (names is NAMES and seen.check_subjects(frame, images)):
                return None
            rows += _put_in_order(frame, order)
    except UNREADABLE:
        return None
    return pl.DataFrame(rows).select(*ROW_SCHEMA)


def collect_rows(found: Sequence[Part], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read the rows of parts, one per cell and image, sorted by both; see `read_rows`."""
    names = list(columns or ROW_SCHEMA)
    if not found:
        return pl.DataFrame(schema={name: READ_SCHEMA[name] for name in names})
    keys = _collect(found, KEYS)
    order = pl.Series(find_distinct(keys, KEYS)[1])
    rows = _put_in_order(keys, order)
    for group in GROUPS:
        if wanted := [name for name in group if name in names]:
            rows += _put_in_order(_collect(found, wanted), order)
    return pl.DataFrame(rows).select(*names)


def arrange_rows(rows: pl.DataFrame, cells: Collection[str]) -> pl.DataFrame:
    """Convert rows in memory to the form in which `read_rows` returns those of a folder.

    Args:
        rows: A frame with the columns of `ROW_SCHEMA`, in any order.
        cells: Ids of the run's cells.

    Returns:
        A frame of `READ_SCHEMA`, sorted by cell and image.

    Raises:
        RecordError: If a column is missing, has the wrong type or lacks values, or a row belongs to another run.
    """
    if missing := [name for name in ROW_SCHEMA if name not in rows.columns]:
        raise RecordError(expected("rows", f"the columns {', '.join(ROW_SCHEMA)}", f"no {', '.join(missing)}"))
    try:
        found = rows.select(pl.col(name).cast(ROW_SCHEMA[name]).cast(READ_SCHEMA[name]) for name in ROW_SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise RecordError(f"rows: columns of the wrong type: {first_line(error)}.") from None
    if gaps := list_gaps(found):
        raise RecordError(f"rows: no {', '.join(gaps)} in some rows.")
    if foreign := sorted(set(found["cell"].unique()) - set(cells)):
        raise RecordError(expected("rows", "cells of the run", foreign[0]))
    order = pl.Series(find_distinct(found, ("cell", "image"))[1])
    return pl.DataFrame(_put_in_order(found, order))


def _put_in_order(rows: pl.DataFrame, order: pl.Series) -> list[pl.Series]:
    """Return the columns of a frame with reordered rows; to save memory, the frame is emptied."""
    return [rows.drop_in_place(name).rechunk().gather(order) for name in rows.columns]


def _collect(found: Sequence[Part], names: Sequence[str]) -> pl.DataFrame:
    """Read some columns of parts; `RecordError` names one that cannot be read or lacks values."""
    try:
        rows = read_columns(found, names)
        gaps = list_gaps(rows)
    except UNREADABLE as error:
        if len(found) == 1:
            refuse([Damage(found[0].path, f"is damaged ({first_line(error)})")])
        gaps = ["rows"]
    if gaps and len(found) > 1:
        return pl.concat([_collect([part], names) for part in found])
    if gaps:
        told = ", ".join(f"no {name} in some rows" for name in gaps)
        refuse([Damage(found[0].path, f"is damaged ({told})")])
    return rows
