"""One FGSM sweep, shared by the harness and cell by cell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from advseg_bench import runner
from advseg_bench.cells import Cell
from advseg_bench.data import load_dataset
from advseg_bench.models.build import build_model
from advseg_bench.specs import Mni152Data, ModelSpec
from advseg_bench.work import Unit

LOSSES = ("bce", "dice", "dice_focal")
EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
CLEAN = Cell("clean", "m", "none", "", "{}", "linf", 0.0, 0, "", None)
SWEEP = [replace(CLEAN, id=f"{loss}{eps}", attack="fgsm", loss=loss, eps=eps) for loss in LOSSES for eps in EPS]


@pytest.fixture(scope="module")
def scene():
    torch.set_num_threads(1)
    data = load_dataset(Mni152Data(name="mni152"))
    spec = ModelSpec(name="m", architecture="smp.Unet", encoder="resnet18")
    return build_model(spec, channels=1, task=data.task, size=64, seed=0), data


@pytest.mark.benchmark(group="fgsm sweep, 3 losses x 4 eps, 8 images at 64 px")
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "cell-by-cell"])
def test_sweep(benchmark, scene, shared):
    model, data = scene
    images = data.split("test")[:8]
    setting = runner.Setting(seed=0, batch=8)
    units = [Unit("m", images, (CLEAN, *SWEEP))] if shared else [Unit("m", images, (cell,)) for cell in (CLEAN, *SWEEP)]

    def sweep() -> int:
        return sum(len(runner.run_unit(unit, model, data, setting)[0]) for unit in units)

    assert benchmark.pedantic(sweep, rounds=5, warmup_rounds=1) == 8 * 13
    benchmark.extra_info["device"] = "cpu"
    benchmark.extra_info["images_per_s"] = 8 * 12 / benchmark.stats.stats.median
