import json
import shutil

import numpy as np
import pytest
from pydantic import ValidationError
from test_folder import picture, volume

from advseg_bench.data.nnunet import load
from advseg_bench.errors import DataError
from advseg_bench.suite.specs import NnunetData

SHAPE = (16, 24, 3)
CASES = ("lab_001_a", "lab_001_b", "lab_002_a", "lab_003_a", "lab_004_a")


def spec(path, **keys):
    return NnunetData(**{"name": "nnunet", "path": path, "size": 24, "labelled_only": False} | keys)


def voxels(case, channel=0):
    return np.random.default_rng([CASES.index(case), channel]).integers(0, 900, SHAPE).astype(np.int16)


def labels(case):
    """Class 1 left, class 2 below it on slices 1 and 2, the value 3 in a corner; nothing on slice 0."""
    found = np.zeros(SHAPE, np.uint8)
    found[2:8, 1:6, 1:] = 1
    found[8:12, 1:6, 1:] = 2
    found[15, 20:, 2] = 3
    return found


def describe(path, **changes):
    content = {
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"background": 0, "zone": 1, "gland": 2, "ignore": 3},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    } | changes
    (path / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "Dataset007_Lab"
    for case in CASES:
        for channel in (0, 1):
            volume(path / "imagesTr" / f"{case}_{channel:04d}.nii.gz", voxels(case, channel), (0.5, 2.0, 3.0))
        volume(path / "labelsTr" / f"{case}.nii.gz", labels(case), (0.5, 2.0, 3.0))
    describe(path)
    return path


def one_channel(path):
    for case in CASES:
        (path / "imagesTr" / f"{case}_0001.nii.gz").unlink()
    describe(path, channel_names={"0": "T2"})


def find(data, image):
    return next(i for i, case in enumerate(data.cases) if case.image == image)


def in_square(plane):
    return np.pad(plane, ((4, 4), (0, 0)))


def test_slices_arrive_where_they_belong(good):
    data = load(spec(good, inputs=("ADC",)))
    assert len(data.cases) == 15
    assert data.task.classes == ("zone", "gland")
    index = find(data, "lab_002_a/z002")
    case, sample = data.cases[index], data.read(index)
    assert (case.subject, case.block, case.spacing) == ("lab_002_a", "lab_002_a", (0.5, 2.0))
    grey = voxels("lab_002_a", 1)
    np.testing.assert_allclose(sample.image[0, 4:20], grey[..., 2] / grey.max(), atol=1e-6)
    plane = labels("lab_002_a")[..., 2]
    assert (sample.label == [in_square(plane == 1), in_square(plane == 2)]).all()
    assert (sample.valid == np.pad(plane != 3, ((4, 4), (0, 0)))).all()
    assert "`subject` was not set" in data.note


@pytest.mark.parametrize(
    ("task", "classes", "label"),
    [
        ("binary", ("foreground",), [[[1, 1, 0]]]),
        ("multiclass", ("background", "zone", "gland"), [[1, 2, 0]]),
        ("multilabel", ("zone", "gland"), [[[1, 0, 0]], [[0, 1, 0]]]),
    ],
)
def test_tasks(good, task, classes, label):
    data = load(spec(good, inputs=("T2",), task=task))
    assert data.task.classes == classes
    found = data.read(find(data, "lab_003_a/z001")).label
    assert (found[..., [[8, 12, 20]], 3] == np.array(label)).all()


def test_regions_are_channels_that_overlap(good):
    describe(good, labels={"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, regions_class_order=[1, 2])
    data = load(spec(good, inputs=("T2",)))
    label = data.read(find(data, "lab_003_a/z001")).label
    plane = labels("lab_003_a")[..., 1]
    assert (label == [in_square(plane > 0), in_square(plane == 2)]).all()
    with pytest.raises(DataError, match=r"dataset\.json: expected labels .*, got 'overlapping regions"):
        load(spec(good, inputs=("T2",), task="multiclass"))


def test_a_single_class_keeps_its_name_in_a_binary_task(good):
    describe(good, labels={"background": 0, "any": [1, 2, 3]})
    assert load(spec(good, inputs=("T2",), task="binary")).task.classes == ("any",)


def test_channels(good):
    for case in CASES:
        volume(good / "imagesTr" / f"{case}_0002.nii.gz", voxels(case, 2), (0.5, 2.0, 3.0))
    describe(good, channel_names={"0": "T2", "1": "ADC", "2": "DWI"})
    stack = np.stack([voxels("lab_004_a", n)[..., 1] / voxels("lab_004_a", n).max() for n in range(3)])
    for inputs, order in ((None, [0, 1, 2]), (("DWI", "T2", "ADC"), [2, 0, 1]), (("ADC",), [1, 1, 1])):
        data = load(spec(good, inputs=inputs, channels=3))
        image = data.read(find(data, "lab_004_a/z001")).image
        np.testing.assert_allclose(image[:, 4:20], stack[order], atol=1e-6)
    one_channel(good)
    for path in (good / "imagesTr").glob("*_0002.nii.gz"):
        path.unlink()
    assert load(spec(good, channels=3)).read(0).image.shape == (3, 24, 24)


def test_scales(good):
    grey = voxels("lab_002_a")[..., 1]
    top = np.percentile(voxels("lab_002_a"), 99.5)
    assert top < grey.max()
    for scale, upper in (("percentile", top), ((0.0, 300.0), 300.0), ("dtype", 32767)):
        data = load(spec(good, inputs=("T2",), scale=scale))
        image = data.read(find(data, "lab_002_a/z001")).image[0, 4:20]
        np.testing.assert_allclose(image, (grey / upper).clip(0, 1), atol=1e-6)


def test_subjects_are_not_split_and_only_labelled_slices_are_scored(good):
    keys = {"inputs": ("T2",), "subject": r"lab_(\d+)", "labelled_only": True}
    for seed in range(6):
        data = load(spec(good, **keys, seed=seed))
        splits = {}
        for case in data.cases:
            splits.setdefault(case.subject, set()).add(case.split)
        assert sorted(splits) == ["001", "002", "003", "004"]
        assert all(len(found) == 1 for found in splits.values())
        assert {data.cases[i].image[-1] for i in data.split("test")} == {"1", "2"}
        assert {data.cases[i].image[-1] for i in data.split("train")} == {"0", "1", "2"}
    assert data.note == "Test images are the slices that show a class."
    thinned = load(spec(good, inputs=("T2",), every=2))
    assert {case.image[-1] for case in thinned.cases} == {"0", "2"}


def test_ignored_pixels_alone_are_no_label(good):
    only = np.zeros(SHAPE, np.uint8)
    only[0, 0] = 3
    for case in CASES:
        volume(good / "labelsTr" / f"{case}.nii.gz", only)
        for channel in (0, 1):
            volume(good / "imagesTr" / f"{case}_{channel:04d}.nii.gz", voxels(case))
    with pytest.raises(DataError, match="expected a slice of the test split that shows a class, got 'none'"):
        load(spec(good, inputs=("T2",), labelled_only=True))


def test_the_fold_of_a_file(good):
    folds = [{"train": list(CASES[:3]), "val": list(CASES[3:])}, {"train": list(CASES[2:]), "val": list(CASES[:2])}]
    (good / "splits_final.json").write_text(json.dumps(folds))
    keys = {"inputs": ("T2",), "subject": r"lab_(\d+)"}
    for fold, tested in ((0, {"003", "004"}), (1, {"001"})):
        data = load(spec(good, **keys, fold=fold))
        assert {data.cases[i].subject for i in data.split("test")} == tested
        assert len({data.cases[i].subject for i in data.split("validation")}) == 1
        assert data.split("train")
    folds[0] = {"train": list(CASES[1:4]), "val": list(CASES[:1])}
    (good / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(DataError, match="expected no subject in both train and val, got '001'"):
        load(spec(good, **keys, fold=0))
    with pytest.raises(DataError, match=r"splits_final\.json: expected a fold 2, got '2 folds'"):
        load(spec(good, **keys, fold=2))
    folds[0]["val"] = [["lab_001_a"]]
    (good / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(DataError, match=r"expected cases that are in labelsTr/, got \['lab_001_a'\]"):
        load(spec(good, **keys, fold=0))
    folds[0]["val"] = ["lab_005"]
    (good / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(DataError, match="expected cases that are in labelsTr/, got 'lab_005'"):
        load(spec(good, **keys, fold=0))
    (good / "splits_final.json").write_text("{}")
    with pytest.raises(DataError, match=r"expected a list of .*\"val\".* got 'dict'"):
        load(spec(good, **keys, fold=0))
    (good / "splits_final.json").unlink()
    with pytest.raises(DataError, match=r"splits_final\.json: expected a file \(fold is set\)"):
        load(spec(good, **keys, fold=0))


def test_cases_outside_of_the_fold_are_left_out(good):
    folds = [{"train": list(CASES[1:4]), "val": list(CASES[4:])}]
    (good / "splits_final.json").write_text(json.dumps(folds))
    data = load(spec(good, inputs=("T2",), fold=0))
    assert {case.subject for case in data.cases} == set(CASES[1:])


@pytest.mark.parametrize("colour", [False, True])
def test_pictures(tmp_path, colour):
    for case in CASES:
        plane = voxels(case)[..., 0].astype(np.uint8)
        picture(
            tmp_path / "imagesTr" / f"{case}_0000.png",
            np.stack([plane, plane // 2, plane // 4], -1) if colour else plane,
        )
        picture(tmp_path / "labelsTr" / f"{case}.png", labels(case)[..., 1])
    names = ["R", "G", "B"] if colour else ["grey"]
    describe(tmp_path, file_ending=".png", channel_names=dict(enumerate(names)))
    data = load(spec(tmp_path, channels=3, subject=r"lab_(\d+)"))
    index = find(data, "lab_002_a")
    assert (data.cases[index].subject, data.cases[index].block) == ("002", "002")
    plane = voxels("lab_002_a")[..., 0].astype(np.uint8)
    planes = [plane, plane // 2, plane // 4] if colour else [plane] * 3
    image = data.read(index).image[:, 4:20]
    np.testing.assert_allclose(image, np.stack([p / p.max() for p in planes]), atol=1e-6)
    assert data.read(index).label[1].sum() == 20


def test_colour_where_grey_was_said(tmp_path):
    for case in CASES:
        plane = voxels(case)[..., 0].astype(np.uint8)
        picture(tmp_path / "imagesTr" / f"{case}_0000.png", np.stack([plane] * 3, -1))
        picture(tmp_path / "labelsTr" / f"{case}.png", labels(case)[..., 1])
    describe(tmp_path, file_ending=".png", channel_names={"0": "grey"})
    with pytest.raises(DataError, match=r"_0000\.png: expected one channel, got '3 channels"):
        load(spec(tmp_path))


def test_fingerprint_follows_contents_and_not_the_place(good, tmp_path):
    before = load(spec(good, inputs=("T2",))).fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(good, moved)
    assert load(spec(moved, inputs=("T2",))).fingerprint == before
    assert load(spec(moved, inputs=("ADC",))).fingerprint != before
    changed = labels(CASES[0])
    changed[0, 0, 0] = 1
    volume(moved / "labelsTr" / f"{CASES[0]}.nii.gz", changed, (0.5, 2.0, 3.0))
    assert load(spec(moved, inputs=("T2",))).fingerprint != before


FIRST = f"{CASES[0]}.nii.gz"
DAMAGES = {
    "no description": (lambda d: (d / "dataset.json").unlink(), r"dataset\.json: expected a file, .* Set `path`"),
    "no json": (lambda d: (d / "dataset.json").write_text("{"), r"dataset\.json: expected a readable JSON file"),
    "a list": (lambda d: (d / "dataset.json").write_text("[]"), "expected a table `labels` that is not empty"),
    "decathlon": (
        lambda d: describe(d, labels={"0": "background", "1": "zone"}),
        r"expected the dataset\.json of nnU-Net v2, got .*Decathlon'\. Set name = \"decathlon\"",
    ),
    "no channels": (lambda d: describe(d, channel_names=None), 'expected a table `channel_names` such as {"0": "T2"'),
    "channel numbers": (lambda d: describe(d, channel_names={"1": "T2", "2": "A"}), "numbered from 0"),
    "channel twice": (
        lambda d: describe(d, channel_names={"0": "A", "1": "A"}),
        "names in `channel_names` that differ",
    ),
    "background": (lambda d: describe(d, labels={"background": 1, "a": 0}), "expected label background = 0, got"),
    "no background": (lambda d: describe(d, labels={"a": 1}), "expected label background = 0, got 'none'"),
    "only background": (lambda d: describe(d, labels={"background": 0}), "expected labels above 0 beside"),
    "two ignored": (
        lambda d: describe(d, labels={"background": 0, "a": 1, "ignore": [2, 3]}),
        "one value as label ignore",
    ),
    "odd label": (
        lambda d: describe(d, labels={"background": 0, "a": 1.5}),
        "whole number >= 0, .* as label 'a', got 1.5",
    ),
    "ending": (lambda d: describe(d, file_ending=".mha"), r"expected `file_ending`, one of .*, got '\.mha'"),
    "other ending": (
        lambda d: describe(d, file_ending=".png"),
        r"nii\.gz: expected a file ending in \.png, .* got 'lab",
    ),
    "fewer": (lambda d: describe(d, numTraining=9), "expected numTraining = 5, the number of cases .* got 9"),
    "no labels": (lambda d: shutil.rmtree(d / "labelsTr"), "labelsTr: expected a folder, got 'nothing of that name'"),
    "no images": (lambda d: shutil.rmtree(d / "imagesTr"), "imagesTr: expected a folder"),
    "empty": (lambda d: [p.unlink() for p in (d / "labelsTr").iterdir()], r"labelsTr: expected labels CASE\.nii\.gz"),
    "no channel file": (
        lambda d: (d / "imagesTr" / f"{CASES[1]}_0001.nii.gz").unlink(),
        r"lab_001_b_0001\.nii\.gz: expected an image lab_001_b_0001\.nii\.gz for label lab_001_b\.nii\.gz, got 'none'",
    ),
    "no label": (
        lambda d: (d / "labelsTr" / FIRST).unlink(),
        r"lab_001_a_0000\.nii\.gz: expected a label lab_001_a\.nii\.gz in labelsTr/",
    ),
    "value": (
        lambda d: describe(d, labels={"background": 0, "zone": 1, "ignore": 3}),
        r"labelsTr.lab_001_a\.nii\.gz: expected the label values of dataset\.json, 0, 1, 3, got \[2\]",
    ),
    "label size": (
        lambda d: volume(d / "labelsTr" / FIRST, labels(CASES[0])[:, :, :2]),
        r"labelsTr.lab_001_a\.nii\.gz: expected the size of lab_001_a_0000\.nii\.gz, 16 x 24 x 3, got '16 x 24 x 2'",
    ),
    "channel size": (
        lambda d: volume(d / "imagesTr" / f"{CASES[0]}_0001.nii.gz", np.ones((16, 16, 3), np.uint8)),
        r"_0001\.nii\.gz: expected the size of lab_001_a_0000\.nii\.gz, 16 x 24 x 3, got '16 x 16 x 3'",
    ),
    "flipped": (
        lambda d: volume(d / "labelsTr" / FIRST, labels(CASES[0]), affine=np.diag([-0.5, 2, 3, 1])),
        r"labelsTr.*: expected the orientation of lab_001_a_0000\.nii\.gz, RAS, got 'LAS'",
    ),
    "negative": (
        lambda d: volume(d / "imagesTr" / f"{CASES[0]}_0000.nii.gz", voxels(CASES[0]) - 1000, (0.5, 2.0, 3.0)),
        r"_0000\.nii\.gz: expected values >= 0 for scale = 'max'",
    ),
    "damaged": (
        lambda d: (d / "labelsTr" / FIRST).write_bytes(b"no"),
        r"labelsTr.lab_001_a\.nii\.gz: expected a readable NIfTI file",
    ),
    "stacked": (
        lambda d: volume(d / "imagesTr" / f"{CASES[0]}_0000.nii.gz", np.ones((*SHAPE, 2), np.uint8)),
        r"_0000\.nii\.gz: expected a volume of real numbers with 2 or 3 axes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(good, damage):
    do, message = DAMAGES[damage]
    do(good)
    with pytest.raises(DataError, match=message) as caught:
        load(spec(good, inputs=("T2", "ADC", "T2"), channels=3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"dataset\.json: expected one channel, got 2\. Set `inputs` to one of \['T2', 'ADC'\]"),
        ({"inputs": ("T1",)}, r"dataset\.json: inputs: unknown channel 'T1'\. Did you mean 'T2'\?"),
        ({"inputs": ("T2",), "subject": "lab"}, "one group .*`subject`, got"),
        ({"inputs": ("T2",), "subject": "x(.)"}, r"_0000\.nii\.gz: expected a name that matches"),
        ({"inputs": ("T2",), "scale": (2.0, 1.0)}, r"scale = \[lower, upper\] with lower < upper"),
        ({"inputs": ("T2",), "validation": 0.9}, "subjects for each of training, validation and test"),
    ],
)
def test_specifications_that_do_not_fit(good, keys, message):
    with pytest.raises(DataError, match=message):
        load(spec(good, **keys))


def test_two_inputs_are_refused(tmp_path):
    with pytest.raises(ValidationError, match=r"inputs: .*channels = 3, got 2"):
        spec(tmp_path, inputs=("a", "b"), channels=3)
