import shutil

import numpy as np
import pytest
from test_folder import picture

from advseg_bench.data.lgg import load
from advseg_bench.errors import DataError
from advseg_bench.suite.specs import LggData

PATIENTS = ("TCGA_CS_4941_19960909", "TCGA_DU_5851_19950428", "TCGA_HT_7473_19970826", "TCGA_FG_6688_20020215")


def spec(path, **keys):
    return LggData(**{"name": "lgg", "path": path, "size": 16, "labelled_only": False} | keys)


def pixels(patient, number):
    return np.random.default_rng([PATIENTS.index(patient), number]).integers(0, 200, (16, 16, 3)).astype(np.uint8)


def mask(number):
    plane = np.zeros((16, 16), np.uint8)
    if number > 2:
        plane[3:9, 2:5] = 255
    return plane


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "kaggle_3m"
    for patient in PATIENTS:
        for number in (1, 2, 10, 11):
            picture(path / patient / f"{patient}_{number}.tif", pixels(patient, number))
            picture(path / patient / f"{patient}_{number}_mask.tif", mask(number))
    for name in ("data.csv", "README.md"):
        (path / name).write_text("x")
    return path


def test_slices_arrive_in_the_order_of_their_numbers(good):
    data = load(spec(good, channels=3))
    first = PATIENTS[0]
    assert [case.image for case in data.cases[:5]] == [
        *(f"{first}_{number}" for number in (1, 2, 10, 11)),
        f"{PATIENTS[1]}_1",
    ]
    assert all(case.subject == case.block == case.image[:21] for case in data.cases)
    assert data.task.classes == ("tumour",)
    sample = data.read(2)
    np.testing.assert_allclose(sample.image, pixels(first, 10).transpose(2, 0, 1) / 255, atol=1e-6)
    assert (sample.label[0] == (mask(10) > 0)).all()
    assert not data.read(0).label.any()


def test_one_channel_is_flair_unless_another_is_chosen(good):
    for inputs, channel in ((None, 1), (("post",), 2), (("flair",), 1)):
        image = load(spec(good, inputs=inputs)).read(2).image
        np.testing.assert_allclose(image[0], pixels(PATIENTS[0], 10)[..., channel] / 255, atol=1e-6)


def test_patients_are_not_split_and_only_labelled_slices_are_scored(good):
    data = load(spec(good, labelled_only=True))
    splits = {}
    for case in data.cases:
        splits.setdefault(case.subject, set()).add(case.split)
    assert sorted(map(len, splits.values())) == [1] * 4
    assert len(data.split("test")) == 2
    assert len(data.split("train")) == 8
    assert "FLAIR" in data.note


DAMAGES = {
    "no folder": (shutil.rmtree, "kaggle_3m: expected a folder, got 'nothing of that name'"),
    "nobody": (
        lambda d: [shutil.rmtree(d / p) for p in PATIENTS],
        r"expected patients' folders TCGA_\.\.\., got 'none'",
    ),
    "the folder above": (
        lambda d: shutil.copytree(d, d / "kaggle_3m"),
        r"expected a patient's folder TCGA_\.\.\., got 'kaggle_3m'\. Set `path` to kaggle_3m",
    ),
    "stray": (lambda d: (d / "more").mkdir(), r"more: expected a patient's folder TCGA_\.\.\., got 'more'\. Move"),
    "name": (
        lambda d: (d / PATIENTS[0] / f"{PATIENTS[1]}_4.tif").touch(),
        r"_4\.tif: expected a name TCGA_CS_4941_19960909_N\.tif or",
    ),
    "no mask": (
        lambda d: (d / PATIENTS[0] / f"{PATIENTS[0]}_10_mask.tif").unlink(),
        r"_10_mask\.tif: expected a mask of TCGA_CS_4941_19960909_10\.tif",
    ),
    "no image": (
        lambda d: (d / PATIENTS[0] / f"{PATIENTS[0]}_10.tif").unlink(),
        r"_10_mask\.tif: expected an image TCGA_CS_4941_19960909_10\.tif, got 'none'",
    ),
    "size": (
        lambda d: picture(d / PATIENTS[0] / f"{PATIENTS[0]}_10_mask.tif", mask(10)[:, :8]),
        r"_10_mask\.tif: expected the size of TCGA_CS_4941_19960909_10\.tif, 16 x 16, got '16 x 8'",
    ),
    "grey": (
        lambda d: picture(d / PATIENTS[0] / f"{PATIENTS[0]}_10.tif", mask(10)),
        r"_10\.tif: expected .*channels.*, got 'one channel'",
    ),
    "damaged": (
        lambda d: (d / PATIENTS[0] / f"{PATIENTS[0]}_10.tif").write_bytes(b"no"),
        r"_10\.tif: expected a readable PNG or TIFF",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(good, damage):
    do, message = DAMAGES[damage]
    do(good)
    with pytest.raises(DataError, match=message) as caught:
        load(spec(good, channels=3))
    assert "\n" not in str(caught.value)
