"""Suites whose images are volumes, from the plan to the report; and that nothing moved for those of slices."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from runs import Synthetic, edit_json, write_run

import advseg_bench as ab
from advseg_bench.data.phantom.bowel import ORGANS
from advseg_bench.data.phantom.dataset import FIELD_MM, render_stack, slice_heights
from advseg_bench.data.phantom.scanner import View
from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.report import write_report
from advseg_bench.report.pictures import load_pictures
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Extreme, Step
from advseg_bench.suite.cells import plan
from advseg_bench.suite.suite import Suite, parse_suite
from advseg_bench.suite.timing import timing_key

TEXT = """
schema = 1
name = "volumes"

[data]
name = "nnunet"
path = "PATH"
size = [8, 32, 32]
scale = "percentile"
fit = "stretch"
test = 0.25

[training]
epochs = 6
batch = 2
floor = 0.0

[[models]]
name = "unet-xs"
architecture = "monai.UNet"
settings = { channels = [8, 16, 24], num_res_units = 1 }

[[attacks]]
name = "fgsm"
losses = ["dice_focal"]
eps = ["4/255", "16/255"]

[[attacks]]
name = "random_sign"
eps = ["16/255"]

[compute]
batch = 2
"""
SLICES, CASES = 10, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Phantoms in the raw layout of nnU-Net."""
    path = tmp_path_factory.mktemp("phantoms") / "Dataset001_Phantom"
    for part in ("imagesTr", "labelsTr"):
        (path / part).mkdir(parents=True)
    for case in range(1, CASES + 1):
        stack = render_stack(0, case, 0, heights=slice_heights(SLICES), view=View(32, 32, FIELD_MM / 32))
        for name, array in ((f"imagesTr/c{case}_0000", stack.images), (f"labelsTr/c{case}", stack.labels)):
            voxels = np.moveaxis(array, 0, -1).astype(np.int32)
            nibabel.Nifti1Image(voxels, np.diag([12.5, 12.5, 32, 1])).to_filename(path / f"{name}.nii.gz")
    labels = {"background": 0} | {organ: number for number, organ in enumerate(ORGANS, start=1)}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    (path / "dataset.json").write_text(json.dumps(content))
    return path


def suite_of(folder, *changes):
    text = TEXT.replace("PATH", str(folder))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return parse_suite(text, "v.toml")


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    return ab.run(suite_of(folder), tmp_path_factory.mktemp("run"))


def test_volumes_are_trained_attacked_and_scored(finished):
    assert not finished.failures
    assert finished.missing == 0
    rows = finished.rows
    assert rows.height == 2 * 4  # a quarter of eight subjects; the clean cell, two budgets and noise
    assert set(rows["valid_pixels"]) == {8 * 32 * 32}
    assert not any("/" in image for image in rows["image"])
    by_eps = {row["eps"]: row["mean"] for row in finished.table("drop", by="eps", where={"attack": "fgsm"}).to_dicts()}
    noise = finished.table("drop", where={"attack": "random_sign"})["mean"][0]
    assert by_eps[16 / 255] > by_eps[4 / 255] > 0
    assert by_eps[16 / 255] > noise
    moved = rows.filter(attack="fgsm", eps=16 / 255)["linf"]
    assert moved.to_list() == pytest.approx([16 / 255] * 2, abs=1e-6)
    assert finished.models["unet-xs"]["flops"] > 0


def test_the_report_speaks_of_volumes_and_names_the_slice(finished, tmp_path):
    paths = {path.name: path for path in write_report(finished, tmp_path)}
    text = paths["report.md"].read_text()
    assert "2 test volumes of 2 subjects; pixels are voxels" in text
    assert "Each image is a whole volume, resized by area to 8 x 32 x 32 (depth, rows, columns)" in text
    assert "a resized voxel measures 40 x 12.5 x 12.5 mm" in text
    assert "Test images are the volumes that show a class." in text
    assert "neighbouring slices" not in text
    [panel] = (finished.path / "panels").glob("*-worst-*.npz")
    with np.load(panel) as arrays:
        meta, truth = json.loads(str(arrays["meta"])), arrays["truth"]
        assert arrays["x_adv"].shape == (2, 1, 8, 32, 32)
    most = truth.sum(axis=(0, 2, 3)).argmax() + 1
    page = paths["report.html"].read_text()
    assert f"image {meta['image']}, slice {most} of 8, fgsm dice_focal" in page
    assert "Of a volume, the slice with the largest labelled area" in page


@pytest.mark.parametrize(("kind", "areas", "shown"), [("multilabel", (1, 3, 2, 0), 2), ("multiclass", (0, 2, 2, 0), 2)])
def test_the_slice_with_most_label_is_shown(tmp_path, kind, areas, shown):
    truth = np.zeros((3, 4, 5, 5), bool)
    for z, area in enumerate(areas):
        truth[1, z, 0, :area] = True
    if kind == "multiclass":  # the background is no label
        truth[0] = ~truth[1]
        truth[1, 0] = False
    depths = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 5, 5))
    arrays = {"truth": truth, "x": depths[None], "x_adv": depths[None, None], "clean": truth, "attacked": truth[None]}
    out = write_run(tmp_path / "r", Synthetic(kind=kind, models=("unet-vgg13",)))
    edit_json(out / "run.json", lambda info: info | {"data": info["data"] | {"classes": ["a", "b", "c"]}})
    cell = next(cell for cell in Run(out).about.cells if (cell.model, cell.arm.attack) == ("unet-vgg13", "fgsm"))
    [image, *_] = json.loads((out / "run.json").read_text())["images"]
    case = Extreme("worst", "unet-vgg13", image, cell.id, cell.arm, cell.eps, 1.0, 0.5, (Step(cell.id, cell.eps, 0.5),))

    def load(**changes):
        np.savez(out / "panels" / "p.npz", **arrays | changes, meta=np.array(json.dumps(case.as_record())))
        return load_pictures(Run(out))

    [cut] = load()
    assert cut.where == f"{image}, slice {shown} of 4"
    assert (cut.x == shown - 1).all()
    shapes = {name: getattr(cut, name).shape for name in arrays}
    assert shapes == {
        "truth": (3, 5, 5), "x": (1, 5, 5), "x_adv": (1, 1, 5, 5), "clean": (3, 5, 5), "attacked": (1, 3, 5, 5)
    }  # fmt: skip
    [empty] = load(truth=np.zeros_like(truth))
    assert empty.where == f"{image}, slice 3 of 4"


def test_a_run_of_volumes_is_resumed_and_repeated_bit_for_bit(finished, folder, tmp_path):
    again = ab.run(suite_of(folder), tmp_path, shard=1)
    assert again.rows.equals(finished.rows)
    [part, *_] = sorted((tmp_path / "parts").iterdir())
    part.unlink()
    assert ab.run(suite_of(folder), tmp_path).rows.equals(finished.rows)


SMP = (
    'architecture = "monai.UNet"\nsettings = { channels = [8, 16, 24], num_res_units = 1 }',
    'architecture = "smp.Unet"',
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (SMP, r"v\.toml: suite: model 'unet-xs': smp\.Unet is for 2-D images, and size = \[8, 32, 32\]"),
        (
            ("size = [8, 32, 32]", "size = [8, 32, 48]\n"),
            r'training\.augment: "rot90" .*size = \[8, 32, 48\] has 32 and 48',
        ),
        (("size = [8, 32, 32]", "size = [8, 32]"), r"data\.size: expected an edge .*, got \[8, 32\]"),
        (("test = 0.25", "every = 2"), r"data: every: .*size = \[8, 32, 32\].* got 2"),
    ],
)
def test_what_cannot_have_volumes_is_refused_before_anything_is_loaded(change, message):
    turned = ("epochs = 6", 'epochs = 6\naugment = ["rot90"]')
    with pytest.raises(SpecError, match=message) as error:
        suite_of(Path("nowhere"), change, turned)
    assert "\n" not in str(error.value)


def test_a_network_deeper_than_the_volume_is_refused_before_training(folder, tmp_path):
    deep = suite_of(folder, ("channels = [8, 16, 24]", "channels = [4, 4, 4, 4, 4, 4]"))
    with pytest.raises(
        IncompatibleError, match=r"'unet-xs': expected volumes of 16 pixels or more .*, got \[8, 32, 32\]"
    ):
        ab.run(deep, tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_attacks_for_slices_are_skipped_with_the_reason(folder):
    reason = "attack 'torchattacks.TIFGSM' runs on 2-D images, not on 3-D ones"
    foreign = '[[attacks]]\nname = "torchattacks.TIFGSM"\nlosses = ["dice"]\neps = ["4/255"]\n\n[compute]'
    skips = [cell.skip for cell in plan(suite_of(folder, ("[compute]", foreign))) if "." in cell.arm.attack]
    assert skips == [reason]
    flat = suite_of(folder, ("[compute]", foreign), ("[8, 32, 32]", "32"))
    assert [cell.skip for cell in plan(flat) if "." in cell.arm.attack] == [None]


@ab.attack(dims=(2,))
def for_slices(model, x, y, eps):
    return x + eps


def test_an_attack_that_claims_slices_is_refused_before_training(folder, tmp_path):
    mine = '[[attacks]]\nname = "test_volumes:for_slices"\neps = ["4/255"]\n\n[compute]'
    match = "for_slices' runs on 2-D images, not on 3-D ones"
    with pytest.raises(IncompatibleError, match=match):
        ab.run(suite_of(folder, ("[compute]", mine)), tmp_path)


def test_the_plan_tells_the_edges(folder, tmp_path):
    path = tmp_path / "v.toml"
    path.write_text(TEXT.replace("PATH", str(folder)))
    command = [sys.executable, "-m", "advseg_bench", "plan", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "data: nnunet, multilabel, volumes of 8 x 32 x 32 px" in done.stdout
    assert "5 for training, 2 for test" in done.stdout


IDS = {
    "quick": "06fbc38161ab0382",
    "smoke": "552a4b9e80590d91",
    "wang2024": "3028acdce9af3ff1",
    "wang2024 cpu": "027096a7b96b781c",
    "wang2024 smoke": "fa5c87cd1a541251",
}
"""Digests of all cell ids before data could be volumes."""

TIMINGS = {
    "quick": "59e8713db67999d1 3c984ec67ed54b16 85afc82307631548 9a115deac1690989 78ad41ecc6cea396",
    "wang2024 cpu": "60cdad5a4b0484f4 256c839e9e007b4f e5ec02495ed64703 fbfe61bba07a657b",
}


@pytest.mark.parametrize("name", IDS)
def test_suites_of_slices_keep_their_ids(name):
    suite, _, profile = name.partition(" ")
    loaded = Suite.load(suite, profile=profile or None)
    own = plan(loaded.model_copy(update={"battery": None}))
    assert hashlib.sha256(" ".join(cell.id for cell in own).encode()).hexdigest()[:16] == IDS[name]
    if name in TIMINGS:
        assert [timing_key(loaded, model) for model in loaded.models] == TIMINGS[name].split()


def test_a_suite_of_volumes_has_ids_of_its_own(folder):
    suites = [
        suite_of(folder),
        suite_of(folder, ("[8, 32, 32]", "[8, 32, 16]")),
        suite_of(folder, ("[8, 32, 32]", "32")),
    ]
    assert len({plan(suite)[0].id for suite in suites}) == len({timing_key(s, s.models[0]) for s in suites}) == 3
    assert Suite.model_validate_json(json.dumps(suites[0].as_json())) == suites[0]
