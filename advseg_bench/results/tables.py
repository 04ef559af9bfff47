"""Tables of scores: the rows that a table is based on, the columns that define its groups, and their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from advseg_bench.errors import SpecError, expected, unknown
from advseg_bench.results import scores
from advseg_bench.results.arms import ARM, SWEEP, WORST
from advseg_bench.results.averages import Grouping, group_rows, make_table
from advseg_bench.results.info import RunInfo
from advseg_bench.results.sweeps import CURVE_SCORES
from advseg_bench.results.worst import add_pooled_worst_case
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task

POOLED_SCORES = ("pooled_dice", "pooled_iou")
RATIOS = {"diff": ("dice", "dice_clean"), "diff_released": ("dice_released", "dice_released_clean")}
"""Scores that are 1 minus the ratio of two means."""

SCORES = (*scores.ROW_SCORES, *RATIOS, *POOLED_SCORES, *CURVE_SCORES)
"""All scores of which tables can be made; the module `scores` defines them."""

Tables = dict[str, pl.DataFrame]
"""Score -> table."""

Source = Literal["counts", "classes", "scores", "curves"]
"""The input of a table: pixel counts, scores of one class, of one row, or of one image over a sweep."""

_CELL_COLUMNS = (*SWEEP, "eps", "draw", "cell")
_IMAGE_COLUMNS = ("image", "subject", "block")
_COUNTS = ("tp", "fp", "fn", "flags")


@dataclass(frozen=True, slots=True)
class Query:
    """The definition of a table.

    Attributes:
        by: Columns of the rows that define the groups.
        where: Column -> the value, or the list of values, of the rows to keep.
        scoring: Scoring conventions.
        level: Confidence level of the interval.
    """

    by: tuple[str, ...]
    where: Mapping[str, object]
    scoring: Scoring
    level: float

    def find_source(self, score: str) -> Source:
        """Return the input of the tables of a score; an unknown score raises `SpecError` with the nearest name."""
        if score not in SCORES:
            raise SpecError(unknown("score", "score", score, SCORES))
        if score in CURVE_SCORES:
            return "curves"
        if score in POOLED_SCORES:
            return "counts"
        of_classes = {*_list_parts([score])} <= {*scores.CLASS_SCORES}
        return "classes" if of_classes and "class" in {*self.by, *self.where} else "scores"

    def find_sources(self, scores: Sequence[str]) -> dict[Source, list[str]]:
        """Group scores by the input of their tables."""
        sources: dict[Source, list[str]] = {}
        for score in scores:
            sources.setdefault(self.find_source(score), []).append(score)
        return sources

    def make_tables(
        self,
        names: Sequence[str],
        source: Source,
        frame: pl.DataFrame,
        info: RunInfo,
        known: dict[tuple[str, ...], Grouping],
    ) -> Tables:
        """Make the tables of scores with the same input; the rows are grouped only once.

        Args:
            names: The scores.
            source: Their input.
            frame: The rows of the run with the columns of this input: counts, scores, or one row per image and sweep.
            info: The task, and the order of the suite.
            known: Cache of the groups of all rows: columns -> grouping. New groupings are added.

        Returns:
            Name -> table, see `Run.table`.

        Raises:
            SpecError: If a column is unknown; the message names the nearest one.
        """
        kept = self._check(frame, source)
        values = self._select(names, source, frame, kept, info.task)
        by = (*self.by, *_find_mixed(values, self.by))
        if source == "counts":
            tables = _pool(values, info.task, self.scoring, by, names)
        else:
            grouping = self._group(values, by, known if source == "scores" else {})
            parts = {name: [values[part] for part in _list_parts([name])] for name in names}
            tables = {name: make_table(grouping, part, self.level) for name, part in parts.items()}
        return {name: sort_table(table.cast({pl.Categorical(): pl.String}), by, info) for name, table in tables.items()}

    def add_pooled_worst_case(
        self, name: str, rows: pl.DataFrame, controls: Collection[str], task: Task
    ) -> pl.DataFrame:
        """Append the rows of the worst case of a pooled score, unless the table leaves them out."""
        kept = self._check(rows, "counts")
        if "attack" in self.where and WORST not in _as_list(self.where["attack"]):
            return rows
        return add_pooled_worst_case(rows, controls, task, self.scoring, name, kept)

    def _group(self, values: pl.DataFrame, by: tuple[str, ...], known: dict[tuple[str, ...], Grouping]) -> Grouping:
        """Group rows; the grouping of all rows is cached for the next table."""
        if self.where:
            return group_rows(values, by)
        if by not in known:
            known[by] = group_rows(values, by)
        return known[by]

    def _check(self, frame: pl.DataFrame, source: Source) -> dict[str, pl.Expr]:
        """Reject columns that cannot define groups, and return the filter condition for each column of `where`."""
        if not self.by:
            raise SpecError(expected("by", "at least one column", self.by, 'Use by="model", for example.'))
        known = [column for column in (*_CELL_COLUMNS, *_IMAGE_COLUMNS) if column in frame.columns]
        known += ["class"] if source == "classes" else []
        for argument, names in (("by", self.by), ("where", self.where)):
            for name in names:
                if name not in known:
                    raise SpecError(unknown(argument, "column", name, known))
        return {name: pl.col(name).is_in(_as_list(value)) for name, value in self.where.items()}

    def _select(
        self, names: Sequence[str], source: Source, frame: pl.DataFrame, kept: Mapping[str, pl.Expr], task: Task
    ) -> pl.DataFrame:
        """Return the rows that the tables are based on, with only the columns that they need."""
        columns = ("cell", *_COUNTS) if source == "counts" else _list_parts(names)
        needed = dict.fromkeys((*self.by, "attack", "settings", "norm", "subject", "image", *columns))
        if source == "classes":
            early = pl.all_horizontal(pl.lit(True), *(kept[name] for name in kept if name != "class"))
            clean = pl.col("attack") == "none"  # the others are compared with these rows
            wanted = needed | dict.fromkeys(kept)
            read = dict.fromkeys((*wanted, "attack", *scores.CLEAN_KEYS, *_COUNTS))
            counted = frame.select(name for name in read if name in frame.columns).filter(early | clean)
            frame = scores.score_classes(counted, task, self.scoring, list(wanted))
        return frame.lazy().filter(pl.lit(True), *kept.values()).select(*needed).collect()


def _as_list(value: object) -> list[object]:
    """Return the values of a column that `where` keeps."""
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _list_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that some scores are computed from."""
    return tuple(dict.fromkeys(part for name in names for part in RATIOS.get(name, (name,))))


def _pool(frame: pl.DataFrame, task: Task, scoring: Scoring, by: Sequence[str], names: Sequence[str]) -> Tables:
    """Make tables of scores of summed counts, which have no interval."""
    pooled = scores.pool_counts(frame, task, scoring, by)
    ends = [pl.lit(None, dtype=pl.Float64).alias(end) for end in ("lower", "upper")]
    counts = pl.col("n_images", "n_subjects").cast(pl.Int64)
    return {name: pooled.select(*by, pl.col(name).alias("mean"), *ends, counts) for name in names}


def _find_mixed(frame: pl.DataFrame, by: Sequence[str]) -> list[str]:
    """Return the columns that distinguish attacks, are not in `by`, and differ within a group of it."""
    identity = [name for name in ("attack", "settings", "norm") if name not in by]
    if not identity:
        return []
    variants = frame.select(*by, *identity).unique().group_by(by)
    counts = variants.agg(pl.col(name).n_unique() for name in identity)
    return [name for name in identity if (counts[name] > 1).any()]


def join_tables(parts: Sequence[pl.DataFrame], info: RunInfo) -> tuple[pl.DataFrame | None, list[str]]:
    """Make one table of those of several models.

    Returns:
        The table, None if only some of them have several attacks in a group; and the columns that define the groups.
    """
    columns = max((part.columns for part in parts), key=len)
    by = columns[: columns.index("mean")]
    if any(part.columns != columns for part in parts):
        return None, by
    return sort_table(pl.concat(parts), by, info), by


def sort_table(table: pl.DataFrame, by: Sequence[str], info: RunInfo) -> pl.DataFrame:
    """Sort a table in the order of the suite."""
    return table.sort([_rank(name, info) for name in by])


def _rank(column: str, info: RunInfo) -> pl.Expr:
    """Return a sort key: the order of the suite for names, the natural order for other columns."""
    if column == "class":
        known = list(info.task.classes)
    elif column == "model":
        known = list(info.models)
    elif column in ARM:
        known = list(dict.fromkeys(getattr(cell.arm, column) for cell in info.cells))
    else:
        return pl.col(column)
    places = range(len(known))
    return pl.col(column).replace_strict(known, places, default=len(known), return_dtype=pl.Int64)
