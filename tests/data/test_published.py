"""Files as they are published: formats, names, palettes, bit depths, and what operating systems leave behind."""

import json
import struct
import unicodedata
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, features
from runs import Synthetic, edit_json, write_run
from test_folder import HEIGHT, SUBJECTS, WIDTH, in_square, organ, picture, scan, spec, volume

from advseg_bench.data import load_dataset
from advseg_bench.data.folder import load
from advseg_bench.data.formats import read_header, read_slices
from advseg_bench.data.uw_madison.make import write_uw_madison
from advseg_bench.data.values import is_blank, measure
from advseg_bench.errors import DataError
from advseg_bench.report.contents import compose
from advseg_bench.report.page import render_markdown
from advseg_bench.report.summary import summarise
from advseg_bench.results.run import Run
from advseg_bench.suite.specs import NnunetData, UwMadisonData

MARK = b"\xef\xbb\xbf"


@pytest.fixture
def good(tmp_path):
    for seed, name in enumerate(SUBJECTS):
        picture(tmp_path / "images" / f"{name}.png", scan(seed=seed))
        picture(tmp_path / "masks" / f"{name}.png", organ())
    return tmp_path


def replace_mask(folder, name, image, **options):
    (folder / "masks" / "s1.png").unlink()
    image.save(folder / "masks" / name, **options)


def label(folder, **keys):
    return load(spec(folder, **keys)).read(0).label


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def write_png16(path, pixels):
    """Write 16-bit colour (H, W, C) as PNG, which Pillow cannot."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def write_tiff16(path, pixels, order, compression):
    """Write 16-bit colour (H, W, 3) as a TIFF of either byte order, uncompressed (1) or deflated (8)."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compression == 8 else data
    data += b"\0" * (len(data) % 2)
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 2),
        (273, 4, 1, 14),
    ]
    tags += [(277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1)]
    content = struct.pack(f"{order}HHH", 16, 16, 16) + data
    body = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        packed = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        body += struct.pack(f"{order}HHI", tag, kind, count) + packed
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    path.write_bytes(start + content + body + struct.pack(f"{order}I", 0))


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "bmp", "gif", "webp"])
def test_formats_of_images(good, ending):
    assert features.check("webp")
    smooth = np.add.outer(np.arange(HEIGHT), 2 * np.arange(WIDTH)).astype(np.uint8)
    (good / "images" / "s1.png").unlink()
    options = {"quality": 95} if ending in ("jpg", "JPEG", "webp") else {}
    Image.fromarray(smooth).save(good / "images" / f"s1.{ending}", **options)
    image = load(spec(good, scale=(0, 255))).read(0).image[0, 8:24]
    np.testing.assert_allclose(image, smooth / 255, atol=4 / 255)


@pytest.mark.parametrize("ending", ["jpg", "bmp", "gif", "webp"])
@pytest.mark.parametrize("suffix", ["", "_segmentation", "_mask", "_label", "_seg", "-Mask", "_GT"])
def test_masks_of_other_formats_and_names(good, ending, suffix):
    options = {"quality": 60} if ending in ("jpg", "webp") else {}
    replace_mask(good, f"s1{suffix}.{ending}", Image.fromarray(organ(255)), **options)
    assert (label(good) == in_square(organ())[None]).all()


def test_two_masks_of_an_image_are_refused(good):
    picture(good / "masks" / "s1_mask.png", organ())
    with pytest.raises(DataError, match=r"s1_mask\.png: expected one mask of image 's1', got \['s1"):
        load(spec(good))


@pytest.mark.parametrize(
    ("keys", "value", "found"),
    [
        ({"task": "multiclass", "classes": ("air", "organ")}, 255, "'a lossy format'"),
        ({"ignore": 7}, 255, "'a lossy format'"),
        ({}, 1, "'a maximum of 1'"),
    ],
)
def test_what_a_lossy_mask_cannot_hold_is_refused(good, keys, value, found):
    replace_mask(good, "s1.jpg", Image.fromarray(organ(value)), quality=95)
    with pytest.raises(DataError, match=rf"s1\.jpg: expected .*, got {found}\. Save the mask as PNG"):
        load(spec(good, **keys))


def test_a_lossless_webp_is_no_lossy_mask(good):
    replace_mask(good, "s1.webp", Image.fromarray(organ(1)), lossless=True)
    assert (label(good, task="multiclass", classes=("air", "organ")) == in_square(organ())).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_equal_channels(good, mode, value):
    replace_mask(good, "s1.png", Image.fromarray(organ(value)).convert(mode))
    assert (label(good) == in_square(organ())[None]).all()


def test_a_mask_in_the_transparency_is_refused(good):
    white = np.full((HEIGHT, WIDTH), 255, np.uint8)
    replace_mask(good, "s1.png", Image.fromarray(np.stack([white, white, white, organ(255)], -1)))
    with pytest.raises(DataError, match=r"s1\.png: expected a mask whose transparency agrees"):
        load(spec(good))


def palette(indices, colours):
    image = Image.fromarray(indices)
    image.putpalette([level for colour in colours for level in colour])
    assert image.mode == "P"
    return image


def test_a_grey_palette_is_read_by_colour(good):
    """Index 0 is white and 1 is black; by index the mask would be inverted."""
    replace_mask(good, "s1.png", palette(1 - organ(), [(255,) * 3, (0,) * 3]))
    assert (label(good) == in_square(organ())[None]).all()


@pytest.mark.parametrize(
    "colours", [[(200, 0, 0), (0, 200, 0), (9, 9, 9)], [(0,) * 3, (127,) * 3, (255,) * 3], [(0, 0, 0)] * 3]
)
def test_a_palette_of_classes_is_read_by_index(good, colours):
    mask = organ(2)
    mask[0, 0] = 1
    replace_mask(good, "s1.png", palette(mask, colours))
    assert (label(good, task="multiclass", classes=("air", "a", "b")) == in_square(mask)).all()


def test_classes_that_a_gif_stores_by_colour(good):
    """A GIF has no grey values: Pillow stores the classes 0 and 2 as the indices 0 and 1."""
    replace_mask(good, "s1.gif", Image.fromarray(organ(2)))
    assert (label(good, task="multiclass", classes=("air", "a", "b")) == in_square(organ(2))).all()


def test_16_bit_colour_keeps_all_bits(good):
    pixels = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH, 4))
    for name, channels in (("s1", 3), ("s2", 4), ("s3", 2)):
        path = good / "images" / f"{name}.png"
        write_png16(path, pixels[..., :channels])
        assert read_header(path).largest == 65535
    data = load(spec(good, channels=3, scale="dtype"))
    for index in (0, 1):
        image = data.read(index).image[:, 8:24]
        np.testing.assert_allclose(image, pixels[..., :3].transpose(2, 0, 1) / 65535, atol=1e-7)
    np.testing.assert_allclose(data.read(2).image[0, 8:24], pixels[..., 0] / 65535, atol=1e-7)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colour_tiff_keeps_all_bits(tmp_path, order, compression):
    pixels = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3))
    write_tiff16(tmp_path / "a.tif", pixels, order, compression)
    assert (next(read_slices(tmp_path / "a.tif", channels=3)) == pixels.transpose(2, 0, 1)).all()


def test_large_pictures_have_a_limit_of_their_own(tmp_path, monkeypatch):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "slide.png")
    limit = Image.MAX_IMAGE_PIXELS
    assert read_header(tmp_path / "slide.png").shape == (14_000, 14_000)
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr("advseg_bench.data.pictures.MOST_PIXELS", 10**6)
    with pytest.raises(DataError, match=r"slide\.png: expected a picture of at most 1,000,000 pixels, got '14000 x"):
        read_header(tmp_path / "slide.png")


def test_files_of_the_system_do_not_count(good):
    for folder in ("images", "masks"):
        for name in ("Thumbs.db", "THUMBS.DB", "desktop.ini", ".DS_Store", "._s1.png", "LICENSE.txt", "readme.md"):
            (good / folder / name).write_bytes(b"x")
    (good / "images" / "__MACOSX").mkdir()
    assert len(load(spec(good)).cases) == 4


def test_capitals_of_folders_and_endings(good):
    (good / "images").rename(good / "Images")
    (good / "masks").rename(good / "MASKS")
    (good / "Images" / "s1.png").rename(good / "Images" / "s1.PNG")
    assert len(load(spec(good)).cases) == 4


@pytest.mark.parametrize("scale", ["max", "dtype", "percentile", (0.0, 255.0)])
def test_images_of_one_value_are_kept_and_counted(good, scale):
    picture(good / "images" / "s4.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    data = load(spec(good, scale=scale))
    assert "1 image has one value everywhere" in data.note
    assert (data.read(3).image == 0).all()
    assert data.read(0).image.max() > 0.5
    picture(good / "images" / "s4.png", scan())
    assert "one value" not in load(spec(good, scale=scale)).note


def test_percentile_of_a_nearly_black_image_is_its_maximum(good):
    dark = np.zeros((HEIGHT, WIDTH), np.uint8)
    dark[0, 0] = 90
    picture(good / "images" / "s4.png", dark)
    assert load(spec(good, scale="percentile")).read(3).image.max() == 1


def test_an_image_outside_of_the_window_is_kept_unless_all_are(good):
    picture(good / "images" / "s4.png", scan(9))
    data = load(spec(good, scale=(10.0, 200.0)))
    assert (data.read(3).image == 0).all()
    with pytest.raises(DataError, match=r"s1\.png: expected values inside bounds = \[300, 400\]"):
        load(spec(good, bounds=(300.0, 400.0)))


def test_trailing_axes_of_length_1(tmp_path):
    for seed, name in enumerate(SUBJECTS):
        volume(tmp_path / "images" / f"{name}.nii", scan(900, np.int16, seed, (HEIGHT, WIDTH, 2))[..., None, None])
        volume(tmp_path / "masks" / f"{name}.nii.gz", np.stack([organ()] * 2, -1)[..., None])
    data = load(spec(tmp_path))
    assert len(data.cases) == 8
    assert (data.read(1).label[0] == in_square(organ())).all()


@pytest.mark.parametrize(("noise", "fits"), [(9e-4, True), (2e-3, False)])
def test_labels_that_are_nearly_whole(good, noise, fits):
    replace_mask(good, "s1.tif", Image.fromarray(organ(2).astype(np.float32) - np.float32(noise)))
    keys = {"task": "multiclass", "classes": ("air", "a", "b")}
    if fits:
        assert (label(good, **keys) == in_square(organ(2))).all()
        return
    with pytest.raises(DataError, match=r"s1\.tif: expected mask values 0 to 2, got \[-0\.00"):
        label(good, **keys)


def write_nnunet(root, cases, ending=".nii"):
    for case in range(cases):
        volume(root / "imagesTr" / f"P{case}_0000{ending}", scan(900, np.int16, case, (32, 24, 3)))
        volume(root / "labelsTr" / f"P{case}{ending}", np.stack([organ(shape=(32, 24))] * 3, -1))
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii"}
    (root / "dataset.json").write_text(json.dumps(described))
    return described


def nnunet(root):
    return load_dataset(NnunetData(name="nnunet", path=root, task="binary", size=32, labelled_only=False))


def test_nnunet_lists_files_in_a_table(tmp_path):
    described = write_nnunet(tmp_path, 4)
    before = nnunet(tmp_path)
    image = before.read(5).image
    (tmp_path / "imagesTr").rename(tmp_path / "scans")
    rows = {f"P{n}": {"images": [f"scans/P{n}_0000.nii"], "label": f"./labelsTr/P{n}.nii"} for n in range(4)}
    (tmp_path / "dataset.json").write_text(json.dumps(described | {"dataset": rows}))
    data = nnunet(tmp_path)
    assert data.cases == before.cases
    assert (data.read(5).image == image).all()
    rows["P1"]["images"] = ["scans/P9_0000.nii"]
    (tmp_path / "dataset.json").write_text(json.dumps(described | {"dataset": rows}))
    with pytest.raises(DataError, match=r"P9_0000\.nii: expected a file, as dataset\.json lists it"):
        nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(described | {"dataset": {"P1": ["a"]}}))
    with pytest.raises(DataError, match=r"dataset\.json: expected \{\"images\": .* for case 'P1' of `dataset`"):
        nnunet(tmp_path)


def test_capital_endings_and_marks_in_nnunet(tmp_path):
    described = write_nnunet(tmp_path, 4, ".NII")
    (tmp_path / "imagesTr" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "dataset.json").write_bytes(MARK + json.dumps(described).encode())
    assert len(nnunet(tmp_path).cases) == 12
    (tmp_path / "dataset.json").write_text(json.dumps(described), encoding="utf-16")
    assert len(nnunet(tmp_path).cases) == 12


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_in_a_table_of_masks(tmp_path, encoding):
    write_uw_madison(tmp_path / "uw", cases=4, slices=2)
    uw = UwMadisonData(name="uw_madison", path=tmp_path / "uw", size=32, folds=4)
    before = load_dataset(uw)
    table: Path = tmp_path / "uw" / "train.csv"
    table.write_text(table.read_text(), encoding=encoding, newline="\r\n")
    assert load_dataset(uw).cases == before.cases


def test_a_file_that_is_no_volume_is_refused_in_one_line(tmp_path):
    axes = (
        nibabel.cifti2.ScalarAxis(["a"]),
        nibabel.cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4), name="CORTEX_LEFT"),
    )
    nibabel.Cifti2Image(np.ones((1, 8), np.float32), axes).to_filename(tmp_path / "a.dscalar.nii")
    with pytest.raises(DataError, match=r"a\.dscalar\.nii: expected a volume, got 'Cifti2Image'"):
        read_header(tmp_path / "a.dscalar.nii")


def test_rotations_that_a_viewer_would_apply_are_noted(good):
    exif = Image.Exif()
    exif[274] = 6
    (good / "images" / "s1.png").unlink()
    Image.fromarray(scan()).save(good / "images" / "s1.jpg", exif=exif)
    data = load(spec(good))
    assert "rotate them (EXIF): 1;" in data.note
    assert data.read(0).image.shape == (1, 32, 32)


def test_data_sets_are_called_as_they_call_themselves(tmp_path, good):
    described = write_nnunet(tmp_path / "Dataset027_ACDC", 4)
    data = nnunet(tmp_path / "Dataset027_ACDC")
    assert (data.name, data.title) == ("nnunet", "Dataset027_ACDC")
    fingerprint = data.fingerprint
    (tmp_path / "Dataset027_ACDC" / "dataset.json").write_text(json.dumps(described | {"name": " Heart\n of ACDC"}))
    data = nnunet(tmp_path / "Dataset027_ACDC")
    assert (data.title, data.fingerprint) == ("Heart of ACDC", fingerprint)
    assert data.describe()["title"] == "Heart of ACDC"
    assert load(spec(good)).title == good.name


def fill(folder, value, dtype=np.uint8, only=()):
    for name in only or SUBJECTS:
        (folder / "masks" / f"{name}.png").unlink(missing_ok=True)
        picture(folder / "masks" / f"{name}.png", organ(value, dtype))


@pytest.mark.parametrize(
    ("value", "dtype", "keys", "message"),
    [
        (1, np.uint8, {"soft": True}, r"masks: expected .* 127\.5.* to 255, got none above 1\. Remove `soft`"),
        (255, np.uint16, {"soft": True}, r"masks: expected .* to 65535, got none above 255\. Remove `soft`"),
        (255, np.uint8, {"ignore": 255}, r"masks: expected .*, got only 0 and 255, .*\. Remove `ignore`"),
        (255, np.uint8, {"ignore": 255, "soft": True}, r"got only 0 and 255, .*\. Remove `ignore`"),
        (
            9,
            np.uint8,
            {"ignore": 9, "task": "multiclass", "classes": ("air", "organ")},
            r"got only 0 and 9, .*\. Remove `ignore`",
        ),
    ],
)
def test_masks_without_a_class_because_of_a_key_are_refused(good, value, dtype, keys, message):
    fill(good, value, dtype)
    with pytest.raises(DataError, match=message):
        load(spec(good, **keys))
    fill(good, 65535 if dtype == np.uint16 else 200 if "soft" in keys else 1, dtype, ["s3"])
    assert load(spec(good, **keys)).read(2).label.any()


def test_a_class_folder_without_a_class_is_named(good):
    for name in ("organ", "vessel"):
        for subject in SUBJECTS:
            picture(good / "masks" / name / f"{subject}.png", organ(255 if name == "vessel" else 1))
    for subject in SUBJECTS:
        (good / "masks" / f"{subject}.png").unlink()
    keys = {"task": "multilabel", "classes": ("organ", "vessel")}
    with pytest.raises(DataError, match=r"vessel: .* only 0 and 255"):
        load(spec(good, ignore=255, **keys))
    assert "shows a class" not in load(spec(good, **keys)).note
    for subject in SUBJECTS:
        picture(good / "masks" / "vessel" / f"{subject}.png", organ(0))
    assert "No mask in vessel shows a class." in load(spec(good, **keys)).note


@pytest.mark.parametrize("ending", ["", "_mask"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_accented_letters_may_be_stored_in_two_ways(good, forms, ending):
    image, mask = (unicodedata.normalize(form, "Müller-é") for form in forms)
    (good / "images" / "s1.png").rename(good / "images" / f"{image}.png")
    (good / "masks" / "s1.png").rename(good / "masks" / f"{mask}{ending}.png")
    data = load(spec(good))
    assert data.cases[0].image == image
    assert data.read(0).label.any()


def test_accented_letters_in_nnunet(tmp_path):
    write_nnunet(tmp_path, 4)
    for folder, form, end in (("imagesTr", "NFD", "_0000.nii"), ("labelsTr", "NFC", ".nii")):
        name = unicodedata.normalize(form, "é")
        (tmp_path / folder / f"P0{end}").rename(tmp_path / folder / f"{name}{end}")
    assert len(nnunet(tmp_path).cases) == 12
    folds = [{"train": ["P1", "P2", "P3"], "val": [unicodedata.normalize("NFD", "é")]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    data = load_dataset(NnunetData(name="nnunet", path=tmp_path, task="binary", size=32, fold=0))
    assert {case.subject for case in data.cases if case.split == "test"} == {"é"}


def test_accented_letters_in_classes(good):
    for subject in SUBJECTS:
        folder = good / "masks" / unicodedata.normalize("NFD", "Läsion")
        picture(folder / f"{subject}.png", organ())
        (good / "masks" / f"{subject}.png").unlink()
    data = load(spec(good, task="multilabel", classes=(unicodedata.normalize("NFC", "Läsion"),)))
    assert data.read(0).label.any()


def test_images_without_subjects_count_by_themselves(good, volumes_without_subjects):
    data = load(spec(good))
    assert data.describe()["by_image"] is True
    assert "Each image counts by itself, because `subject` was not set." in data.note
    named = load(spec(good, subject="(s[0-9])"))
    assert "by_image" not in named.describe()
    assert "`subject` was not set" not in named.note
    assert "by_image" not in volumes_without_subjects.describe()
    assert "Each case counts as a separate subject" in volumes_without_subjects.note


@pytest.fixture
def volumes_without_subjects(tmp_path):
    write_nnunet(tmp_path / "volumes", 4)
    return nnunet(tmp_path / "volumes")


def test_pictures_of_nnunet_count_by_themselves(tmp_path):
    for case in range(4):
        picture(tmp_path / "imagesTr" / f"P{case}_0000.png", scan(seed=case))
        picture(tmp_path / "labelsTr" / f"P{case}.png", organ())
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert nnunet(tmp_path).describe()["by_image"] is True


def test_the_report_of_images_without_subjects_has_intervals_over_images(tmp_path, good):
    folder = write_run(tmp_path / "run", Synthetic(subjects=8, images=1))
    described = load(spec(good)).describe()
    kept = {key: described[key] for key in ("name", "title", "note", "by_image")}
    edit_json(folder / "run.json", lambda info: info | {"data": info["data"] | kept})
    text = render_markdown(compose(summarise(Run(folder))))
    assert "95 % interval over 8 images" in text
    assert "population" not in text
    assert f"Data: {good.name}" in text


def test_blank_images_are_found_in_slices_and_in_volumes(tmp_path):
    voxels = np.zeros((8, 8, 2), np.int16)
    voxels[2, 2, 1] = 5
    volume(tmp_path / "a.nii", voxels)
    values = measure(tmp_path / "a.nii", read_slices(tmp_path / "a.nii"), spec(tmp_path))
    assert [is_blank(values, z) for z in (0, 1, None)] == [True, False, False]
