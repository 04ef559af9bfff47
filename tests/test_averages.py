"""Means over images and subjects against polars' own grouping, and what a large run costs to read."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from clocks import count_calls
from polars.testing import assert_frame_equal
from runs import Synthetic, write_run

from advseg_bench.results.averages import group_rows, make_table
from advseg_bench.results.numbering import average_by, close_gaps, number_rows
from advseg_bench.results.run import Run


@pytest.fixture
def frame():
    generator = np.random.default_rng(3)
    n = 5000
    image = generator.integers(0, 40, n)
    return pl.DataFrame(
        {
            "model": [f"m{k}" for k in generator.integers(0, 3, n)],
            "eps": generator.integers(0, 4, n) / 255,
            "image": [f"i{k}" for k in image],
            "subject": [f"s{k % 7}" for k in image],
            "dice": pl.Series(generator.random(n)).set(pl.Series(generator.random(n) < 0.2), None),
            "clean": generator.random(n),
        }
    )


@pytest.mark.parametrize("columns", [("model",), ("eps",), ("model", "eps", "image")], ids="-".join)
def test_numbers_are_places_among_the_sorted_distinct_values(frame, columns):
    numbers, distinct = number_rows(frame, columns)
    assert_frame_equal(distinct, frame.select(columns).unique().sort(columns))
    assert_frame_equal(distinct[numbers.tolist()], frame.select(columns))
    kept_once = frame.with_columns(pl.col(pl.String).cast(pl.Categorical()))
    again, same = number_rows(kept_once, columns)
    np.testing.assert_array_equal(again, numbers)
    assert_frame_equal(same.cast({pl.Categorical(): pl.String}), distinct)


def test_numbers_do_not_overflow():
    values = [str(k) for k in range(3000)]
    frame = pl.DataFrame({f"c{column}": values[column:] + values[:column] for column in range(8)})
    numbers, distinct = number_rows(frame, frame.columns)
    assert 3000**8 > 2**63
    assert_frame_equal(distinct[numbers.tolist()], frame)
    assert len(distinct) == 3000


@pytest.mark.parametrize("highest", [40, 500, 501, 10**12], ids="up to {}".format)
def test_gaps_are_closed_as_sorting_would(highest):
    numbers = np.random.default_rng(0).integers(3, highest, 500)
    places, found = close_gaps(numbers)
    expected, inverse = np.unique(numbers, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(places, inverse)


def test_nothing_has_no_gaps():
    places, found = close_gaps(np.zeros(0, dtype=np.int64))
    assert len(places) == len(found) == 0


def test_average_by_leaves_out_null():
    means = average_by(np.array([0, 2, 2, 1]), pl.Series("a", [1.0, 2.0, 4.0, None]), 4)
    assert means.to_list() == [1.0, None, 3.0, None]


@pytest.mark.parametrize("by", [("model",), ("eps", "model"), ("image",), ("subject", "model")], ids="-".join)
def test_tables_equal_three_groupings_of_polars(frame, by):
    table = make_table(group_rows(frame, by), [frame["dice"]], 0.95)
    images = frame.drop_nulls("dice").group_by({*by, "subject", "image"}).agg(pl.col("dice").mean())
    subjects = images.group_by({*by, "subject"}).agg(pl.col("dice").mean(), pl.len().alias("n"))
    groups = subjects.group_by(by).agg(
        pl.col("dice").mean().alias("mean"), pl.col("n").sum().alias("n_images"), pl.len().alias("n_subjects")
    )
    wanted = groups.sort(by).with_columns(pl.col("n_images", "n_subjects").cast(pl.Int64))
    assert_frame_equal(table.select(*by, "mean", "n_images", "n_subjects"), wanted)


def test_a_ratio_counts_rows_that_have_both(frame):
    table = make_table(group_rows(frame, ["model"]), [frame["dice"], frame["clean"]], 0.95)
    both = frame.drop_nulls("dice").group_by("model", "subject", "image").agg(pl.col("dice", "clean").mean())
    subjects = both.group_by("model", "subject").agg(pl.col("dice", "clean").mean())
    means = subjects.group_by("model").agg(pl.col("dice", "clean").mean()).sort("model")
    assert table["mean"].to_list() == pytest.approx((1 - means["dice"] / means["clean"]).to_list())
    assert table["lower"].null_count() == 3


def test_a_group_without_a_score_is_there_and_empty():
    frame = pl.DataFrame({"model": ["a", "b"], "subject": ["s", "s"], "image": ["i", "i"], "dice": [0.5, None]})
    table = make_table(group_rows(frame, ["model"]), [frame["dice"]], 0.95)
    assert table.rows() == [("a", 0.5, None, None, 1, 1), ("b", None, None, None, 0, 0)]


def test_no_rows_make_no_groups():
    frame = pl.DataFrame(schema={"model": pl.String, "subject": pl.String, "image": pl.String, "dice": pl.Float64})
    assert make_table(group_rows(frame, ["model"]), [frame["dice"]], 0.95).is_empty()


READ = """
import json, resource, sys
from advseg_bench.results.run import Run
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run = Run(sys.argv[1])
for score in ("dice", "diff", "area"):
    run.table(score, by=("model", "attack", "loss", "settings", "norm"))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([len(run.rows), (after - before) * (1 if sys.platform == "darwin" else 1024)]))
"""


@pytest.mark.slow
def test_reading_many_rows_is_small(tmp_path):
    plot = Synthetic(losses=("bce", "dice", "focal"), eps=tuple(range(1, 11)), draws=5, subjects=20, images=12)
    run = write_run(tmp_path / "run", plot)
    done = subprocess.run([sys.executable, "-c", READ, str(run)], capture_output=True, text=True, check=True)
    rows, peak = json.loads(done.stdout)
    assert rows == 2 * 91 * 20 * 12
    assert peak < 250e6


def test_reading_ten_times_the_rows_takes_as_many_calls(tmp_path):
    def read(path):
        run = Run(path)
        for score in ("dice", "diff", "area"):
            run.table(score, by=("model", "attack", "loss", "settings", "norm"))
        return len(run.rows)

    small, large = (write_run(tmp_path / str(n), Synthetic(subjects=6, images=n)) for n in (2, 20))
    assert read(large) == 10 * read(small)
    assert count_calls(read, large) < 1.2 * count_calls(read, small)
