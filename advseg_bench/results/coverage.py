"""Counts the rows of parts that are to be merged, and finds rows that two files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from advseg_bench.errors import RecordError
from advseg_bench.results.mergeable import Source
from advseg_bench.results.parts import Part


@dataclass(slots=True)
class Coverage:
    """What sources hold together.

    Attributes:
        lacking: Number of a part -> rows that it lacks without a failure.
        absent: Number of rows of the parts that no source has.
        complete: Ids of the cells without a missing row.
        repeated: Pairs of files that hold the same row: the later and the earlier one.
    """

    lacking: dict[int, int] = field(default_factory=dict)
    absent: int = 0
    complete: set[str] = field(default_factory=set)
    repeated: list[tuple[Part, Part]] = field(default_factory=list)


def count_rows(sources: Sequence[Source]) -> Coverage:
    """Count the rows of sources and find repeated ones.

    Cost:
        Cells and images of the rows of one model at a time are in memory, as integers.
    """
    info, found = sources[0].info, Coverage()
    failed = {
        (number, each["model"], each["cell"])
        for source in sources
        for number in source.numbers
        for each in source.failures
    }
    held = {entry["part"]: entry["holds"] for source in sources for entry in source.entries}
    labelled = [(part, part.label.cells) for source in sources for part in source.files if part.label]
    for model, cells in _list_cells(info).items():
        files = [part for part, has in labelled if not {*cells}.isdisjoint(has)]
        keys = _read_keys(files, cells, info["images"])
        found.repeated += _find_repeated(keys, files)
        places = keys.unique(["cell", "image"]).select("cell", pl.col("image").to_physical().alias("place"))
        counts = dict(places.group_by("cell").len().iter_rows())
        found.complete |= {cell for cell in cells if counts.get(cell, 0) == len(info["images"])}
        covered = 0
        for number, holds in held.items():
            start, stop = holds.get(model, (0, 0))
            covered += stop - start
            wanted = [c for c in cells if failed.isdisjoint({(number, model, c), (number, model, None)})]
            inside = places.filter(pl.col("place").is_between(start, stop, closed="left"))
            counts = dict(inside.group_by("cell").len().iter_rows())
            if gaps := sum(stop - start - counts.get(cell, 0) for cell in wanted):
                found.lacking[number] = found.lacking.get(number, 0) + gaps
        found.absent += (len(info["images"]) - covered) * len(cells)
    return found


def _list_cells(info: Mapping[str, Any]) -> dict[str, list[str]]:
    """Model -> ids of its cells that are run."""
    found: dict[str, list[str]] = {}
    for cell in info["cells"]:
        if cell["skip"] is None:
            found.setdefault(cell["model"], []).append(cell["id"])
    return found


def _read_keys(files: Sequence[Part], cells: Sequence[str], images: Sequence[str]) -> pl.DataFrame:
    """Read cell and image of each row of files, and the file's place in the list."""
    schema = {"cell": pl.Enum(cells), "image": pl.Enum(images), "file": pl.Enum([str(part.path) for part in files])}
    if not files:
        return pl.DataFrame(schema=schema)
    rows = pl.scan_parquet([part.path for part in files], glob=False, include_file_paths="file")
    keys = rows.select(pl.col(name).cast(kind, strict=False) for name, kind in schema.items()).collect()
    foreign = keys.filter(pl.col("cell").is_null() | pl.col("image").is_null())
    if len(foreign):
        raise RecordError(
            f"{foreign['file'][0]}: holds rows of another run. Move this file away, and run its part again."
        )
    return keys


def _find_repeated(keys: pl.DataFrame, files: Sequence[Part]) -> list[tuple[Part, Part]]:
    """Find pairs of files that hold the same row, the later one first."""
    numbered = keys.with_columns(pl.col("file").to_physical())
    pair = ["cell", "image"]
    again = numbered.filter(pl.struct(pair).is_duplicated())
    first = again.group_by(pair).agg(pl.col("file").min().alias("first"))
    pairs = again.join(first, on=pair).filter(pl.col("file") > pl.col("first")).select("file", "first").unique()
    return [(files[later], files[earlier]) for later, earlier in sorted(pairs.iter_rows())]
