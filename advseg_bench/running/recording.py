"""Records what workers return, and reports the progress of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from advseg_bench.errors import RecordError, UserError, expected
from advseg_bench.results import records
from advseg_bench.results.compaction import FEW, compact
from advseg_bench.results.descriptions import write_sealed
from advseg_bench.running.outcomes import LONGEST, Death, JobError, Outcome, WorkerDied
from advseg_bench.running.work import Failure, Unit, UnitResult
from advseg_bench.suite.cells import Cell

NOT_TRIED = ". It was not tried again: use --retry-failed."
"""End of the message of a failure that an earlier run has recorded."""


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a run.

    Attributes:
        stage: Current stage; "ready" is the end of a model's training; "complete" means that no row is missing;
            "note" is a line for the user, such as a damaged file of the cache that is made again.
        what: Name of the model, the line of a note, or "".
        done: Number of epochs, rows or panels done.
        total: Total number of them.
        cell: What a worker begins to attack: the label of a cell, or the number of those that run together; "" if the
            event is the end of something.
    """

    stage: Literal["load", "train", "ready", "attack", "panels", "complete", "note"]
    what: str
    done: int
    total: int
    cell: str = ""


class Recorder:
    """Writes the models and rows of a run, and collects failures and times.

    A failed model or attack does not affect the others. A full disk ends the run: every method that writes raises
    `RecordError` then, even if a worker could not write.

    Args:
        out: The run directory.
        total: Number of missing rows.
        show: Called after each model and each unit.
        models: Names of the models, in the order in which their failures are written.
        code: The code of the user's objects as the run describes it, by name.
        run: Id of the run, which labels its parts.
    """

    def __init__(
        self,
        out: Path,
        total: int,
        show: Callable[[Event], None],
        models: Sequence[str],
        code: Mapping[str, str] | None = None,
        run: str = "",
    ) -> None:
        self.failures: list[Failure] = []
        self.train_seconds: dict[str, float] = {}
        self.attack_seconds: defaultdict[str, float] = defaultdict(float)
        self._out, self._total, self._show, self._code = out, total, show, dict(code or {})
        self.run, self._models = run, list(models)
        self._done = 0
        self._written: list[Path] = []

    def record_model(self, name: str, outcome: Outcome[dict[str, Any]]) -> bool:
        """Write the entry of a model, or note its failure.

        Returns:
            Whether the model is ready.
        """
        try:
            info = outcome.result()
        except (UserError, JobError) as error:
            self._note(Failure(name, "train", None, str(error), _cause_of(error)), error)
            return False
        path = entry_of(self._out, name)
        if path.exists():
            check_weights(self._out, name, info["weights_sha256"])
        else:
            write_sealed(path, info)
        self.train_seconds[name] = info["train_seconds"] or 0.0
        self._show(Event("ready", name, 1, 1))
        return True

    def record_lost(self, source: str, cells: Iterable[Cell]) -> None:
        """Note the failure of cells whose adversarial images would be those of a model that failed."""
        for cell in cells:
            what, remedy = f"adversarial images of model {source!r}", f"See the failure of {source!r}."
            message = expected(f"attack {cell.arm.attack}", what, "a model that could not be trained", remedy)
            self._note(Failure(cell.model, "attack", cell.id, message))

    def record_unit(self, unit: Unit, outcome: Outcome[UnitResult]) -> None:
        """Write the rows of a unit and note its failures."""
        self._done += unit.rows
        try:
            result = outcome.result()
        except (UserError, JobError) as error:
            self._note(Failure(unit.model, "attack", None, str(error)), error)
            return
        if changed := next((name for name in result.code if result.code[name] != self._code.get(name)), None):
            raise RecordError(
                f"{changed}: expected the code with which the run began, got code that was changed before a worker "
                "imported it. These rows were not recorded. Run the suite again in a new --out."
            )
        if result.rows:
            self._written.append(records.write_part(self._out, result.rows, self.run))
            if len(self._written) >= FEW:
                compact(self._out, self.run, written=self._written)
                self._written = []
        for failure in result.failures:
            self._note(failure)
        self.attack_seconds[unit.model] += result.seconds
        self._show(Event("attack", unit.model, self._done, self._total))

    def record_deaths(self, model: str, cells: Sequence[Cell | None], death: Death) -> None:
        """Note cells, or a whole model if one is None, that are given up since their workers died.

        They are written at once, so that a run that is resumed does not try them again.

        Args:
            model: Name of the model.
            cells: The cells.
            death: The last of the deaths.
        """
        for cell in cells:
            self._note(Failure(model, "attack", cell.id if cell else None, death.describe(), death.cause))
        if cells:
            self.write_failures()

    def leave_out(self, rows: int) -> None:
        """Note that rows will be missing."""
        self._done += rows

    def record_lost_panel(self, model: str, cell: str, death: Death) -> None:
        """Note a picture of the report that could not be made."""
        self._note(Failure(model, "panels", cell, death.describe()))
        self.write_failures()

    def recall(self, failure: Failure) -> None:
        """Note a failure of an earlier run that is not tried again."""
        told = failure.message.removesuffix(NOT_TRIED)[: LONGEST - len(NOT_TRIED)]
        self._note(replace(failure, message=told + NOT_TRIED))

    def show_running(self, model: str, what: str) -> None:
        """Show what a worker begins to attack."""
        self._show(Event("attack", model, self._done, self._total, what))

    def write_failures(self) -> None:
        """Write the failures in the order of the models; nothing on a full disk, whose error is raised elsewhere."""
        ordered = sorted(self.failures, key=lambda failure: self._models.index(failure.model))
        with suppress(RecordError):
            write_sealed(self._out / "failures.json", [failure.as_record() for failure in ordered])

    def _note(self, failure: Failure, error: Exception | None = None) -> None:
        if isinstance(error, RecordError):
            raise error
        if failure not in self.failures:
            self.failures.append(failure)


def read_deaths(out: Path) -> list[Failure]:
    """Return the failures of an earlier run that ended their workers.

    Raises:
        RecordError: If `failures.json` is damaged.
    """
    known = [failure for failure in records.read_failures(out) if failure.get("death")]
    return [Failure(**{name: failure[name] for name in Failure.__slots__}) for failure in known]


def _cause_of(error: Exception) -> str:
    return error.death.cause if isinstance(error, WorkerDied) else ""


def check_weights(out: Path, model: str, digest: str) -> None:
    """Check that a model has the weights with which the run's rows were computed.

    Raises:
        RecordError: If the digest of its weights differs from the recorded one.
    """
    path = entry_of(out, model)
    if records.read_model(path)["weights_sha256"] != digest:
        raise RecordError(
            f"{path}: the run's rows were computed with other weights of model {model}. "
            "Restore the weights file or the cached model, or start a new run with another --out."
        )


def entry_of(out: Path, model: str) -> Path:
    """Return the file that describes a model."""
    return out / "models" / f"{model}.json"
