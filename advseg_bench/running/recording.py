"""Writes down what workers return, and says how far the run has come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from advseg_bench.cache import write_json
from advseg_bench.errors import RecordError, UserError
from advseg_bench.results import records
from advseg_bench.running.outcomes import JobError, Outcome
from advseg_bench.running.work import Failure, Unit, UnitResult


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show: a model's training, or the run's attacks, has come so far.

    Attributes:
        stage: What is being done; "ready" is the end of a model's training.
        what: A model's name, or "".
        done: Epochs, rows or panels.
        total: Of so many.
    """

    stage: Literal["load", "train", "ready", "attack", "panels"]
    what: str
    done: int
    total: int


class Recorder:
    """Writes the models and rows of a run, and notes its failures and times.

    A model or an attack at fault costs the others nothing. A full disk ends the run: every method that writes raises
    `RecordError` then, also if it was a worker that could not write.

    Args:
        out: The run directory.
        total: Rows that are missing.
        show: Told of each model and each unit.
    """

    def __init__(self, out: Path, total: int, show: Callable[[Event], None]) -> None:
        self.failures: list[Failure] = []
        self.train_seconds: dict[str, float] = {}
        self.attack_seconds: defaultdict[str, float] = defaultdict(float)
        self._out, self._total, self._show = out, total, show
        self._done = 0

    def record_model(self, name: str, outcome: Outcome[dict[str, Any]]) -> bool:
        """Write a model's entry.

        Returns:
            False if the model failed, which is noted.
        """
        try:
            info = outcome.result()
        except (UserError, JobError) as error:
            self._note(Failure(name, "train", None, str(error)), error)
            return False
        path = _entry_of(self._out, name)
        if path.exists():
            check_weights(self._out, name, info["weights_sha256"])
        else:
            write_json(path, info)
        self.train_seconds[name] = info["train_seconds"] or 0.0
        self._show(Event("ready", name, 1, 1))
        return True

    def record_unit(self, unit: Unit, outcome: Outcome[UnitResult]) -> None:
        """Write a unit's rows and note what failed in it."""
        self._done += unit.rows
        try:
            result = outcome.result()
        except (UserError, JobError) as error:
            self._note(Failure(unit.model, "attack", None, str(error)), error)
            return
        if result.rows:
            records.write_part(self._out, result.rows)
        for failure in result.failures:
            self._note(failure)
        self.attack_seconds[unit.model] += result.seconds
        self._show(Event("attack", unit.model, self._done, self._total))

    def write_failures(self, models: Sequence[str]) -> None:
        """Write what failed, in the order of the models; on a full disk nothing, for that error has been raised."""
        ordered = sorted(self.failures, key=lambda failure: models.index(failure.model))
        with suppress(RecordError):
            write_json(self._out / "failures.json", [asdict(failure) for failure in ordered])

    def _note(self, failure: Failure, error: Exception | None = None) -> None:
        if isinstance(error, RecordError):
            raise error
        if failure not in self.failures:
            self.failures.append(failure)


def check_weights(out: Path, model: str, digest: str) -> None:
    """Refuse a model that is not the one which the run's rows were made with.

    Raises:
        RecordError: If its weights have another digest than those of the record.
    """
    path = _entry_of(out, model)
    if records.read_model(path)["weights_sha256"] != digest:
        raise RecordError(
            f"{path}: the run's rows were made with other weights of model {model}. "
            "Restore the weights file or the cached model, or start again in a new --out."
        )


def _entry_of(out: Path, model: str) -> Path:
    """Where a model is described."""
    return out / "models" / f"{model}.json"
