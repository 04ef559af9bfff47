"""A run whose rows lie in memory: what it has in common with one of a folder, and what it lacks."""

from __future__ import annotations

import json

import polars as pl
import pytest
from runs import Synthetic, write_run

from advseg_bench.claims import judge_claims
from advseg_bench.errors import RecordError, SpecError
from advseg_bench.report import summarise, write_claims, write_report
from advseg_bench.results.run import Run
from advseg_bench.results.selection import find_extremes
from advseg_bench.results.tables import SCORES

ARM = ("attack", "loss", "settings", "norm")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run of a folder, with pictures."""
    plot = Synthetic(losses=("bce", "dice_focal"), subjects=6, images=3)
    return Run(write_run(tmp_path_factory.mktemp("runs") / "stored", plot, panels=True))


@pytest.fixture(scope="module")
def rows(stored):
    """Its rows as a caller has them: names as text, in any order."""
    shuffled = stored.rows.cast({pl.Categorical(): pl.String}).sample(fraction=1, shuffle=True, seed=1)
    return shuffled.select(reversed(shuffled.columns))


@pytest.fixture
def run(stored, rows):
    return Run.from_rows(stored.info, rows, stored.models, stored.failures)


def test_rows_scores_and_tables_are_those_of_a_folder(stored, run):
    assert run.rows.equals(stored.rows)
    assert run.scores().equals(stored.scores())
    assert run.curves().equals(stored.curves())
    for score in SCORES:
        by = ("model", *ARM) if score in ("area", "smallest_eps") else ("model", *ARM, "eps")
        assert run.table(score, by).equals(stored.table(score, by)), score
    by = ("model", *ARM, "eps", "class")
    assert run.table("dice", by).equals(stored.table("dice", by))
    assert (run.missing, run.planned, run.controls) == (0, stored.planned, stored.controls)
    assert (run.path, run.model_names, run.about) == (None, stored.model_names, stored.about)
    assert find_extremes(run) == find_extremes(stored)
    assert judge_claims(run) == judge_claims(stored)


def test_it_says_what_it_is(run):
    assert repr(run) == "Run of 396 rows in memory"


def test_its_report_lacks_the_pictures_alone(stored, run, tmp_path):
    ours = {path.relative_to(tmp_path / "ours"): path for path in write_report(run, tmp_path / "ours")}
    theirs = {path.relative_to(tmp_path / "theirs"): path for path in write_report(stored, tmp_path / "theirs")}
    assert {path for path in theirs if "panels" not in path.name} == {*ours}
    for name, path in ours.items():
        if name.stem != "report":
            assert path.read_bytes() == theirs[name].read_bytes(), name
    text = (tmp_path / "ours" / "report.md").read_text()
    assert "Best and worst cases" not in text
    assert "# recreate this report" not in text
    assert "# recreate this report" in (tmp_path / "theirs" / "report.md").read_text()


def test_its_report_needs_a_folder(run):
    for each in (run, summarise(run)):
        with pytest.raises(SpecError, match=r"^out: expected a folder, got None\."):
            write_report(each)


def test_claims_of_runs_in_memory_are_told_apart(stored, run, tmp_path):
    other = Run.from_rows(stored.info, run.rows, stored.models)
    write_claims([run, other], tmp_path)
    table = pl.read_csv(tmp_path / "tables" / "verdicts.csv")
    assert table["data"].unique(maintain_order=True).to_list() == ["mni152 (run 1)", "mni152 (run 2)"]


def test_without_models_and_failures_it_is_a_run_too(stored, rows, tmp_path):
    run = Run.from_rows(stored.info, rows)
    assert (run.models, run.failures) == ({}, [])
    write_report(run, tmp_path)
    assert "| basicunet-s | - | - | - |" in (tmp_path / "report.md").read_text()


def test_what_rows_lack_is_one_line(stored, rows):
    for broken, message in (
        (rows.drop("linf", "tp"), r"rows: expected the columns .*, got 'no tp, linf'"),
        (rows.with_columns(eps=pl.lit("4/255")), "rows: columns of the wrong type: "),
        (rows.with_columns(image=pl.lit(None, dtype=pl.String)), "rows: no image in some rows"),
        (rows.with_columns(cell=pl.lit("foreign")), "rows: expected cells of the run, got 'foreign'"),
        (rows.with_columns(tp=pl.col("tp").list.head(2)), "rows: .*counts of all 3 classes"),
    ):
        with pytest.raises(RecordError, match=message) as error:
            Run.from_rows(stored.info, broken)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["suite", "data", "cells"])
def test_a_description_that_lacks_a_part_is_one_line(stored, rows, part):
    info = {name: value for name, value in stored.info.items() if name != part}
    with pytest.raises(RecordError, match=rf"^info: is damaged \(KeyError: '{part}'\)"):
        Run.from_rows(info, rows)


def test_nothing_of_the_caller_is_kept(stored, rows):
    info, models = json.loads(json.dumps(stored.info)), {"basicunet-s": {"parameters": 5}}
    run = Run.from_rows(info, rows, models)
    info["data"] = None
    models["basicunet-s"]["parameters"] = 6
    assert run.models["basicunet-s"]["parameters"] == 5
    assert run.info["data"]["name"] == "mni152"
