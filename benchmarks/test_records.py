"""Writing and reading the rows of a run, and its tables: 20,100 rows, 2 % of the run of `big_run.py`."""

from __future__ import annotations

import duckdb
import pandas as pd
import polars as pl
import pytest
from big_run import write_big_run

from advseg_bench.results import records
from advseg_bench.results.run import Run

IMAGES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_big_run(tmp_path_factory.mktemp("big") / "run", IMAGES)


def note(benchmark, folder, rows):
    benchmark.extra_info["rows_per_s"] = rows / benchmark.stats.stats.median
    benchmark.extra_info["bytes"] = sum(path.stat().st_size for path in (folder / "parts").iterdir())


def read(folder):
    return records.read_rows(folder)


def polars(folder):
    return pl.read_parquet(folder / "parts" / "*.parquet")


def pandas(folder):
    return pd.concat(pd.read_parquet(path) for path in (folder / "parts").iterdir())


def duck(folder):
    return duckdb.sql(f"select * from '{folder}/parts/*.parquet'").fetchall()


@pytest.mark.benchmark(group="read all rows")
@pytest.mark.parametrize("how", [read, polars, pandas, duck])
def test_read(benchmark, folder, how):
    rows = benchmark(how, folder)
    assert len(rows) == 2010 * IMAGES
    note(benchmark, folder, len(rows))


@pytest.mark.benchmark(group="write a part of 1,000 rows")
def test_write(benchmark, folder, tmp_path):
    (tmp_path / "parts").mkdir()
    rows = records.read_rows(folder).head(1000).to_dicts()
    benchmark(records.write_part, tmp_path, rows)
    note(benchmark, tmp_path, len(rows))


@pytest.mark.benchmark(group="open a run and make a table of all rows")
@pytest.mark.parametrize("score", ["dice", "diff", "pooled_dice", "area"])
def test_table(benchmark, folder, score):
    names = ("model", "attack", "loss", "settings", "norm")

    def tabulate():
        run = Run(folder)
        return run, run.table(score, by=names)

    run, table = benchmark(tabulate)
    assert table["mean"].null_count() == 0
    note(benchmark, folder, len(run.rows))
