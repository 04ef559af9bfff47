import io
import runpy
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from advseg_bench.data.mni152 import BLOCK, CLASSES, load, split_slices
from advseg_bench.suite.specs import Mni152Data
from advseg_bench.types import Task

PACKAGE = resources.files("advseg_bench.data")
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_mni152.py"))
MADE_CLASSES, SOURCES, pack, pool, turn = (TOOL[name] for name in ("CLASSES", "SOURCES", "pack", "pool", "turn"))


def spec(**keys):
    return Mni152Data(name="mni152", **keys)


@pytest.fixture(scope="module")
def arrays():
    with np.load(io.BytesIO((PACKAGE / "mni152.npz").read_bytes())) as file:
        return dict(file)


@pytest.fixture(scope="module")
def full():
    """The data set at its own resolution: 117 pixels are one pixel each."""
    return load(spec(size=117, task="multiclass"))


def slice_number(case):
    return int(case.image.removeprefix("mni152/z"))


def test_splits_are_blocks_with_guard_bands():
    used = split_slices(155)
    assert Counter(used.values()) == {"train": 91, "validation": 12, "test": 36}
    assert list(used) == sorted(used)
    blocks = {name: {z // BLOCK for z in used if used[z] == name} for name in ("validation", "test")}
    assert blocks == {"validation": {5}, "test": {3, 7, 11}}
    held_out = [z for z in used if used[z] != "train"]
    distance = min(abs(z - other) for z in used if used[z] == "train" for other in held_out)
    assert distance == 3
    assert sorted(set(range(155)) - set(used)) == [
        *(34, 35, 48, 49),
        *(58, 59, 72, 73),
        *(82, 83, 96, 97),
        *(130, 131, 144, 145),
    ]


def test_cases_say_where_they_come_from(full):
    assert Counter(case.split for case in full.cases) == {"train": 91, "validation": 12, "test": 36}
    assert {case.subject for case in full.cases} == {"mni152"}
    assert all(case.block == f"block{slice_number(case) // 12:02d}" for case in full.cases)
    assert len({case.image for case in full.cases}) == 139
    assert (full.cases[0].image, full.cases[-1].image) == ("mni152/z000", "mni152/z154")
    assert {case.block for i, case in enumerate(full.cases) if i in full.split("test")} == {
        "block03",
        "block07",
        "block11",
    }
    assert "one average head" in full.note.lower()


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        ("multilabel", CLASSES),
        ("multiclass", ("background", *CLASSES)),
        ("binary", ("grey_matter",)),
    ],
)
def test_tasks(task, classes):
    data = load(spec(task=task, size=64, channels=3))
    assert data.task == Task(task, classes)
    batch = data.batch(data.split("validation")[:2])
    assert batch.x.shape == (2, 3, 64, 64)
    assert batch.x.dtype == torch.float32
    assert (batch.x[:, 0] == batch.x[:, 2]).all()
    assert batch.valid.all()
    assert batch.y.shape == ((2, 64, 64) if task == "multiclass" else (2, len(classes), 64, 64))
    assert batch.y.dtype == (torch.int64 if task == "multiclass" else torch.bool)
    assert batch.spacing[0] == pytest.approx((2 * 117 / 64,) * 2)


def test_tasks_agree_with_each_other_and_with_the_file(full, arrays):
    multilabel, binary = load(spec(size=117)), load(spec(size=117, task="binary"))
    for index in (30, 70, 120):
        z = slice_number(full.cases[index])
        truth = np.pad(arrays["labels"][z], ((0, 0), (9, 9)))
        assert (full.read(index).label == truth).all()
        assert (multilabel.read(index).label == (truth == np.arange(1, 4)[:, None, None])).all()
        assert (binary.read(index).label == (truth == 1)).all()
        expected = np.pad(arrays["t1"][z], ((0, 0), (9, 9))) / np.float32(255)
        np.testing.assert_allclose(full.read(index).image[0], expected, atol=1e-7)


def test_labels_match_the_anatomy(arrays):
    t1, labels = arrays["t1"].astype(float), arrays["labels"]
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert ((labels > 0) == (t1 > 0)).all()
    assert MADE_CLASSES == CLASSES
    means = {name: t1[labels == value].mean() for value, name in enumerate(CLASSES, 1)}
    assert means["csf"] < means["grey_matter"] < means["white_matter"]
    ventricles = labels[96, 45:72, 40:59]
    assert (ventricles == 3).mean() > 0.2


def test_anterior_is_up(arrays):
    # 62 mm below the commissures there is only cerebellum and brain stem: posterior, so in the lower half
    assert arrays["z_mm"][10] == -62
    rows = np.flatnonzero((arrays["labels"][10] == 1).any(axis=1))
    assert rows.min() > 117 / 2
    assert (arrays["z_mm"] == np.arange(-72, 83)).all()
    assert arrays["spacing_mm"].tolist() == [2.0, 2.0]


def test_turn_reads_like_a_radiologist():
    voxels = np.zeros((3, 4, 5), np.uint8)
    voxels[2, 3, 0] = 1  # right, anterior, inferior
    voxels[0, 3, 4] = 2  # left, anterior, superior
    voxels[2, 0, 4] = 3  # right, posterior, superior
    turned = turn(voxels)
    assert turned.shape == (5, 4, 3)
    assert (turned[0, 0, 0], turned[4, 0, 2], turned[4, 3, 0]) == (1, 2, 3)


def test_pool_sums_voxels_and_fills_up_odd_edges():
    voxels = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    assert pool(voxels).tolist() == [[[1 + 2 + 4 + 5, 3 + 6], [7 + 8, 9]]]
    assert pool(np.full((1, 2, 2), 255, np.uint8)).tolist() == [[[1020]]]


def test_pack_depends_on_the_arrays_alone(arrays):
    some = {name: arrays[name][:3] for name in ("t1", "z_mm")}
    packed = pack(some)
    assert packed == pack(some)
    assert all(info.date_time[0] == 1980 for info in zipfile.ZipFile(io.BytesIO(packed)).infolist())
    with np.load(io.BytesIO(packed)) as file:
        assert all((file[name] == array).all() for name, array in some.items())
    assert packed != pack(some | {"z_mm": some["z_mm"] + 1})


def test_shipped_file_is_small_and_was_packed_by_the_script():
    packed = (PACKAGE / "mni152.npz").read_bytes()
    assert len(packed) < 1_000_000
    members = zipfile.ZipFile(io.BytesIO(packed)).infolist()
    assert [m.filename for m in members] == ["t1.npy", "labels.npy", "z_mm.npy", "spacing_mm.npy"]
    assert {m.date_time for m in members} == {(1980, 1, 1, 0, 0, 0)}


def test_licence_names_the_owner_and_every_source():
    notice = (PACKAGE / "mni152.LICENCE.txt").read_text(encoding="ascii")
    assert "Louis Collins, McConnell Brain Imaging Centre" in notice
    assert "provided that the above copyright notice appear in all copies" in " ".join(notice.split())
    assert all(digest in notice for digest in SOURCES.values())


def test_fingerprint_covers_file_and_spec(monkeypatch, tmp_path):
    digests = {load(spec(**keys)).fingerprint for keys in ({}, {"size": 32}, {"task": "binary"}, {"channels": 3})}
    assert len(digests) == 4
    assert load(spec()).fingerprint in digests
    packed = (PACKAGE / "mni152.npz").read_bytes()
    (tmp_path / "mni152.npz").write_bytes(packed + b"\0")  # zip readers pass over trailing bytes
    monkeypatch.setattr(resources, "files", lambda name: tmp_path)
    assert load(spec()).fingerprint not in digests
