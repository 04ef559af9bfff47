"""Processes of one machine: each is watched, restarted once, stopped together; and the script for Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import find_missing, start_slurm

import advseg_bench as ab
from advseg_bench.cli.launch import _launch as start
from advseg_bench.cli.sbatch import make_script
from advseg_bench.errors import HeldError, SpecError, WorkerError
from advseg_bench.results.remote import hold_place
from advseg_bench.running.launching import Child, check_gpus, launch

SUITE = """
schema = 1
name = "pair"
[data]
name = "phantom"
size = 16
subjects = 4
slices = 2
[training]
epochs = 1
floor = 0
[[models]]
name = "a"
architecture = "monai.UNet"
settings = { channels = [4, 8], strides = [2] }
[[models]]
name = "b"
architecture = "monai.UNet"
settings = { channels = [4, 4], strides = [2] }
[[attacks]]
name = "fgsm"
losses = ["dice"]
eps = ["8/255"]
"""


def make_children(*codes: str) -> list[Child]:
    """Processes that run lines of Python."""
    return [Child(i, f"process {i + 1}", [sys.executable, "-c", code], {}) for i, code in enumerate(codes)]


def die_once(marker: Path) -> str:
    """Code of a process that is killed by a signal the first time."""
    return (
        f"import os, pathlib; p = pathlib.Path({str(marker)!r})\n"
        "if not p.exists(): p.touch(); os.kill(os.getpid(), 9)\nprint('whole')"
    )


def test_a_second_launcher_of_the_same_parts_is_refused(tmp_path):
    with (
        hold_place(tmp_path / "all-parts", "launch"),
        pytest.raises(HeldError, match=f"in use by process {os.getpid()}"),
    ):
        start("smoke", [], None, 1, tmp_path / "all")


def test_a_process_that_dies_is_started_once_more(tmp_path):
    said: list[tuple[int, str]] = []
    children = make_children(die_once(tmp_path / "marker"), "print('fine')")
    launch(children, lambda *line: said.append(line))
    assert set(said) == {(0, "died (SIGKILL); started again"), (0, "whole"), (1, "fine")}
    assert [child.code for child in children] == [0, 0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; print('about to', flush=True); os.abort()", r"^process 1: died twice \(SIGABRT\): about to"),
        ("import sys; sys.exit(7)", r"^process 1: died twice \(exit code 7\): no output"),
        (
            "import sys; sys.exit('advseg-bench: no such suite') if 0 else print('x: no.') or sys.exit(2)",
            "exit code 2: x",
        ),
    ],
)
def test_a_process_that_fails_is_named_and_the_others_end(code, message):
    said: list[tuple[int, str]] = []
    with pytest.raises(WorkerError, match=message) as caught:
        launch(make_children(code, "import time; time.sleep(.5); print('fine')"), lambda *line: said.append(line))
    assert (1, "fine") in said
    assert "\n" not in str(caught.value)


def test_failed_cells_are_no_death():
    children = make_children("import sys; sys.exit(1)")
    launch(children, lambda *line: None)
    assert (children[0].code, children[0].deaths) == (1, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_processes(number):
    children = make_children(*["print('on', flush=True)\nimport time; time.sleep(60)"] * 2)
    started = []

    def show(place, line):
        if line == "on":
            started.append(place)
            if len(started) == 2:
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        launch(children, show)
    assert all(child.process.poll() is not None for child in children)
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "^--gpus: expected GPUs such as 0,1,2,3, got none"),
        (["0", "x"], "^--gpus: expected the number of a GPU, got 'x'"),
        (["999"], "^--gpus: expected .*GPU"),
    ],
)
def test_a_gpu_that_does_not_exist_is_one_line(names, message, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SpecError, match=message):
        check_gpus(names)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_script_has_the_options():
    text = make_script(
        "my suite.toml", ["--workers", "2"], 16, Path("runs/a b"), hours=1.5, partition="gpu", device="cuda", cpus=2
    )
    for line in (
        "#SBATCH --array=1-16",
        "#SBATCH --time=1:30:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --job-name=advseg-my_suite",
        "SUITE='my suite.toml'",
        "OUT='runs/a b'",
    ):
        assert f"{line}\n" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.slow
def test_launch_and_script_give_the_run_of_one_process(tmp_path):
    """`launch`, with one process killed on the way, and the script for Slurm run by hand."""
    file = tmp_path / "pair.toml"
    file.write_text(SUITE)
    whole = ab.run(ab.Suite.load(file), tmp_path / "whole")
    command = [sys.executable, "-m", "advseg_bench", "launch", str(file), "--processes", "2"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    lines = []
    with subprocess.Popen([*command, "--out", str(tmp_path / "all")], **output) as started:
        for line in started.stdout:
            lines.append(line)
            if len(lines) == 1:
                listed = subprocess.run(
                    ["pgrep", "-P", str(started.pid), "-f", "part 1/2"], capture_output=True, text=True, check=True
                )
                os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
    assert started.returncode == 0, "".join(lines)
    assert any("died (SIGKILL); started again" in line for line in lines)
    assert ab.Run(tmp_path / "all").rows.equals(whole.rows)

    printed = [*command, "--out", str(tmp_path / "slurm"), "--print", "sbatch"]
    script = tmp_path / "job.sh"
    script.write_text(subprocess.run(printed, capture_output=True, text=True, check=True).stdout)
    for task in ("1", "2"):
        subprocess.run(["bash", str(script)], env=os.environ | {"SLURM_ARRAY_TASK_ID": task}, check=True)
    subprocess.run(["bash", str(script), "merge"], check=True)
    merged = ab.Run(tmp_path / "slurm")
    assert merged.rows.equals(whole.rows)
    assert (merged.path / "report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(bool(find_missing()), reason=find_missing())
def test_the_script_runs_on_a_real_slurm(tmp_path, monkeypatch):
    """One command submits the array and the job that merges its parts."""
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "pair.toml"
    file.write_text(SUITE)
    whole = ab.run(ab.Suite.load(file), tmp_path / "whole")
    command = [sys.executable, "-m", "advseg_bench", "launch", str(file), "--processes", "2", "--hours", "0.1"]
    printed = [*command, "--out", str(tmp_path / "all"), "--print", "sbatch"]
    script = tmp_path / "job.sh"
    script.write_text(subprocess.run(printed, capture_output=True, text=True, check=True).stdout)
    with start_slurm(tmp_path / "slurm"):
        subprocess.run(["bash", str(script)], cwd=tmp_path, check=True)
        deadline = time.monotonic() + 300
        while subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout.strip():
            assert time.monotonic() < deadline, "the jobs did not end"
            time.sleep(1)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("slurm-*.log"))
    assert (tmp_path / "all" / "run.json").exists(), logs
    assert ab.Run(tmp_path / "all").rows.equals(whole.rows)
    assert "merged 2 parts of one type of machine" in logs
