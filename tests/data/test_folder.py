import gzip
import math
import shutil
import tracemalloc
from collections import Counter

import nibabel
import numpy as np
import pytest
from PIL import Image

from advseg_bench.data.folder import load
from advseg_bench.data.formats import read_header, read_slices
from advseg_bench.data.splits import split_subjects
from advseg_bench.data.values import measure
from advseg_bench.errors import DataError
from advseg_bench.suite.specs import FolderData

SUBJECTS = ("s1", "s2", "s3", "s4")
HEIGHT, WIDTH = 16, 32
ORGAN = (slice(2, 6), slice(20, 30))


def spec(path, **keys):
    return FolderData(**{"name": "folder", "path": path, "classes": ("organ",), "task": "binary", "size": 32} | keys)


def picture(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def volume(path, voxels, zooms=(1.0, 1.0, 1.0), affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*zooms, 1.0]) if affine is None else affine
    nibabel.Nifti1Image(voxels, affine).to_filename(path)


def organ(value=1, dtype=np.uint8, shape=(HEIGHT, WIDTH)):
    mask = np.zeros(shape, dtype)
    mask[ORGAN] = value
    return mask


def scan(peak=200, dtype=np.uint8, seed=0, shape=(HEIGHT, WIDTH)):
    pixels = np.random.default_rng(seed).integers(0, peak, shape).astype(dtype)
    pixels[0, 0] = peak
    return pixels


@pytest.fixture
def good(tmp_path):
    """Four PNG images, wider than high, with 0/1 masks."""
    for seed, name in enumerate(SUBJECTS):
        picture(tmp_path / "images" / f"{name}.png", scan(seed=seed))
        picture(tmp_path / "masks" / f"{name}.png", organ())
    return tmp_path


@pytest.fixture
def volumes(tmp_path):
    """Four NIfTI files of three slices; the organ moves along the second axis from slice to slice."""
    for seed, name in enumerate(SUBJECTS):
        voxels = scan(900, np.int16, seed, (HEIGHT, WIDTH, 3))
        labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for z in range(3):
            labels[2:6, 4 * z : 4 * z + 8, z] = 1
        volume(tmp_path / "images" / f"{name}.nii.gz", voxels, (0.5, 2.0, 3.0))
        volume(tmp_path / "masks" / f"{name}.nii", labels, (0.5, 2.0, 3.0))
    return tmp_path


def in_square(plane):
    """What padding makes of 16 x 32 at 32 pixels."""
    return np.pad(plane, ((8, 8), (0, 0)))


def test_png_images_arrive_where_they_belong(good):
    data = load(spec(good))
    assert [case.image for case in data.cases] == list(SUBJECTS)
    assert [case.subject for case in data.cases] == list(SUBJECTS)
    assert data.task.classes == ("organ",)
    for index in range(4):
        sample = data.read(index)
        pixels = scan(seed=index)
        np.testing.assert_allclose(sample.image[0], in_square(pixels) / pixels.max(), atol=1e-6)
        assert sample.image.max() == 1.0
        assert (sample.label[0] == in_square(organ())).all()
        assert (sample.valid == in_square(np.ones((HEIGHT, WIDTH), bool))).all()
    assert all(math.isnan(edge) for edge in data.cases[0].spacing)
    assert load(spec(good, spacing=(2.0, 1.0), size=64)).cases[0].spacing == (1.0, 0.5)


@pytest.mark.parametrize(
    ("ending", "dtype", "peak", "largest"),
    [
        ("png", np.uint8, 200, 255),
        ("png", np.uint16, 3000, 65535),
        ("PNG", np.uint16, 3000, 65535),
        ("tif", np.uint8, 200, 255),
        ("tiff", np.uint16, 3000, 65535),
        ("tif", np.int32, 70000, 2**31 - 1),
        ("nii", np.uint8, 200, 255),
        ("nii.gz", np.int16, 3000, 32767),
    ],
)
def test_scale(good, ending, dtype, peak, largest):
    (good / "images" / "s1.png").unlink()
    pixels = scan(peak, dtype)
    path = good / "images" / f"s1.{ending}"
    if ending.startswith("nii"):
        volume(path, pixels[..., None])
    else:
        picture(path, pixels)
    for scale, top in (("max", peak), ("dtype", largest), ((20.0, peak / 2), None)):
        image = load(spec(good, scale=scale)).read(0).image[0, 8:24]
        lower, upper = (0, top) if top else scale
        np.testing.assert_allclose(image, ((pixels - lower) / (upper - lower)).clip(0, 1), atol=1e-6)


def test_float_images_and_scaled_nifti(good):
    pixels = scan(200, np.float32) / 100
    (good / "images" / "s1.png").unlink()
    picture(good / "images" / "s1.tif", pixels)
    np.testing.assert_allclose(load(spec(good)).read(0).image[0, 8:24], pixels / pixels.max(), atol=1e-6)
    (good / "images" / "s1.tif").unlink()
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    scaled = nibabel.Nifti1Image(scan()[..., None] * np.float32(0.01), np.eye(4), header)
    scaled.to_filename(good / "images" / "s1.nii")  # stored as 8 bit with a slope
    image = load(spec(good, scale=(0, 4))).read(0).image[0, 8:24]
    np.testing.assert_allclose(image, scan() / 400, atol=1 / 400)
    with pytest.raises(DataError, match=r"s1\.nii: expected .* scale = 'dtype'"):
        load(spec(good, scale="dtype"))


def test_nifti_slices_are_read_one_by_one(volumes):
    data = load(spec(volumes))
    assert [case.image for case in data.cases[:4]] == ["s1/z000", "s1/z001", "s1/z002", "s2/z000"]
    assert data.cases[5] == data.cases[4].__class__("s2/z002", "s2", "s2", (0.5, 2.0), data.cases[4].split)
    voxels = scan(900, np.int16, 1, (HEIGHT, WIDTH, 3))
    for z in (2, 0, 1):  # in any order
        sample = data.read(3 + z)
        np.testing.assert_allclose(sample.image[0, 8:24], voxels[..., z] / voxels.max(), atol=1e-6)
        expected = np.zeros((32, 32), bool)
        expected[10:14, 4 * z : 4 * z + 8] = True
        assert (sample.label[0] == expected).all()


def test_nifti_spacing_knows_units(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 2), np.uint8), np.diag([250.0, 500.0, 1.0, 1.0]))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "a.nii")
    header = read_header(tmp_path / "a.nii")
    assert header.spacing == pytest.approx((0.25, 0.5))
    assert (header.shape, header.slices, header.axes) == ((4, 5), 2, "RAS")


def test_memory_is_bounded_by_a_slice(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 9, (128, 128, 100), np.uint8)
    for ending in ("nii", "nii.gz"):
        path = tmp_path / f"a.{ending}"
        volume(path, voxels)
        tracemalloc.start()
        (values,) = measure(path, read_slices(path), spec(tmp_path))
        assert (values.low, values.high) == (0, 8)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < voxels.nbytes / 2


def test_colour_stays_or_becomes_grey(good):
    colour = np.stack([scan(seed=s) for s in range(3)], axis=-1)
    alpha = np.concatenate([colour, np.full((HEIGHT, WIDTH, 1), 7, np.uint8)], axis=-1)
    picture(good / "images" / "s1.png", colour)
    picture(good / "images" / "s2.png", alpha)
    grey = colour @ np.array([0.299, 0.587, 0.114])
    one, three = load(spec(good)), load(spec(good, channels=3))
    for index in (0, 1):
        np.testing.assert_allclose(one.read(index).image[0, 8:24], grey / grey.max(), atol=1e-6)
        kept = three.read(index).image[:, 8:24]
        np.testing.assert_allclose(kept, colour.transpose(2, 0, 1) / 200, atol=1e-6)
    assert (three.read(2).image == one.read(2).image).all()


@pytest.mark.parametrize(("mode", "values"), [("L", (0, 255)), ("1", (0, 255)), ("P", (0, 1)), ("I;16", (0, 1))])
def test_hard_masks(good, mode, values):
    if mode == "I;16":
        picture(good / "masks" / "s1.png", organ(1, np.uint16))
    elif mode == "P":
        palette = Image.fromarray(organ(1))
        palette.putpalette([200, 0, 0, 0, 200, 0])
        palette.save(good / "masks" / "s1.png")
    else:
        picture(good / "masks" / "s1.png", organ(values[1]), mode)
    with Image.open(good / "masks" / "s1.png") as written:
        assert written.mode == mode
    assert (load(spec(good)).read(0).label[0] == in_square(organ())).all()


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_soft_masks_are_split_at_half_of_the_type(good, dtype, top):
    (good / "masks" / "s1.png").unlink()
    below, above = (127, 128) if top == 255 else (32767, 32768) if top == 65535 else (0.499, 0.5)
    mask = organ(above, dtype)
    mask[10:14] = below
    picture(good / "masks" / "s1.tif", mask)
    assert (load(spec(good, soft=True)).read(0).label[0] == in_square(organ())).all()


def test_ignored_pixels_are_not_valid(good):
    mask = organ()
    mask[10:12] = 255
    picture(good / "masks" / "s1.png", mask)
    sample = load(spec(good, ignore=255)).read(0)
    expected = np.ones((HEIGHT, WIDTH), bool)
    expected[10:12] = False
    assert (sample.valid == in_square(expected)).all()
    assert (sample.label[0] == in_square(organ())).all()
    picture(good / "masks" / "s2.png", organ(200))
    soft = load(spec(good, ignore=255, soft=True)).read(0)
    assert (soft.valid == sample.valid).all()
    assert not soft.label.any()  # 1 of 255


def test_multiclass(good):
    keys = {"task": "multiclass", "classes": ("air", "organ", "bone"), "ignore": 9}
    mask = organ(2)
    mask[10:12, :5] = 1
    mask[15, 31] = 9
    picture(good / "masks" / "s1.png", mask)
    data = load(spec(good, **keys))
    assert data.task.classes == ("air", "organ", "bone")
    sample = data.read(0)
    mask[15, 31] = 0
    assert sample.label.dtype == np.int64
    assert (sample.label == in_square(mask)).all()
    assert sample.valid.sum() == HEIGHT * WIDTH - 1


def test_multilabel_has_a_folder_for_each_class(good):
    keys = {"task": "multilabel", "classes": ("organ", "all"), "ignore": 7}
    shutil.move(good / "masks", good / "flat")
    for name in SUBJECTS:
        picture(good / "masks" / "organ" / f"{name}.png", organ(255))
        everything = np.ones((HEIGHT, WIDTH), np.uint8)
        everything[0, 0] = 7
        picture(good / "masks" / "all" / f"{name}.tif", everything)
    sample = load(spec(good, **keys)).read(0)
    assert (sample.label[0] == in_square(organ())).all()
    assert sample.label[1].sum() == HEIGHT * WIDTH - 1
    assert not sample.valid[8, 0]


def test_images_of_many_sizes_end_at_one(good):
    picture(good / "images" / "s2.png", scan(shape=(40, 24)))
    picture(good / "masks" / "s2.png", np.zeros((40, 24), np.uint8))
    batch = load(spec(good, size=16)).batch(range(4))
    assert batch.x.shape == (4, 1, 16, 16)
    assert batch.y.shape == (4, 1, 16, 16)


def test_subjects_stay_together(tmp_path):
    for subject in range(8):
        for number in range(3):
            picture(tmp_path / "images" / f"case{subject}_{number}.png", scan(seed=number))
            picture(tmp_path / "masks" / f"case{subject}_{number}.png", organ())
    keys = {"subject": r"^case(\d+)_", "validation": 0.25, "test": 0.25, "spacing": (1.0, 1.0)}
    data = load(spec(tmp_path, **keys))
    assert Counter(case.split for case in data.cases) == {"train": 12, "validation": 6, "test": 6}
    splits = {}
    for case in data.cases:
        splits.setdefault(case.subject, set()).add(case.split)
        assert case.block == case.subject
        assert case.image.startswith(f"case{case.subject}_")
    assert all(len(found) == 1 for found in splits.values())
    assert data.note == ""
    others = [load(spec(tmp_path, **keys, seed=seed)).cases for seed in range(1, 4)]
    assert any(cases != data.cases for cases in others)
    assert load(spec(tmp_path, **keys)).cases == data.cases
    assert "`subject` was not set" in load(spec(tmp_path)).note


def test_splits_do_not_depend_on_the_order_of_files(tmp_path):
    names = [f"n{i}" for i in range(20)]
    given = spec(tmp_path, validation=0.15, test=0.25, seed=3)
    splits = split_subjects(names, given)
    assert splits == split_subjects([*reversed(names), *names], given)
    assert Counter(splits.values()) == {"train": 12, "validation": 3, "test": 5}


def test_fingerprint_follows_contents_and_not_the_place(good, tmp_path_factory):
    before = load(spec(good)).fingerprint
    assert load(spec(good)).fingerprint == before
    assert load(spec(good, seed=1)).fingerprint != before
    moved = tmp_path_factory.mktemp("moved") / "data"
    shutil.copytree(good, moved)
    assert load(spec(moved)).fingerprint == before
    for name in ("images", "masks"):
        (moved / name / "s4.png").rename(moved / name / "s5.png")
    assert load(spec(moved)).fingerprint != before
    mask = organ()
    mask[15, 31] = 1
    picture(good / "masks" / "s3.png", mask)
    assert load(spec(good)).fingerprint != before


def test_hidden_files_are_passed_over(good):
    (good / "images" / ".DS_Store").write_bytes(b"x")
    (good / "masks" / "._s1.png").write_bytes(b"x")
    assert len(load(spec(good)).cases) == 4


def _cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(bytes(content))


DAMAGES = {
    "no folder": (lambda d: shutil.rmtree(d), "expected a folder, got 'nothing of that name'"),
    "no masks": (lambda d: shutil.rmtree(d / "masks"), r"masks: expected a folder"),
    "no images": (lambda d: [p.unlink() for p in (d / "images").iterdir()], "images: expected images, got"),
    "numpy": (lambda d: (d / "images" / "s5.npy").write_bytes(b"x"), r"s5\.npy: expected a file ending in .*\.png"),
    "two of a name": (lambda d: picture(d / "images" / "s1.tif", scan()), r"one file named 's1', got \['s1"),
    "no mask": (lambda d: (d / "masks" / "s2.png").unlink(), r"s2\.png: expected a mask s2\.\* in .*masks"),
    "no image": (lambda d: (d / "images" / "s2.png").unlink(), r"masks.s2\.png: expected an image s2\.\*"),
    "empty file": (lambda d: (d / "images" / "s3.png").write_bytes(b""), r"s3\.png: expected a readable PNG"),
    "truncated image": (lambda d: _cut(d / "images" / "s3.png"), r"images.s3\.png: expected a readable PNG"),
    "truncated mask": (lambda d: _cut(d / "masks" / "s3.png"), r"masks.s3\.png: expected a readable PNG"),
    "corrupt image": (lambda d: _flip(d / "images" / "s3.png", 200), r"images.s3\.png: expected a readable"),
    "text": (lambda d: (d / "masks" / "s3.png").write_text("hello"), r"s3\.png: expected a readable PNG"),
    "transposed": (
        lambda d: picture(d / "masks" / "s1.png", np.ascontiguousarray(organ().T)),
        r"masks.s1\.png: expected the size of its image s1\.png, 16 x 32, got '32 x 16'",
    ),
    "values": (
        lambda d: picture(d / "masks" / "s1.png", scan(seed=1)),
        r"s1\.png: expected mask values 0 and 1, or 0 and 255, got \[2, 3, 4, 5, 6, '...'\]",
    ),
    "few values": (lambda d: picture(d / "masks" / "s1.png", organ(7)), r"or 0 and 255, got \[7\]\. Convert"),
    "both codes": (
        lambda d: picture(d / "masks" / "s1.png", organ(255) + np.eye(HEIGHT, WIDTH, dtype=np.uint8)),
        r"or 0 and 255, got \[0, 1, 255\]",
    ),
    "colour mask": (
        lambda d: picture(d / "masks" / "s4.png", np.stack([organ(), organ(), organ(2)], axis=-1)),
        r"s4\.png: expected a mask of one channel, .* got 'colours'",
    ),
    "class folders": (lambda d: (d / "masks" / "organ").mkdir(), "expected mask files for task 'binary'"),
    "folder of images": (lambda d: (d / "images" / "more").mkdir(), "more: expected a file ending in .* 'a folder'"),
    "too few": (
        lambda d: [(d / kind / f"s{n}.png").unlink() for kind in ("images", "masks") for n in (3, 4)],
        "subjects for each of training, validation and test, got '2 subjects",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(good, damage):
    do, message = DAMAGES[damage]
    do(good)
    with pytest.raises(DataError, match=message) as caught:
        load(spec(good))
    assert "\n" not in str(caught.value)


def test_several_pages_are_refused(good):
    pages = [Image.fromarray(scan(seed=s)) for s in range(2)]
    (good / "images" / "s1.png").unlink()
    pages[0].save(good / "images" / "s1.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"s1\.tif: expected one image .*, got '2 pages'"):
        load(spec(good))


def _with_voxel(value):
    voxels = scan(900, np.float32, 0, (HEIGHT, WIDTH, 3))
    voxels[1, 1, 2] = value
    return voxels


ORGAN_FLIPPED = np.diag([-0.5, 2.0, 3.0, 1.0])
VOLUME_DAMAGES = {
    "nan": (
        lambda d: volume(d / "images" / "s1.nii.gz", _with_voxel(np.nan)),
        r"s1\.nii\.gz: expected finite values, got nan",
    ),
    "infinite": (lambda d: volume(d / "images" / "s1.nii.gz", _with_voxel(np.inf)), "finite values, got inf"),
    "negative": (
        lambda d: volume(d / "images" / "s1.nii.gz", _with_voxel(-47)),
        r"expected values >= 0 for scale = 'max', got -47\.0",
    ),
    "four axes": (
        lambda d: volume(d / "images" / "s1.nii.gz", np.zeros((4, 4, 4, 2), np.uint8)),
        r"with 2 or 3 axes, got 'shape \(4, 4, 4, 2\) of uint8'",
    ),
    "complex": (
        lambda d: volume(d / "images" / "s1.nii.gz", np.zeros((4, 4, 4), np.complex64)),
        "a volume of real numbers",
    ),
    "slices": (
        lambda d: volume(d / "masks" / "s1.nii", np.zeros((HEIGHT, WIDTH, 2), np.uint8)),
        r"the size of its image s1\.nii\.gz, 16 x 32 x 3, got '16 x 32 x 2'",
    ),
    "flipped": (
        lambda d: volume(d / "masks" / "s1.nii", np.zeros((HEIGHT, WIDTH, 3), np.uint8), affine=ORGAN_FLIPPED),
        r"masks.s1\.nii: expected the orientation of its image .*, RAS, got 'LAS'",
    ),
    "mask nan": (
        lambda d: volume(d / "masks" / "s1.nii", _with_voxel(np.nan) * np.nan, (0.5, 2.0, 3.0)),
        r"s1\.nii.*got \[nan",
    ),
    "truncated nii": (lambda d: _cut(d / "masks" / "s2.nii", 0.9), r"s2\.nii: expected a readable NIfTI file"),
    "truncated gz": (lambda d: _cut(d / "images" / "s2.nii.gz", 0.9), r"s2\.nii\.gz: expected a readable NIfTI"),
    "not gz": (lambda d: (d / "images" / "s2.nii.gz").write_text("no"), r"s2\.nii\.gz: expected a readable NIfTI"),
    "empty nii": (lambda d: (d / "masks" / "s2.nii").write_bytes(b""), r"s2\.nii: expected a NIfTI file with voxels"),
    "wrong gz": (
        lambda d: (d / "images" / "s2.nii.gz").write_bytes(gzip.compress(b"no nifti")),
        r"s2\.nii\.gz: expected a NIfTI file with voxels",
    ),
}


@pytest.mark.parametrize("damage", VOLUME_DAMAGES)
def test_damaged_volumes(volumes, damage):
    do, message = VOLUME_DAMAGES[damage]
    do(volumes)
    with pytest.raises(DataError, match=message) as caught:
        load(spec(volumes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"subject": r"\d+"}, "one group .*`subject`, got"),
        ({"subject": "(s"}, r"a regular expression in `subject` \(.*\), got '\(s'"),
        ({"subject": "s1(x?)"}, r"s1\.png: expected a name that matches"),
        ({"subject": "(x)"}, r"s1\.png: expected a name that matches '\(x\)', got 's1'"),
        ({"scale": (1.0, 1.0)}, r"scale = \[lower, upper\] with lower < upper"),
        ({"scale": (300.0, 400.0)}, r"s1\.png: expected values inside scale = \[300, 400\], got '\d to 200'"),
        ({"task": "multiclass", "classes": ("a", "b"), "soft": True}, "got 'soft = true'. Set soft = false"),
        ({"task": "multilabel"}, r"masks.s1\.png: expected a folder for each class"),
        ({"validation": 0.6, "test": 0.4}, "got '4 subjects, 2 for validation and 2 for test'. Add subjects"),
    ],
)
def test_specifications_that_do_not_fit(good, keys, message):
    with pytest.raises(DataError, match=message):
        load(spec(good, **keys))


def test_values_that_do_not_fit_the_task(good):
    picture(good / "masks" / "s1.png", organ(2))
    with pytest.raises(DataError, match=r"mask values 0 to 1, got \[2\]"):
        load(spec(good, task="multiclass", classes=("air", "organ")))
    (good / "masks" / "s1.png").unlink()
    picture(good / "masks" / "s1.tif", organ(1.5, np.float32))
    with pytest.raises(DataError, match=r"probabilities from 0 to 1, got \[1\.5\]"):
        load(spec(good, soft=True))


def test_class_folders_have_to_match(good):
    shutil.rmtree(good / "masks")
    for name in SUBJECTS:
        picture(good / "masks" / "organ" / f"{name}.png", organ())
    keys = {"task": "multilabel", "classes": ("organ", "bone")}
    with pytest.raises(DataError, match=r"bone: expected a folder with the masks of class 'bone'"):
        load(spec(good, **keys))
    (good / "masks" / "bones").mkdir()
    with pytest.raises(DataError, match=r"unknown class folder 'bones'\. Did you mean 'bone'\?"):
        load(spec(good, **keys))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of odd tags before it gives up
@pytest.mark.parametrize("ending", ["png", "tif", "nii", "nii.gz"])
def test_whatever_happens_to_a_file_the_error_names_it(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending.startswith("nii"):
        volume(path, scan(shape=(8, 9, 3)))
    else:
        picture(path, scan())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, min(len(content), 400), 3):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_header(path)
            next(read_slices(path))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all(message.startswith(f"{path}: expected ") and "\n" not in message for message in messages)


def test_slices_are_lazy(volumes):
    stream = read_slices(volumes / "images" / "s1.nii.gz", first=1)
    _cut(volumes / "images" / "s1.nii.gz", 0.1)
    with pytest.raises(DataError, match="readable NIfTI"):
        next(stream)
