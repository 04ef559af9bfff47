"""Shares of a run: the rows of some whole models, read one share after the other.

All scores, worst cases and sweeps stay within a model. So a report needs the rows of one share at a time, and its
memory grows with the largest model, not with the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from advseg_bench.results.arms import SWEEP
from advseg_bench.results.parts import Part

ROWS_AT_ONCE = 500_000
"""Rows that a share may have, unless one model has more."""

CELL = ("cell", *SWEEP, "eps", "draw")
"""Columns that are the same in all rows of a cell."""

PASSES = ("forwards", "backwards")


@dataclass(frozen=True, slots=True)
class Index:
    """Which rows a run has.

    Attributes:
        cells: One row for each cell with rows: the columns of `CELL` as text and numbers, the number of its "rows", and
            the most forward and backward passes of a row, 1 where they are unknown.
        parts: Model -> the parts with its rows, sorted; empty for rows in memory.
    """

    cells: pl.DataFrame
    parts: Mapping[str, tuple[Part, ...]]

    def select(self, models: Iterable[str]) -> Index:
        """Return the index of the rows of some models, in memory."""
        return Index(self.cells.filter(pl.col("model").is_in(list(models))), {})

    def list_parts(self, models: Iterable[str]) -> list[Part]:
        """Return the parts with rows of some models, sorted."""
        return sorted({part for model in models for part in self.parts[model]}, key=lambda part: part.path)

    def group_models(self, names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        """Group the models that have rows, in the given order, so that each group is a share."""
        rows = dict(self.cells.group_by("model").agg(pl.col("rows").sum()).iter_rows())
        groups: list[list[str]] = []
        size = 0
        for name in names:
            if name in rows:
                if not groups or size + rows[name] > ROWS_AT_ONCE:
                    groups.append([])
                    size = 0
                groups[-1].append(name)
                size += rows[name]
        return tuple(map(tuple, groups))


def index_rows(rows: pl.DataFrame) -> Index:
    """Index rows in memory."""
    return Index(_sum_up(rows.lazy(), ["cell"]).collect().cast({pl.Categorical(): pl.String}), {})


def index_parts(found: Sequence[Part]) -> Index:
    """Index the rows of parts; a part that cannot be read raises the errors of polars.

    Cost:
        The columns of `CELL` and the passes are read once, some rows at a time.
    """
    by_path = {str(part.path): part for part in found}
    scanned = pl.scan_parquet(list(by_path), glob=False, include_file_paths="path")
    rows = _sum_up(scanned, ["path", "cell"]).collect(engine="streaming")
    cells = rows.group_by("cell").agg(pl.first(*CELL[1:]), pl.col("rows").sum(), pl.max(*PASSES)).sort("cell")
    parts: dict[str, list[Part]] = {}
    for model, path in rows.select("model", "path").unique().sort("model", "path").iter_rows():
        parts.setdefault(model, []).append(by_path[path])
    return Index(cells, {model: tuple(mine) for model, mine in parts.items()})


def _sum_up(rows: pl.LazyFrame, keys: list[str]) -> pl.LazyFrame:
    """Return one row for each cell, or for each part and cell."""
    passes = [pl.col(name).fill_null(1).max() for name in PASSES]
    return rows.group_by(keys).agg(pl.first(*CELL[1:]), pl.len().cast(pl.Int64).alias("rows"), *passes)


def stack(frames: Iterator[pl.DataFrame] | Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Put the rows of frames with the same columns below each other."""
    return pl.concat([frame.cast({pl.Categorical(): pl.String}) for frame in frames])
