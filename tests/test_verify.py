"""A flipped bit in any file of a run, and hostile edits: named in one line or made again, never a changed number."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_edits import EDITS, check_edit
from runs import Synthetic, edit_json, rewrite_rows, write_run
from typer.testing import CliRunner

import advseg_bench as ab
from advseg_bench.cache import write_bytes
from advseg_bench.cli.app import app
from advseg_bench.errors import RecordError
from advseg_bench.report import write_report
from advseg_bench.results import compaction, panels, records
from advseg_bench.results.panels import Panel, read_panel
from advseg_bench.results.parts import Damage, find_parts
from advseg_bench.results.run import Run
from advseg_bench.results.verify import verify_run

KINDS = {"run.json": "run.json", "models": "models/*.json", "parts": "parts/*", "panels": "panels/*"}
PLOT = Synthetic(models=("unet-vgg13",), losses=("bce",), eps=(4,), draws=1, images=3, side=16)

SUITE = """
schema = 1
name = "tiny"
[data]
name = "phantom"
size = 16
subjects = 6
slices = 1
[training]
epochs = 1
floor = 0
[[models]]
name = "net"
architecture = "monai.UNet"
settings = { channels = [4, 4], strides = [2] }
[[attacks]]
name = "fgsm"
losses = ["dice"]
eps = ["4/255"]
[[attacks]]
name = "random_sign"
eps = ["4/255"]
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A made-up run with digests; tests copy it."""
    out = write_run(tmp_path_factory.mktemp("runs") / "whole", PLOT, panels=True, sealed=True)
    failure = {"model": "unet-vgg13", "stage": "attack", "cell": Run(out).about.cells[1].id, "message": "no luck"}
    records.write_sealed(out / "failures.json", [failure])
    return out


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A run that was computed; tests copy it."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "tiny.toml").write_text(SUITE)
    ab.run(ab.Suite.load(folder / "tiny.toml"), folder / "run", shard=2)
    return folder


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / "run"))


def flip(path: Path, place: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = place.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def read_values(path: Path) -> set[str]:
    """The keys and values of a JSON file without its digests."""
    found = json.loads(path.read_text())
    objects = found if isinstance(found, list) else [found]
    return {json.dumps([key, each[key]]) for each in objects for key in each if key != "digest"}


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if isinstance(done.exception, RecordError):  # `main` prints these as one line
        return 2, f"{done.output}{done.exception}"
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_a_whole_run_is_whole(whole):
    found = verify_run(whole)
    assert (found.damaged, found.rows, found.labelled) == ((), found.planned, 1)
    assert call("verify", whole)[0] == 0


def test_an_older_run_is_verified_as_far_as_it_can_be(tmp_path):
    out = write_run(tmp_path / "old", PLOT, panels=True)
    for path in (out / "parts").iterdir():
        rows = pl.read_parquet(path)
        path.unlink()
        rows.write_parquet(out / "parts" / f"unet-vgg13-{'0' * 16}.parquet")
    found = verify_run(out)
    assert (found.damaged, found.rows, found.labelled) == ((), found.planned, 0)
    assert "1 of them without a digest" in call("verify", out)[1]
    assert Run(out).rows.equals(Run(write_run(tmp_path / "new", PLOT, sealed=True)).rows)


@pytest.mark.parametrize("kind", [*KINDS, "failures.json"])
def test_a_flipped_bit_is_named_and_changes_no_number(whole, tmp_path, kind):
    place = random.Random(kind)
    rows = Run(whole).rows
    for nth in range(6):
        out = copy(whole, tmp_path / str(nth))
        path = min(out.glob(KINDS.get(kind, kind)))
        flip(path, place)
        damaged = verify_run(out).damaged
        if not damaged:  # a space, or a letter of the key "digest"
            assert read_values(whole / path.relative_to(out)) <= read_values(path)
            continue
        assert [each.path for each in damaged] == [path]
        code, text = call("verify", out)
        assert (code, path.name in text) == (1, True)
        if kind == "run.json":
            with pytest.raises(RecordError, match=r"run\.json: "):
                Run(out)
            continue
        run = Run(out, strict=False)
        assert run.rows.equals(rows if kind != "parts" else rows.clear())
        if kind != "panels":
            with pytest.raises(RecordError, match=path.name):
                Run(out).rows  # noqa: B018


def test_a_report_shows_what_is_whole_and_names_what_is_not(whole, tmp_path):
    out = copy(write_run(tmp_path / "two", Synthetic(images=3, side=16), panels=True, sealed=True), tmp_path)
    lost = [min(out.glob(pattern)) for pattern in ("parts/basicunet-s*", "panels/unet-mobilenet*", "models/*")]
    for path in lost:
        flip(path, random.Random(0))
    code, text = call("report", out)
    assert code == 1
    page = (out / "report" / "report.md").read_text()
    for path in lost:
        assert f"left out: {path}" in text
        assert path.name in page
    assert "Damaged: 3 files left out" in page
    run = Run(out, strict=False)
    assert f"Incomplete: {run.planned // 2} of {run.planned} results are missing" in page
    assert "unet-mobilenet" in page


def test_a_resumed_run_makes_damaged_files_again_and_says_so(real, tmp_path):
    before = Run(real / "run")
    out = copy(real / "run", tmp_path)
    place = random.Random(1)
    lost = [min(out.glob(pattern)) for pattern in ("parts/*", "panels/*", "models/*")]
    for path in lost:
        flip(path, place)
    (out / "models" / "stranger.json").write_text("{}")
    (out / ".run.json.abc.tmp").write_text("half")
    notes = []
    again = ab.run(
        ab.Suite.load(real / "tiny.toml"), out, progress=lambda e: notes.append(e.what) if e.stage == "note" else None
    )
    assert len(notes) == 4
    for path in lost:
        assert any(note.startswith(f"{path}: is damaged") for note in notes)
        assert (out / "damaged" / path.relative_to(out)).exists()
    assert again.rows.equals(before.rows)
    assert again.models["net"]["weights_sha256"] == before.models["net"]["weights_sha256"]
    assert sorted(len(list(folder.iterdir())) for folder in ((out / "panels"), (real / "run" / "panels"))) == [2, 2]
    assert verify_run(out).damaged == ()
    assert not list(out.rglob("*.tmp"))


def test_files_are_labelled_and_panels_are_private(real):
    out = real / "run"
    info = records.read_description(out)
    parts = find_parts(out, info["run"])[0]
    assert {part.label.run for part in parts} == {info["run"]}
    assert {cell for part in parts for cell in part.label.cells} == {cell["id"] for cell in info["cells"]}
    for path in (out / "panels").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_respect_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"x")
        write_bytes(tmp_path / "b", b"x", panels.MODE)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [mode, 0o600]


def test_a_part_of_another_run_is_refused_even_if_its_cells_are_the_same(whole, tmp_path):
    out = copy(whole, tmp_path)
    (path,) = (out / "parts").iterdir()
    rows = pl.read_parquet(path)
    path.unlink()
    foreign = records.write_part(out, rows, "f" * 16)
    (damage,) = verify_run(out).damaged
    assert (damage.path, "of another run" in damage.reason) == (foreign, True)


@pytest.mark.parametrize("name", EDITS)
def test_a_hostile_edit_is_one_line(whole, tmp_path, name):
    check_edit(copy(whole, tmp_path), name)


def split_rows(out: Path, run: str, size: int = 4) -> list[Path]:
    """Replace the parts of a run by small ones."""
    (path,) = (out / "parts").iterdir()
    rows = pl.read_parquet(path)
    path.unlink()
    return [records.write_part(out, rows[start : start + size], run) for start in range(0, len(rows), size)]


def test_small_parts_are_joined_and_no_state_on_the_way_loses_or_doubles_a_row(whole, tmp_path):
    out = copy(whole, tmp_path)
    run, rows = records.read_description(out)["run"], Run(out).rows
    small = split_rows(out, run)
    assert compaction.compact(out, run, few=len(small)) == 0
    kept = {path: path.read_bytes() for path in small}
    assert compaction.compact(out, run, few=1, most_rows=8) == len(small) // 2 * 2
    assert Run(out).rows.equals(rows)
    pieces = list((out / "parts").iterdir())
    assert len(pieces) == -(-len(small) // 2)
    for left in range(len(small) + 1):  # killed after some of the old parts were deleted
        for path in small[:left]:
            path.write_bytes(kept[path])
        (out / "parts" / ".half.tmp").write_bytes(b"half")
        assert Run(out).rows.equals(rows)
        assert verify_run(out).rows == len(rows)
        with records.own(out):
            compaction.remove_replaced(out, run)
        assert sorted((out / "parts").iterdir()) == sorted({*pieces, *small[len(small) // 2 * 2 :]} & {*pieces})


def test_only_what_a_process_has_written_is_joined_while_it_runs(whole, tmp_path):
    out = copy(whole, tmp_path)
    run, rows = records.read_description(out)["run"], Run(out).rows
    small = split_rows(out, run)
    assert compaction.compact(out, run, written=small[:2]) == 2
    assert {*small[2:]} < {*(out / "parts").iterdir()}
    assert len(list((out / "parts").iterdir())) == len(small) - 1
    assert Run(out).rows.equals(rows)


def test_a_damaged_part_is_never_joined_and_a_damaged_joined_part_hides_nothing(whole, tmp_path):
    out = copy(whole, tmp_path)
    run, rows = records.read_description(out)["run"], Run(out).rows
    small = split_rows(out, run)
    kept = {path: path.read_bytes() for path in small}
    flip(small[0], random.Random(2))
    compaction.compact(out, run, few=1)
    assert small[0].exists()
    assert len(Run(out, strict=False).rows) == len(rows) - 4
    for path, data in kept.items():
        path.write_bytes(data)
    (joined,) = {*(out / "parts").iterdir()} - {*small}
    flip(joined, random.Random(3))
    assert Run(out, strict=False).rows.equals(rows)


def test_rows_in_two_parts_count_once_if_they_are_equal(whole, tmp_path):
    out = copy(whole, tmp_path)
    run, rows = records.read_description(out)["run"], Run(out).rows
    (path,) = (out / "parts").iterdir()
    some = pl.read_parquet(path).filter(pl.col("l2") > 0)[:3]
    second = records.write_part(out, some, run)
    assert Run(out).rows.equals(rows)
    assert len(records.scan_rows(out).collect()) == len(rows)
    second.unlink()
    records.write_part(out, some.with_columns(pl.col("l2") / 2), run)
    damaged = verify_run(out).damaged
    assert len(damaged) == 2
    assert all("contradicts another part" in each.reason for each in damaged)


def test_of_two_subjects_of_an_image_most_rows_decide(whole, tmp_path):
    out = copy(whole, tmp_path)
    run = records.read_description(out)["run"]
    small = split_rows(out, run, 3)
    rows = pl.read_parquet(small[0])
    small[0].unlink()
    wrong = records.write_part(out, rows.with_columns(subject=pl.lit("someone")), run)
    (damage,) = verify_run(out).damaged
    assert (damage.path, "another subject" in damage.reason) == (wrong, True)


@pytest.mark.parametrize("depth", [80, 900, 100_000])
def test_a_deeply_nested_description_is_one_line(whole, tmp_path, depth):
    out = copy(whole, tmp_path)
    text = (out / "run.json").read_text()
    (out / "run.json").write_text(text.replace('"suite": {', '"suite": {"deep": ' + "[" * depth + "]" * depth + ",", 1))
    (damage,) = verify_run(out).damaged
    assert "cannot be read" in damage.reason
    with pytest.raises(RecordError, match=r"run\.json: cannot be read"):
        Run(out)


def change_panel(path: Path, **arrays: object) -> Path:
    """Rewrite some arrays of a panel; the name is one of an older version, so that there is no digest."""
    with np.load(path) as old:
        kept = dict(old) | arrays
    path.unlink()
    np.savez(path.with_name("p.npz"), **{name: array for name, array in kept.items() if array is not None})
    return path.with_name("p.npz")


def test_no_panel_writes_outside_the_report(whole, tmp_path):
    out = copy(whole, tmp_path)
    path = min((out / "panels").iterdir())
    with np.load(path) as old:
        meta = json.loads(str(old["meta"]))
    changed = change_panel(path, meta=np.array(json.dumps(meta | {"model": "/../../../evil"})))
    (damage,) = verify_run(out).damaged
    assert (damage.path, "meta, model" in damage.reason) == (changed, True)
    write_report(Run(out, strict=False), tmp_path / "deep" / "report")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["deep", "run"]
    edit_json(
        out / "run.json",
        lambda info: (
            {k: v for k, v in info.items() if k != "run"}
            | {"cells": [cell | {"model": "../evil"} for cell in info["cells"]]}
        ),
    )
    with pytest.raises(RecordError, match=r"cells\.0\.model"):
        Run(out)


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def test_the_sizes_of_a_panel_are_checked_before_anything_is_allocated(whole, tmp_path, monkeypatch):
    """A header that says 15.5 GB, and members that unpack to more than they may."""
    monkeypatch.setattr(panels, "MOST_BYTES", 2**26)
    out = copy(whole, tmp_path)
    path = min((out / "panels").iterdir())
    run = Run(out)
    images = frozenset(run.info["images"])
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1, 62500, 62000)})
    for changed, reason in (
        ({"x.npy": header.getvalue()}, "ValueError"),
        ({"x.npy": header.getvalue() + bytes(1000)}, "ValueError"),
        ({"x.npy": bytes(2**26)}, "above"),
        ({"more.npy": b""}, "expected"),
    ):
        bad = path.with_name("bad.npz")
        bad.write_bytes(pack(members | changed))
        found = read_panel(bad, run.about, images)
        assert isinstance(found, Damage)
        assert reason in found.reason
    bad.unlink()
    assert isinstance(read_panel(path, run.about, images, run.info["run"]), Panel)
    for array in (np.zeros((1, 8, 16), np.float32), np.full((1, 16, 16), np.nan, np.float32), np.zeros((1, 16, 16))):
        found = read_panel(change_panel(min((out / "panels").iterdir()), x=array), run.about, images)
        assert isinstance(found, Damage) == (array.dtype == np.float32)


@pytest.mark.parametrize("value", [-1, 2**41])
@pytest.mark.parametrize("column", ["tp", "fp", "fn"])
def test_an_impossible_count_is_refused(tmp_path, column, value):
    out = write_run(tmp_path / "run")
    k = len(Run(out).task.classes)
    rewrite_rows(out, lambda rows: rows.with_columns(pl.lit([value] + [0] * (k - 1), pl.List(pl.Int64)).alias(column)))
    with pytest.raises(RecordError, match=f"an impossible {column}"):
        _ = Run(out).rows
