"""Where the rows of a run are: in memory, or in a folder, read as a whole or some models at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from advseg_bench.errors import RecordError
from advseg_bench.results.info import RunInfo
from advseg_bench.results.inspection import Inspection, inspect_parts
from advseg_bench.results.parts import UNREADABLE, Damage, Part, find_parts, refuse
from advseg_bench.results.records import arrange_rows, collect_if_sound, collect_rows, read_checked
from advseg_bench.results.rules import Rules
from advseg_bench.results.shares import ROWS_AT_ONCE, Index, index_parts, index_rows

BYTES_OF_SHARE = 4 * ROWS_AT_ONCE
"""Size of all parts below which a run is one share, whatever its rows."""


class Store(Protocol):
    """The rows of a run."""

    @property
    def rows(self) -> pl.DataFrame:
        """All rows, which are held from then on."""

    @property
    def divided(self) -> bool:
        """Whether the rows are read in several shares, unless all of them are held."""

    @property
    def index(self) -> Index:
        """Which rows there are."""

    @property
    def damaged(self) -> Sequence[Damage]:
        """The parts that are left out."""

    def read(self, models: Sequence[str]) -> pl.DataFrame:
        """Return the rows of some models that have rows."""

    def count(self) -> dict[str, int]:
        """Return the number of images of each cell with rows."""


class Held:
    """Rows in memory."""

    divided = False
    damaged: tuple[Damage, ...] = ()

    def __init__(self, rows: pl.DataFrame, index: Index | None = None) -> None:
        self.rows = rows
        self._index = index

    @cached_property
    def index(self) -> Index:
        """Which rows there are."""
        return self._index or index_rows(self.rows)

    def read(self, models: Sequence[str]) -> pl.DataFrame:
        """Return the rows of some models."""
        return pick(self.rows, models)

    def count(self) -> dict[str, int]:
        """Return the number of images of each cell with rows."""
        return count_images(self.rows)


class Stored:
    """The rows in the folder of a run, each of which is compared with the rules of the run.

    Args:
        out: The folder.
        about: The description of the run.
        info: The same, as it is stored.
        strict: Whether a damaged part is an error; otherwise its rows are left out.
    """

    def __init__(self, out: Path, about: RunInfo, info: Mapping[str, Any], *, strict: bool) -> None:
        self._out, self._about, self._strict = out, about, strict
        self._images, self._run = info["images"], info.get("run", "")
        self._counts: dict[str, dict[str, int]] = {}

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self._about, self._images)

    @property
    def divided(self) -> bool:
        """Whether the rows are read in several shares, unless all of them are held."""
        return "_whole" not in self.__dict__ and self._shares is not None

    @property
    def rows(self) -> pl.DataFrame:
        """All rows, which are held from then on."""
        return self._whole[0]

    @cached_property
    def _whole(self) -> tuple[pl.DataFrame, Inspection]:
        return read_checked(self._out, self._rules, self._run, strict=self._strict)

    @property
    def damaged(self) -> Sequence[Damage]:
        """The parts that are left out."""
        return self._shares[1].damaged if self.divided and self._shares else self._whole[1].damaged

    @property
    def index(self) -> Index:
        """Which rows there are."""
        return self._shares[0] if self.divided and self._shares else self._index_of_rows

    @cached_property
    def _index_of_rows(self) -> Index:
        return index_rows(self.rows)

    @cached_property
    def _shares(self) -> tuple[Index, Inspection] | None:
        """The index of a run of several shares and its whole parts; None if all rows are to be read together."""
        if sum(path.stat().st_size for path in (self._out / "parts").glob("*.parquet")) < BYTES_OF_SHARE:
            return None
        found, damaged = find_parts(self._out, self._run)
        if self._strict:
            refuse(damaged)
        with suppress(*UNREADABLE):  # reading all rows converts columns, and names a damaged part
            index = index_parts(found)
            known = {cell.id for cell in self._about.cells}
            if not set(index.cells["cell"]) <= known or len(index.group_models(self._about.models)) < 2:
                return None
            if self._strict:
                return index, Inspection(tuple(found), (), False)
            inspection = inspect_parts(self._out, self._rules, self._run)
            return index if inspection.parts == tuple(found) else index_parts(inspection.parts), inspection
        return None

    def read(self, models: Sequence[str]) -> pl.DataFrame:
        """Return the rows of some models that have rows."""
        if not self.divided or not self._shares:
            return pick(self.rows, models)
        parts = self._shares[0].list_parts(models)
        rows = self._read_parts(parts)
        for name in models:
            self._counts[name] = count_images(pick(rows, [name]))
        return pick(rows, models)

    def _read_parts(self, parts: Sequence[Part]) -> pl.DataFrame:
        """Read the rows of some parts."""
        if not self._strict:
            return collect_rows(parts)
        rows = collect_if_sound(parts, self._rules)
        if rows is None:
            refuse(inspect_parts(self._out, self._rules, self._run).damaged)
            rows = collect_rows(parts)
        return rows

    def count(self) -> dict[str, int]:
        """Return the number of images of each cell with rows."""
        if not self.divided or not self._shares:
            return count_images(self.rows)
        index = self._shares[0]
        for name in index.parts:
            if name not in self._counts:
                keys = collect_rows(index.list_parts([name]), ("cell", "image"))
                mine = index.cells.filter(pl.col("model") == name)["cell"].implode()
                self._counts[name] = count_images(keys.filter(pl.col("cell").cast(pl.String).is_in(mine)))
        return {cell: count for counts in self._counts.values() for cell, count in counts.items()}


def hold(rows: pl.DataFrame, about: RunInfo) -> Held:
    """Return rows in memory, checked and arranged as those of a folder; see `Run.from_rows`."""
    arranged, k = arrange_rows(rows, {cell.id for cell in about.cells}), len(about.task.classes)
    if not all(arranged.select(pl.col("tp", "fp", "fn").list.len().eq(k).all()).row(0)):
        raise RecordError(f"rows: some rows lack counts of all {k} classes. Run the suite in a new --out.")
    return Held(arranged)


def pick(rows: pl.DataFrame, models: Sequence[str]) -> pl.DataFrame:
    """Return the rows of some models that have rows."""
    return rows.filter(pl.col("model").is_in(models)) if rows["model"].n_unique() > len(models) else rows


def count_images(rows: pl.DataFrame) -> dict[str, int]:
    """Return the number of images of each cell with rows."""
    return dict(rows.group_by("cell").len().iter_rows())
