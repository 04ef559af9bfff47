"""The rows of a run, read from its parts and checked.

A run directory has `run.json` (suite, data, cells, environment; written once), `models/*.json`, `parts/*.parquet`
(the rows), `panels/*.npz` (images for the report), `failures.json` and `report/`. It is locked by one process at a
time, and only that process writes to it. The modules `locking`, `descriptions` and `parts` have one of these each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from advseg_bench.errors import RecordError, expected
from advseg_bench.instruments.profiling import timed
from advseg_bench.results.descriptions import RUN_SCHEMA, describe, read_description, read_failures, read_model
from advseg_bench.results.locking import own
from advseg_bench.results.numbering import find_distinct
from advseg_bench.results.parts import (
    NULLABLE,
    READ_SCHEMA,
    RERUN,
    ROW_SCHEMA,
    UNREADABLE,
    Part,
    find_parts,
    first_line,
    refuse,
    write_part,
)

__all__ = [
    "NULLABLE",
    "READ_SCHEMA",
    "ROW_SCHEMA",
    "RUN_SCHEMA",
    "arrange_rows",
    "describe",
    "own",
    "read_description",
    "read_failures",
    "read_model",
    "read_rows",
    "scan_parts",
    "scan_rows",
    "write_part",
]

AT_ONCE = 11
"""Number of columns that are read together: fewer take less memory and more time."""


def scan_rows(out: Path, run: str = "") -> pl.LazyFrame:
    """Return the rows of a run as a lazy frame, of which only the columns that are used are read.

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
    rows = scan_parts(found)
    keys = _collect(found, ("cell", "image"))
    first = find_distinct(keys, ("cell", "image"))[1]
    if len(first) == len(keys):
        return rows
    place = pl.Series("place", first)
    return rows.with_row_index("place").filter(pl.col("place").is_in(place.implode())).drop("place")


def scan_parts(found: Sequence[Part]) -> pl.LazyFrame:
    """Return the rows of parts as a lazy frame of `READ_SCHEMA`, part by part; rows that two parts hold come twice."""
    if not found:
        return pl.LazyFrame(schema=READ_SCHEMA)
    written = [part.path for part in found if part.label]
    older = [part.path for part in found if not part.label]
    frames = [pl.scan_parquet(path, glob=False).select(_cast()) for path in older]
    if written:
        frames.append(pl.scan_parquet(written, glob=False).select(_cast()))
    return pl.concat(frames)


def _cast() -> list[pl.Expr]:
    """Return the columns of a part as those of `READ_SCHEMA`."""
    return [pl.col(name).cast(ROW_SCHEMA[name]).cast(READ_SCHEMA[name]) for name in ROW_SCHEMA]


@timed("records")
def read_rows(
    out: Path, columns: Sequence[str] | None = None, cells: Collection[str] | None = None, run: str = ""
) -> pl.DataFrame:
    """Read all rows of a run, one per cell and image, sorted by both.

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
    return collect_rows(found, columns, cells)


def collect_rows(
    found: Sequence[Part], columns: Sequence[str] | None = None, cells: Collection[str] | None = None
) -> pl.DataFrame:
    """Read the rows of parts, one per cell and image, sorted by both; see `read_rows`."""
    schema = {name: ROW_SCHEMA[name] for name in columns or ROW_SCHEMA}
    if not found:
        return pl.DataFrame(schema={name: READ_SCHEMA[name] for name in schema})
    keys = _collect(found, ("cell", "image"))
    if cells is not None and not set(keys["cell"].unique()) <= set(cells):
        foreign = next(part.path for part in found if not set(_collect_one(part, ("cell",))["cell"]) <= set(cells))
        raise RecordError(f"{foreign}: holds rows of another run. Move this file away; the other files are intact.")
    order = pl.Series(find_distinct(keys, ("cell", "image"))[1])
    others = [name for name in schema if name not in keys.columns]
    rows = _put_in_order(keys, order)
    for start in range(0, len(others), AT_ONCE):
        rows += _put_in_order(_collect(found, others[start : start + AT_ONCE]), order)
    return pl.DataFrame(rows).select(*schema)


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
    if gaps := _find_gaps(found):
        raise RecordError(f"rows: no {', '.join(gaps)} in some rows.")
    if foreign := sorted(set(found["cell"].unique()) - set(cells)):
        raise RecordError(expected("rows", "cells of the run", foreign[0]))
    order = pl.Series(find_distinct(found, ("cell", "image"))[1])
    return pl.DataFrame(_put_in_order(found, order))


def _put_in_order(rows: pl.DataFrame, order: pl.Series) -> list[pl.Series]:
    """Return the columns of a frame with reordered rows; to save memory, the frame is emptied."""
    return [rows.drop_in_place(name).rechunk().gather(order) for name in rows.columns]


def _collect(found: Sequence[Part], names: Sequence[str]) -> pl.DataFrame:
    """Read some columns of parts; errors are those of `_collect_one`."""
    with suppress(*UNREADABLE):  # reading each part by itself names the damaged one
        rows = pl.scan_parquet([part.path for part in found], glob=False).select(names)
        if rows.collect_schema() == {name: ROW_SCHEMA[name] for name in names}:
            there = rows.cast({pl.String: pl.Categorical}).collect()
            if not _find_gaps(there):
                return there
    return pl.concat([_collect_one(part, names) for part in found])


def _find_gaps(rows: pl.DataFrame) -> list[str]:
    """Return the columns that have a null although they must not."""
    return [name for name in rows.columns if name not in NULLABLE and rows[name].null_count()]


def _collect_one(part: Part, names: Sequence[str]) -> pl.DataFrame:
    """Read some columns of one part; `RecordError` if it is truncated, has another schema, or lacks values."""
    try:
        rows = pl.read_parquet(part.path, columns=list(names), glob=False)
        rows = rows.select(pl.col(name).cast(ROW_SCHEMA[name]).cast(READ_SCHEMA[name]) for name in names)
        reason = ", ".join(f"no {name} in some rows" for name in _find_gaps(rows))
    except UNREADABLE as error:
        reason = first_line(error)
    if reason:
        raise RecordError(f"{part.path}: is damaged ({reason}). {RERUN}")
    return rows
