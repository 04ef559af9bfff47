"""The files of a run: one description, and Parquet parts that are written atomically.

A run directory has `run.json` (suite, data, cells, environment; written once), `models/*.json`, `parts/*.parquet`
(the rows), `panels/*.npz` (images for the report), `failures.json` and `report/`. It is locked by one process at a
time, and only that process writes to it.
"""

from __future__ import annotations

import fcntl
import io
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from advseg_bench.cache import content_hash, make_folder, remove_empty, write_bytes, write_json
from advseg_bench.errors import RecordError, expected
from advseg_bench.instruments.profiling import timed
from advseg_bench.results.numbering import find_distinct

RUN_SCHEMA = 1

AT_ONCE = 11
"""Number of columns that are read together: fewer take less memory and more time."""

UNREADABLE = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""Errors that reading a damaged part raises."""

ROW_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "cell": pl.String,
    "dataset": pl.String,
    "model": pl.String,
    "attack": pl.String,
    "loss": pl.String,
    "settings": pl.String,
    "norm": pl.String,
    "eps": pl.Float64,
    "draw": pl.Int32,
    "image": pl.String,
    "subject": pl.String,
    "block": pl.String,
    "tp": pl.List(pl.Int64),
    "fp": pl.List(pl.Int64),
    "fn": pl.List(pl.Int64),
    "valid_pixels": pl.Int64,
    "wrong_pixels": pl.Int64,
    "flipped_pixels": pl.Int64,
    "linf": pl.Float64,
    "l2": pl.Float64,
    "unmoved": pl.Float64,
    "forwards": pl.Float64,
    "backwards": pl.Float64,
    "flags": pl.List(pl.String),
}
"""Columns of a row as stored; a row is one cell on one image. docs/runs.md explains each column."""

READ_SCHEMA = {name: pl.Categorical() if kind == pl.String else kind for name, kind in ROW_SCHEMA.items()}
"""Columns of a row as read: names are categorical, so that a million rows take little memory."""

NULLABLE = ("forwards", "backwards")
"""Columns that may be null: passes that were not counted."""


@contextmanager
def own(out: Path) -> Iterator[None]:
    """Lock a run directory for this process; the lock is released when the process ends, for whatever reason.

    A new directory that holds no run in the end, since the run was refused, is removed.

    Raises:
        RecordError: If the directory cannot be created, contains other files, or is locked by another run.
    """
    _check_free(out)
    new = not out.exists()
    make_folder(out)
    path = out / ".lock"
    try:
        lock = path.open("a")
    except OSError as error:
        raise RecordError(f"{out}: cannot be written: {error.strerror}. Choose another --out.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordError(f"{out}: another run is writing here. Wait for it or choose another --out.") from None
        for folder in ("models", "parts", "panels"):
            make_folder(out / folder)
            for leftover in (out / folder).glob(".*.tmp"):
                leftover.unlink()
        try:
            yield
        finally:
            if new and not (out / "run.json").exists():
                remove_empty(out, spare=path)


def _check_free(out: Path) -> None:
    """Reject a path that is not a folder, or a folder with other files."""
    try:
        if out.exists() and not out.is_dir():
            raise RecordError(expected(out, "a folder for the run", "a file", "Choose another --out."))
        empty = not out.is_dir() or not any(out.iterdir())
        described = (out / "run.json").exists()
        held = (out / ".lock").exists()
    except OSError as error:
        raise RecordError(f"{out}: cannot be used: {error.strerror}. Choose another --out.") from None
    if described:
        read_description(out)
    elif not empty and not held:
        raise RecordError(
            f"{out}: the folder is not empty and holds no run. Nothing was changed; choose another --out."
        )


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; a missing or damaged one raises `RecordError`."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path}: missing, so this is not the folder of a run. Pass the --out of a run.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}. Restore it, or start again in a new --out.") from None


def read_description(out: Path) -> dict[str, Any]:
    """Read `run.json`; a missing or damaged one, or another schema version, raises `RecordError`."""
    info = read_json(out / "run.json")
    found = info.get("schema") if isinstance(info, dict) else None
    if found != RUN_SCHEMA:
        newer = isinstance(found, int) and found > RUN_SCHEMA
        remedy = "Upgrade advseg-bench." if newer else "Run the suite again in a new --out."
        raise RecordError(expected(out / "run.json", f"schema {RUN_SCHEMA}", found, remedy))
    kinds = {"suite": dict, "data": dict, "binding": dict, "cells": list, "images": list}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind) or (kind is list and not info[key]):
            remedy = "Restore it, or run the suite again in a new --out."
            raise RecordError(
                expected(out / "run.json", f"a filled {kind.__name__} under {key!r}", info.get(key), remedy)
            )
    return dict(info)


def read_model(path: Path) -> dict[str, Any]:
    """Read a model's entry in a run; a damaged one, which the next run can recreate, raises `RecordError`."""
    try:
        entry = json.loads(path.read_text())
    except (OSError, ValueError):
        entry = None
    wanted = {"name": str, "architecture": str, "parameters": int, "weights_sha256": str}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in wanted.items()):
        raise RecordError(f"{path}: is damaged. Delete this file and run the same command again: it is recreated.")
    return entry


def read_failures(out: Path) -> list[dict[str, Any]]:
    """Read the failures of a run; a damaged file, which the next run can recreate, raises `RecordError`."""
    path = out / "failures.json"
    failures = read_json(path) if path.exists() else []
    keys = {"model", "stage", "cell", "message"}
    if not isinstance(failures, list) or not all(isinstance(f, dict) and keys <= {*f} for f in failures):
        raise RecordError(f"{path}: is damaged. Delete this file and run the same command again: it is recreated.")
    return failures


def describe(out: Path, info: dict[str, Any]) -> None:
    """Write `run.json`, or check that the existing one describes the same run.

    The title and the scoring of a suite do not affect the rows, so new values replace the old ones.

    Raises:
        RecordError: Naming the first difference that would make old and new rows incomparable.
    """
    if not (out / "run.json").exists():
        write_json(out / "run.json", info)
        return
    old, new = read_description(out), json.loads(json.dumps(info))
    presentation = {name: new["suite"][name] for name in ("title", "scoring") if name in new["suite"]}
    for key, what in (("suite", "suite"), ("data", "data"), ("binding", "environment")):
        before = old.get(key, {}) | presentation if key == "suite" else old.get(key)
        if before != new[key]:
            raise RecordError(
                f"{out}: holds a run of another {what}: {_first_difference(before, new[key])}. "
                "Nothing was changed; choose another --out."
            )
    if old["suite"] != new["suite"]:
        write_json(out / "run.json", old | {"suite": new["suite"]})


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    """Name the first place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if before != after:
                return _first_difference(before, after, f"{where}.{i}")
    return f"{where or 'it'} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    """Return a value as JSON in at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


@timed("records")
def write_part(out: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as one Parquet part, named by a hash of its cells and images, and return its path."""
    name = content_hash(sorted((row["cell"], row["image"]) for row in rows))
    buffer = io.BytesIO()
    pl.DataFrame(rows, schema=ROW_SCHEMA).write_parquet(buffer)
    path = out / "parts" / f"{rows[0]['model']}-{name}.parquet"
    write_bytes(path, buffer.getvalue())
    return path


def list_parts(out: Path) -> list[Path]:
    """Return the parts of a run, sorted."""
    return sorted((out / "parts").glob("*.parquet"))


@timed("records")
def read_rows(
    out: Path,
    columns: Sequence[str] | None = None,
    cells: Collection[str] | None = None,
    parts: Sequence[Path] | None = None,
) -> pl.DataFrame:
    """Read the rows of a run, one per cell and image, sorted by both.

    Args:
        out: The run directory.
        columns: The columns to read, including "cell" and "image"; all if None.
        cells: Ids of the run's cells; a part with any other cell is rejected. Not checked if None.
        parts: The parts to read; all if None.

    Returns:
        A frame of `READ_SCHEMA`.

    Raises:
        RecordError: Naming a part that is truncated, has another schema, lacks values, or belongs to another run.
    """
    schema = {name: ROW_SCHEMA[name] for name in columns or ROW_SCHEMA}
    paths = list_parts(out) if parts is None else list(parts)
    if not paths:
        return pl.DataFrame(schema={name: READ_SCHEMA[name] for name in schema})
    keys = _read_columns(paths, ("cell", "image"))
    if cells is not None and not set(keys["cell"].unique()) <= set(cells):
        foreign = next(path for path in paths if not set(_read_part(path, ("cell",))["cell"]) <= set(cells))
        raise RecordError(f"{foreign}: holds rows of another run. Move this file away; the other files are intact.")
    order = pl.Series(find_distinct(keys, ("cell", "image"))[1])
    others = [name for name in schema if name not in keys.columns]
    found = _put_in_order(keys, order)
    for start in range(0, len(others), AT_ONCE):
        found += _put_in_order(_read_columns(paths, others[start : start + AT_ONCE]), order)
    return pl.DataFrame(found).select(*schema)


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
        raise RecordError(f"rows: columns of the wrong type: {_first_line(error)}.") from None
    if gaps := _find_gaps(found):
        raise RecordError(f"rows: no {', '.join(gaps)} in some rows.")
    if foreign := sorted(set(found["cell"].unique()) - set(cells)):
        raise RecordError(expected("rows", "cells of the run", foreign[0]))
    order = pl.Series(find_distinct(found, ("cell", "image"))[1])
    return pl.DataFrame(_put_in_order(found, order))


def _put_in_order(rows: pl.DataFrame, order: pl.Series) -> list[pl.Series]:
    """Return the columns of a frame with reordered rows; to save memory, the frame is emptied."""
    return [rows.drop_in_place(name).rechunk().gather(order) for name in rows.columns]


def _read_columns(paths: Sequence[Path], names: Sequence[str]) -> pl.DataFrame:
    """Read some columns of all parts; errors are those of `_read_part`."""
    with suppress(*UNREADABLE):  # reading each part by itself names the damaged one
        rows = pl.scan_parquet(list(paths), glob=False).select(names)
        if rows.collect_schema() == {name: ROW_SCHEMA[name] for name in names}:
            found = rows.cast({pl.String: pl.Categorical}).collect()
            if not _find_gaps(found):
                return found
    return pl.concat([_read_part(path, names) for path in paths])


def _find_gaps(rows: pl.DataFrame) -> list[str]:
    """Return the columns that have a null although they must not."""
    return [name for name in rows.columns if name not in NULLABLE and rows[name].null_count()]


def _read_part(path: Path, names: Sequence[str]) -> pl.DataFrame:
    """Read some columns of one part; `RecordError` if it is truncated, has another schema, or lacks values."""
    try:
        rows = pl.read_parquet(path, columns=list(names), glob=False)
        rows = rows.select(pl.col(name).cast(ROW_SCHEMA[name]).cast(READ_SCHEMA[name]) for name in names)
        reason = ", ".join(f"no {name} in some rows" for name in _find_gaps(rows))
    except UNREADABLE as error:
        reason = _first_line(error)
    if reason:
        raise RecordError(
            f"{path}: is damaged ({reason}). Delete this file and run the same command again: "
            "only its rows are recomputed."
        )
    return rows


def _first_line(error: BaseException) -> str:
    """Return the first line of a polars error; the rest is a query plan."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
