"""A run as a whole: the same rows however it is cut, spread, reordered, killed and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from runs import edit_json

import advseg_bench as ab
from advseg_bench.data import load_dataset
from advseg_bench.errors import RecordError, UserError
from advseg_bench.models.build import build_model
from advseg_bench.models.weights import save_weights
from advseg_bench.results import records
from advseg_bench.running.benchmark import describe_command
from advseg_bench.suite.suite import Suite

TEXT = """
schema = 1
name = "tiny"
[data]
name = "mni152"
size = 32
[training]
epochs = 3
floor = 0.0
[[models]]
name = "a"
architecture = "monai.BasicUNet"
settings = { features = [4, 4, 4, 4, 4, 4] }
[[models]]
name = "b"
architecture = "monai.UNet"
settings = { channels = [4, 8], strides = [2] }
[[attacks]]
name = "fgsm"
losses = ["bce", "dice"]
eps = ["2/255", "8/255"]
[[attacks]]
name = "random_sign"
eps = ["8/255"]
draws = 2
"""


def tiny(text: str = TEXT) -> Suite:
    from advseg_bench.suite.suite import parse_suite

    return parse_suite(text, "tiny.toml")


def sorted_rows(run: ab.Run) -> pl.DataFrame:
    return run.rows.sort("cell", "image")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> ab.Run:
    return ab.run(tiny(), tmp_path_factory.mktemp("runs") / "undisturbed")


def test_a_run_is_complete_and_sound(undisturbed):
    assert undisturbed.missing == 0
    assert undisturbed.failures == []
    assert len(undisturbed.rows) == 36 * 2 * (1 + 4 + 2)
    assert set(undisturbed.models) == {"a", "b"}
    assert undisturbed.rows["flags"].list.len().sum() == 0
    clean = undisturbed.rows.filter(attack="none")
    assert clean["flipped_pixels"].sum() == 0
    assert clean["linf"].max() == 0
    attacked = undisturbed.rows.filter(attack="fgsm")
    assert ((attacked["linf"] - attacked["eps"]).abs() < 1e-6).all()
    assert len(list((undisturbed.path / "panels").glob("*.npz"))) == 4


def test_pictures_are_those_of_the_rows_at_every_eps(undisturbed):
    for path in (undisturbed.path / "panels").glob("*-worst-*.npz"):
        with np.load(path) as arrays:
            meta = json.loads(str(arrays["meta"]))
            assert [step["eps"] for step in meta["sweep"]] == [2 / 255, 8 / 255]
            for i, step in enumerate(meta["sweep"]):
                row = undisturbed.scores().filter(cell=step["cell"], image=meta["image"]).row(0, named=True)
                attacked, truth = arrays["attacked"][i], arrays["truth"]
                assert [int(n) for n in (attacked & truth).sum((1, 2))] == row["tp"]
                assert [int(n) for n in (attacked & ~truth).sum((1, 2))] == row["fp"]
                delta = arrays["x_adv"][i].astype(float) - arrays["x"]
                assert abs(delta).max() == row["linf"]
                assert row["dice"] == step["dice"]


def test_the_record_says_how_models_were_prepared_and_how_well_it_agrees(undisturbed):
    assert tiny().compute.prepare == "lean"
    for model in undisturbed.models.values():
        prepared = model["prepared"]
        assert prepared["steps"] == ["lean"]
        assert 0 < prepared["gradient_error"] == prepared["raw_gradient_error"]  # every bit is the same


@pytest.mark.parametrize(("how", "steps"), [("raw", []), ("bfloat16", []), ("lean+fold", ["fold", "lean"])])
def test_other_preparations_are_recorded_and_one_that_disagrees_is_not_used(undisturbed, tmp_path, how, steps):
    head, *tables = TEXT.split("[[")
    text = head + f'[compute]\nprepare = "{how}"\n\n' + "".join("[[" + table for table in tables)
    run = ab.run(tiny(text), tmp_path / "run")
    assert [model["prepared"]["steps"] for model in run.models.values()] == [steps, steps]
    assert all(("bfloat16" in model["prepared"]["rejected"]) == (how == "bfloat16") for model in run.models.values())
    if not steps:
        assert sorted_rows(run).equals(sorted_rows(undisturbed))
    assert ab.plan(tiny(text)) == ab.plan(tiny())


@pytest.mark.parametrize(
    ("how", "message"), [("auto", "auto. depends on timing"), ("leen", r"unknown step 'leen'. Did you mean 'lean'\?")]
)
def test_a_preparation_that_cannot_be_is_refused(how, message):
    head, *tables = TEXT.split("[[")
    with pytest.raises(UserError, match=message):
        tiny(head + f'[compute]\nprepare = "{how}"\n\n' + "".join("[[" + table for table in tables))


def test_a_lost_picture_is_made_again_and_no_other(undisturbed, tmp_path):
    run = ab.run(tiny(), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (undisturbed.path / "panels").iterdir()}
    lost, *kept = sorted((run.path / "panels").iterdir())
    lost.unlink()
    stale = lost.with_name("a-worst-0000000000000000.npz")
    stale.write_bytes(b"of other rows")
    times = [path.stat().st_mtime_ns for path in kept]
    events = []
    ab.run(tiny(), run.path, progress=events.append)
    assert [(event.stage, event.total) for event in events if event.stage == "panels"] == [("panels", 1)]
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert {path.name: path.read_bytes() for path in (run.path / "panels").iterdir()} == before


@pytest.mark.parametrize(
    ("shard", "workers"),
    [pytest.param(1, 1, marks=pytest.mark.slow), (3, 1), pytest.param(8, 2, marks=pytest.mark.slow)],
)
def test_shards_and_workers_change_no_bit(undisturbed, tmp_path, shard, workers):
    again = ab.run(tiny(), tmp_path / "run", shard=shard, workers=workers)
    assert sorted_rows(again).equals(sorted_rows(undisturbed))


def test_the_order_of_cells_and_models_changes_no_bit(undisturbed, tmp_path):
    head, *tables = TEXT.split("[[")
    shuffled = ab.run(tiny(head + "".join("[[" + table for table in reversed(tables))), tmp_path / "run")
    assert sorted_rows(shuffled).equals(sorted_rows(undisturbed))


def test_a_finished_run_computes_nothing_again(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.path.rglob("*.parquet")}
    events = []
    again = ab.run(tiny(), undisturbed.path, progress=events.append)
    assert {event.stage for event in events} == {"load", "complete"}
    assert {path: path.stat().st_mtime_ns for path in undisturbed.path.rglob("*.parquet")} == before
    assert again.missing == 0


def test_a_lost_part_is_computed_again(undisturbed, tmp_path):
    run = ab.run(tiny(), tmp_path / "run", shard=5)
    parts = sorted((run.path / "parts").glob("*.parquet"))
    parts[0].unlink()
    parts[3].write_bytes(parts[3].read_bytes()[:-9])
    events = []
    again = ab.run(tiny(), run.path, progress=events.append)
    (note,) = [event.what for event in events if event.stage == "note"]
    assert note.startswith(f"{parts[3]}: is damaged")
    assert (run.path / "damaged" / "parts" / parts[3].name).exists()
    assert sorted_rows(again).equals(sorted_rows(undisturbed))


@pytest.mark.slow
def test_killed_at_random_moments_in_every_way_it_ends_with_the_same_rows_and_leaves_nothing(tmp_path):
    """A round for each number of workers and state of the cache, at least; CONTRIBUTING.md has a longer run."""
    (tmp_path / "tiny.toml").write_text(TEXT)
    script = Path(__file__).with_name("kill_often.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "tiny.toml"), str(tmp_path / "kills"), "40"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])  # older versions of MONAI print while they build a network
    assert sum(found["kills"].values()) >= 40
    assert len({tuple(state) for each in found["rounds"] for state in each["states"]}) >= 3, "all hit one stage"
    for each in found["rounds"]:
        assert each["grown"], "a kill lost what was finished before"
        assert (each["lost"], each["duplicate"], each["equal"], each["left"]) == (0, 0, True, [])


def test_another_suite_on_the_same_folder_is_refused(undisturbed):
    before = sorted(undisturbed.path.rglob("*"))
    with pytest.raises(RecordError, match=r"another suite: seed was 0, is 1\."):
        ab.run(tiny(TEXT.replace('name = "tiny"', 'name = "tiny"\nseed = 1')), undisturbed.path)
    assert sorted(undisturbed.path.rglob("*")) == before


def test_new_scoring_or_title_is_no_other_suite(undisturbed):
    scoring = '[scoring]\nempty = "one"\n'
    again = ab.run(tiny(TEXT.replace("[data]", scoring + "[data]")), undisturbed.path)
    assert again.missing == 0


def test_other_weights_under_old_rows_are_refused(undisturbed, tmp_path):
    run = ab.run(tiny(), tmp_path / "run")
    path = run.path / "models" / "a.json"
    edit_json(path, lambda entry: entry | {"weights_sha256": "0"})
    next((run.path / "parts").glob("a-*.parquet")).unlink()
    with pytest.raises(RecordError, match="other weights of model a"):
        ab.run(tiny(), run.path)


def test_pictures_of_other_weights_than_the_rows_are_refused(undisturbed, tmp_path):
    run = ab.run(tiny(), tmp_path / "run")
    path = run.path / "models" / "a.json"
    edit_json(path, lambda entry: entry | {"weights_sha256": "0"})
    lost = next((run.path / "panels").glob("a-*.npz"))
    lost.unlink()
    with pytest.raises(RecordError, match="other weights of model a"):
        ab.run(tiny(), run.path)
    assert not lost.exists()


def test_a_model_that_learned_nothing_fails_alone(tmp_path):
    text = TEXT.replace("floor = 0.0", "floor = 0.9")
    run = ab.run(tiny(text), tmp_path / "run")
    assert [failure["model"] for failure in run.failures] == ["a", "b"]
    assert "expected a validation Dice of at least 0.9" in run.failures[0]["message"]
    assert len(run.rows) == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("features = [4, 4, 4, 4, 4, 4]", "features = [4]", "a"),
        ('"monai.UNet"', '"nowhere.nets:Net"', "nowhere"),
        (
            'name = "random_sign"',
            'name = "nowhere.attacks:Mine"',
            "attack nowhere.attacks:Mine: module 'nowhere.attacks' cannot be imported",
        ),
        ("draws = 2", "settings = { steps = 3 }", "attack random_sign: does not take these settings"),
        ('"dice"]', '"nowhere.losses:mine"]', "loss nowhere.losses:mine: module 'nowhere.losses' cannot be imported"),
    ],
)
def test_a_mistake_in_the_suite_is_told_before_anything_is_computed(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(UserError, match=message):
        ab.run(tiny(TEXT.replace(old, new)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_corrected_suite_may_use_the_same_folder(undisturbed, tmp_path):
    with pytest.raises(UserError):
        ab.run(tiny(TEXT.replace("draws = 2", "settings = { steps = 3 }")), tmp_path / "run")
    assert sorted_rows(ab.run(tiny(), tmp_path / "run")).equals(sorted_rows(undisturbed))


def test_rows_are_on_disk_when_they_are_told_of(tmp_path):
    written = []

    def look(event):
        if event.stage == "attack" and not event.cell:
            rows = records.read_rows(tmp_path / "run", ["cell", "image"])
            written.append((event.done, len(rows)))

    ab.run(tiny(), tmp_path / "run", shard=12, progress=look)
    assert written == [(84 * n, 84 * n) for n in range(1, 7)]


def test_changed_files_are_seen_by_a_second_run_of_one_process(tmp_path):
    weights = tmp_path / "w.safetensors"
    text = TEXT.replace('architecture = "monai.UNet"', f'architecture = "monai.UNet"\nweights = "{weights}"')
    data = load_dataset(tiny().data)
    digests = []
    for seed in (0, 1):
        save_weights(weights, build_model(tiny().models[1], channels=1, task=data.task, size=32, seed=seed))
        run = ab.run(tiny(text), tmp_path / f"run{seed}")
        digests.append(run.models["b"]["weights_sha256"])
    assert digests[0] != digests[1]


def test_models_are_trained_with_the_suites_threads_and_the_callers_are_his_own(tmp_path):
    seen: dict[str, set[int]] = {}
    torch.set_num_threads(2)
    text = TEXT.replace("epochs = 3", "epochs = 2").replace('losses = ["bce", "dice"]', 'losses = ["bce"]')
    text = text.replace("schema = 1", "schema = 1\nseed = 4093")  # nobody has trained these models before

    def note(event):
        if not event.cell:  # such events come from within a job
            seen.setdefault(event.stage, set()).add(torch.get_num_threads())

    ab.run(tiny(text), tmp_path / "run", progress=note)
    assert (seen["train"], seen["attack"]) == ({1}, {2})
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        ("/opt/bin/advseg-bench", "advseg-bench"),
        ("/lib/advseg_bench/__main__.py", "python -m advseg_bench"),
        ("study.py", "study.py"),
    ],
)
def test_the_recorded_command_can_be_typed(program, typed):
    assert describe_command([program, "run", "a suite.toml"]) == f"{typed} run 'a suite.toml'"
