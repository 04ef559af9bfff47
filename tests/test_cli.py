"""The command line as a user meets it: real processes, exit codes, single lines, start-up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from test_run import TEXT
from torch import nn

import advseg_bench as ab
from advseg_bench.cli.app import main

Done = subprocess.CompletedProcess[str]
CLI = [sys.executable, "-m", "advseg_bench"]
STOPPED = "advseg-bench: stopped. Run the same command again to resume.\n"


def cli(*arguments: object, cwd: Path | None = None) -> Done:
    return subprocess.run(
        [*CLI, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=os.environ | {"COLUMNS": "120"}
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process, which saves the seconds of importing torch."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["advseg-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return Done(str(end.value.code), int(end.value.code or 0), out, err)

    return call


def write_suite(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "suite.toml"
    path.write_text(text)
    return path


def assert_one_line(done: Done, *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("advseg-bench: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


QUICK_COMMANDS = [["--help"], ["plan", "quick"], ["list", "attacks"], ["list", "suites"], ["schema"]]
PLANS_OF_PHANTOMS = [["plan", "wang2024", "--profile", profile] for profile in ("cpu", "smoke")]


@pytest.mark.parametrize("arguments", QUICK_COMMANDS + PLANS_OF_PHANTOMS, ids=" ".join)
def test_torch_and_polars_are_not_loaded_for_small_questions(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    unwanted = {"torch", "polars", "monai", "matplotlib"}
    if arguments in (["--help"], ["list", "attacks"]):
        unwanted |= {"numpy", "advseg_bench.suite.suite"}
    if arguments == ["plan", "quick"]:
        unwanted.add("numpy")
    code = (
        "import sys\nfrom advseg_bench.cli import main\n"
        f"sys.argv = ['advseg-bench', *{arguments!r}]\n"
        "try:\n    main()\n"
        f"finally:\n    print(sorted({unwanted} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert done.stdout
    assert not list(tmp_path.iterdir())


def test_the_check_above_can_fail():
    code = "import sys, advseg_bench\nadvseg_bench.losses\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


LIBRARIES = "import typer.rich_utils, pydantic\nclass Model(pydantic.BaseModel):\n    number: int"
CALL = """
import sys
from advseg_bench.cli import main
sys.argv = ["advseg-bench", *{!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
"""


def packages_of(code: str) -> set[str]:
    """The packages and modules, without those of the standard library, that a process has imported after some code."""
    code += "\nimport sys\nprint('imported', *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {*done.stderr.split()[1:]} - sys.stdlib_module_names


@pytest.mark.parametrize("arguments", QUICK_COMMANDS, ids=" ".join)
def test_small_questions_import_the_command_line_and_the_suites_form_alone(arguments):
    assert packages_of(CALL.format(arguments)) - packages_of(LIBRARIES) == {"advseg_bench"}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_can_tell_where_its_time_went(here, tmp_path, workers):
    done = here("run", write_suite(tmp_path), "--out", tmp_path / "run", "--workers", workers, "--profile-time")
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("component")[2]
    for name in ("models and training", "attack: backwards", "scoring: forwards", "metrics", "records", "report"):
        assert name in table
    around = re.search(r"Overhead around the model \(\*\): ([\d.]+)% of ([\d.]+) s", table)
    assert 0 < float(around[1]) < 100
    shares = [float(share) for share in re.findall(r"([\d.]+)%$", table, re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_plan_tells_cells_cost_and_what_is_skipped(here, tmp_path):
    done = here("plan", write_suite(tmp_path, ("size = 32", 'size = 32\ntask = "multiclass"')), "--cells")
    assert done.returncode == 0
    assert "loss 'bce' is defined for binary and multilabel tasks, not for multiclass (4 cells)" in done.stdout
    assert "Cells: 10 to run, 4 skipped." in done.stdout
    # per model: 1 clean + 2 dice + 2 random forwards, 1 backward; 36 images, 2 models
    assert "Cost for 36 test images: 360 forwards + 72 backwards" in done.stdout
    assert "SKIPPED" in done.stdout


@pytest.mark.slow
def test_run_report_and_resume(here, tmp_path):
    suite = write_suite(tmp_path)
    done = cli("run", suite, "--out", tmp_path / "run", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    assert "Mean Dice at each eps" not in done.stdout
    assert 1 < len(done.stdout.partition("rows written\n")[2].splitlines()) <= 40
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "fgsm" in page
    again = cli("report", tmp_path / "run", "--out", tmp_path / "elsewhere")
    assert again.returncode == 0
    assert (tmp_path / "elsewhere" / "report.html").read_text() == page
    assert "elsewhere/report.html" in again.stdout.replace("\n", "")
    assert len(again.stdout.splitlines()) <= 40
    for command in (["run", suite, "--out", tmp_path / "run", "--workers", 1], ["report", tmp_path / "run"]):
        told = here(*command, "--verbose").stdout
        assert ("nothing to do" in told) == (command[0] == "run")
        assert "Mean Dice at each eps" in told
        assert "report/report.html" in told
    other = write_suite(tmp_path, ("epochs = 3", "epochs = 4"))
    assert_one_line(cli("run", other, "--out", tmp_path / "run"), "another suite: training.epochs was 3, is 4")


def test_plan_knows_the_minutes_once_a_suite_has_run(here, tmp_path):
    suite = write_suite(tmp_path, ("epochs = 3", "epochs = 2"))
    assert "unknown until the suite has run once" in here("plan", suite).stdout
    assert here("run", suite, "--out", tmp_path / "run", "--workers", 1).returncode == 0
    assert "min with" in (told := here("plan", suite).stdout), told
    assert "measured here" in told


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "quik"], ["unknown suite 'quik'", "Did you mean 'quick'?"]),
        (["plan", "nothing.toml"], ["unknown suite 'nothing.toml'"]),
        (["list", "attack"], ["unknown category 'attack'", "Did you mean 'attacks'?"]),
        (["report", "nowhere"], ["nowhere: expected the folder of a run"]),
    ],
)
def test_wrong_names_are_one_line(here, arguments, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(here(*arguments), *parts)


def test_an_occupied_or_unwritable_out_is_one_line(here, tmp_path):
    suite = write_suite(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    assert_one_line(here("run", suite, "--out", tmp_path / "taken"), "not empty and holds no run")
    assert_one_line(here("run", suite, "--out", "/proc/run"), "/proc/run: cannot create")


def test_an_unknown_device_is_one_line(here, tmp_path):
    done = here("run", write_suite(tmp_path), "--out", tmp_path / "run", "--device", "quantum", "--workers", 1)
    assert_one_line(done, "device", "'quantum'")


def test_a_model_that_cannot_be_built_is_one_line(here, tmp_path):
    old = "{ features = [4, 4, 4, 4, 4, 4] }"
    suite = write_suite(tmp_path, (old, "{ featurs = [4, 4, 4, 4, 4, 4] }"))
    assert_one_line(
        here("run", suite, "--out", tmp_path / "run", "--workers", 1), "featurs", "Did you mean 'features'?"
    )


def test_a_failed_model_is_told_and_the_exit_code_is_one(here, tmp_path):
    suite = write_suite(tmp_path, ("floor = 0.0", "floor = 0.99"))
    done = here("run", suite, "--out", tmp_path / "run", "--workers", 1)
    assert done.returncode == 1
    assert "failed: all of a: model a: expected a validation Dice of at least 0.99" in done.stdout
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert here("report", tmp_path / "run", "--out", tmp_path / "elsewhere").returncode == 0
    assert (tmp_path / "elsewhere" / "report.html").read_text() == page


@ab.attack
def interrupts(model, x, y, eps):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)


@ab.attack
def raises_an_interrupt(model, x, y, eps):
    raise KeyboardInterrupt


def test_an_attack_that_raises_an_interrupt_is_a_failure(here, tmp_path):
    failing = '[[attacks]]\nname = "test_cli:raises_an_interrupt"\neps = ["1/255"]\n'
    suite = write_suite(tmp_path, (TEXT[TEXT.index("[[attacks]]") :], failing))
    done = here("run", suite, "--out", tmp_path / "run", "--workers", 1)
    assert (done.returncode, done.stderr) == (1, "")
    assert "KeyboardInterrupt" in done.stdout


def test_ctrl_c_during_an_attack_keeps_what_was_finished(here, tmp_path):
    failing = '[[attacks]]\nname = "test_cli:interrupts"\neps = ["1/255"]\n'
    suite = write_suite(tmp_path, (TEXT[TEXT.index("[[attacks]]") :], failing))
    done = here("run", suite, "--out", tmp_path / "run", "--workers", 1)
    assert (done.returncode, done.stderr) == (130, STOPPED)
    assert (tmp_path / "run" / "models" / "a.json").exists()
    assert json.loads((tmp_path / "run" / "failures.json").read_text()) == []


@ab.attack
def raises_always(model, x, y, eps):
    raise ValueError("out of luck")


def test_of_many_failures_ten_are_told(here, tmp_path):
    eps = ", ".join(f'"{n}/255"' for n in range(1, 7))
    failing = f'[[attacks]]\nname = "test_cli:raises_always"\neps = [{eps}]\n'
    suite = write_suite(tmp_path, (TEXT[TEXT.index("[[attacks]]") :], failing))
    done = here("run", suite, "--out", tmp_path / "run", "--workers", 1)
    assert done.returncode == 1
    told = [line for line in done.stdout.splitlines() if line.startswith(("failed: ", "and "))]
    assert len(json.loads((tmp_path / "run" / "failures.json").read_text())) == 12
    assert told[0] == "failed: a test_cli:raises_always linf 1/255: ValueError: out of luck"
    assert len(told) == 11
    assert told[-1] == "and 2 more"


@pytest.mark.parametrize("kind", ["other", "pickled", "empty", "missing"])
def test_a_checkpoint_that_does_not_fit_is_one_line(here, tmp_path, kind):
    path = tmp_path / f"{kind}.pt"
    with torch.random.fork_rng():
        net = nn.Conv2d(1, 2, 3)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind != "missing":
        torch.save(net if kind == "pickled" else net.state_dict(), path)
    suite = write_suite(tmp_path, ('architecture = "monai.UNet"', f'architecture = "monai.UNet"\nweights = "{path}"'))
    expected = {"other": "missing", "pickled": "only weights", "empty": "empty", "missing": "missing.pt"}[kind]
    assert_one_line(here("run", suite, "--out", tmp_path / "run", "--workers", 1), path.name, expected)


@pytest.mark.parametrize(
    "arguments", [["run", "quick", "--workers", "0"], ["walk"], ["plan"], ["plan", "quick", "--fast"]]
)
def test_a_wrong_call_is_one_line(here, arguments):
    assert_one_line(here(*arguments))


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m advseg_bench plan quick --cells | head -2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m advseg_bench schema > /dev/full"], capture_output=True)
    assert done.returncode == 2
    assert done.stderr == b"advseg-bench: standard output: No space left on device.\n"


@contextmanager
def long_run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run with two workers that would train for minutes; entered when its workers have started.

    It hears Ctrl-C even where the tests do not, such as in the background of a shell.
    """
    suite = write_suite(folder, ("epochs = 3", "epochs = 3000"))
    command = [*CLI, "run", str(suite), "--out", str(folder / "run"), "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, text=True, start_new_session=True, preexec_fn=hearing, **pipes) as process:
        deadline = time.monotonic() + 120
        while not (folder / "run" / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly(tmp_path):
    with long_run(tmp_path) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == STOPPED
    assert json.loads((tmp_path / "run" / "failures.json").read_text()) == []


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path):
    with long_run(tmp_path) as process:
        before = set(workers_of(process))
        os.kill(min(before), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not set(workers_of(process)) - before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(set(workers_of(process)) - before) == 1
        assert process.poll() is None


@pytest.mark.slow
def test_workers_end_when_the_run_is_killed(tmp_path):
    with long_run(tmp_path) as process:
        workers = workers_of(process)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(map(_alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in workers if _alive(pid)]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    workers = [pid for pid in children if "multiprocessing.connection" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert workers
    return workers


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("fgms --against art", ["unknown reference attack 'fgms'", "'fgsm'"]),
        ("fgsm --against arr", ["unknown toolkit 'arr'", "'art'"]),
        ("fgsm --against random_sign", ["random_sign", "does not take these settings"]),
        ("fgsm --against implementations:Signed --eps 4", ["crosscheck: eps"]),
        ("fgsm --against implementations:Signed --models nosuch", ["unknown model 'nosuch'"]),
        ("fgsm --against implementations:Signed --norm l1", ["unknown norm 'l1'"]),
        ("fgsm --against implementations:Signed --tasks binry", ["unknown task 'binry'", "'binary'"]),
        ("fgsm --against implementations:Signed --losses dise", ["unknown loss 'dise'", "'dice'"]),
        ("fgsm --against implementations:Signed --images 1000", ["at least 1000 test images"]),
        ("fgsm --against implementations:Signed --steps 3", ["steps: expected none", "got 3"]),
        ("fgsm --against implementations:Signed --untrained smp.Unett:vgg13", ["untrained", "Unett"]),
    ],
)
def test_crosscheck_mistakes_are_one_line(here, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    assert_one_line(here("crosscheck", *arguments.split(), "--suite", "smoke"), *parts)
    assert not list(tmp_path.iterdir())


def test_crosscheck_says_whether_all_is_sound(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--suite", "smoke", "--models", "basicunet-xs", "--tasks", "binary", "--losses", "dice", "--eps", "4/255"]
    sound = here("crosscheck", "fgsm", "--against", "implementations:Signed", *common)
    assert sound.returncode == 0, sound.stderr
    assert "identical" in sound.stdout
    assert "smoke: 1 network (trained unless cached)" in sound.stdout
    trained = {*Path(os.environ["ADVSEG_BENCH_CACHE"], "models").iterdir()}
    torch.set_num_threads(3)  # as many as there are, where nothing says otherwise
    broken = here("crosscheck", "fgsm", "--against", "implementations:Band", *common, "--out", "bad")
    assert broken.returncode == 1
    assert "one connected band" in broken.stdout
    assert {*Path(os.environ["ADVSEG_BENCH_CACHE"], "models").iterdir()} == trained, "not trained once more"
    assert json.loads((tmp_path / "bad" / "certificate.json").read_text())["verdicts"] == {
        "implementations:Band": {"weaker": 1}
    }
    assert (tmp_path / "bad" / "disagreements" / "0-implementations-Band" / "reproduce.py").is_file()


PHANTOM = 'name = "uw_madison"\npath = "nowhere"\nfolds = 2\nphantom = { cases = 5, slices = 2, seed = 9 }'


def test_data_that_are_not_there_are_drawn_once_and_reported_as_drawn(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = Path(os.environ["ADVSEG_BENCH_CACHE"], "drawn")
    before = {*cache.glob("*")}
    suite = write_suite(tmp_path, ('name = "mni152"', PHANTOM))
    told = "data: nowhere does not exist; phantom data (5 cases, no patients) are used instead, {} in "
    planned = here("plan", suite).stdout
    assert told.format("to be generated") in planned
    assert "Images: 2 for training, 6 for test (expected of phantom data, which are not drawn yet)." in planned
    assert {*cache.glob("*")} == before, "a plan draws nothing"

    def run_it() -> Path:
        done = here("run", suite, "--out", tmp_path / "run", "--workers", 1)
        assert done.returncode == 0, done.stderr
        line = done.stdout.splitlines()[0]
        assert line.startswith((told.format("to be generated"), told.format("generated")))
        return Path(line.rpartition(" in ")[2], "train.csv")

    table = run_it()
    written = table.stat().st_mtime_ns
    note = "Procedural phantom in the format of UW-Madison GI Tract; no patient data."
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["note"].startswith(note)
    assert note in (tmp_path / "run" / "report" / "report.md").read_text()
    assert run_it() == table
    assert table.stat().st_mtime_ns == written
    planned = here("plan", suite).stdout
    assert told.format("generated") in planned
    assert "6 for test (counted in the phantom data)" in planned
    elsewhere = here("run", suite, "--data", "absent", "--out", tmp_path / "other", "--workers", 1)
    assert_one_line(elsewhere, "absent: expected a folder", "run wang2024 --profile cpu` uses phantom data.")


def test_the_full_study_without_data_is_one_line_with_the_remedy(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = here("run", "wang2024", "--workers", 1)
    assert_one_line(done, "uw-madison-gi-tract-image-segmentation: expected a folder", "Set `path` to the")
    assert "--profile cpu` uses phantom data" in done.stderr
    assert "rows" not in done.stdout


def test_make_data_writes_a_folder_once(here, tmp_path):
    path = tmp_path / "uw"
    done = here("make-data", path, "--cases", 1, "--slices", 2)
    assert (done.returncode, done.stdout.strip()) == (0, f"{path}: 2 slices of 1 cases.")
    assert len((path / "train.csv").read_text().splitlines()) == 1 + 2 * 3
    assert_one_line(here("make-data", path), "uw: expected a new or an empty folder")
