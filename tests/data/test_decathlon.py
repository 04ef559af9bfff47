import json

import numpy as np
import pytest
from test_folder import volume

from advseg_bench.data.decathlon import load
from advseg_bench.errors import DataError
from advseg_bench.suite.specs import DecathlonData

SHAPE = (16, 24, 3)
CASES = ("prostate_00", "prostate_02", "prostate_10", "prostate_11")


def spec(path, **keys):
    keys = {"name": "decathlon", "path": path, "size": 24, "labelled_only": False, "inputs": ("ADC",)} | keys
    return DecathlonData(**keys)


def voxels(case):
    return np.random.default_rng(CASES.index(case)).integers(0, 900, (*SHAPE, 2)).astype(np.int16)


def labels():
    found = np.zeros(SHAPE, np.uint8)
    found[2:8, 1:6, 1:] = 1
    found[8:12, 1:6, 1:] = 2
    return found


def describe(path, **changes):
    rows = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in CASES]
    content = {
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": len(CASES),
        "numTest": 1,
        "training": rows,
        "test": ["./imagesTs/prostate_03.nii.gz"],
    } | changes
    (path / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "Task05_Prostate"
    for case in CASES:
        volume(path / "imagesTr" / f"{case}.nii.gz", voxels(case))
        volume(path / "labelsTr" / f"{case}.nii.gz", labels())
        (path / "imagesTr" / f"._{case}.nii.gz").write_bytes(b"junk of another system")
    describe(path)
    return path


def test_slices_arrive_where_they_belong(good):
    data = load(spec(good))
    assert [case.image for case in data.cases[:4]] == [*(f"prostate_00/z{z:03d}" for z in range(3)), "prostate_02/z000"]
    assert data.task.classes == ("PZ", "TZ")
    assert {case.subject for case in data.cases} == set(CASES)
    sample = data.read(7)
    channel = voxels("prostate_10")[..., 1]
    np.testing.assert_allclose(sample.image[0, 4:20], channel[..., 1] / channel.max(), atol=1e-6)
    assert (sample.label[:, 4:20] == [labels()[..., 1] == 1, labels()[..., 1] == 2]).all()


def test_the_subject_pattern_groups_cases(good):
    grouped = load(spec(good, subject=r"_(\d.)")).cases
    assert [case.subject for case in grouped[::3]] == ["00", "02", "10", "11"]
    assert [case.block for case in grouped[::3]] == list(CASES)
    with pytest.raises(DataError, match="got '2 subjects"):
        load(spec(good, subject=r"_(\d)"))


def test_the_background_keeps_its_name(good):
    describe(good, labels={"0": "other", "1": "PZ", "2": "TZ"})
    assert load(spec(good, task="multiclass")).task.classes == ("other", "PZ", "TZ")
    assert load(spec(good, task="binary")).read(1).label.sum() == 10 * 5


def test_one_modality_is_three_dimensional(good):
    for case in CASES:
        volume(good / "imagesTr" / f"{case}.nii.gz", voxels(case)[..., 0])
    describe(good, modality={"0": "MRI"})
    data = load(spec(good, inputs=None, channels=3))
    image = data.read(1).image
    assert (image[0] == image[2]).all()
    channel = voxels("prostate_00")[..., 0]
    np.testing.assert_allclose(image[0, 4:20], channel[..., 1] / channel.max(), atol=1e-6)


def row(**changes):
    return [{"image": "./imagesTr/prostate_00.nii.gz", "label": "./labelsTr/prostate_00.nii.gz"} | changes]


DAMAGES = {
    "nnunet": (
        lambda d: describe(d, labels={"background": 0, "PZ": 1}),
        r"expected the dataset\.json of the Medical .*, got 'that of nnU-Net v2'\. Set name = \"nnunet\"",
    ),
    "labels": (lambda d: describe(d, labels={"1": "PZ", "2": "TZ"}), "expected a table `labels` such as"),
    "one label": (lambda d: describe(d, labels={"0": "background"}), "expected a label beside the background"),
    "modality": (lambda d: describe(d, modality={}), "expected a table `modality` such as"),
    "three modalities": (
        lambda d: describe(d, modality={"0": "T2", "1": "ADC", "2": "DWI"}),
        r"prostate_00\.nii\.gz: expected 3 channels, the modalities of dataset\.json, got 2",
    ),
    "no training": (lambda d: describe(d, training=[]), "expected a list `training` that is not empty"),
    "no label key": (
        lambda d: describe(d, training=["a"]),
        r'expected rows {"image": file, "label": file} .* got \'a\'',
    ),
    "twice": (lambda d: describe(d, training=row() * 2), "expected each image once in `training`, got './imagesTr/"),
    "count": (lambda d: describe(d, numTraining=32), "expected numTraining = 4, .* got 32"),
    "no file": (
        lambda d: (d / "labelsTr" / "prostate_02.nii.gz").unlink(),
        r"labelsTr.prostate_02\.nii\.gz: expected a file, as dataset\.json lists it, got 'nothing",
    ),
    "value": (
        lambda d: describe(d, labels={"0": "background", "1": "PZ"}),
        r"prostate_00\.nii\.gz: expected the label values of dataset\.json, 0, 1, got \[2\]",
    ),
    "shape": (
        lambda d: volume(d / "labelsTr" / "prostate_00.nii.gz", labels()[:, :20]),
        r"expected the size of prostate_00\.nii\.gz, 16 x 24 x 3, got '16 x 20 x 3'",
    ),
    "no description": (lambda d: (d / "dataset.json").unlink(), r"dataset\.json: expected a file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(good, damage):
    do, message = DAMAGES[damage]
    do(good)
    with pytest.raises(DataError, match=message) as caught:
        load(spec(good, subject=r"(prostate_\d+)"))
    assert "\n" not in str(caught.value)


def test_two_modalities_need_a_choice(good):
    with pytest.raises(
        DataError, match=r"expected one or three channels, got 2\. Set `inputs` to one or three of \['T2', 'ADC'\]"
    ):
        load(spec(good, inputs=None, channels=3))
