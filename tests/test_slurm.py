"""A real Slurm of one node runs suites as arrays of jobs; jobs, the submitting process and their answers get lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import find_missing, start_slurm

import advseg_bench as ab
from advseg_bench.errors import UserError
from advseg_bench.running.executors import slurm
from advseg_bench.running.executors.slurm import SlurmOptions, run_on_slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(find_missing()), reason=find_missing()),
    pytest.mark.filterwarnings("default::DeprecationWarning"),  # of submitit
]

SUITE = """
schema = 1
name = "tiny"
[data]
name = "phantom"
size = 16
subjects = 6
slices = 2
[training]
epochs = 2
floor = 0.0
[[models]]
name = "a"
architecture = "monai.UNet"
settings = { channels = [4, 4], strides = [2] }
[[models]]
name = "b"
architecture = "monai.UNet"
settings = { channels = [4, 8], strides = [2] }
[[attacks]]
name = "fgsm"
losses = ["dice", "bce"]
eps = ["4/255"]
[[attacks]]
name = "pgd"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 1500 }
"""

DRIVER = """
import sys
import advseg_bench as ab
from pathlib import Path
from advseg_bench.running.executors.slurm import SlurmOptions, run_on_slurm
run_on_slurm(ab.Suite.load(sys.argv[1]), Path(sys.argv[2]), SlurmOptions(jobs=2, hours=0.1))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running Slurm, a cache that all jobs share, and the suite."""
    folder = tmp_path_factory.mktemp("cluster")
    before = os.environ.get("ADVSEG_BENCH_CACHE")
    os.environ["ADVSEG_BENCH_CACHE"] = str(folder / "cache")
    (folder / "suite.toml").write_text(SUITE)
    try:
        with start_slurm(folder / "slurm"):
            yield folder
    finally:
        if before is None:
            del os.environ["ADVSEG_BENCH_CACHE"]
        else:
            os.environ["ADVSEG_BENCH_CACHE"] = before


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask Slurm more often than for jobs of hours."""
    monkeypatch.setattr(slurm, "QUERY_S", 0.4)


@pytest.fixture(scope="module")
def suite(cluster: Path) -> ab.Suite:
    return ab.Suite.load(cluster / "suite.toml")


@pytest.fixture(scope="module")
def alone(cluster: Path, suite: ab.Suite) -> ab.Run:
    """The run of one process."""
    return ab.run(suite, cluster / "alone")


def list_jobs() -> list[str]:
    listed = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split("\n")[:-1]


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    for _ in range(int(seconds / 0.1)):
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s; jobs: {list_jobs()}")


def run_with(cluster: Path, suite: ab.Suite, name: str, react: Callable[[list[str]], None]) -> ab.Run:
    """Run on Slurm, and call a function once, with the jobs that run, while the first part trains or attacks."""
    reacted = []

    def note(event: Any) -> None:
        running = [line.split()[0] for line in list_jobs() if line.endswith("RUNNING")]
        if running and not reacted and (cluster / f"{name}-parts" / "part-1-of-2" / "run.json").exists():
            reacted.append(running)
            react(running)

    run = run_on_slurm(suite, cluster / name, SlurmOptions(jobs=2, hours=0.1), progress=note)
    assert reacted
    return run


def check_equal(run: ab.Run, alone: ab.Run) -> None:
    assert not run.failures
    assert run.rows.equals(alone.rows)
    wait_for(lambda: not list_jobs())


def test_rows_equal_those_of_one_process(cluster, suite, alone):
    events = []
    run = run_on_slurm(
        suite, cluster / "plain", SlurmOptions(jobs=3, partition="main", hours=0.1), progress=events.append
    )
    check_equal(run, alone)
    assert events[-1].what == "3 of 3 jobs ended"
    assert events[-1].done == events[-1].total == alone.rows.height


def test_a_killed_job_is_submitted_again(cluster, suite, alone):
    kill = lambda jobs: subprocess.run(["scancel", "--signal=KILL", "--full", jobs[0]], check=True)  # noqa: E731
    check_equal(run_with(cluster, suite, "killed", kill), alone)
    submitted = json.loads((cluster / "killed-parts" / "jobs.json").read_text())["submissions"]
    assert sorted(submitted) == [1, 2]


def test_the_signal_before_the_time_limit_requeues_a_job(cluster, suite, alone):
    warn = lambda jobs: subprocess.run(["scancel", "--signal=USR2", jobs[0]], check=True)  # noqa: E731
    check_equal(run_with(cluster, suite, "requeued", warn), alone)
    record = json.loads((cluster / "requeued-parts" / "jobs.json").read_text())
    assert record["submissions"] == [1, 1]
    logs = "".join(path.read_text() for path in (cluster / "requeued-parts" / "logs").glob("*_log.out"))
    assert "Requeued job" in logs or "timed-out" in logs


def test_the_submitting_process_is_killed_and_finds_its_jobs_again(cluster, suite, alone):
    out = cluster / "orphaned"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(cluster / "suite.toml"), str(out)])
    wait_for(lambda: (out.with_name("orphaned-parts") / "jobs.json").exists())
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    jobs = json.loads((out.with_name("orphaned-parts") / "jobs.json").read_text())["jobs"]
    run = run_on_slurm(suite, out, SlurmOptions(jobs=2, hours=0.1))
    check_equal(run, alone)
    assert json.loads((out.with_name("orphaned-parts") / "jobs.json").read_text())["jobs"] == jobs


def test_an_error_of_a_job_is_one_line_and_cancels_the_others(cluster, suite):
    with pytest.raises(UserError) as caught:
        run_on_slurm(suite, cluster / "wrong", SlurmOptions(jobs=2, hours=0.1), device="cuda:7")
    assert "cuda" in str(caught.value)
    assert "\n" not in str(caught.value)
    wait_for(lambda: not list_jobs())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SlurmOptions(jobs=2, partition="gpus"), ("gpus", "main")),
        (SlurmOptions(jobs=2, hours=1000), ("sbatch",)),
        (SlurmOptions(jobs=2, cpus=64), ("sbatch",)),
    ],
)
def test_what_slurm_refuses_is_one_line(cluster, suite, options, words):
    with pytest.raises(UserError) as caught:
        run_on_slurm(suite, cluster / "refused", options)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    assert not list_jobs()


def test_another_suite_in_the_same_folder_is_refused(cluster, suite, alone):
    run_on_slurm(suite, cluster / "mine", SlurmOptions(jobs=1, hours=0.1))
    with pytest.raises(UserError, match="another"):
        run_on_slurm(suite.model_copy(update={"seed": 9}), cluster / "mine", SlurmOptions(jobs=1, hours=0.1))


def test_without_slurm_or_its_extra_it_is_one_line(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch"):
        run_on_slurm(suite, tmp_path / "out", SlurmOptions(jobs=1))
    monkeypatch.setattr(slurm.slurm_queue, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"advseg-bench\[slurm\]"):
        run_on_slurm(suite, tmp_path / "out", SlurmOptions(jobs=1))
    assert not (tmp_path / "out").exists()
