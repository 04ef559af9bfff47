"""Parts: Parquet files that are written once, each with a label that names the run that its rows belong to.

The name of a part is MODEL-CONTENT-DIGEST.parquet: a hash of its cells and images, and the first hex digits of the
SHA-256 of its bytes, which every reader compares. The label is JSON in the file's metadata. Parts of runs of older
versions have neither and are read as they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from advseg_bench.cache import content_hash, write_bytes
from advseg_bench.errors import RecordError, tidy
from advseg_bench.instruments.profiling import timed

LABEL = "advseg_bench"
"""Key of the label in the metadata of a part."""

LONGEST = 300
"""Most characters of a reason that comes from a library."""

MOST_BYTES = 2**29
"""Largest size of a part with a digest; a joined part of `compaction.MOST_ROWS` rows has a small share of it."""

DIGITS = 16
"""Hex digits of the digest that a file name contains."""

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

RERUN = "Run the same command again: the file is moved away and only what it held is recomputed."
"""Remedy for a damaged file of a run."""

_DIGEST = re.compile(rf"-[0-9a-f]{{{DIGITS}}}-(?P<digest>[0-9a-f]{{{DIGITS}}})$")
"""The end of the name of a file with a digest, without its suffix."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a part states about itself.

    Attributes:
        run: Id of its run, the "run" of `run.json`; "" if the run has none.
        cells: Ids of its cells, sorted.
        replaces: Names of parts whose rows it contains, and which are therefore not read.
    """

    run: str
    cells: tuple[str, ...]
    replaces: tuple[str, ...] = ()

    def as_json(self) -> str:
        """Return the label as it is stored."""
        known: dict[str, Any] = {"run": self.run, "cells": self.cells}
        return json.dumps(known | ({"replaces": self.replaces} if self.replaces else {}))


@dataclass(frozen=True, slots=True)
class Part:
    """A part whose bytes are those that were written.

    Attributes:
        path: The file.
        label: Its label; None for a part of an older version.
    """

    path: Path
    label: Label | None


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a run that cannot be used.

    Attributes:
        path: The file.
        reason: What is wrong, as the end of a sentence that begins with the file.
        remedy: What to do, as a full sentence.
    """

    path: Path
    reason: str
    remedy: str = RERUN

    def __str__(self) -> str:
        return tidy(f"{self.path}: {self.reason}. {self.remedy}")

    @classmethod
    def of(cls, path: Path, error: RecordError) -> Damage:
        """Return the damage that an error about a file reports."""
        return cls(path, str(error).removeprefix(f"{path}: ").removesuffix(f". {RERUN}"))


def digest_of(data: bytes) -> str:
    """Return the first hex digits of the SHA-256 of a file's bytes, as its name contains them."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def claimed_digest(path: Path) -> str | None:
    """Return the digest in the name of a file; None for a name of an older version."""
    found = _DIGEST.search(path.stem)
    return found["digest"] if found else None


@timed("records")
def write_part(
    out: Path, rows: Sequence[Mapping[str, Any]] | pl.DataFrame, run: str = "", replaces: Sequence[str] = ()
) -> Path:
    """Write rows as one part.

    Args:
        out: The run directory.
        rows: At least one row of `ROW_SCHEMA`, all of one model.
        run: Id of the run.
        replaces: Names of parts whose rows are among these.

    Returns:
        The path of the part.

    Raises:
        RecordError: The disk is full or the path is not writable.
    """
    frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(list(rows), schema=ROW_SCHEMA)
    content = content_hash(frame.select("cell", "image").sort("cell", "image").rows(), DIGITS)
    label = Label(run, tuple(sorted(frame["cell"].unique())), tuple(replaces))
    buffer = io.BytesIO()
    frame.write_parquet(buffer, metadata={LABEL: label.as_json()})
    data = buffer.getvalue()
    path = out / "parts" / f"{frame['model'][0]}-{content}-{digest_of(data)}.parquet"
    write_bytes(path, data)
    return path


def find_parts(out: Path, run: str = "") -> tuple[list[Part], list[Damage]]:
    """Find the parts of a run whose rows are to be read.

    Args:
        out: The run directory.
        run: Id of the run; a part that was labelled by another one is damaged. Not compared if "".

    Returns:
        The parts sorted by name, without those that another one replaces, and the damaged files.

    Cost:
        Every byte of the parts is read once and hashed; their rows are not decoded.
    """
    found: list[Part] = []
    damaged: list[Damage] = []
    for path in sorted((out / "parts").glob("*.parquet")):
        part = open_part(path, run)
        if isinstance(part, Part):
            found.append(part)
        else:
            damaged.append(part)
    replaced = list_replaced(found)
    return [part for part in found if part.path.name not in replaced], damaged


def list_replaced(found: Sequence[Part]) -> frozenset[str]:
    """Return the names of the parts that some others replace."""
    return frozenset(name for part in found if part.label for name in part.label.replaces)


def open_part(path: Path, run: str = "") -> Part | Damage:
    """Read the label of a part and compare its digest; `run` is that of `find_parts`."""
    claimed = claimed_digest(path)
    if claimed is None:
        return Part(path, None)
    try:
        if path.stat().st_size > MOST_BYTES:
            return Damage(path, f"is damaged ({path.stat().st_size:,} bytes, above {MOST_BYTES:,})")
        data = path.read_bytes()
        if digest_of(data) != claimed:
            return Damage(path, "is damaged (its bytes are not those that were written)")
        label = _read_label(pl.read_parquet_metadata(io.BytesIO(data)))
    except (*UNREADABLE, ValueError, KeyError, TypeError) as error:
        return Damage(path, f"is damaged ({first_line(error)})")
    if run and label.run != run:
        return Damage(path, f"holds rows of another run (its label names {label.run[:DIGITS]!r})")
    return Part(path, label)


def _read_label(metadata: Mapping[str, str]) -> Label:
    """Read the label of a part; `KeyError`, `TypeError` or `ValueError` if it is none."""
    known = json.loads(metadata[LABEL])
    names = (known["run"], *known["cells"], *known.get("replaces", ()))
    if not all(isinstance(name, str) for name in names):
        raise TypeError("the label has values of other types")
    return Label(known["run"], tuple(known["cells"]), tuple(known.get("replaces", ())))


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


def count_rows(found: Sequence[Part]) -> int:
    """Return the number of rows of parts; only the ends of the files are read."""
    return int(pl.scan_parquet([part.path for part in found], glob=False).select(pl.len()).collect().item())


def read_columns(found: Sequence[Part], names: Sequence[str]) -> pl.DataFrame:
    """Read some columns of parts, one after the other, as those of `READ_SCHEMA`.

    Raises:
        OSError, polars.exceptions.PolarsError, polars.exceptions.PanicException: A part cannot be read.
    """
    with suppress(*UNREADABLE):  # reading each part by itself converts columns, and names the damaged one
        rows = pl.scan_parquet([part.path for part in found], glob=False).select(names)
        if rows.collect_schema() == {name: ROW_SCHEMA[name] for name in names}:
            return rows.cast({pl.String: pl.Categorical}).collect()
    return pl.concat([_read_one(part, names) for part in found])


def _read_one(part: Part, names: Sequence[str]) -> pl.DataFrame:
    """Read some columns of one part, and convert numbers of other widths."""
    rows = pl.read_parquet(part.path, columns=list(names), glob=False)
    return rows.select(pl.col(name).cast(ROW_SCHEMA[name]).cast(READ_SCHEMA[name]) for name in names)


def first_line(error: BaseException) -> str:
    """Return the first line of a polars error, shortened; the rest is a query plan."""
    return tidy(str(error).strip().partition("\n")[0], LONGEST) or type(error).__name__


def refuse(damages: Sequence[Damage]) -> None:
    """Raise `RecordError` for the first of some damaged files, if there are any."""
    if damages:
        raise RecordError(str(damages[0]))
