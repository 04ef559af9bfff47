"""Volumes as images: readers of NIfTI files where `size` has three edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_folder import picture, volume

from advseg_bench.data import count_images, load_dataset
from advseg_bench.data.dataset import Case, Dataset
from advseg_bench.data.prepare import fingerprint, prepare, scaled_spacing, task_for
from advseg_bench.data.splits import split_subjects
from advseg_bench.errors import DataError
from advseg_bench.suite.specs import DecathlonData, FolderData, LggData, Mni152Data, NnunetData, PhantomData, PluginData
from advseg_bench.suite.specs import UwMadisonData as Uw

SHAPE = (32, 24, 10)
SPACING = (0.5, 0.75, 4.0)
SIZE = (5, 16, 16)
SUBJECTS = tuple(f"p{number}" for number in range(4))
CASES = tuple(f"{subject}_{scan}" for subject in SUBJECTS for scan in "ab")


def voxels(case, channel=0):
    return np.random.default_rng([CASES.index(case), channel]).integers(0, 900, SHAPE).astype(np.int16)


def labels(case):
    """Two classes that touch; patient 3 shows none; value 3 counts nowhere."""
    found = np.zeros(SHAPE, np.uint8)
    if not case.startswith("p3"):
        found[4:20, 3:12, 2:7] = 1
        found[20:27, 3:12, 2:7] = 2
    found[30:, 20:, 8:] = 3
    return found


@pytest.fixture
def nnunet(tmp_path):
    path = tmp_path / "Dataset001_Whole"
    for case in CASES:
        volume(path / "imagesTr" / f"{case}_0000.nii.gz", voxels(case), SPACING)
        volume(path / "labelsTr" / f"{case}.nii.gz", labels(case), SPACING)
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "lesion": 2, "ignore": 3},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (path / "dataset.json").write_text(json.dumps(content))
    return path


def spec(path, **keys):
    return NnunetData(**{"name": "nnunet", "path": path, "size": SIZE, "subject": r"^(p\d)", "fit": "stretch"} | keys)


def depth_first(array):
    return np.moveaxis(array, -1, 0)


def averages(array):
    """Independent of the code under test: these edges divide SHAPE but for columns, which are padded to 32 before."""
    return torch.nn.functional.adaptive_avg_pool3d(torch.from_numpy(array.astype(np.float64))[None], SIZE)[0].numpy()


def padded(array):
    return np.pad(array, ((0, 0), (0, 0), (4, 4)))


def test_a_volume_is_one_image(nnunet):
    data = load_dataset(spec(nnunet, fit="pad", labelled_only=False))
    assert [case.image for case in data.cases] == list(CASES)
    assert {(case.subject, case.block) for case in data.cases} == {(case[:2], case) for case in CASES}
    assert {case.spacing for case in data.cases} == {(8.0, 1.0, 1.5)}
    for index, case in enumerate(CASES):
        sample = data.read(index)
        grey, truth = (padded(depth_first(array(case))) for array in (voxels, labels))
        seen = padded(depth_first(np.ones(SHAPE))) * (truth != 3)
        assert (sample.image.shape, sample.image.dtype) == ((1, *SIZE), np.float32)
        np.testing.assert_allclose(sample.image[0], averages(grey / grey.max()), atol=1e-6)
        assert (sample.valid == (averages(seen) >= 0.5)).all()
        half = averages(seen) / 2
        for number, plane in enumerate(sample.label, start=1):
            assert (plane == ((averages(truth == number) >= half) & sample.valid)).all()
    assert sample.valid[:, :, 2].all()
    assert not sample.valid[:, :, :2].any()


def test_multiclass_has_one_number_for_each_voxel(nnunet):
    data = load_dataset(spec(nnunet, fit="pad", task="multiclass", labelled_only=False))
    sample = data.read(0)
    assert (sample.label.shape, sample.label.dtype) == (SIZE, np.int64)
    truth, inside = padded(depth_first(labels(CASES[0]))), padded(depth_first(np.ones(SHAPE)))
    shares = np.stack([averages((truth == number) * inside) for number in range(3)])
    assert (sample.label == np.where(sample.valid, shares.argmax(0), 0)).all()
    batch = data.batch([0, 1])
    assert (batch.x.shape, batch.y.shape, batch.valid.shape) == ((2, 1, *SIZE), (2, *SIZE), (2, *SIZE))
    assert batch.spacing == ((8.0, 1.0, 1.5),) * 2


def test_slices_stay_as_they_were(nnunet):
    flat = load_dataset(spec(nnunet, size=16, fit="pad", labelled_only=False))
    assert len(flat.cases) == len(CASES) * SHAPE[-1]
    assert flat.cases[1].image == f"{CASES[0]}/z001"
    assert flat.cases[1].spacing == (1.0, 1.5)
    assert "volume" not in flat.note
    assert flat.fingerprint != load_dataset(spec(nnunet, fit="pad", labelled_only=False)).fingerprint


@pytest.mark.parametrize("seed", range(4))
def test_only_volumes_that_show_a_class_are_scored_and_subjects_stay_together(nnunet, seed):
    every = load_dataset(spec(nnunet, seed=seed, test=0.5, labelled_only=False))
    asked = load_dataset(spec(nnunet, seed=seed, test=0.5))
    split = {case.image: case.split for case in every.cases}
    assert all(split[f"p{number}_a"] == split[f"p{number}_b"] for number in range(4))
    left_out = {image for image in split if split[image] == "test" and image.startswith("p3")}
    assert {case.image: case.split for case in asked.cases} == {k: v for k, v in split.items() if k not in left_out}
    assert "Test images are the volumes that show a class." in asked.note
    assert count_images(spec(nnunet, seed=seed, test=0.5))[1] == len(asked.split("test"))


def test_a_test_split_without_a_class_is_refused(nnunet):
    seed = next(s for s in range(9) if split_subjects(SUBJECTS, spec(nnunet, seed=s))["p3"] == "test")
    with pytest.raises(DataError, match="expected a volume of the test split that shows a class, got 'none'"):
        load_dataset(spec(nnunet, seed=seed))


def test_the_note_tells_what_became_of_the_spacing(nnunet):
    note = load_dataset(spec(nnunet, fit="pad")).note
    assert "resized by area to 5 x 16 x 16 (depth, rows, columns), rows and columns by one factor" in note
    assert note.endswith("a resized voxel measures 8 x 1 x 1.5 mm.")
    for case in CASES[:2]:
        volume(nnunet / "imagesTr" / f"{case}_0000.nii.gz", voxels(case), (0.5, 0.75, 2.5))
        volume(nnunet / "labelsTr" / f"{case}.nii.gz", labels(case), (0.5, 0.75, 2.5))
    note = load_dataset(spec(nnunet)).note
    assert "each edge by a separate factor" in note
    assert note.endswith("measures 5-8 x 1 x 1.12 mm.")


def test_the_note_names_orientations_that_differ(nnunet):
    assert "orientation" not in load_dataset(spec(nnunet)).note
    for part, name, array in (("imagesTr", "p1_a_0000", voxels("p1_a")), ("labelsTr", "p1_a", labels("p1_a"))):
        volume(nnunet / part / f"{name}.nii.gz", array, affine=np.diag([-0.5, 0.75, 4.0, 1.0]))
    note = load_dataset(spec(nnunet)).note
    assert "Files differ in orientation (LAS, RAS)" in note


def test_a_volume_of_few_slices_is_padded_and_says_so(nnunet):
    data = load_dataset(spec(nnunet, size=(16, 16, 16), fit="pad"))
    sample = data.read(0)
    assert sample.valid[3:13, 0, 8].all()
    assert not sample.valid[[*range(3), *range(13, 16)]].any()
    assert not sample.image[:, [*range(3), *range(13, 16)]].any()
    np.testing.assert_allclose(
        sample.image[0, 3:13].mean(), voxels(CASES[0]).mean() / voxels(CASES[0]).max() * 0.75, 1e-5
    )
    assert data.cases[0].spacing == (4.0, 1.0, 1.5)
    assert " 8 of 8 have fewer slices" in data.note
    assert "fewer slices" not in load_dataset(spec(nnunet, size=(16, 16, 16))).note


def test_decathlon(tmp_path):
    path = tmp_path / "Task01"
    for case in CASES:
        volume(path / "imagesTr" / f"{case}.nii.gz", np.stack([voxels(case, n) for n in (0, 1)], -1), SPACING)
        volume(path / "labelsTr" / f"{case}.nii.gz", labels(case) % 3, SPACING)
    rows = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in CASES]
    names = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": rows}
    (path / "dataset.json").write_text(json.dumps(names))
    keys = {"name": "decathlon", "path": path, "inputs": ("ADC",), "fit": "pad", "size": SIZE}
    data = load_dataset(DecathlonData(**keys))
    index = [case.image for case in data.cases].index(CASES[1])
    grey = padded(depth_first(voxels(CASES[1], 1)))
    np.testing.assert_allclose(data.read(index).image[0], averages(grey / grey.max()), atol=1e-6)
    assert data.cases[index].spacing == (8.0, 1.0, 1.5)


def test_a_folder_of_volumes(tmp_path):
    for case in CASES:
        volume(tmp_path / "images" / f"{case}.nii.gz", voxels(case), SPACING)
        volume(tmp_path / "masks" / f"{case}.nii.gz", labels(case) % 3, SPACING)
    keys = {"name": "folder", "path": tmp_path, "classes": ("air", "a", "b"), "task": "multiclass", "size": SIZE}
    data = load_dataset(FolderData(**keys, subject=r"^(p\d)", spacing=(1.0, 1.0)))
    assert [(case.image, case.subject, case.block) for case in data.cases] == [(c, c[:2], c) for c in CASES]
    assert data.cases[0].spacing == (8.0, 2.0, 2.0)
    grey, truth = (padded(depth_first(array(CASES[0]))) for array in (voxels, labels))
    sample = data.read(0)
    np.testing.assert_allclose(sample.image[0], averages(grey / grey.max()), atol=1e-6)
    inside = padded(depth_first(np.ones(SHAPE)))
    shares = np.stack([averages((truth % 3 == number) * inside) for number in range(3)])
    assert (sample.label == np.where(sample.valid, shares.argmax(0), 0)).all()
    assert "2 x 2 mm" in data.note


@pytest.mark.parametrize("reader", ["folder", "nnunet"])
def test_a_picture_is_no_volume(tmp_path, reader):
    images, masks = ("images", "masks") if reader == "folder" else ("imagesTr", "labelsTr")
    for case in CASES:
        picture(
            tmp_path / images / f"{case}{'_0000' * (reader == 'nnunet')}.png", voxels(case)[..., 0].astype(np.uint8)
        )
        picture(tmp_path / masks / f"{case}.png", (labels(case)[..., 3] == 1).astype(np.uint8))
    content = {"channel_names": {"0": "a"}, "labels": {"background": 0, "b": 1}, "file_ending": ".png"}
    keys = {"path": tmp_path, "size": SIZE}
    given = (
        FolderData(name="folder", classes=("b",), **keys) if reader == "folder" else NnunetData(name="nnunet", **keys)
    )
    if reader == "folder":
        (tmp_path / "masks" / "b").mkdir()
        for case in CASES:
            (tmp_path / "masks" / f"{case}.png").rename(tmp_path / "masks" / "b" / f"{case}.png")
    else:
        given = NnunetData(name="nnunet", **keys)
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    what = r"p0_a.*\.png: expected a NIfTI volume for size = \[5, 16, 16\], got 'a 2-D image'"
    with pytest.raises(DataError, match=what):
        load_dataset(given)


def test_a_slice_more_in_the_label_is_refused(nnunet):
    volume(nnunet / "labelsTr" / "p1_a.nii.gz", np.zeros((*SHAPE[:2], 11), np.uint8), SPACING)
    with pytest.raises(DataError, match=r"expected the size of p1_a_0000\.nii\.gz, 32 x 24 x 10, got '32 x 24 x 11'"):
        load_dataset(spec(nnunet))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"size": [32, 64]}, r"expected an edge of 16 to 1024 pixels, or for volumes three .*, got \[32, 64\]"),
        ({"size": [1, 64, 64]}, r"depth of 2 or more, rows, columns\), got \[1, 64, 64\]"),
        ({"size": [32, 64, 8]}, r"got \[32, 64, 8\]"),
        ({"size": [32, 64, 2048]}, r"got \[32, 64, 2048\]"),
        ({"size": [32.0, 64, 64]}, r"got \[32.0, 64, 64\]"),
        ({"size": [True, 64, 64]}, r"got \[True, 64, 64\]"),
        ({"size": "64"}, "got '64'"),
        ({"size": []}, r"got \[\]"),
        ({"size": [64]}, r"expected an edge of .*, got \[64\]"),
        ({"size": 15}, "expected an edge of .*, got 15"),
        ({"size": 1025}, "expected an edge of .*, got 1025"),
        ({"size": None}, "expected an edge of .*, got None"),
        ({"every": 2}, r"every: .*size = \[5, 16, 16\].* got 2"),
    ],
)
def test_what_is_wrong_with_a_size(tmp_path, keys, message):
    with pytest.raises(ValidationError, match=message):
        spec(tmp_path, **keys)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (Mni152Data, {"name": "mni152"}),
        (PhantomData, {"name": "phantom"}),
        (Uw, {"name": "uw_madison", "path": "x"}),
        (LggData, {"name": "lgg", "path": "x"}),
    ],
)
def test_data_of_slices_have_one_edge(kind, keys):
    with pytest.raises(ValidationError, match=r"this data set has 2-D images, got \[32, 64, 64\]"):
        kind(**keys, size=(32, 64, 64))


def stack(spec):
    """A plug-in's volumes; the third is no volume."""

    def read(index):
        image = np.random.default_rng(index).random((10, 32, 24) if index < 2 else (32, 24))
        return prepare(image, image[None] > 0.5, None, spec)

    splits = ("train", "validation", "test")
    cases = [Case(split, split, split, scaled_spacing((10, 32, 24), (4, 1, 1), spec), split) for split in splits]
    return Dataset(
        name="stack", task=task_for(spec.task, ("a",)), cases=cases, read=read, fingerprint=fingerprint(spec, "1")
    )


def test_a_plugin_may_give_volumes():
    data = load_dataset(PluginData(name="test_whole:stack", size=SIZE, task="binary"))
    sample = data.read(0)
    assert sample.image.shape == sample.label.shape == (1, *SIZE)
    np.testing.assert_allclose(
        sample.image[0], averages(padded(np.random.default_rng(0).random((10, 32, 24)))), atol=1e-6
    )
    assert data.cases[0].spacing == (8.0, 2.0, 2.0)
    with pytest.raises(DataError, match=r"stack: test: .*masks of shape \(1, 32, 24\) for size = \(5"):
        data.read(2)
