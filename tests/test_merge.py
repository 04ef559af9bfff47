"""Parts that were computed apart and merged are the run of one machine; what does not belong together is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import advseg_bench as ab
from advseg_bench.data import load_dataset
from advseg_bench.errors import RecordError
from advseg_bench.models.build import build_model
from advseg_bench.models.weights import save_weights
from advseg_bench.report import summarise, write_report
from advseg_bench.results import merging, parts, records
from advseg_bench.results.descriptions import identify_run, write_sealed
from advseg_bench.suite.suite import Suite

TEXT = """
schema = 1
name = "four"
[data]
name = "phantom"
size = 16
subjects = 8
slices = 6
[compute]
batch = 2
[[models]]
name = "a"
architecture = "monai.UNet"
settings = { channels = [4, 8], strides = [2] }
weights = "WEIGHTS"
[[models]]
name = "b"
architecture = "monai.UNet"
settings = { channels = [4, 8], strides = [2] }
weights = "WEIGHTS"
[[models]]
name = "c"
architecture = "monai.UNet"
settings = { channels = [4, 8], strides = [2] }
weights = "WEIGHTS"
[[models]]
name = "d"
architecture = "monai.UNet"
settings = { channels = [4, 8], strides = [2] }
weights = "WEIGHTS"
[[attacks]]
name = "fgsm"
losses = ["dice"]
eps = ["2/255", "8/255"]
[[attacks]]
name = "random_sign"
eps = ["8/255"]
draws = 2
[[attacks]]
name = "transfer"
eps = ["8/255"]
losses = ["dice"]
[attacks.settings]
source = "a"
steps = 2
"""
OF = 5


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Four models with given weights and three attacks."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    path.with_name("four.toml").write_text(TEXT.replace("WEIGHTS", str(path)))
    suite = Suite.load(path.with_name("four.toml"))
    data = load_dataset(suite.data)
    save_weights(path, build_model(suite.models[0], channels=1, task=data.task, size=16, seed=0))
    return suite


@pytest.fixture(scope="module")
def whole(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> ab.Run:
    return ab.run(suite, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def pieces(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The parts of the suite in a random order."""
    root = tmp_path_factory.mktemp("parts")
    numbers = list(range(1, OF + 1))
    random.Random(3).shuffle(numbers)
    return [ab.run(suite, root / f"part-{i}", part=(i, OF)).path for i in numbers]


@pytest.fixture
def copies(pieces: list[Path], tmp_path: Path) -> list[Path]:
    """Parts that a test may damage, in the order of their numbers."""
    return sorted(Path(shutil.copytree(each, tmp_path / each.name)) for each in pieces)


def list_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name -> time of change and content of each file of a run that is no lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lease")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_merged_run_is_that_of_one_machine(whole, pieces, tmp_path):
    merged = ab.merge(pieces, tmp_path / "all")
    assert merged.rows.equals(whole.rows)
    assert merged.failures == whole.failures == []
    assert {path.name for path in (merged.path / "panels").iterdir()} == {
        path.name for path in (whole.path / "panels").iterdir()
    }
    for name, entry in whole.models.items():
        assert merged.models[name] == entry
    differing = {"command", "started", "machines", "calibration"}
    assert {k: v for k, v in merged.info.items() if k not in differing} == {
        k: v for k, v in whole.info.items() if k not in differing
    }
    held = [entry["part"] for machine in merged.info["machines"] for entry in machine["parts"]]
    assert held == list(range(1, OF + 1))
    reports = []
    for run in (whole, merged):
        for path in write_report(summarise(run), tmp_path / "report"):
            assert path.is_file()
        texts = {path.name: path.read_text() for path in sorted((tmp_path / "report").rglob("*")) if is_text(path)}
        reports.append({name: blank(text, run) for name, text in texts.items()})
        shutil.rmtree(tmp_path / "report")
    assert reports[0] == reports[1]


def is_text(path: Path) -> bool:
    return path.suffix in (".csv", ".md", ".html", ".svg", ".json")


def blank(text: str, run: ab.Run) -> str:
    """A text of a report without the command, the folder and the time of the run."""
    started = run.info["started"].replace("T", " ").replace("+00:00", " UTC")
    for own in (run.info["command"], f"advseg-bench report {run.path.name}", started):
        text = text.replace(own, "")
    return text


def test_a_merge_can_be_repeated_and_continued(whole, pieces, suite, tmp_path):
    out = tmp_path / "all"
    with pytest.raises(RecordError, match=r"^merge: expected all 5 parts, got none of number \d, \d, \d: [\d,]+ rows"):
        ab.merge(pieces[:2], out)
    assert not out.exists()
    first = ab.merge(pieces[:2], out, partial=True)
    assert first.missing == whole.planned - len(first.rows) > 0
    assert ab.merge(pieces[2:], out).rows.equals(whole.rows)
    before = list_files(out)
    ab.merge(reversed(pieces), out)
    assert list_files(out) == before
    done = ab.merge(pieces[:4], tmp_path / "some", partial=True)
    finished = ab.run(suite, done.path)
    assert finished.rows.equals(whole.rows)
    assert [machine.get("rest") for machine in finished.info["machines"]] == [True]
    assert ab.merge(pieces, done.path).rows.equals(whole.rows)


def test_an_interrupted_merge_is_completed(whole, pieces, tmp_path, monkeypatch):
    out, place = tmp_path / "all", merging._place
    count = iter(range(100))

    def fail_late(path, target):
        if next(count) == 5:
            raise KeyboardInterrupt
        place(path, target)

    monkeypatch.setattr(merging, "_place", fail_late)
    with pytest.raises(KeyboardInterrupt):
        ab.merge(pieces, out)
    assert not (out / "run.json").exists()
    assert list((out / "parts").iterdir())
    assert ab.merge(pieces, out).rows.equals(whole.rows)


def test_parts_on_another_file_system_are_copied(whole, pieces, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert ab.merge(pieces, tmp_path / "all").rows.equals(whole.rows)


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_sealed(path, value)


def become(folder: Path, change) -> None:
    """Make a folder that of another run: its description, and the labels of its files of rows."""
    edit(folder / "run.json", change)
    edit(folder / "run.json", lambda info: info.update(run=identify_run(info)))
    run = json.loads((folder / "run.json").read_text())["run"]
    for path in (folder / "parts").iterdir():
        rows = pl.read_parquet(path, glob=False)
        path.unlink()
        parts.write_part(folder, rows, run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info["suite"].update(seed=7), r"part-3: is of another suite than \S+part-1: seed was 0, is 7"),
        (lambda info: info["data"].update(fingerprint="f"), r"part-3: is of another data set .*: fingerprint was "),
        (
            lambda info: info["binding"].update(torch="9"),
            r"environment .* is \"9\"\. Add --allow-mixed",
        ),
        (lambda info: info["binding"].update(code={"x": "y"}), r"environment .*Nothing was merged\.$"),
        (lambda info: info["part"].update(of=6), r"part-3: expected a part of 5, as \S+part-1 is, got one of 6\."),
        (lambda info: info.pop("part"), r"part-3: expected a part of a run, got a run of the whole suite\."),
    ],
)
def test_another_run_is_refused(copies, tmp_path, change, message):
    become(copies[2], change)
    with pytest.raises(RecordError, match=message):
        ab.merge(copies, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_other_weights_are_refused(copies, tmp_path):
    model = next(iter((copies[0] / "models").iterdir())).name
    again = [copies[0], Path(shutil.copytree(copies[0], tmp_path / "again"))]
    edit(again[1] / "models" / model, lambda entry: entry.update(weights_sha256="0" * 64))
    with pytest.raises(RecordError, match=rf"again: expected the weights of model {model[0]} that \S+part-1 has"):
        ab.merge([*copies[1:], *again], tmp_path / "all")


def test_equal_rows_are_taken_once_and_other_values_refused(whole, copies, tmp_path):
    again = Path(shutil.copytree(copies[0], tmp_path / "again"))
    old = next((again / "parts").iterdir())
    rows = pl.read_parquet(old, glob=False)
    run = json.loads((again / "run.json").read_text())["run"]
    old.unlink()
    parts.write_part(again, rows.head(3), run)  # the same rows in other files
    parts.write_part(again, rows.tail(-3), run)
    assert ab.merge([*copies, again], tmp_path / "all").rows.equals(whole.rows)
    for path in (again / "parts").iterdir():
        path.unlink()
    parts.write_part(again, rows.with_columns(wrong_pixels=pl.col("wrong_pixels") + 1), run)
    with pytest.raises(RecordError, match=r"expected the row of \w .* on \S+ that \S+parquet has, got another one\."):
        ab.merge([*copies, again], tmp_path / "other")


def test_an_unfinished_part_is_named(whole, copies, suite, tmp_path):
    number = next(i for i, each in enumerate(copies) if list((each / "parts").iterdir()))
    next((copies[number] / "parts").iterdir()).unlink()
    with pytest.raises(RecordError, match=rf"part-{number + 1}: expected a finished part, got one that lacks \d+ rows"):
        ab.merge(copies, tmp_path / "all")
    ab.run(suite, copies[number], part=(number + 1, OF))
    assert ab.merge(copies, tmp_path / "all").rows.equals(whole.rows)


def test_a_failed_cell_is_no_missing_row(copies, tmp_path):
    path = next((copies[0] / "parts").iterdir())
    rows = pl.read_parquet(path, glob=False)
    failed = rows["cell"][-1]
    failure = {"model": rows["model"][0], "stage": "attack", "cell": failed, "message": "ValueError: no"}
    run = json.loads((copies[0] / "run.json").read_text())["run"]
    for path in (copies[0] / "parts").iterdir():
        kept = pl.read_parquet(path, glob=False).filter(pl.col("cell") != failed)
        path.unlink()
        parts.write_part(copies[0], kept, run)
    write_sealed(copies[0] / "failures.json", [failure])
    merged = ab.merge(copies, tmp_path / "all")
    assert merged.failures == [failure]
    assert merged.missing > 0


def test_mixed_machines_are_compared(whole, copies, tmp_path):
    number = 1
    become(copies[number], lambda info: info["binding"].update(torch="9", instructions="AVX9"))

    def shift(known):
        for row in known["a"]["rows"]:
            row["tp"] = [max(0, value - 2) for value in row["tp"]]

    edit(copies[number] / "calibration.json", shift)
    with pytest.raises(RecordError, match=r"instructions was \S+, is \"AVX9\"\. Add --allow-mixed"):
        ab.merge(copies, tmp_path / "all")
    merged = ab.merge(copies, tmp_path / "all", allow_mixed=True)
    assert merged.rows.equals(whole.rows)
    assert [[entry["part"] for entry in machine["parts"]] for machine in merged.info["machines"]] == [[1, 3, 4, 5], [2]]
    found = merged.info["calibration"]
    assert found["dice_difference"] > 0
    assert found["models"] == ["a", "b", "c", "d"]
    assert found["where"].startswith("a, ")
    note = f"Dice differs by at most {found['dice_difference']:.2g} (a, "
    assert note in merged.about.suite.note
    pages = write_report(summarise(merged), tmp_path / "report")
    assert any(note in path.read_text() for path in pages if path.suffix == ".md")
    before = list_files(merged.path)
    ab.merge(copies, merged.path, allow_mixed=True)
    assert list_files(merged.path) == before


@pytest.mark.parametrize(
    ("folders", "out", "message"),
    [
        ([], "all", r"^merge: expected folders of parts, got none"),
        (["part-1", "part-1"], "all", r"part-1: expected each folder once, got it twice"),
        (["part-1", "part-2/../part-1"], "all", r"expected each folder once"),
        (["part-1", "nowhere"], "all", r"nowhere: expected the folder of a part, got no folder"),
        (["part-1", "part-2/parts"], "all", r"run.json: missing, so this is not the folder of a run"),
        (["part-1", "part-2"], "part-1/all", r"part-1/all: expected a folder outside the parts, got one in \S+part-1"),
        (["part-1", "part-2"], "part-2", r"part-2: expected a folder outside the parts"),
    ],
)
def test_a_mistake_in_the_folders_is_one_line(copies, tmp_path, folders, out, message):
    before = list_files(tmp_path)
    with pytest.raises(RecordError, match=message) as caught:
        ab.merge([tmp_path / each for each in folders], tmp_path / out)
    assert "\n" not in str(caught.value)
    assert list_files(tmp_path) == before


def test_a_folder_holds_one_part(copies, suite):
    with pytest.raises(RecordError, match=r"part-1: holds part 1 of 5, got part 2 of 5 to run\. Give each part"):
        ab.run(suite, copies[0], part=(2, OF))
    with pytest.raises(RecordError, match=r"part-1: holds part 1 of 5, got the whole suite to run"):
        ab.run(suite, copies[0])


def test_the_whole_run_is_no_part(whole, suite):
    with pytest.raises(RecordError, match="holds the whole suite, got part 1 of 5 to run"):
        ab.run(suite, whole.path, part=(1, OF))


@pytest.mark.slow
def test_smoke_in_five_parts(tmp_path):
    suite = ab.Suite.load("smoke")
    whole = ab.run(suite, tmp_path / "whole")
    made = [ab.run(suite, tmp_path / f"part-{i}", part=(i, 5)).path for i in (4, 1, 5, 2, 3)]
    merged = ab.merge(made, tmp_path / "all")
    assert merged.rows.equals(whole.rows)
    assert records.read_rows(merged.path).equals(records.read_rows(whole.path))


@pytest.mark.slow
def test_a_slurm_array_needs_no_option(tmp_path, suite):
    """Two tasks as Slurm starts them, in one folder, and the merge of their parts."""
    command = [sys.executable, "-m", "advseg_bench"]
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1"}
    for task in ("0", "1"):
        environ = os.environ | array | {"SLURM_ARRAY_TASK_ID": task}
        file = Path(suite.models[0].weights).with_name("four.toml")
        run = [*command, "run", str(file), "--out", str(tmp_path / "runs")]
        done = subprocess.run(run, env=environ, capture_output=True, text=True, check=True)
        assert f"part {int(task) + 1} of 2, from SLURM_ARRAY_TASK_ID" in done.stdout
    made = sorted((tmp_path / "runs").iterdir())
    assert [path.name for path in made] == ["part-1-of-2", "part-2-of-2"]
    merge = [*command, "merge", *map(str, made), "--out", str(tmp_path / "all")]
    done = subprocess.run(merge, capture_output=True, text=True, check=True)
    assert "merged 2 parts of one type of machine" in done.stdout
    assert (tmp_path / "all" / "report").is_dir()
