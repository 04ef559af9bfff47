"""Tables of scores: which rows a table rests on, which columns make its groups, and in which order they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from advseg_bench.errors import SpecError, expected, unknown
from advseg_bench.results import scores
from advseg_bench.results.arms import ARM, SWEEP
from advseg_bench.results.averages import Grouping, group_rows, make_table
from advseg_bench.results.info import RunInfo
from advseg_bench.results.sweeps import CURVE_SCORES
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task

POOLED_SCORES = ("pooled_dice", "pooled_iou")
RATIOS = {"diff": ("dice", "dice_clean"), "diff_released": ("dice_released", "dice_released_clean")}
"""Scores that are 1 less the ratio of two means."""

SCORES = (*scores.ROW_SCORES, *RATIOS, *POOLED_SCORES, *CURVE_SCORES)
"""Every score that there are tables of; `scores` defines them."""

Tables = dict[str, pl.DataFrame]
"""Score -> table."""

Source = Literal["counts", "classes", "scores", "curves"]
"""What a table is made of: pixel counts, scores of one class, of one row, or of one image over a sweep."""

_CELL_COLUMNS = (*SWEEP, "eps", "draw", "cell")
_IMAGE_COLUMNS = ("image", "subject", "block")
_COUNTS = ("tp", "fp", "fn", "flags")


@dataclass(frozen=True, slots=True)
class Query:
    """What a table is of.

    Attributes:
        by: Columns of the rows that make the groups.
        where: Column -> the value, or the list of values, of the rows to keep.
        scoring: Conventions.
        level: Confidence level of the interval.
    """

    by: tuple[str, ...]
    where: Mapping[str, object]
    scoring: Scoring
    level: float

    def find_source(self, score: str) -> Source:
        """Return what the tables of a score are made of. Raises: SpecError: naming the nearest name."""
        if score not in SCORES:
            raise SpecError(unknown("score", "score", score, SCORES))
        if score in CURVE_SCORES:
            return "curves"
        if score in POOLED_SCORES:
            return "counts"
        of_classes = {*_list_parts([score])} <= {*scores.CLASS_SCORES}
        return "classes" if of_classes and "class" in {*self.by, *self.where} else "scores"

    def make_tables(
        self,
        names: Sequence[str],
        source: Source,
        frame: pl.DataFrame,
        info: RunInfo,
        known: dict[tuple[str, ...], Grouping],
    ) -> Tables:
        """Make the tables of scores with one source; their groups are found once.

        Args:
            names: The scores.
            source: What they are made of.
            frame: Rows of the run with what the source needs: counts, scores, or one row per image and sweep.
            info: The task, and the order of the suite.
            known: Columns -> the groups of all rows by them, as far as they were found before; more are added.

        Returns:
            Name -> table, see `Run.table`.

        Raises:
            SpecError: Naming the nearest name for an unknown column.
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
        ranks = [_rank(name, info) for name in by]
        return {name: table.cast({pl.Categorical(): pl.String}).sort(ranks) for name, table in tables.items()}

    def _group(self, values: pl.DataFrame, by: tuple[str, ...], known: dict[tuple[str, ...], Grouping]) -> Grouping:
        """The groups of rows; those of all rows are kept for the next table."""
        if self.where:
            return group_rows(values, by)
        if by not in known:
            known[by] = group_rows(values, by)
        return known[by]

    def _check(self, frame: pl.DataFrame, source: Source) -> dict[str, pl.Expr]:
        """Refuse columns that cannot make groups; returns the condition on each column of `where`."""
        if not self.by:
            raise SpecError(expected("by", "at least one column", self.by, 'Use by="model", for one.'))
        known = [column for column in (*_CELL_COLUMNS, *_IMAGE_COLUMNS) if column in frame.columns]
        known += ["class"] if source == "classes" else []
        for argument, names in (("by", self.by), ("where", self.where)):
            for name in names:
                if name not in known:
                    raise SpecError(unknown(argument, "column", name, known))
        lists = {k: list(v) if isinstance(v, (list, tuple, set, frozenset)) else [v] for k, v in self.where.items()}
        return {name: pl.col(name).is_in(values) for name, values in lists.items()}

    def _select(
        self, names: Sequence[str], source: Source, frame: pl.DataFrame, kept: Mapping[str, pl.Expr], task: Task
    ) -> pl.DataFrame:
        """The rows behind the tables, with the columns that they need and no others."""
        columns = ("cell", *_COUNTS) if source == "counts" else _list_parts(names)
        needed = dict.fromkeys((*self.by, "attack", "settings", "norm", "subject", "image", *columns))
        if source == "classes":
            early = pl.all_horizontal(pl.lit(True), *(kept[name] for name in kept if name != "class"))
            clean = pl.col("attack") == "none"  # which the others are compared with
            wanted = needed | dict.fromkeys(kept)
            read = dict.fromkeys((*wanted, "attack", *scores.CLEAN_KEYS, *_COUNTS))
            counted = frame.select(name for name in read if name in frame.columns).filter(early | clean)
            frame = scores.score_classes(counted, task, self.scoring, list(wanted))
        return frame.lazy().filter(pl.lit(True), *kept.values()).select(*needed).collect()


def _list_parts(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that some scores are made of."""
    return tuple(dict.fromkeys(part for name in names for part in RATIOS.get(name, (name,))))


def _pool(frame: pl.DataFrame, task: Task, scoring: Scoring, by: Sequence[str], names: Sequence[str]) -> Tables:
    """Tables of scores of summed counts, which have no interval."""
    pooled = scores.pool_counts(frame, task, scoring, by)
    ends = [pl.lit(None, dtype=pl.Float64).alias(end) for end in ("lower", "upper")]
    counts = pl.col("n_images", "n_subjects").cast(pl.Int64)
    return {name: pooled.select(*by, pl.col(name).alias("mean"), *ends, counts) for name in names}


def _find_mixed(frame: pl.DataFrame, by: Sequence[str]) -> list[str]:
    """Columns that tell attacks apart, are not in `by`, and differ inside a group of it."""
    identity = [name for name in ("attack", "settings", "norm") if name not in by]
    if not identity:
        return []
    variants = frame.select(*by, *identity).unique().group_by(by)
    counts = variants.agg(pl.col(name).n_unique() for name in identity)
    return [name for name in identity if (counts[name] > 1).any()]


def _rank(column: str, info: RunInfo) -> pl.Expr:
    """Sort key: the order of the suite for names, the natural one for everything else."""
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
