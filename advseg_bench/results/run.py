"""A finished or unfinished run, opened for reading: rows, scores and tables. It needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from advseg_bench.errors import RecordError, expected
from advseg_bench.results import records, scores, sweeps, worst
from advseg_bench.results.arms import SWEEP, WORST, find_controls
from advseg_bench.results.averages import Grouping
from advseg_bench.results.info import RunInfo, read_info
from advseg_bench.results.parts import Damage
from advseg_bench.results.remote import fetch
from advseg_bench.results.store import Held, Store, Stored, hold
from advseg_bench.results.tables import Query, Tables, join_tables
from advseg_bench.suite.cells import Cell
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task


class Run:
    """The results of a run: opened from a run directory, or made in memory by `from_rows` or `ab.evaluate`.

    Args:
        path: The run directory, which was the `out` of `ab.run` or the `--out` of the command; also a URL.
        strict: Whether a damaged file is an error; otherwise it is left out, and its rows are missing.

    Attributes:
        path: The run directory, for a URL the folder into which it was downloaded; None for a run in memory.
        info: The content of `run.json`: suite, data, cells, environment, command.
        about: The same, parsed and checked.
        models: Name -> properties of each model that is ready: architecture, parameters, validation Dice.
        model_names: Names of all models in the order of the suite, including those that failed or are not ready.
        failures: One dict for each failure, with "model", "stage", "cell" and "message".
        strict: As given.

    Raises:
        RecordError: If the directory is not a run, is damaged, or has another schema version.

    Cost:
        No forward or backward pass. `rows`, `scores` and `curves` read and hold all rows, about 1 kB each with scores;
        reports, claims and tables by model read one share of the models after the other, see the module `shares`.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> x, model = torch.linspace(0, 1, 512).reshape(2, 1, 16, 16), torch.nn.SiLU()
        >>> attacks = [ab.attacks.FGSM(loss="bce"), ab.attacks.RandomSign()]
        >>> run = ab.evaluate(model, [(x, x[:, 0] > 0.5)], attacks, task="binary", eps=4 / 255)
        >>> run.table("dice", by=("attack", "eps"))["attack"].to_list()
        ['none', 'fgsm', 'random_sign']
        >>> assert len(run.rows) == run.planned
    """

    path: Path | None
    info: dict[str, Any]
    about: RunInfo
    models: dict[str, dict[str, Any]]
    failures: list[dict[str, Any]]
    model_names: tuple[str, ...]
    strict: bool

    def __init__(self, path: str | Path, *, strict: bool = True) -> None:
        folder = fetch(path)
        if not folder.is_dir():
            raise RecordError(expected(path, "the folder of a run", str(path), "Give the --out of a run."))
        self.path, self.info = folder, records.read_description(folder)
        self.about = read_info(self.info, folder / "run.json")
        self.strict = strict
        self.models, self.failures, self._damaged = records.read_notes(folder, self.about.models, strict=strict)
        self._start(Stored(folder, self.about, self.info, strict=strict), self.about.models)

    @classmethod
    def from_rows(
        cls,
        info: Mapping[str, Any],
        rows: pl.DataFrame,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        failures: Sequence[Mapping[str, Any]] = (),
    ) -> Run:
        """Make a run from rows in memory. It has all tables and scores, but no images for the report.

        Args:
            info: The description, with the content of a `run.json`.
            rows: A frame with the columns of `records.ROW_SCHEMA`, one row per cell and image, in any order.
            models: The attribute `models`; empty if None.
            failures: The attribute `failures`.

        Returns:
            The run, with `path` None.

        Raises:
            RecordError: If an entry of the description or a column of the rows is missing or of the wrong type.
        """
        run = cls.__new__(cls)
        run.path, run.info, run.about, run.strict = None, dict(info), read_info(info, "info"), True
        run.models = {name: dict(model) for name, model in (models or {}).items()}
        run.failures = [dict(failure) for failure in failures]
        run._start(hold(rows, run.about), run.about.models)
        return run

    def _start(self, store: Store, names: tuple[str, ...]) -> None:
        """Begin with rows of some models, before anything was computed."""
        self._store, self.model_names = store, names
        self._scored: dict[Scoring, pl.DataFrame] = {}
        self._curves: dict[Scoring, pl.DataFrame] = {}
        self._groupings: dict[tuple[str, ...], Grouping] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})" if self.path else f"Run of {len(self.rows):,} rows in memory"

    @property
    def rows(self) -> pl.DataFrame:
        """All rows, one per cell and image, sorted by both, with the columns of `records.READ_SCHEMA`.

        Raises:
            RecordError: If the run is read strictly, and a part is damaged, belongs to another run, or has rows that
                cannot be.
        """
        return self._store.rows

    @property
    def damaged(self) -> tuple[Damage, ...]:
        """The files of the run that are damaged and left out; none if the run is read strictly."""
        return (*self._damaged, *self._store.damaged) if self.path else ()

    @property
    def measured_cells(self) -> pl.DataFrame:
        """The cells that have rows, see `shares.Index.cells`."""
        return self._store.index.cells

    def split(self) -> Iterator[Run]:
        """Yield the run in shares of some models each, one after the other, such that never all rows are held.

        Yields:
            Runs in memory with the rows of some models and the noise baselines of the whole run, each to be used before
            the next one; the run itself if it has no more rows than a share.
        """
        groups = self._store.index.group_models(self.model_names)
        if len(groups) < 2:
            yield self
            return
        for names in groups:
            share = Run.__new__(Run)
            share.path, share.info, share.about, share.strict = None, self.info, self.about, True
            share.models, share.failures = self.models, self.failures
            share._start(Held(self._store.read(names), self._store.index.select(names)), names)
            share.controls = self.controls
            yield share
            share.__dict__.clear()  # the caller may still name it while the next one is read

    @property
    def task(self) -> Task:
        """The segmentation task: its type and its classes."""
        return self.about.task

    @property
    def scoring(self) -> Scoring:
        """The scoring conventions of the suite, which are the default of every method."""
        return self.about.scoring

    @cached_property
    def controls(self) -> frozenset[str]:
        """Names of the attacks of this run that are noise baselines, such as "random_sign"."""
        return find_controls(self.measured_cells)

    @property
    def planned(self) -> int:
        """Number of (cell, image) pairs of the suite, without skipped cells."""
        return self.about.data.images * len(self._live)

    @cached_property
    def _live(self) -> tuple[Cell, ...]:
        """The cells of the models that are to be run."""
        names = set(self.model_names)
        return tuple(cell for cell in self.about.cells if cell.skip is None and cell.model in names)

    @property
    def missing(self) -> int:
        """Number of planned (cell, image) pairs without a row, because they failed or are not computed yet."""
        return sum(self.missing_by_cell.values())

    @cached_property
    def missing_by_cell(self) -> dict[str, int]:
        """Id of each incomplete planned cell -> its number of images without a row."""
        there = self._store.count()
        counts = {cell.id: self.about.data.images - there.get(cell.id, 0) for cell in self._live}
        return {cell: count for cell, count in counts.items() if count > 0}

    def scores(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return the rows with their scores, and with the clean scores of the same image.

        Args:
            scoring: Scoring conventions; those of the suite if None.

        Returns:
            `rows` with the float64 columns of `scores.ROW_SCORES`, null where a score is undefined; below them the
            rows of the worst case over the attacks, as those of an attack "worst_case" (see the module `worst`). The
            result is cached for each `scoring`.
        """
        if (scoring := scoring or self.scoring) not in self._scored:
            scored = scores.score_rows(self.rows, self.task, scoring)
            self._scored[scoring] = worst.add_worst_case(scored, self.controls, self.about.places)
        return self._scored[scoring]

    def find_members(self, **point: str | float) -> pl.DataFrame:
        """Return the row of the attack that is the worst of each image, at one norm or eps."""
        return worst.find_members(self.scores().filter(**point), self.controls, self.about.places)

    def curves(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return the scores of each image over a sweep of eps.

        Args:
            scoring: Scoring conventions; those of the suite if None.

        Returns:
            One row per image and sweep: the columns that identify it, `dice_clean`, `area` (0 to 1) and `smallest_eps`
            (in units of the image), see `sweeps.score_curves`. The result is cached for each `scoring`.
        """
        if (scoring := scoring or self.scoring) not in self._curves:
            scored = self.scores(scoring)
            worst_cases = scored.lazy().filter(pl.col("attack") == WORST).select(*SWEEP, "eps").unique().collect()
            arms = [(cell.model, cell.eps, cell.arm) for cell in self._live]
            arms += worst.find_incomplete(self._live, self.controls, self.missing_by_cell)
            planned = pl.concat([sweeps.list_sweeps(self.about.data.name, arms), worst_cases]).unique()
            self._curves[scoring] = sweeps.score_curves(scored, scoring, planned)
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

        The value of an image is its mean over all columns that are not in `by`, such as repeats; the value of a subject
        is the mean of its images; `mean` is the mean of the subjects. "diff" and "diff_released" are computed from such
        means of the clean and the attacked Dice of the same images. Pooled scores sum the counts of all images of a
        cell instead.

        Where at least two attacks were run, the worst case over them, image by image, has rows as an attack
        "worst_case"; that of a pooled score is of the data set.

        Different attacks are never averaged: if rows of two attacks, settings or norms would be in one group, these
        columns are added after `by`.

        Args:
            score: One of `results.tables.SCORES`, such as "dice", "drop", "diff" or "apsr".
            by: Columns of the rows that define the groups; also "class" for Dice, IoU and scores derived from them.
            where: Column -> the value, or the list of values, of the rows to keep.
            scoring: Scoring conventions; those of the suite if None.
            level: Confidence level of the interval, above 0 and up to 0.999.

        Returns:
            One row per group in the order of the suite: `by`, `mean`, `lower`, `upper`, `n_images` (with a score) and
            `n_subjects`. `lower` and `upper`, from `stats.subject_intervals`, are null for fewer than five subjects,
            for ratios of means and for pooled scores.

        Raises:
            SpecError: If a score or column is unknown (the message names the nearest one), or the level is out of
                range.
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
        """Average several scores at once, as `table` does; the rows are grouped only once.

        Args:
            names: Names of scores.
            by: As for `table`.
            where: As for `table`.
            scoring: As for `table`.
            level: As for `table`.

        Returns:
            Name of each score -> its table.

        Raises:
            SpecError: As `table`.

        Cost:
            A run of several shares whose `rows` were not used is read at each call: ask for several scores at once.
        """
        by = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
        if "model" in by and self._store.divided:
            return self._join(names, by, where=where, scoring=scoring, level=level)
        query = Query(by, where or {}, scoring or self.scoring, level)
        found: Tables = {}
        for source, mine in query.find_sources(names).items():
            if source == "counts":
                for name in mine:  # each has its own worst case
                    frame = query.add_pooled_worst_case(name, self.rows, self.controls, self.task)
                    found |= query.make_tables([name], source, frame, self.about, self._groupings)
                continue
            frame = self.curves(query.scoring) if source == "curves" else self.scores(query.scoring)
            found |= query.make_tables(mine, source, frame, self.about, self._groupings)
        return {name: found[name] for name in names}

    def _join(self, names: Sequence[str], by: tuple[str, ...], **options: Any) -> Tables:
        """Make the tables of `tables` by reading one share after the other."""
        parts = [share.tables(names, by, **options) for share in self.split()]
        joined = {name: join_tables([part[name] for part in parts], self.about) for name in names}
        return {n: self.table(n, by, **options) if table is None else table for n, (table, by) in joined.items()}
