"""An attack that ends its process, never ends or raises anything costs its own cell alone, with one and two workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import advseg_bench as ab
from advseg_bench.errors import WorkerError
from advseg_bench.running.outcomes import LONGEST
from advseg_bench.running.recording import NOT_TRIED
from advseg_bench.suite.suite import parse_suite

pytestmark = pytest.mark.slow

HEAD = """
schema = 1
name = "deaths"
[data]
name = "phantom"
size = 16
subjects = 3
slices = 3
[training]
epochs = 1
floor = 0.0
[compute]
max_seconds = 0.5
[[models]]
name = "a"
architecture = "monai.UNet"
settings = { channels = [4, 4], strides = [2] }
"""
GOOD = """
[[attacks]]
name = "fgsm"
losses = ["bce", "dice"]
eps = ["4/255"]
[[attacks]]
name = "pgd"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 2 }
[[attacks]]
name = "random_sign"
eps = ["4/255"]
draws = 2
"""
DEAD = {
    "Segfault": ("SIGSEGV", r"SIGSEGV; peak memory \d+\.\d\d GiB; last words: Segmentation fault in .*deadly\.py"),
    "SegfaultLate": ("SIGSEGV", "SIGSEGV"),
    "Abort": ("SIGABRT", r"SIGABRT.*Aborted in deadly\.py:\d+ act"),
    "Leave": ("exit code 0", r"exit code 0;.* last words: leaving \| with a last word"),
    "KillItself": ("SIGKILL", "probably because memory ran out"),
    "Sleep": ("time limit", r"stopped after 4 s, the limit of compute\.max_seconds.* in deadly\.py:\d+ act"),
    "Spin": ("time limit", r"stopped after 4 s.* in deadly\.py:\d+ act"),
    "Stop": ("time limit", "stopped after 4 s"),
    "Linger": ("changed process", "its worker process was replaced.*thread"),
    "SteppedSegfault": ("SIGSEGV", r"Segmentation fault in .*deadly\.py:\d+ begin"),
}
"""Attacks that end their process -> cause, and what the message has."""
RAISING = {
    "Interrupt": "^KeyboardInterrupt$",
    "EndGenerator": "^GeneratorExit$",
    "Exit": "^SystemExit: 0$",
    "Recurse": "^RecursionError",
    "Allocate": "^RuntimeError.*allocate",
    "Mute": "^Error$",
    "Long": "^RuntimeError: first second yyy",
    "SteppedEnd": "^GeneratorExit$",
}
"""Attacks that raise -> the message."""
HARMLESS = ("Print", "Fork", "CloseAll", "KilledOnce")


def table(name: str) -> str:
    losses = 'losses = ["dice"]\n' if name.startswith("Stepped") else ""
    return f'[[attacks]]\nname = "deadly:{name}"\neps = ["4/255"]\n{losses}'


BAD = "".join(map(table, [*DEAD, *HARMLESS, *RAISING]))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return ab.run(parse_suite(HEAD + GOOD, "good"), tmp_path_factory.mktemp("good") / "run", shard=1)


@pytest.fixture(scope="module", params=[1, 2])
def run(request, tmp_path_factory):
    """A run with all bad attacks before the good ones, and its events."""
    events, folder = [], tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVSEG_TESTS_KILLED", str(folder / "killed"))
        suite = parse_suite(HEAD + BAD + GOOD, "bad")
        found = ab.run(suite, folder / "run", shard=1, workers=request.param, progress=events.append)
    return found, events, request.param


def find_failures(run: ab.Run) -> dict[str, dict[str, str]]:
    labels = {cell.id: cell.arm.attack for cell in run.about.cells}
    found = {labels[failure["cell"]].removeprefix("deadly:"): failure for failure in run.failures}
    assert len(found) == len(run.failures), "each is told once"
    return found


def rows_of(run: ab.Run, cells: pl.Series) -> pl.DataFrame:
    return run.rows.filter(pl.col("cell").is_in(cells.unique().implode())).sort("cell", "image")


def test_each_bad_attack_costs_its_own_cell_and_is_named(good, run):
    found, events, _ = run
    failures = find_failures(found)
    assert {*failures} == {*DEAD, *RAISING}
    for name, (cause, message) in DEAD.items():
        death = failures[name]["death"]
        if name == "Linger" and death == "time limit":  # waiting for its thread takes as long as the limit of the suite
            continue
        assert death == cause, name
        assert re.search(message, failures[name]["message"]), failures[name]
    for name, message in RAISING.items():
        assert "death" not in failures[name]
        assert re.search(message, failures[name]["message"]), failures[name]
    for failure in failures.values():
        assert "\n" not in failure["message"]
        assert len(failure["message"]) <= LONGEST
    assert rows_of(found, good.rows["cell"]).equals(rows_of(good, good.rows["cell"])), "no other row has another bit"
    counts = dict(found.rows.group_by("attack").len().iter_rows())
    assert {name: counts.get(f"deadly:{name}") for name in HARMLESS} == dict.fromkeys(HARMLESS, 3)
    assert counts.get("deadly:SegfaultLate", 0) <= 2, "at most what it had done before"
    labels = {event.cell for event in events}
    assert {"a deadly:Segfault linf 4/255", "a fgsm bce linf 4/255"} <= labels
    last = [event for event in events if event.stage == "attack" and not event.cell][-1]
    assert last.done == last.total == 3 * len(found.about.cells)


def test_a_resumed_run_does_not_die_again_unless_it_is_told_to(tmp_path):
    suite = parse_suite(HEAD + table("Segfault") + table("Sleep") + table("Exit") + GOOD, "bad")
    first = ab.run(suite, tmp_path / "run")
    for retry in (False, True):
        events = []
        again = ab.run(suite, tmp_path / "run", progress=events.append, retry_failed=retry)
        failures = find_failures(again)
        assert {*failures} == {"Segfault", "Sleep", "Exit"}
        tried = {name for name in failures if any(f"deadly:{name} " in event.cell for event in events)}
        assert tried == ({*failures} if retry else {"Exit"})
        told = {name for name in failures if failures[name]["message"].endswith(NOT_TRIED)}
        assert told == (set() if retry else {"Segfault", "Sleep"})
        assert again.rows.equals(first.rows)


def test_the_command_tells_all_of_it_and_cuts_what_workers_write(tmp_path, good):
    text = HEAD + table("Segfault") + table("Print") + GOOD
    (tmp_path / "suite.toml").write_text(text)
    command = [sys.executable, "-m", "advseg_bench", "run", "suite.toml", "--out", "run", "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("failed: a deadly:Segfault linf 4/255: its worker process ended with SIGSEGV; peak memory")
    assert len(done.stderr) < 2000
    assert rows_of(ab.Run(tmp_path / "run"), good.rows["cell"]).equals(rows_of(good, good.rows["cell"]))


def test_a_training_that_ends_its_process_fails_its_model(tmp_path):
    model = '[[models]]\nname = "b"\narchitecture = "deadly:LastTraining"\n'
    run = ab.run(parse_suite(HEAD + model + GOOD, "bad"), tmp_path / "run")
    assert [(f["model"], f["stage"], f["cell"], f["death"]) for f in run.failures] == [
        ("b", "train", None, "exit code 7")
    ]
    assert set(run.rows["model"]) == {"a"}
    again = ab.run(parse_suite(HEAD + model + GOOD, "bad"), tmp_path / "run")
    assert again.failures[0]["message"].endswith(NOT_TRIED)


def test_a_module_that_ends_its_process_ends_the_run_before_anything_is_computed(tmp_path):
    bad = '[[attacks]]\nname = "deadly_import:Attack"\neps = ["4/255"]\n'
    with pytest.raises(WorkerError, match=r"^(describe|check): its worker process ended with exit code 9"):
        ab.run(parse_suite(HEAD + bad + GOOD, "bad"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_script_without_a_guard_can_have_several_workers_and_foreign_attacks(tmp_path):
    (tmp_path / "suite.toml").write_text(HEAD + table("Segfault") + GOOD)
    (tmp_path / "script.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport advseg_bench as ab\n"
        "for workers in (1, 2):\n"
        "    run = ab.run(ab.Suite.load('suite.toml'), f'run{workers}', workers=workers)\n"
        "    print(len(run.rows), [failure['death'] for failure in run.failures])\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "18 ['SIGSEGV']\n" * 2), done.stderr
