"""Declared bounds, normalisation, channels, orientation, and the place of a label in space."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from runs import edit_json, write_run
from test_folder import HEIGHT, SUBJECTS, WIDTH, organ, picture, scan, volume
from test_folder import spec as folder_spec
from typer.testing import CliRunner

from advseg_bench.cli.app import app
from advseg_bench.data import load_dataset
from advseg_bench.data.augment import Augmentation
from advseg_bench.errors import DataError, SpecError
from advseg_bench.report.contents import compose
from advseg_bench.report.summary import summarise
from advseg_bench.results.run import Run
from advseg_bench.suite.cells import plan
from advseg_bench.suite.specs import NnunetData
from advseg_bench.suite.specs.radii import read_eps
from advseg_bench.suite.suite import Suite, parse_suite

SHAPE = (24, 20, 6)
HU = (-900, 1200)
NAMES = ("T1", "T1ce", "T2", "FLAIR")


def spec(root, **keys):
    return NnunetData(**{"name": "nnunet", "path": root, "task": "binary", "size": 24, "labelled_only": False} | keys)


def voxels(case, channel=0):
    """Hounsfield units from -900 to 1200; each channel has other statistics."""
    draw = np.random.default_rng(10 * case + channel)
    return draw.integers(-900, 1200, SHAPE).astype(np.int16) // (channel + 1)


def labels():
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:12, 2:9, 1:4] = 1
    return mask


def write(root, channels=1, affine=None, label_affine=None):
    affine = np.diag([0.5, 0.8, 3.0, 1.0]) if affine is None else affine
    for case in range(4):
        for channel in range(channels):
            volume(root / "imagesTr" / f"P{case}_{channel:04d}.nii", voxels(case, channel), affine=affine)
        volume(root / "labelsTr" / f"P{case}.nii", labels(), affine=affine if label_affine is None else label_affine)
    described = {
        "channel_names": {str(n): NAMES[n] for n in range(channels)},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".nii",
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def test_bounds_keep_the_units_of_the_files(tmp_path):
    data = load_dataset(spec(write(tmp_path), bounds=(-160, 240)))
    image = data.read(2).image[0]
    np.testing.assert_allclose(image[:, 2:22], voxels(0)[..., 2].clip(-160, 240))
    assert (image[:, :2] == -160).all(), "padding has the lowest intensity"
    assert (data.bounds.lower, data.bounds.upper) == (-160, 240)
    batch = data.batch([0, 1])
    assert (batch.bounds, batch.x.min().item()) == (data.bounds, -160)
    found = data.describe()
    assert (found["bounds"], found["attack_space"]) == ([-160, 240], "stored image")
    assert load_dataset(spec(tmp_path, scale=(-160, 240))).describe()["attack_space"] == "preprocessed tensor"


@pytest.mark.parametrize("bounds", [None, (-160.1, 240.0)])
@pytest.mark.parametrize("normalisation", ["image", "train"])
def test_normalisation_by_recorded_statistics(tmp_path, bounds, normalisation):
    data = load_dataset(spec(write(tmp_path, 2), channels=2, bounds=bounds, normalisation=normalisation))
    kept = [[voxels(case, c).astype(float).clip(*(bounds or (-1e9, 1e9))) for c in (0, 1)] for case in range(4)]
    train = sorted({int(case.subject[1]) for case in data.cases if case.split == "train"})
    for index in (0, 7, 14):
        case, z = divmod(index, SHAPE[2])
        for channel in (0, 1):
            over = [kept[n][channel] for n in train] if normalisation == "train" else [kept[case][channel]]
            mean, std = np.mean(over), np.std(over)
            wanted = (kept[case][channel][..., z] - mean) / std
            np.testing.assert_allclose(data.read(index).image[channel, :, 2:22], wanted, rtol=1e-4, atol=1e-5)
            found = data.record["statistics"]
            if normalisation == "train":
                assert found["mean"][channel] == pytest.approx(mean)
                assert found["std"][channel] == pytest.approx(std)
            elif data.cases[index].split == "test":
                assert found[f"P{case}"]["mean"][channel] == pytest.approx(mean)
    batch = data.batch(range(len(data.cases)))
    lowest, highest = batch.x.min().item(), batch.x.max().item()
    assert data.bounds.lower <= lowest
    assert highest <= data.bounds.upper
    assert (lowest, highest) == pytest.approx((data.bounds.lower, data.bounds.upper), rel=0.1)
    assert data.describe()["attack_space"] == "preprocessed tensor"


def test_a_black_image_can_be_normalised(tmp_path):
    for name in SUBJECTS:
        picture(tmp_path / "images" / f"{name}.png", scan() if name != "s1" else np.zeros((HEIGHT, WIDTH), np.uint8))
        picture(tmp_path / "masks" / f"{name}.png", organ())
    data = load_dataset(folder_spec(tmp_path, normalisation="image"))
    assert (data.read(0).image == 0).all()
    assert np.isfinite(data.batch(range(4)).x.numpy()).all()


def test_brightness_and_padding_of_training_follow_the_bounds(tmp_path):
    batch = load_dataset(spec(write(tmp_path), bounds=(-160, 240))).batch(range(8))
    new = Augmentation(["affine", "brightness"], (24, 24))(batch, np.random.default_rng(0))
    moved = (new.x - batch.x).abs().flatten(1).amax(1)
    assert moved.max() > 40
    assert new.x.min() == -160, "what is shifted in has the lowest intensity"
    assert new.x.max() <= 240


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bounds": (240, -160)}, r"bounds: expected \[lower, upper\]"),
        ({"bounds": (0, 9), "scale": "percentile"}, "scale: expected no scale beside `bounds`, got 'percentile'"),
        ({"normalisation": "image", "scale": (0, 1)}, "scale: expected no scale beside `normalisation`"),
        ({"orientation": "RAR"}, 'three directions such as "RAS"'),
        ({"axes": "xyx"}, "an order of the axes"),
        ({"channels": 0}, "greater than or equal to 1"),
    ],
)
def test_keys_that_do_not_fit(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        spec(tmp_path, **keys)


def test_new_keys_are_in_no_dump_by_default(tmp_path):
    usual = spec(tmp_path).model_dump(mode="json")
    assert not {"bounds", "normalisation", "orientation", "axes"} & set(usual)
    assert "channel_names" not in folder_spec(tmp_path).model_dump(mode="json")
    given = spec(tmp_path, bounds=(-1, 1), normalisation="train", orientation="RAS", axes="xyz")
    dumped = given.model_dump(mode="json")
    assert (dumped["bounds"], dumped["axes"]) == ([-1, 1], "xyz")
    assert NnunetData.model_validate(dumped) == given


def test_four_channels_with_their_names(tmp_path):
    data = load_dataset(spec(write(tmp_path, 4), channels=4, scale=(-900, 1200)))
    assert (data.channels, data.describe()["channels"]) == (NAMES, list(NAMES))
    for channel in range(4):
        wanted = (voxels(1, channel)[..., 3].astype(float) + 900) / 2100
        np.testing.assert_allclose(data.read(9).image[channel, :, 2:22], wanted, atol=1e-6)
    two = load_dataset(spec(tmp_path, channels=2, inputs=("FLAIR", "T1"), scale=(-900, 1200)))
    assert two.channels == ("FLAIR", "T1")
    assert (two.read(9).image == data.read(9).image[[3, 0]]).all()
    with pytest.raises(DataError, match=r"expected one channel, got 4\. Set `inputs` .*, or channels = 4"):
        load_dataset(spec(tmp_path))


@pytest.mark.parametrize("size", [32, [3, 32, 32]])
def test_a_folder_of_several_channels(tmp_path, size):
    stack = np.random.default_rng(0).integers(0, 900, (HEIGHT, WIDTH, 3, 4)).astype(np.int16)
    for name in SUBJECTS:
        volume(tmp_path / "images" / f"{name}.nii.gz", stack)
        volume(tmp_path / "masks" / f"{name}.nii", np.stack([organ()] * 3, -1))
    data = load_dataset(folder_spec(tmp_path, channels=4, channel_names=NAMES, size=size))
    image = data.read(0).image if size == 32 else data.read(0).image[:, 0]
    wanted = stack[..., 0, :] / stack.max(axis=(0, 1, 2))
    np.testing.assert_allclose(image[:, 8:24], np.moveaxis(wanted, -1, 0), atol=1e-6)
    assert data.channels == NAMES
    with pytest.raises(DataError, match=r"s1\.nii\.gz: expected 2 channels, got 4\. Set channels = 4"):
        load_dataset(folder_spec(tmp_path, channels=2, size=size))


@pytest.mark.parametrize("form", ["pages", "rgba"])
def test_pictures_of_four_channels(tmp_path, form):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    for name in SUBJECTS:
        (tmp_path / "images").mkdir(exist_ok=True)
        pages = [Image.fromarray(pixels[..., n].copy()) for n in range(4)]
        path = tmp_path / "images" / f"{name}.tif"
        if form == "pages":
            pages[0].save(path, save_all=True, append_images=pages[1:])
        else:
            Image.fromarray(pixels).save(path)
        picture(tmp_path / "masks" / f"{name}.png", organ())
    data = load_dataset(folder_spec(tmp_path, channels=4, scale="dtype"))
    np.testing.assert_allclose(data.read(0).image[:, 8:24], pixels.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("affine", [np.diag([0.5, 0.8, 3, 1.0]), np.diag([-0.5, -0.8, 3, 1.0])])
def test_orientation_and_axes_of_volumes(tmp_path, affine):
    write(tmp_path, affine=affine)
    keys = {"orientation": "RAS", "axes": "xyz", "size": [24, 20, 16], "fit": "stretch", "scale": (-900, 1200)}
    data = load_dataset(spec(tmp_path, **keys | {"size": [24, 20, 18]}))
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels(0), affine)).get_fdata()
    image = data.read(0).image[0]
    np.testing.assert_allclose(image[..., ::3], (turned + 900) / 2100, atol=1e-6)
    shown = nibabel.as_closest_canonical(nibabel.Nifti1Image(labels(), affine)).get_fdata()
    assert (data.read(0).label[0][..., ::3] == shown).all()
    np.testing.assert_allclose(data.cases[0].spacing, (0.5, 0.8, 1.0))
    assert (data.record["orientation"], data.record["axes"]) == ("RAS", "xyz")
    slices = load_dataset(spec(tmp_path, size=20, orientation="RAS", axes="xyz", scale=(-900, 1200)))
    assert slices.cases[23].image == "P0/z023"
    np.testing.assert_allclose(slices.read(23).image[0, :, 7:13], (turned[23] + 900) / 2100, atol=1e-6)


def test_orientation_joins_files_of_different_ones(tmp_path):
    affine = np.diag([0.5, 0.8, 3.0, 1.0])
    write(tmp_path, affine=affine)
    flipped = affine.copy()
    flipped[0, 0], flipped[0, 3] = -0.5, 0.5 * (SHAPE[0] - 1)
    volume(tmp_path / "labelsTr" / "P0.nii", labels()[::-1], affine=flipped)
    with pytest.raises(DataError, match=r"P0\.nii: expected the orientation of .*, RAS, got 'LAS'.*orientation"):
        load_dataset(spec(tmp_path, bounds=HU))
    data = load_dataset(spec(tmp_path, orientation="RAS", bounds=HU))
    assert (data.read(2).label[0, :, 2:22] == labels()[..., 2]).all()


def turned(degrees):
    a = np.deg2rad(degrees)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    return affine


def shifted(mm):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = mm
    return affine


@pytest.mark.parametrize(
    ("label_affine", "voxels_away"),
    [
        (shifted((60, 0, 0)), "60 voxels"),
        (shifted((0, 0, 0.6)), "0.2 voxels"),
        (np.diag([0.5, 0.5, 3, 1.0]), "14.9 voxels"),
        (turned(20), "10.4 voxels"),
        (shifted((1e-4, 0, 2e-5)), ""),
        (shifted((0.09, 0, 0)), ""),
        (turned(0.1), ""),
    ],
)
def test_a_label_must_lie_where_its_image_does(tmp_path, label_affine, voxels_away):
    write(tmp_path, affine=np.diag([1.0, 1.0, 3.0, 1.0]), label_affine=label_affine)
    if not voxels_away:
        assert "affine" not in load_dataset(spec(tmp_path, bounds=HU)).note
        return
    with pytest.raises(DataError, match=rf"P0\.nii: expected the place of P0_0000\.nii .* 'up to {voxels_away} away'"):
        load_dataset(spec(tmp_path))


def test_a_label_without_an_affine_is_noted(tmp_path):
    write(tmp_path)
    for case in range(4):
        image = nibabel.Nifti1Image(labels(), None)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        image.to_filename(tmp_path / "labelsTr" / f"P{case}.nii")
    assert (
        "In 4 of 4 files the header gives no or another place in space" in load_dataset(spec(tmp_path, bounds=HU)).note
    )


def test_a_label_whose_other_affine_agrees_is_noted(tmp_path):
    affine = np.diag([0.5, 0.8, 3.0, 1.0])
    write(tmp_path, affine=affine)
    image = nibabel.Nifti1Image(labels(), affine)
    image.set_qform(affine, 1)
    image.set_sform(shifted((60, 0, 0)), 1)
    image.to_filename(tmp_path / "labelsTr" / "P0.nii")
    assert "In 1 of 4 files the header" in load_dataset(spec(tmp_path, bounds=HU)).note


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25/255", 0.25 / 255), ("4./255", 4 / 255), ("8 / 255", 8 / 255), ("1e-2", 0.01), (".5", 0.5), ("1/2.5", 0.4)],
)
def test_radii_as_papers_write_them(text, value):
    assert read_eps(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["4/255/2", "4/0", "1e999999999", "0x4", "nan", "", "4,5", "1_0", "1e-999999999/255"])
def test_what_is_no_radius(text):
    with pytest.raises(ValueError, match="expected a"):
        read_eps(text)


SUITE = """
name = "ct"
data = {{ name = "nnunet", path = "x", {keys} }}
models = [{{ name = "m", architecture = "monai.UNet" }}]
attacks = [{{ name = "fgsm", losses = ["bce"], eps = [{eps}] }}]
"""


@pytest.mark.parametrize(
    ("keys", "eps", "shown"),
    [("bounds = [-160, 240]", 51, "51"), ("bounds = [0, 2]", 0.2, "0.2"), ('normalisation = "train"', 0.2, "0.2")],
)
def test_radii_in_the_units_of_the_bounds(keys, eps, shown):
    suite = parse_suite(SUITE.format(keys=keys, eps=eps), "ct")
    assert plan(suite)[1].label == f"m fgsm bce linf {shown}"
    assert Suite.model_validate(suite.as_json()) == suite


def test_a_radius_beyond_the_bounds_is_refused():
    with pytest.raises(
        SpecError, match=r"ct: attack 1 \(fgsm\): eps: expected L_inf radii below 400, .*\[-160, 240\], got 400"
    ):
        parse_suite(SUITE.format(keys="bounds = [-160, 240]", eps=400), "ct")


def test_a_suite_with_a_byte_order_mark(tmp_path):
    text = SUITE.format(keys="size = 32", eps=0.01)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "ct.toml").write_text(text, encoding=encoding, newline="\r\n")
        assert Suite.load(tmp_path / "ct.toml").name == "ct"


def test_the_plan_gives_radii_in_both_units(tmp_path):
    write(tmp_path)
    text = SUITE.format(keys='size = 32, task = "binary", bounds = [-160, 240]', eps="4, 0.8")
    (tmp_path / "ct.toml").write_text(text.replace('path = "x"', f'path = "{tmp_path}"'))
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "ct.toml")])
    assert done.exit_code == 0, done.output
    assert "intensities: -160 to 240, in the units of the files, clipped to [-160, 240]; stored image" in done.output
    assert "eps: 0.8 = 0.51/255, 4 = 2.55/255 of the range" in done.output
    assert "linf 0.8, 4 " in done.output


def test_the_report_shows_units_channels_and_attack_space(tmp_path):
    out = write_run(tmp_path / "run")
    run = Run(out)
    usual = dict(compose(summarise(run)).facts)
    assert "Attack space" not in usual
    assert "/255" in usual["eps"]
    found = {
        "name": "nnunet",
        "channels": list(NAMES),
        "bounds": [-1.5, 3.5],
        "attack_space": "preprocessed tensor",
        "scaling": "z-scores by mean and standard deviation of the training split",
        "statistics": {"mean": [101.25, 2.0], "std": [7.5, 1.0]},
        "orientation": "RAS",
        "axes": "xyz",
    }
    edit_json(out / "run.json", lambda info: info | {"data": info["data"] | found})
    summary = summarise(Run(out))
    document = compose(summary)
    facts = dict(document.facts)
    assert facts["Attack space"] == f"preprocessed tensor: {found['scaling']}"
    assert facts["Channels"] == "T1, T1ce, T2, FLAIR"
    assert summary.budgets[0].width == 5
    eps = summary.budgets[0].eps[-1]
    assert f"{eps:.4g} = {255 * eps / 5:.3g}/255" in facts["eps"]
    assert summary.run.about.data.title == "this nnU-Net data set"
    repeated = next(section for section in document.sections if section.anchor == "repeat")
    tables = [block for block in repeated.blocks if getattr(block, "name", "") == "conventions"]
    shown = dict(tables[0].data.iter_rows())
    assert shown["Normalised by mean"] == "101.2, 2"
    assert shown["Axes of volumes"] == "RAS, read as xyz (depth, rows, columns)"
    assert shown["Intensities"].startswith("-1.5 to 3.5; 1/255 of the range is 0.01961")
