from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest

from advseg_bench import cache
from advseg_bench.cache import lease
from advseg_bench.cache.holder import describe_self
from advseg_bench.errors import HeldError, RecordError
from advseg_bench.results import records
from advseg_bench.suite.cells import CLEAN, Cell

INFO = {
    "schema": 1,
    "suite": {"name": "a", "attacks": [1, 2], "data": {}},
    "data": {"name": "d", "kind": "binary", "classes": ["a"], "splits": {"test": 1}, "fingerprint": "x"},
    "binding": {"torch": "2"},
    "cells": [Cell("c1", "m", CLEAN, 0.0, 0, "m none", None).as_record()],
    "images": ["i1"],
}


def row(cell: str = "c1", image: str = "i1", **changes: object) -> dict[str, object]:
    values = {
        "cell": cell, "dataset": "d", "model": "m", "attack": "fgsm", "loss": "bce", "settings": "{}", "norm": "linf",
        "eps": 4 / 255, "draw": 0, "image": image, "subject": "s", "block": "b", "tp": [1, 2], "fp": [3, 4],
        "fn": [5, 6], "valid_pixels": 9, "wrong_pixels": 1, "flipped_pixels": 2, "linf": 4 / 255, "l2": 0.1,
        "unmoved": 0.0, "forwards": 1.0, "backwards": 1.0, "flags": ["unchanged"],
    }  # fmt: skip
    return values | changes


def test_rows_come_back_as_they_were_written_in_a_fixed_order(tmp_path):
    with records.own(tmp_path / "run"):
        second = records.write_part(tmp_path / "run", [row("c2", "i1"), row("c2", "i2", flags=[])])
        records.write_part(tmp_path / "run", [row("c1", "i1")])
        records.write_part(tmp_path / "run", [row("c1", "i1")])
    frame = records.read_rows(tmp_path / "run")
    assert frame.schema == pl.Schema(records.READ_SCHEMA)
    assert len(frame) == 3
    assert list(frame.select("cell", "image").iter_rows()) == [("c1", "i1"), ("c2", "i1"), ("c2", "i2")]
    assert frame.filter(cell="c1").to_dicts() == [row("c1", "i1")]
    assert frame.equals(records.read_rows(tmp_path / "run"))
    assert second.parent.name == "parts"


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_run_leaves_a_folder_as_it_was(tmp_path, there):
    out = tmp_path / "run"
    if there:
        out.mkdir()
    with pytest.raises(RecordError, match="refused"), records.own(out):
        raise RecordError("refused")
    assert out.exists() == there
    with records.own(out):
        records.write_part(out, [row()])
    assert len(records.read_rows(out)) == 1, "rows are never removed"


def test_pandas_and_duckdb_read_the_parts(tmp_path):
    with records.own(tmp_path):
        path = records.write_part(tmp_path, [row()])
    assert list(pd.read_parquet(path)["tp"][0]) == [1, 2]
    assert duckdb.sql(f"select tp, eps, flags from '{path}'").fetchall() == [([1, 2], 4 / 255, ["unchanged"])]


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_part_is_named_with_the_remedy(tmp_path, keep):
    with records.own(tmp_path):
        records.write_part(tmp_path, [row("c1")])
        broken = records.write_part(tmp_path, [row("c2")])
    broken.write_bytes(broken.read_bytes()[:keep])
    with pytest.raises(RecordError, match=rf"{broken.name}: is damaged .*Run the same command again") as e:
        records.read_rows(tmp_path)
    assert "\n" not in str(e.value)


def test_a_reason_that_begins_with_an_empty_line_is_told(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise pl.exceptions.ComputeError("\nno such page\nat 7")

    with records.own(tmp_path):
        path = records.write_part(tmp_path, [row()])
    path = path.rename(path.with_name("m-0123456789abcdef.parquet"))
    monkeypatch.setattr(pl, "read_parquet", fail)
    path.write_bytes(b"")
    with pytest.raises(RecordError, match=rf"{path.name}: is damaged \(no such page\)\. Run the same"):
        records.read_rows(tmp_path)


def test_zeros_anywhere_in_a_part_never_end_in_another_error(tmp_path):
    """As a lost block of a disk leaves them; at some places polars panics."""
    with records.own(tmp_path):
        path = records.write_part(tmp_path, [row(f"c{k % 5}", f"i{k}") for k in range(40)])
    whole = path.read_bytes()
    told = []
    for start in range(4, len(whole) - 8, 16):
        path.write_bytes(whole[:start] + bytes(16) + whole[start + 16 :])
        try:
            records.read_rows(tmp_path)
        except RecordError as error:
            told.append(str(error))
    assert told
    assert all(f"{path.name}: is damaged" in message for message in told)


def test_a_part_of_another_schema_is_named(tmp_path):
    with records.own(tmp_path):
        pl.DataFrame({"cell": ["a"]}).write_parquet(tmp_path / "parts" / "x.parquet")
    with pytest.raises(RecordError, match=r"x\.parquet: is damaged"):
        records.read_rows(tmp_path)


def test_a_part_with_other_widths_of_numbers_is_read_all_the_same(tmp_path):
    with records.own(tmp_path):
        records.write_part(tmp_path, [row("c1")])
        path = records.write_part(tmp_path, [row("c2")])
    older = path.with_name("m-0123456789abcdef.parquet")
    path.rename(older)
    pl.read_parquet(older).with_columns(pl.col("draw").cast(pl.Int64)).write_parquet(older)
    frame = records.read_rows(tmp_path)
    assert frame.schema == pl.Schema(records.READ_SCHEMA)
    assert frame["cell"].to_list() == ["c1", "c2"]


def test_of_rows_written_twice_the_first_part_s_is_kept(tmp_path):
    with records.own(tmp_path):
        first = records.write_part(tmp_path, [row("c1"), row("c2", wrong_pixels=7)])
        second = records.write_part(tmp_path, [row("c2", wrong_pixels=8)])
    kept = min((first, 7), (second, 8))[1]
    assert records.read_rows(tmp_path)["wrong_pixels"].to_list() == [1, kept]


def test_names_with_brackets_are_no_patterns(tmp_path):
    folder = tmp_path / "run [1] *"
    with records.own(folder):
        records.write_part(folder, [row()])
    assert len(records.read_rows(folder)) == 1


def test_a_second_run_on_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom advseg_bench.results import records\n"
        "with records.own(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(RecordError, match=rf"in use by process {first.pid} on .*since 2"), records.own(tmp_path):
        pass
    first.kill()
    first.communicate()
    with records.own(tmp_path):
        pass


def test_an_owner_that_lost_its_lease_writes_nothing_more(tmp_path):
    with records.own(tmp_path):
        records.write_part(tmp_path, [row("c1")])
        (tmp_path / ".lease").write_text((tmp_path / ".lease").read_text().replace('"token": "', '"token": "f'))
        with pytest.raises(HeldError, match="another process took over"):
            records.write_part(tmp_path, [row("c2")])
    assert records.read_rows(tmp_path)["cell"].to_list() == ["c1"]
    assert (tmp_path / ".lease").exists(), "it is that of the other process"


@pytest.mark.parametrize("mark", [".run", ".lock"])
def test_a_folder_whose_first_owner_failed_is_used_again(tmp_path, mark):
    out = tmp_path / "run"
    with records.own(out):
        records.write_part(out, [row()])
    (out / ".run").rename(out / mark)
    with records.own(out):
        assert len(records.read_rows(out)) == 1


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_on_another_machine_is_waited_for_until_it_renews_its_lease_or_is_gone(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(lease, "GONE_S", 60.0 if alive else 0.5)
    path = tmp_path / ".lease"
    path.write_text(json.dumps(asdict(replace(describe_self("run"), machine="elsewhere", host="elsewhere"))))
    timer = threading.Timer(0.5, os.utime, (path, (1, 1)))
    if alive:
        timer.start()
        with pytest.raises(HeldError, match=r"in use by process .* on elsewhere"), records.own(tmp_path):
            pass
    else:
        with records.own(tmp_path):
            assert (tmp_path / "parts").is_dir()


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RecordError, match="not empty and holds no run"), records.own(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RecordError, match="expected a folder for the run"), records.own(tmp_path / "thesis.tex"):
        pass
    with pytest.raises(RecordError, match="cannot create"), records.own(tmp_path / "thesis.tex" / "run"):
        pass


def test_the_same_description_is_accepted_and_another_is_refused_by_its_first_difference(tmp_path):
    records.describe(tmp_path, INFO)
    records.describe(tmp_path, json.loads(json.dumps(INFO)))
    for change, message in (
        ({"suite": INFO["suite"] | {"name": "b"}}, 'another suite: name was "a", is "b"'),
        ({"suite": INFO["suite"] | {"attacks": [1]}}, r"another suite: attacks was \[1, 2\], is \[1\]"),
        ({"data": INFO["data"] | {"fingerprint": "y"}}, 'another data: fingerprint was "x", is "y"'),
        ({"binding": {"torch": "3"}}, 'another environment: torch was "2", is "3"'),
    ):
        with pytest.raises(RecordError, match=message):
            records.describe(tmp_path, INFO | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not the folder of a run"),
        ("{", "cannot be read"),
        ('{"schema": 2}', "expected schema 1, got 2. Upgrade advseg-bench"),
        ('{"schema": 0}', "expected schema 1, got 0. Run the suite again"),
        ("[]", "expected schema 1, got None"),
    ],
)
def test_a_damaged_or_foreign_description_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        records.read_description(tmp_path)


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """A file size limit makes the operating system refuse the write halfway, as a full disk does."""
    (tmp_path / "a.json").write_text("old")
    code = (
        "import sys\nfrom pathlib import Path\nfrom advseg_bench.cache import write_bytes\n"
        "from advseg_bench.errors import RecordError\n"
        "try:\n    write_bytes(Path(sys.argv[1]), b'x' * 10_000)\n"
        "except RecordError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.json")],
        capture_output=True, text=True, check=True, preexec_fn=_limit_file_size,
    )  # fmt: skip
    assert "a.json: could not be written: File too large. " in done.stdout
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_unwritable_place_is_one_line():
    with pytest.raises(RecordError, match="could not be written"):
        cache.write_bytes(Path("/proc/nothing/x"), b"")
    with pytest.raises(RecordError, match="cannot create"):
        cache.make_folder(Path("/proc/nothing"))


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "c"))
    assert cache.cache_dir("models", "x") == tmp_path / "c" / "models" / "x"
    monkeypatch.delenv("ADVSEG_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "d"))
    assert cache.cache_dir() == tmp_path / "d" / "advseg-bench"


def test_content_hash_ignores_the_order_of_keys_and_nothing_else():
    assert cache.content_hash({"a": 1, "b": 2}) == cache.content_hash({"b": 2, "a": 1})
    assert cache.content_hash([1, 2]) != cache.content_hash([2, 1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.content_hash(float("nan"))
