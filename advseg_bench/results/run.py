"""A finished or unfinished run, opened for reading: rows, scores and tables. It needs no model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from advseg_bench.errors import RecordError, expected
from advseg_bench.results import records, scores, shares, sweeps, worst
from advseg_bench.results.arms import SWEEP, WORST, find_controls, name_values
from advseg_bench.results.averages import Grouping
from advseg_bench.results.info import RunInfo, read_info
from advseg_bench.results.inspection import Inspection, inspect_parts
from advseg_bench.results.parts import UNREADABLE, Damage, count_rows, find_parts, refuse
from advseg_bench.results.rules import KEYS, Rules
from advseg_bench.results.tables import Query, Source, Tables, join_tables
from advseg_bench.suite.cells import Cell
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task


class Run:
    """The results of a run: opened from a run directory, or made in memory by `from_rows` or `ab.evaluate`.

    Args:
        path: The run directory, which was the `out` of `ab.run` or the `--out` of the command.
        strict: Whether a damaged file is an error; otherwise it is left out, and its rows are missing.

    Attributes:
        path: The run directory; None for a run in memory.
        info: The content of `run.json`: suite, data, cells, environment, command.
        about: The same, parsed and checked.
        models: Name -> properties of each model that is ready: architecture, parameters, validation Dice.
        failures: One dict for each failure, with "model", "stage", "cell" and "message".
        strict: As given.

    Raises:
        RecordError: If the directory is not a run, is damaged, or has another schema version.

    Cost:
        Rows are read and scored when they are first used; no forward or backward pass. `rows`, `scores` and `curves`
        hold all rows (about 0.4 kB each, and as much for their scores). Reports, claims and `tables` by model read one
        share of the models after the other, see the module `shares`.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> x, model = torch.linspace(0, 1, 512).reshape(2, 1, 16, 16), torch.nn.SiLU()
        >>> attacks = [ab.attacks.FGSM(loss="bce"), ab.attacks.RandomSign()]
        >>> run = ab.evaluate(model, [(x, x[:, 0] > 0.5)], attacks, task="binary", eps=4 / 255)
        >>> run.table("dice", by=("attack", "eps"))["attack"].to_list()
        ['none', 'fgsm', 'random_sign']
        >>> len(run.rows), run.planned, run.missing
        (6, 6, 0)
    """

    path: Path | None
    info: dict[str, Any]
    about: RunInfo
    models: dict[str, dict[str, Any]]
    failures: list[dict[str, Any]]
    strict: bool

    def __init__(self, path: str | Path, *, strict: bool = True) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise RecordError(expected(path, "the folder of a run", str(path), "Give the --out of a run."))
        self.path, self.info = folder, records.read_description(folder)
        self.about = read_info(self.info, folder / "run.json")
        self.strict = strict
        self.models, self.failures, self._damaged = records.read_notes(folder, self.about.models, strict=strict)
        self._start(self.about.models)

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
        run._start(run.about.models)
        run.rows = run._check_counts(records.arrange_rows(rows, {cell.id for cell in run.about.cells}), "rows")
        return run

    def _start(self, names: tuple[str, ...]) -> None:
        """Begin without any rows of some models."""
        self._names = names
        self._scored: dict[Scoring, pl.DataFrame] = {}
        self._curves: dict[Scoring, pl.DataFrame] = {}
        self._groupings: dict[tuple[str, ...], Grouping] = {}
        self._there: dict[str, dict[str, int]] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})" if self.path else f"Run of {len(self.rows):,} rows in memory"

    @cached_property
    def rows(self) -> pl.DataFrame:
        """All rows, one per cell and image, sorted by both, with the columns of `records.READ_SCHEMA`.

        Raises:
            RecordError: If the run is read strictly, and a part is damaged, belongs to another run, or has rows that
                cannot be.
        """
        assert self.path is not None, "the rows of a run in memory are set when it is made"
        rows, found = records.read_checked(self.path, self._rules, self.info.get("run", ""), strict=self.strict)
        self.__dict__["_inspection"] = found
        return rows

    @property
    def _rules(self) -> Rules:
        return Rules(self.about, self.info["images"])

    @cached_property
    def damaged(self) -> tuple[Damage, ...]:
        """The files of the run that are damaged and left out; none if the run is read strictly."""
        return (*self._damaged, *self._inspection.damaged) if self.path else ()

    @cached_property
    def _inspection(self) -> Inspection:
        """Which parts can be trusted; every row was compared with the rules of the run."""
        assert self.path is not None, "a run in memory has no parts"
        found = inspect_parts(self.path, self._rules, self.info.get("run", ""))
        if self.strict:
            refuse(found.damaged)
        return found

    def _read(self, paths: Collection[Path], columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Read the rows of some of the trusted parts."""
        return records.collect_rows([part for part in self._inspection.parts if part.path in paths], columns)

    def _check_counts(self, rows: pl.DataFrame, where: str | Path) -> pl.DataFrame:
        """Reject rows without counts for every class."""
        k = len(self.task.classes)
        if not all(rows.select(pl.col("tp", "fp", "fn").list.len().eq(k).all()).row(0)):
            raise RecordError(f"{where}: some rows lack counts of all {k} classes. Run the suite in a new --out.")
        return rows

    @property
    def task(self) -> Task:
        """The segmentation task: its type and its classes."""
        return self.about.task

    @property
    def scoring(self) -> Scoring:
        """The scoring conventions of the suite, which are the default of every method."""
        return self.about.scoring

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of all models in the order of the suite, including those that failed or are not ready."""
        return self._names

    @cached_property
    def controls(self) -> frozenset[str]:
        """Names of the attacks of this run that are noise baselines, such as "random_sign"."""
        return find_controls(self.measured_cells)

    @property
    def measured_cells(self) -> pl.DataFrame:
        """The cells that have rows, see `shares.Index.cells`; all rows need not be held for it."""
        return self._index.cells

    @cached_property
    def _index(self) -> shares.Index:
        if "rows" not in self.__dict__ and self.path and self._is_large(self.path) and not self._inspection.twice:
            return shares.index_parts([part.path for part in self._inspection.parts])
        return shares.index_rows(self.rows)

    def _is_large(self, path: Path) -> bool:
        """Return whether the run has more rows than a share; False if a part cannot be read."""
        with suppress(*UNREADABLE):
            found = find_parts(path, self.info.get("run", ""))[0]
            return bool(found) and count_rows(found) > shares.ROWS_AT_ONCE
        return False

    def split(self) -> Iterator[Run]:
        """Yield the run in shares of some models each, one after the other, such that never all rows are held.

        Yields:
            Runs in memory with the rows of some models and the noise baselines of the whole run; the run itself if it
            has no more rows than a share.
        """
        groups = self._index.group_models(self.model_names)
        if len(groups) < 2:
            yield self
            return
        for names in groups:
            share = Run.__new__(Run)
            share.path, share.info, share.about = None, self.info, self.about
            share.models, share.failures, share.controls = self.models, self.failures, self.controls
            share._start(names)
            whole = self.rows if "rows" in self.__dict__ else self._read(shares.list_parts(self._index, names))
            share.rows = whole.filter(pl.col("model").is_in(names)) if whole["model"].n_unique() > len(names) else whole
            del whole
            share._order, share._index = self._order, self._index.select(names)
            self._there |= {name: share._count_rows() for name in names}
            yield share
            share.__dict__.clear()  # the caller may still name it while the next one is read

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
        there = self._count_rows()
        counts = {cell.id: self.about.data.images - there.get(cell.id, 0) for cell in self._live}
        return {cell: count for cell, count in counts.items() if count > 0}

    def _count_rows(self) -> dict[str, int]:
        """Return the number of images of each cell with rows."""
        if "rows" in self.__dict__ or not self._index.paths:
            return dict(self.rows.group_by("cell").len().iter_rows())
        for name, paths in self._index.paths.items():
            if name not in self._there:
                keys = self._read(paths, KEYS)
                self._there[name] = dict(keys.group_by("cell").len().iter_rows())
        return {cell: count for counts in self._there.values() for cell, count in counts.items()}

    def scores(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return the rows with their scores, and with the clean scores of the same image.

        Args:
            scoring: Scoring conventions; those of the suite if None.

        Returns:
            `rows` with the float64 columns of `scores.ROW_SCORES`, null where a score is undefined; below them the
            rows of the worst case over the attacks, as those of an attack "worst_case" (see the module `worst`). The
            result is cached for each `scoring`.

        Cost:
            All rows and their scores are held, about 1 kB for each row.
        """
        scoring = scoring or self.scoring
        if scoring not in self._scored:
            scored = scores.score_rows(self.rows, self.task, scoring)
            self._scored[scoring] = worst.add_worst_case(scored, self.controls, self._order)
        return self._scored[scoring]

    def find_members(self, norm: str, eps: float) -> pl.DataFrame:
        """Return the row of the attack that is the worst of each image at a budget, see `worst.find_members`."""
        scored = self.scores().filter(pl.col("norm") == norm, pl.col("eps") == eps)
        return worst.find_members(scored, self.controls, self._order)

    def curves(self, scoring: Scoring | None = None) -> pl.DataFrame:
        """Return the scores of each image over a sweep of eps.

        Args:
            scoring: Scoring conventions; those of the suite if None.

        Returns:
            One row per image and sweep: the columns that identify it, `dice_clean`, `area` (0 to 1) and `smallest_eps`
            (in units of the image), see `sweeps.score_curves`. The result is cached for each `scoring`.
        """
        scoring = scoring or self.scoring
        if scoring not in self._curves:
            scored = self.scores(scoring)
            worst_cases = scored.lazy().filter(pl.col("attack") == WORST).select(*SWEEP, "eps").unique().collect()
            planned = pl.concat([self._list_sweeps(), worst_cases]).unique()
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
            A run of more rows than `shares.ROWS_AT_ONCE` whose `rows` were not asked for is read in shares at each
            call if "model" is in `by`; so ask for several scores at once.
        """
        by = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
        if "model" in by and "rows" not in self.__dict__ and len(self._index.group_models(self.model_names)) > 1:
            return self._join(names, by, where=where, scoring=scoring, level=level)
        query = Query(by, where or {}, scoring or self.scoring, level)
        sources: dict[Source, list[str]] = {}
        for name in names:
            sources.setdefault(query.find_source(name), []).append(name)
        found: dict[str, pl.DataFrame] = {}
        for source, mine in sources.items():
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
        found = {}
        for name in names:
            mine = [part[name] for part in parts]
            table = join_tables(mine, self.about)
            if table is None:  # only some models have several attacks in a group
                columns = max((part.columns for part in mine), key=len)
                table = self.table(name, columns[: columns.index("mean")], **options)
            found[name] = table
        return found

    @cached_property
    def _order(self) -> dict[str, int]:
        """Id of each cell -> its place in the plan."""
        return {cell.id: i for i, cell in enumerate(self.about.cells)}

    def _list_sweeps(self) -> pl.DataFrame:
        """Return the columns of `SWEEP` and `eps` of every planned cell, and of worst cases that are not complete."""
        same = {"dataset": self.about.data.name}
        planned = [(cell.model, cell.eps, cell.arm) for cell in self._live]
        planned += worst.find_incomplete(self._live, self.controls, self.missing_by_cell)
        return pl.DataFrame(
            [same | {"model": model, "eps": eps} | name_values(arm) for model, eps, arm in planned],
            schema={name: records.READ_SCHEMA[name] for name in (*SWEEP, "eps")},
        )
