"""A report of shares of the models equals that of all rows at once, and takes less memory."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from runs import Synthetic, rewrite_rows, write_run

from advseg_bench.claims.judge import judge_claims
from advseg_bench.report import write_report
from advseg_bench.results import shares, store
from advseg_bench.results.run import Run

FLAGS = ("unchanged", "non_finite_logits", "zero_gradient", "over_budget", "skipped", "beyond_eps")
BIM = {"name": "bim", "losses": ["bce"], "eps": ["2/255", "4/255"]}
L2 = {"name": "fgsm", "losses": ["bce"], "norm": "l2", "eps": [0.5, 1.0]}
RELEASED = {"name": "fgsm", "losses": ["bce"], "eps": ["4/255"], "settings": {"order": "released"}}
PLOTS = (
    Synthetic(models=("basicunet-s", "unet-mobilenet", "attention-unet"), subjects=6, images=3, extra=(BIM,)),
    Synthetic(models=("unet-vgg13", "basicunet-s", "unet-mobilenet"), subjects=5, images=3, extra=(RELEASED,)),
    Synthetic(kind="multiclass", subjects=2, images=4, extra=(L2, BIM)),
    Synthetic(kind="binary", subjects=1, images=5, losses=("bce",)),
)
BY = (("model",), ("model", "eps"), ("model", "loss", "eps"), ("model", "attack", "subject"), ("model", "draw", "cell"))
SCORES = ("dice", "drop", "diff", "apsr", "pooled_iou")


def damage(rows, generator):
    """Leave out a fifth of the rows and all of one model's noise, and flag others."""
    kept = rows.filter(pl.Series(generator.random(len(rows)) < 0.8))
    first = kept["model"].min()
    kept = kept.filter((pl.col("model") != first) | (pl.col("attack") != "random_sign"))
    marks = [[str(generator.choice(FLAGS))] if generator.random() < 0.1 else [] for _ in range(len(kept))]
    return kept.with_columns(pl.Series("flags", marks, dtype=pl.List(pl.String)))


@pytest.fixture
def split(monkeypatch):
    """Give each model a share of its own from then on."""

    def apply():
        monkeypatch.setattr(shares, "ROWS_AT_ONCE", 1)
        monkeypatch.setattr(store, "BYTES_OF_SHARE", 0)

    return apply


def read_all(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("seed", range(len(PLOTS)))
def test_a_report_of_shares_equals_that_of_all_rows(tmp_path, split, seed):
    out = write_run(tmp_path / "r", PLOTS[seed])
    generator = np.random.default_rng(seed)
    rewrite_rows(out, lambda rows: damage(rows, generator))
    whole = Run(out)
    tables = {by: whole.tables((*SCORES, "area") if by == ("model",) else SCORES, by) for by in BY}
    claims = judge_claims(whole)
    write_report(whole, tmp_path / "whole")
    split()
    assert judge_claims(Run(out)) == claims
    for run in (Run(out), Run(out, strict=False)):
        write_report(run, tmp_path / "shares")
        assert read_all(tmp_path / "shares") == read_all(tmp_path / "whole")
        assert run.missing_by_cell == whole.missing_by_cell
        assert run.missing > 0
        for by, known in tables.items():
            found = run.tables(list(known), by)
            for score, table in known.items():
                assert found[score].drop("lower", "upper").equals(table.drop("lower", "upper")), (by, score)
                assert_frame_equal(found[score], table, abs_tol=1e-12)  # matrix products of other sizes round otherwise
        assert "_whole" not in run._store.__dict__, "the rows were never held together"


def test_shares_hold_whole_models_and_are_emptied(tmp_path, split):
    run = Run(write_run(tmp_path / "r", PLOTS[0]))
    split()
    seen = []
    for share in run.split():
        seen.append((share, set(share.rows["model"]), share.planned))
    assert [names for _, names, _ in seen] == [{name} for name in run.model_names]
    assert sum(planned for _, _, planned in seen) == run.planned
    assert not any(share.__dict__ for share, _, _ in seen)
    assert len(list(Run.from_rows(run.info, run.rows).split())) == len(run.model_names)


def test_columns_that_only_one_model_distinguishes_are_in_the_table_of_all(tmp_path, split):
    out = write_run(tmp_path / "r", PLOTS[1])
    rewrite_rows(out, lambda rows: rows.filter((pl.col("model") == "unet-vgg13") | (pl.col("settings") == "{}")))
    where = {"attack": "fgsm"}
    known = Run(out).table("dice", by=("model", "loss", "eps"), where=where)
    split()
    found = Run(out).table("dice", by=("model", "loss", "eps"), where=where)
    assert "settings" in found.columns
    assert found.equals(known)


@pytest.mark.slow
def test_a_million_rows_take_little_memory(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "big_run.py"
    command = [sys.executable, script, tmp_path, "--rows", "1e6"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peaks = {what: int(peak) for what, peak in re.findall(r"rows, (\w+): .* peak (\d+) MB", told)}
    assert {"tables", "claims", "report"} == set(peaks)
    assert max(peaks.values()) < 900, told
