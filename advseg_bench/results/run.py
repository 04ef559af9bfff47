"""A finished or unfinished run, opened for reading: rows, scores and tables. No model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from advseg_bench.errors import RecordError, expected
from advseg_bench.results import records, scores, sweeps
from advseg_bench.results.arms import SWEEP, find_controls, name_values
from advseg_bench.results.averages import Grouping
from advseg_bench.results.info import RunInfo, read_info
from advseg_bench.results.tables import Query, Source
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task


class Run:
    """A run: of a run directory, or `from_rows` in memory.

    Args:
        path: What was given to `run` as `out`.

    Attributes:
        path: The directory; None of a run in memory.
        info: `run.json`: suite, data, cells, environment, command.
        about: The same, read and checked.
        models: Name -> what is known about each model that is ready: architecture, parameters, validation Dice.
        failures: What failed: dicts with "model", "stage", "cell" and "message".

    Raises:
        RecordError: If the directory holds no run, is damaged, or is of another schema version.

    Example:
        >>> run = Run("runs/quick")                               # doctest: +SKIP
        >>> run.table("dice", by=("model", "loss", "eps"))        # doctest: +SKIP
    """

    path: Path | None
    info: dict[str, Any]
    about: RunInfo
    models: dict[str, dict[str, Any]]
    failures: list[dict[str, Any]]

    def __init__(self, path: str | Path) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise RecordError(expected(path, "the folder of a run", str(path), "Give the --out of a run."))
        self.path, self.info = folder, records.read_description(folder)
        self.about = read_info(self.info, folder / "run.json")
        self.models = {path.stem: records.read_model(path) for path in sorted((folder / "models").glob("*.json"))}
        self.failures = records.read_failures(folder)
        self._scored: dict[Scoring, pl.DataFrame] = {}
        self._curves: dict[Scoring, pl.DataFrame] = {}
        self._groupings: dict[tuple[str, ...], Grouping] = {}

    @classmethod
    def from_rows(
        cls,
        info: Mapping[str, Any],
        rows: pl.DataFrame,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        failures: Sequence[Mapping[str, Any]] = (),
    ) -> Run:
        """Make a run of rows that lie in memory. It has every table and score, and no pictures of cases.

        Args:
            info: What `run.json` would hold.
            rows: A frame with the columns of `records.ROW_SCHEMA`, one row per cell and image.
            models: As the attribute.
            failures: As the attribute.

        Raises:
            RecordError: If the description or the rows lack something.
        """
        run = cls.__new__(cls)
        run.path, run.info, run.about = None, dict(info), read_info(info, "info")
        run.models = {name: dict(model) for name, model in (models or {}).items()}
        run.failures = [dict(failure) for failure in failures]
        run._scored, run._curves, run._groupings = {}, {}, {}
        run.rows = run._check_counts(records.arrange_rows(rows, {cell.id for cell in run.about.cells}), "rows")
        return run

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})" if self.path else f"Run of {len(self.rows):,} rows in memory"

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Every row, one per cell and image, sorted by both; columns of `records.READ_SCHEMA`.

        Raises:
            RecordError: As `records.read_rows`, or if rows lack counts of some classes.
        """
        assert self.path is not None, "a run in memory has its rows"
        rows = records.read_rows(self.path, cells={cell.id for cell in self.about.cells})
        return self._check_counts(rows, self.path / "parts")

    def _check_counts(self, rows: pl.DataFrame, where: str | Path) -> pl.DataFrame:
        """Refuse rows that do not count every class."""
        k = len(self.task.classes)
        if not all(rows.select(pl.col("tp", "fp", "fn").list.len().eq(k).all()).row(0)):
            raise RecordError(f"{where}: rows that lack counts of all {k} classes. Run the suite in a new --out.")
        return rows

    @property
    def task(self) -> Task:
        """What the model decides at each pixel."""
        return self.about.task

    @property
    def scoring(self) -> Scoring:
        """The suite's own conventions, the default of every method."""
        return self.about.scoring

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models in the order of the suite, those that failed or are not ready included."""
        return self.about.models

    @cached_property
    def controls(self) -> frozenset[str]:
        """Attacks of this run that never ask the model, such as random signs."""
        return find_controls(self.rows)

    @property
    def planned(self) -> int:
        """Number of (cell, image) pairs that the suite asks for, skipped cells left out."""
        return self.about.data.images * sum(cell.skip is None for cell in self.about.cells)

    @property
    def missing(self) -> int:
        """Number of planned (cell, image) pairs without a row: not computed yet, or failed."""
        return sum(self.missing_by_cell.values())

    @cached_property
    def missing_by_cell(self) -> dict[str, int]:
        """The number of images without a row for each planned cell that lacks any."""
        there = dict(self.rows.group_by("cell").len().iter_rows())
        live = [cell.id for cell in self.about.cells if cell.skip is None]
        counts = {cell: self.about.data.images - there.get(cell, 0) for cell in live}
        return {cell: count for cell, count in counts.items() if count > 0}

    def scores(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return the rows with their scores and the clean values of the same image beside them.

        Args:
            scoring: Conventions; the suite's own if None.

        Returns:
            `rows` with the columns of `scores.ROW_SCORES`. Computed once for each `scoring`.
        """
        scoring = scoring or self.scoring
        if scoring not in self._scored:
            self._scored[scoring] = scores.score_rows(self.rows, self.task, scoring)
        return self._scored[scoring]

    def curves(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return one row per image and sweep of eps: `area` and `smallest_eps`, see `sweeps.score_curves`.

        Computed once for each `scoring`.
        """
        scoring = scoring or self.scoring
        if scoring not in self._curves:
            self._curves[scoring] = sweeps.score_curves(self.scores(scoring), scoring, self._list_sweeps())
        return self._curves[scoring]

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

        Returns:
            One row per group in the order of the suite: `by`, `mean`, `lower`, `upper`, `n_images` (with a score) and
            `n_subjects`. `lower` and `upper`, from `stats.subject_intervals`, are null under five subjects, and for
            ratios of means and pooled scores.

        Raises:
            SpecError: Naming the nearest name for an unknown score or column, or if the level is out of range.
        """
        return self.tables((score,), by, where=where, scoring=scoring, level=level)[score]

    def tables(
        self,
        names: Sequence[str],
        by: str | Sequence[str],
        *,
        where: Mapping[str, object] | None = None,
        scoring: Scoring | None = None,
        level: float = 0.95,
    ) -> dict[str, pl.DataFrame]:
        """Average several scores over the same images and subjects, whose groups are found once.

        Args:
            names: Some of `SCORES`.
            by: As for `table`.
            where: As for `table`.
            scoring: As for `table`.
            level: As for `table`.

        Returns:
            Name -> what `table` returns.

        Raises:
            SpecError: As `table`.
        """
        by = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
        query = Query(by, where or {}, scoring or self.scoring, level)
        sources: dict[Source, list[str]] = {}
        for name in names:
            sources.setdefault(query.find_source(name), []).append(name)
        found: dict[str, pl.DataFrame] = {}
        for source, mine in sources.items():
            if source == "curves":
                frame = self.curves(query.scoring)
            else:
                frame = self.scores(query.scoring) if source == "scores" else self.rows
            found |= query.make_tables(mine, source, frame, self.about, self._groupings)
        return {name: found[name] for name in names}

    def _list_sweeps(self) -> pl.DataFrame:
        """The columns of `SWEEP` and `eps` of every cell that was to be run."""
        same = {"dataset": self.about.data.name}
        cells = [cell for cell in self.about.cells if cell.skip is None]
        return pl.DataFrame(
            [same | {"model": cell.model, "eps": cell.eps} | name_values(cell.arm) for cell in cells],
            schema={name: records.READ_SCHEMA[name] for name in (*SWEEP, "eps")},
        )
