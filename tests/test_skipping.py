"""What a battery leaves out: the worst case stays, image by image, and passes are saved."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
import torch
from test_packing import KEPT

import advseg_bench as ab
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.running.packing import Fill
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.work import Unit
from advseg_bench.suite.battery import BATTERIES, Member
from advseg_bench.suite.suite import Suite, parse_suite
from advseg_bench.types import Task

JUDGED = {"keep": "best", "keep_by": "hard_dice", "objective": "present_dice"}
TINY = {
    "full": (
        Member("random_sign", gated=False),
        Member("fgsm", "present_dice"),
        Member("apgd", "present_dice", {"steps": 4, **JUDGED}, warm=True),
        Member("apgd", "balanced_ce", {"steps": 4, **JUDGED}, warm=True),
        Member("pgd", "bce", {"steps": 1, "step_size": 0.05}, warm=True),
        Member("square", settings={"queries": 8}),
    )
}
RADII = ("8/255", "32/255", "64/255")
IMAGES = 16


@pytest.fixture(scope="module", autouse=True)
def _battery():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATTERIES, "tiny-1", TINY)
        patch.chdir(KEPT)  # the suite names its weights
        yield


def make_suite(*, skip: bool, warm: bool):
    head = (KEPT / "suite.toml").read_text().split("[[attacks]]")[0].replace("size = 48", "size = 32")
    rule = f"[battery]\nname = 'tiny-1'\neps = {list(RADII)}\nskip = {str(skip).lower()}\n".replace("'", '"')
    return parse_suite(head + rule + f"warm_start = {str(warm).lower()}\n", "skipping.toml")


def dice_of(row) -> float:
    """Mean Dice of the classes that are present, as the battery judges; of none, minus the pixels found."""
    present = [(tp, fp, fn) for tp, fp, fn in zip(row["tp"], row["fp"], row["fn"], strict=True) if tp + fn]
    if not present:
        return 1 - sum(row["fp"]) / row["valid_pixels"]
    return sum(2 * tp / (2 * tp + fp + fn) for tp, fp, fn in present) / len(present)


def key_of(row):
    return row["eps"], row["image"]


def worst(rows):
    """The lowest Dice of each image at each radius, over the attacks that are no noise."""
    rows = sorted((row for row in rows if row["attack"] not in ("none", "random_sign")), key=key_of)
    return {key: min(map(dice_of, group)) for key, group in groupby(rows, key_of)}


def passes(rows):
    return sum(row["forwards"] + row["backwards"] for row in rows)


class Smooth(torch.nn.Module):
    """Decides by the mean of each pixel's neighbourhood, so that pixels of a border need more than one gradient."""

    def forward(self, x):
        near = torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return 6 * (near + 0.3 * (near - 0.5) * (9 * x).cos() - 0.5)


def make_data() -> Dataset:
    """Squares of growing contrast: the first are lost at any radius, the last at none."""
    cases = [Case(f"i{i}", f"s{i}", "b", (1.0, 1.0), "test") for i in range(IMAGES)]

    def read(i: int) -> Sample:
        noise = torch.rand((1, 14, 14), generator=torch.Generator().manual_seed(i)).numpy()
        mask = torch.zeros((1, 14, 14), dtype=torch.bool)
        mask[:, 3 : 8 + i % 4, 4:10] = True
        mask = mask.numpy()
        contrast = 0.03 + 0.35 * (7 * i % IMAGES) / IMAGES
        x = 0.5 + contrast * (2.0 * mask - 1) + 0.04 * (noise - 0.5)
        return Sample(x.astype("float32"), mask, (noise[0] >= 0))

    return Dataset(name="tiny", task=Task("binary", ("c",)), cases=cases, read=read, fingerprint="f")


@pytest.fixture(scope="module")
def runs():
    """(skip, warm start) -> rows, and how full the batches were."""
    torch.set_num_threads(1)
    found = {}
    for skip, warm in ((False, False), (True, False), (True, True), (False, True)):
        fill = Fill()
        cells = tuple(ab.plan(make_suite(skip=skip, warm=warm)))
        unit = Unit("net", tuple(range(IMAGES)), cells)
        rows, failures = run_unit(unit, Smooth(), make_data(), Conditions(seed=0, batch=8), fill=fill)
        assert failures == []
        assert len(rows) == len(cells) * IMAGES
        found[skip, warm] = rows, fill
    return found


def test_skipping_leaves_the_worst_case_of_every_image(runs):
    off, on = runs[False, False][0], runs[True, False][0]
    assert worst(on) == worst(off)
    skipped = [row for row in on if "skipped" in row["flags"]]
    assert len(skipped) >= 10, "images are lost at the large radii"
    assert {row["attack"] for row in skipped} == {"apgd", "pgd", "square"}
    assert {dice_of(row) for row in skipped} == {0.0}


def test_skipped_rows_cost_nothing_and_the_others_are_those_without_skipping(runs):
    off = {(row["attack"], row["loss"], *key_of(row)): row for row in runs[False, False][0]}
    for row in runs[True, False][0]:
        if "skipped" in row["flags"]:
            assert (row["forwards"], row["backwards"]) == (0, 0)
        else:
            assert row | {"cell": ""} == off[row["attack"], row["loss"], *key_of(row)] | {"cell": ""}


@pytest.mark.parametrize("skip", [False, True])
def test_a_warm_start_can_only_lower_the_worst_case(runs, skip):
    cold, warm = worst(runs[skip, False][0]), worst(runs[skip, True][0])
    assert all(warm[key] <= cold[key] for key in cold)
    radii = sorted({eps for eps, _ in warm})
    for one, larger in pairwise(radii):
        assert all(warm[larger, image] <= warm[one, image] for eps, image in warm if eps == one)
    kept = [row for row in runs[skip, True][0] if "kept_smaller" in row["flags"]]
    assert len(kept) >= 8, "one short step from a random start does less than the smaller radius did"
    assert {row["attack"] for row in kept} <= {"apgd", "pgd"}
    own = {(row["attack"], row["loss"], *key_of(row)): dice_of(row) for row in runs[skip, False][0]}
    assert all(dice_of(row) < own[row["attack"], row["loss"], *key_of(row)] for row in kept)
    assert all(row["linf"] <= row["eps"] + 1e-6 for row in kept)


def test_passes_never_exceed_those_of_the_members_one_by_one(runs):
    whole = passes(runs[False, False][0])
    for warm in (False, True):
        for name in ("forwards", "backwards"):
            assert sum(row[name] for row in runs[True, warm][0]) < sum(row[name] for row in runs[False, False][0])
    assert passes(runs[False, True][0]) == whole
    assert passes(runs[True, False][0]) < 0.8 * whole


def test_batches_stay_full_unless_images_are_skipped(runs):
    """The cells of one battery on one image follow each other, so a finished image leaves its rows empty."""
    for (skip, _), (_, fill) in runs.items():
        assert skip or fill.share >= 0.95
        assert fill.used <= fill.rows <= runs[False, False][1].rows


@pytest.mark.slow
def test_rows_are_equal_with_one_and_two_workers_and_after_an_interruption(tmp_path):
    data = {"name": "phantom", "size": 16, "subjects": 9, "slices": 2}
    net = {"name": "net", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}}
    battery = {"name": "standard-1", "profile": "fast", "eps": ["16/255", "64/255"]}
    suite = Suite(name="s", data=data, models=[net], training={"epochs": 1, "floor": 0}, battery=battery)
    one = ab.run(suite, tmp_path / "one", shard=8)
    two = ab.run(suite, tmp_path / "two", workers=2, shard=3)
    assert one.failures == two.failures == []
    assert one.missing == two.missing == 0
    rows = one.rows.sort("cell", "image")
    assert two.rows.sort("cell", "image").equals(rows)
    parts = sorted((tmp_path / "two" / "parts").glob("*.parquet"))
    for part in parts[::2]:
        part.unlink()
    again = ab.run(suite, tmp_path / "two", shard=8)
    assert again.rows.sort("cell", "image").equals(rows)
