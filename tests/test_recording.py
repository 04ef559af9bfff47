"""What is written of models and units, what of failures, and which errors end a run."""

from __future__ import annotations

import pytest

from advseg_bench.errors import RecordError, TrainingError
from advseg_bench.results.records import read_failures, read_model
from advseg_bench.running.outcomes import JobError, Outcome
from advseg_bench.running.recording import Event, Recorder
from advseg_bench.running.work import Failure, Unit, UnitResult
from advseg_bench.suite.cells import CLEAN, Cell

CELL = Cell("c", "a", CLEAN, 0.0, 0, "", None)
UNITS = [Unit("a", (0, 1), (CELL,)), Unit("a", (2,), (CELL,))]
FULL = RecordError("disk full")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def recorder(tmp_path, events) -> Recorder:
    (tmp_path / "models").mkdir()
    return Recorder(tmp_path, 3, events.append, ["a", "b"])


def test_a_failure_is_noted_once_and_what_it_took_is_counted(recorder, events, tmp_path):
    failure = Failure("a", "attack", "c", "ValueError: no")
    for unit in UNITS:
        recorder.record_unit(unit, Outcome(UnitResult([], [failure], 1.5)))
    assert recorder.failures == [failure]
    assert recorder.attack_seconds == {"a": 3.0}
    assert events == [Event("attack", "a", 2, 3), Event("attack", "a", 3, 3)]


def test_rows_of_other_code_than_that_of_the_run_are_not_recorded(tmp_path, events):
    (tmp_path / "parts").mkdir()
    recorder = Recorder(tmp_path, 3, events.append, ["a"], {"architecture nets:Net": "old"})
    recorder.record_unit(UNITS[0], Outcome(UnitResult([], [], 1.0, {"architecture nets:Net": "old"})))
    with pytest.raises(RecordError, match="architecture nets:Net: expected the code with which the run began"):
        recorder.record_unit(UNITS[1], Outcome(UnitResult([{}], [], 1.0, {"architecture nets:Net": "new"})))
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_failed_model_or_unit_costs_the_others_nothing(recorder, events, tmp_path):
    assert not recorder.record_model("b", Outcome(error=TrainingError("learned nothing")))
    recorder.record_unit(UNITS[0], Outcome(error=JobError("ValueError: no")))
    assert events == []
    recorder.record_unit(UNITS[1], Outcome(UnitResult([], [], 1.0)))
    assert events == [Event("attack", "a", 3, 3)]
    recorder.write_failures()
    assert read_failures(tmp_path) == [
        {"model": "a", "stage": "attack", "cell": None, "message": "ValueError: no"},
        {"model": "b", "stage": "train", "cell": None, "message": "learned nothing"},
    ]


def test_a_worker_that_cannot_write_ends_the_run(recorder):
    with pytest.raises(RecordError, match="disk full"):
        recorder.record_model("a", Outcome(error=FULL))
    with pytest.raises(RecordError, match="disk full"):
        recorder.record_unit(UNITS[0], Outcome(error=FULL))
    assert recorder.failures == []


def test_a_model_is_written_once_and_must_be_the_same_ever_after(recorder, events, tmp_path):
    entry = {"name": "a", "architecture": "x", "parameters": 1, "weights_sha256": "0", "train_seconds": None}
    path = tmp_path / "models" / "a.json"
    assert recorder.record_model("a", Outcome(entry))
    assert read_model(path) == entry
    assert recorder.record_model("a", Outcome(entry | {"train_seconds": 3.0}))
    assert read_model(path) == entry
    assert recorder.train_seconds == {"a": 3.0}
    assert events == 2 * [Event("ready", "a", 1, 1)]
    with pytest.raises(RecordError, match="other weights of model a"):
        recorder.record_model("a", Outcome(entry | {"weights_sha256": "1"}))
