"""Pictures of single cases: what they show of the arrays that a run has kept, and files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from runs import Synthetic, edit_json, write_run

from advseg_bench.errors import RecordError
from advseg_bench.report import write_report
from advseg_bench.report.painting import ERROR_COLOURS
from advseg_bench.report.panels import SWEEP_TITLES, TITLES, make_galleries
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Extreme, Step
from advseg_bench.suite.cells import Arm


def make_case() -> tuple[dict, dict]:
    """What a run keeps of a case at one budget. Of csf two pixels are true and one stays found."""
    x = np.full((1, 2, 2), 0.5, np.float32)
    sign = np.array([[[1, -1], [0, 1]]], np.float32)
    empty = np.zeros((3, 2, 2), bool)
    truth, clean, attacked = empty.copy(), empty.copy(), empty.copy()
    truth[2] = clean[2] = [[True, True], [False, False]]
    attacked[2] = [[True, False], [True, False]]
    arm = Arm("fgsm", "bce", "{}", "linf")
    case = Extreme("worst", "unet-vgg13", "s00-z000", "c", arm, 0.25, 1.0, 0.5, (Step("c", 0.25, 0.5),)).as_record()
    arrays = {"x": x, "x_adv": (x + sign / 4)[None], "truth": truth, "clean": clean, "attacked": attacked[None]}
    return case, arrays


def save_case(out: Path, case: dict, arrays: dict) -> None:
    """Keep a case as a run of an older version did, and let the run plan its cells."""
    names = ("model", "attack", "loss", "settings", "norm")
    shared = {name: case[name] for name in names} | {"draw": 0, "label": "", "skip": None}
    cells = [shared | {"id": step["cell"], "eps": step["eps"]} for step in case["sweep"]]
    planned = {cell["id"]: cell for cell in cells}

    def plan_them(info: dict) -> dict:
        others = [cell for cell in info["cells"] if cell["id"] not in planned]
        return info | {"cells": [*others, *planned.values()]}

    edit_json(out / "run.json", plan_them)
    np.savez(out / "panels" / "p.npz", **arrays, meta=np.array(json.dumps(case)))


def check_errors(tile: np.ndarray) -> None:
    """A true positive, a false positive and a false negative in their colours, and grey elsewhere."""
    for pixel, colour in zip((tile[0, 0], tile[1, 0], tile[0, 1]), ERROR_COLOURS.values(), strict=True):
        target = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert abs(pixel - (0.15 * 127.5 + 0.85 * target)).max() <= 1
    assert (tile[1, 1] == 128).all()


def test_pictures_show_what_the_arrays_hold(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    case, arrays = make_case()
    save_case(out, case, arrays)
    ((panel,),) = (gallery.panels for gallery in make_galleries(Run(out)))
    assert "errors of csf" in panel.caption
    (strip,) = panel.strips
    tiles = dict(zip(TITLES, (tile.astype(int) for tile in strip.tiles), strict=True))
    assert (tiles["Image"] == 128).all()
    red, blue, white = tiles["Perturbation"][0, 0], tiles["Perturbation"][0, 1], tiles["Perturbation"][1, 0]
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    assert white.min() > 240
    assert (tiles["Ground truth"] == tiles["Clean prediction"]).all()
    check_errors(tiles["Errors"])


def test_pictures_over_eps_show_each_budget(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    case, arrays = make_case()
    sweep = [{"cell": "b", "eps": 0.125, "dice": 0.75}, {"cell": "c", "eps": 0.25, "dice": 0.5}]
    case |= {"sweep": sweep, "settings": '{"label": "predicted"}'}
    half = (arrays["x"] + arrays["x_adv"]) / 2
    arrays |= {"x_adv": np.concatenate([half, arrays["x_adv"]])}
    arrays |= {"attacked": np.concatenate([~arrays["truth"][None], arrays["attacked"]])}
    save_case(out, case, arrays)
    alone, swept = make_galleries(Run(out))
    assert len(alone.panels[0].strips) == 1
    check_errors(alone.panels[0].strips[0].tiles[5].astype(int))
    (panel,) = swept.panels
    assert (
        "fgsm bce label=predicted; perturbation amplified 2 times, full colour is a change of 0.25; errors of csf"
        in (panel.caption)
    )
    assert [strip.label for strip in panel.strips] == [
        "clean: Dice 1.000",
        "eps 0.125: Dice 0.750",
        "eps 0.25: Dice 0.500",
    ]
    clean, small, large = (dict(zip(SWEEP_TITLES, (t.astype(int) for t in s.tiles), strict=True)) for s in panel.strips)
    assert [tiles["Image"][0, 0, 0] for tiles in (clean, small, large)] == [128, 159, 191]
    blues = [tiles["Perturbation"][0, 0, 2] for tiles in (clean, small, large)]
    assert blues[0] > 240 > blues[1] > blues[2], "one amplification for all: a larger change has more colour"
    assert (clean["Prediction"] == small["Prediction"]).sum() < small["Prediction"].size, "over the attacked image"
    true, _, false_negative = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in ERROR_COLOURS.values())
    for tiles, colour in ((clean, true), (small, false_negative)):
        assert (abs(tiles["Errors"][0] - 0.85 * colour) <= 0.15 * 255).all()
    assert (abs(large["Errors"][0] - 0.85 * np.stack([true, false_negative])) <= 0.15 * 255).all()
    assert [sheet.name for sheet in swept.sheets] == ["panels_unet-vgg13"]


def test_a_case_whose_arrays_do_not_fit_its_sweep_is_damaged(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)))
    case, arrays = make_case()
    save_case(out, case, arrays)
    make_galleries(Run(out))
    case["sweep"] *= 2
    save_case(out, case, arrays)
    with pytest.raises(RecordError, match=r"p.npz: is damaged \(sweep"):
        make_galleries(Run(out))


def test_a_damaged_picture_is_named(tmp_path):
    out = write_run(tmp_path / "r", Synthetic(models=("unet-vgg13",)), panels=True)
    path = min((out / "panels").iterdir())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RecordError, match=rf"{path.name}: is damaged.*Run the same"):
        write_report(Run(out))
