"""A finished or unfinished run, opened for reading: rows, scores and tables. No model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from advseg_bench.errors import RecordError, SpecError, expected, unknown
from advseg_bench.results import averages, records, scores, selection
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task

POOLED_SCORES = ("pooled_dice", "pooled_iou")
RATIOS = {"diff": ("dice", "dice_clean"), "diff_released": ("dice_released", "dice_released_clean")}
"""Scores that are 1 less the ratio of two means."""

SCORES = (*scores.ROW_SCORES, *RATIOS, *POOLED_SCORES, *scores.CURVE_SCORES)
"""Every score that `Run.table` knows; `scores` defines them."""

_CELL_COLUMNS = (*scores.SWEEP, "eps", "draw", "cell")
_IMAGE_COLUMNS = ("image", "subject", "block")
_COUNTS = ("tp", "fp", "fn", "flags")


class Run:
    """A run directory.

    Args:
        path: What was given to `run` as `out`.

    Attributes:
        path: The directory.
        info: `run.json`: suite, data, cells, environment, command.
        task: What the model decides at each pixel.
        scoring: The suite's own conventions, the default of every method.
        models: Name -> what is known about each model that is ready: architecture, parameters, validation Dice.
        failures: What failed: dicts with "model", "stage", "cell" and "message".

    Raises: RecordError: if the directory holds no run, is damaged, or is of another schema version.

    Example:
        >>> run = Run("runs/quick")                               # doctest: +SKIP
        >>> run.table("dice", by=("model", "loss", "eps"))        # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise RecordError(expected(path, "the folder of a run", str(path), "Give the --out of a run."))
        self.info = records.read_description(self.path)
        try:
            data = self.info["data"]
            self.task = Task(data["kind"], tuple(data["classes"]))
            self.scoring = Scoring.model_validate(self.info["suite"].get("scoring", {}))
            self._live = [cell["id"] for cell in self.info["cells"] if cell["skip"] is None]
            self._planned_images = int(data["splits"]["test"])
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise RecordError(
                f"{self.path / 'run.json'}: is damaged ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Restore it, or run the suite again in a new --out."
            ) from None
        self.models = {path.stem: records.read_model(path) for path in sorted((self.path / "models").glob("*.json"))}
        self.failures = records.read_failures(self.path)
        self._scored: dict[tuple[str, Scoring], pl.DataFrame] = {}
        self._tables: dict[tuple[object, ...], pl.DataFrame] = {}
        self._groupings: dict[tuple[object, ...], averages.Grouping] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Every stored row, one per cell and image, sorted by both; columns of `records.READ_SCHEMA`.

        Raises: RecordError: as `records.read_rows`, or if rows lack counts of some classes.
        """
        rows = records.read_rows(self.path, cells={cell["id"] for cell in self.info["cells"]})
        k = len(self.task.classes)
        if not all(rows.select(pl.col("tp", "fp", "fn").list.len().eq(k).all()).row(0)):
            raise RecordError(
                f"{self.path / 'parts'}: rows that lack counts of all {k} classes. Run the suite in a new --out."
            )
        return rows

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models in the order of the suite, those that failed or are not ready included."""
        return tuple(dict.fromkeys(cell["model"] for cell in self.info["cells"]))

    @property
    def of_volumes(self) -> bool:
        """Whether each image is a whole volume."""
        return isinstance(self.info["suite"]["data"].get("size"), (list, tuple))

    @cached_property
    def controls(self) -> frozenset[str]:
        """Attacks of this run that never ask the model, such as random signs."""
        return selection.find_controls(self.rows)

    @property
    def planned(self) -> int:
        """Number of (cell, image) pairs that the suite asks for, skipped cells left out."""
        return len(self._live) * self._planned_images

    @property
    def missing(self) -> int:
        """Number of planned (cell, image) pairs without a row: not computed yet, or failed."""
        return sum(self.missing_by_cell().values())

    def missing_by_cell(self) -> dict[str, int]:
        """Return the number of images without a row for each planned cell that lacks any."""
        there = dict(self.rows.group_by("cell").len().iter_rows())
        counts = {cell: self._planned_images - there.get(cell, 0) for cell in self._live}
        return {cell: count for cell, count in counts.items() if count > 0}

    def scores(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return the rows with their scores and the clean values of the same image beside them.

        Args:
            scoring: Conventions; the suite's own if None.
        Returns: `rows` with the columns of `scores.ROW_SCORES`. Computed once for each `scoring`.
        """
        return self._score_once("rows", scoring)

    def curves(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return one row per image and sweep of eps: `area` and `smallest_eps`, see `scores.score_curves`."""
        return self._score_once("curves", scoring)

    def table(
        self,
        score: str = "dice",
        by: str | Sequence[str] = ("model", "loss", "eps"),
        *,
        where: Mapping[str, object] | None = None,
        scoring: Scoring | None = None,
        level: float = 0.95,
    ) -> pl.DataFrame:
        """Average a score over images and subjects.

        An image's value is its mean over everything that `by` leaves out, such as draws; a subject's is the
        mean of its images; `mean` is the mean of the subjects. "diff" and "diff_released" are made from such means of
        the clean and the attacked Dice of the same images. Pooled scores sum counts over all images of a cell instead.

        Different attacks are never averaged: where `by` leaves rows of two attacks, settings or norms in one
        group, these columns are added after `by`.

        Args:
            score: One of `SCORES`.
            by: Columns of the rows that make the groups; also "class" for scores made of one class's counts.
            where: Column -> the value, or the list of values, of the rows to keep.
            scoring: Conventions; the suite's own if None.
            level: Confidence level of the interval, above 0 and up to 0.999.
        Returns: One row per group in the order of the suite: `by`, `mean`, `lower`, `upper`, `n_images` (with
            a score) and `n_subjects`. `lower` and `upper`, from `stats.subject_intervals`, are null under five
            subjects, and for ratios of means and pooled scores.
        Raises: SpecError: naming the nearest name for an unknown score or column, or if the level is out of range.
        """
        by = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
        key = (score, by, repr(dict(where or {})), scoring or self.scoring, level)
        if key not in self._tables:
            self._tables[key] = self._make_table(score, by, where or {}, scoring or self.scoring, level)
        return self._tables[key].clone()

    def extremes(self) -> list[dict[str, Any]]:
        """Return the best and the worst case of each model, see `selection.find_extremes`."""
        return selection.find_extremes(self)

    def _score_once(self, what: str, scoring: Scoring | None) -> pl.DataFrame:
        """Scores of "rows" or "curves", kept for the next call."""
        scoring = scoring or self.scoring
        key = (what, scoring)
        if key not in self._scored:
            if what == "curves":
                self._scored[key] = scores.score_curves(self.scores(scoring), scoring, self._list_sweeps())
            else:
                self._scored[key] = scores.score_rows(self.rows, self.task, scoring)
        return self._scored[key]

    def _list_sweeps(self) -> pl.DataFrame:
        """The columns of `scores.SWEEP` and `eps` of every cell that was to be run."""
        columns = [*scores.SWEEP, "eps"]
        active = [{"dataset": self.info["data"]["name"]} | c for c in self.info["cells"] if c["skip"] is None]
        return pl.DataFrame(
            {name: [cell[name] for cell in active] for name in columns},
            schema={name: records.READ_SCHEMA[name] for name in columns},
        )

    def _make_table(
        self, score: str, by: tuple[str, ...], where: Mapping[str, object], scoring: Scoring, level: float
    ) -> pl.DataFrame:
        """What `table` returns."""
        frame = self._find_values(score, by, where, scoring)
        by = (*by, *_find_mixed(frame, by))
        if score in POOLED_SCORES:
            table = scores.pool_counts(frame, self.task, scoring, by).select(
                *by,
                pl.col(score).alias("mean"),
                *(pl.lit(None, dtype=pl.Float64).alias(end) for end in ("lower", "upper")),
                pl.col("n_images", "n_subjects").cast(pl.Int64),
            )
        else:
            key = (by, repr(dict(where)), score in scores.CURVE_SCORES, "class" in {*by, *where})
            if key not in self._groupings:
                self._groupings[key] = averages.group_rows(frame, by)
            parts = [frame[part] for part in RATIOS.get(score, (score,))]
            table = averages.make_table(self._groupings[key], parts, level)
        return table.cast({pl.Categorical(): pl.String}).sort([self._rank(name) for name in by])

    def _find_values(
        self, score: str, by: Sequence[str], where: Mapping[str, object], scoring: Scoring
    ) -> pl.DataFrame:
        """The rows behind a table, with the columns that it needs and no others, after a check of the names."""
        if score not in SCORES:
            raise SpecError(unknown("score", "score", score, SCORES))
        parts = RATIOS.get(score, (score,))
        classes = "class" in {*by, *where} and {*parts} <= {*scores.CLASS_SCORES}
        if score in scores.CURVE_SCORES:
            frame = self.curves(scoring)
        elif score in POOLED_SCORES or classes:
            frame = self.rows
        else:
            frame = self.scores(scoring)
        if not by:
            raise SpecError(expected("by", "at least one column", tuple(by), 'Use by="model", for one.'))
        for name in by:
            _check_column(name, "by", frame, classes)
        kept = {}
        for name, value in where.items():
            _check_column(name, "where", frame, classes)
            values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
            kept[name] = pl.col(name).is_in(values)
        columns = ("cell", *_COUNTS) if score in POOLED_SCORES else parts
        needed = dict.fromkeys((*by, "attack", "settings", "norm", "subject", "image", *columns))
        if classes:
            early = pl.all_horizontal(pl.lit(True), *(kept[name] for name in kept if name != "class"))
            clean = pl.col("attack") == "none"  # which the others are compared with
            wanted = needed | dict.fromkeys(kept)
            names = dict.fromkeys((*wanted, "attack", *scores.CLEAN_KEYS, *_COUNTS))
            counted = frame.select(name for name in names if name in frame.columns).filter(early | clean)
            frame = scores.score_classes(counted, self.task, scoring, list(wanted))
        return frame.lazy().filter(pl.lit(True), *kept.values()).select(*needed).collect()

    def _rank(self, column: str) -> pl.Expr:
        """Sort key: the order of the suite for names, the natural one for everything else."""
        if column == "class":
            known = list(self.task.classes)
        elif column in ("model", "attack", "loss", "settings", "norm"):
            known = list(dict.fromkeys(cell[column] for cell in self.info["cells"]))
        else:
            return pl.col(column)
        places = range(len(known))
        return pl.col(column).replace_strict(known, places, default=len(known), return_dtype=pl.Int64)


def _check_column(name: str, where: str, frame: pl.DataFrame, classes: bool) -> None:
    """Refuse a column that cannot make groups."""
    known = [column for column in (*_CELL_COLUMNS, *_IMAGE_COLUMNS) if column in frame.columns]
    known += ["class"] if classes else []
    if name not in known:
        raise SpecError(unknown(where, "column", name, known))


def _find_mixed(frame: pl.DataFrame, by: Sequence[str]) -> list[str]:
    """Columns that tell attacks apart, are not in `by`, and differ inside a group of it."""
    identity = [name for name in ("attack", "settings", "norm") if name not in by]
    if not identity:
        return []
    variants = frame.select(*by, *identity).unique().group_by(by)
    counts = variants.agg(pl.col(name).n_unique() for name in identity)
    return [name for name in identity if (counts[name] > 1).any()]
