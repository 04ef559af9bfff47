"""Cell ids and rows stay: those of one small run with every shipped attack, kept beside this file."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import advseg_bench as ab
from advseg_bench.registry import catalogue
from advseg_bench.results import records

KEPT = Path(__file__).parent / "kept_rows"
INFO = json.loads((KEPT / "run.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(KEPT)  # the suite names its weights
        return ab.run(ab.Suite.load("suite.toml"), tmp_path_factory.mktemp("kept") / "run")


def test_cells_are_the_kept_ones(run):
    assert run.info["cells"] == INFO["cells"]
    assert {cell["attack"] for cell in INFO["cells"]} == {"none", *catalogue.ATTACKS} - {"transfer"}


def test_rows_are_the_kept_ones(run):
    """Bit for bit under the kept versions and instruction set; elsewhere a few pixels at the decision may differ."""
    kept = pl.read_parquet(KEPT / "rows.parquet")
    parts = sorted((run.path / "parts").glob("*.parquet"))
    rows = pl.concat([pl.read_parquet(part) for part in parts]).sort("cell", "image")
    assert rows.schema == kept.schema == records.ROW_SCHEMA
    names = ("torch", "monai", "numpy", "instructions", "device")
    if all(run.info["binding"][name] == INFO["binding"][name] for name in names):
        assert rows.equals(kept)
        return
    exact = ["cell", "image", "model", "attack", "loss", "settings", "norm", "eps", "draw", "subject", "block"]
    exact += ["valid_pixels", "forwards", "backwards", "flags"]
    assert rows.select(exact).equals(kept.select(exact))
    for name in ("linf", "unmoved"):
        assert (rows[name] - kept[name]).abs().max() < 0.01
    for name in ("wrong_pixels", "flipped_pixels"):
        assert (rows[name] - kept[name]).abs().mean() < 0.002 * kept["valid_pixels"].max()


def test_another_row_would_be_noticed(run):
    kept = pl.read_parquet(KEPT / "rows.parquet")
    assert not kept.equals(kept.with_columns(pl.col("l2") + 1e-12))
