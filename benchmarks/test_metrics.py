"""Pixel counts and Dice of a batch by this package, MONAI and torchmetrics, on the same masks."""

from __future__ import annotations

import pytest
import torch
from monai.metrics import DiceMetric
from torchmetrics.functional.segmentation import dice_score

from advseg_bench import metrics
from advseg_bench.batches import Batch
from advseg_bench.types import Bounds, Task

TASK = Task("multilabel", ("stomach", "large bowel", "small bowel"))
N, SIDE = 8, 224


@pytest.fixture(scope="module")
def scene():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    y = torch.rand((N, 3, SIDE, SIDE), generator=generator) < 0.2
    ids = tuple(map(str, range(N)))
    valid = torch.ones((N, SIDE, SIDE), dtype=torch.bool)
    x = torch.rand((N, 1, SIDE, SIDE), generator=generator)
    batch = Batch(x, y, valid, TASK, Bounds(), ids, ids, ids, ((1.0, 1.0),) * N)
    return batch, torch.where(torch.rand(y.shape, generator=generator) < 0.1, ~y, y)


def count(prediction, batch):
    return metrics.mean_dice(metrics.count(prediction, batch.y, batch), TASK)


def monai(prediction, batch):
    return DiceMetric(reduction="none")(prediction, batch.y).nanmean(1)


def torchmetrics(prediction, batch):
    masks = (prediction.to(torch.uint8), batch.y.to(torch.uint8))
    return dice_score(*masks, num_classes=3, average=None, input_format="one-hot").mean(1)


@pytest.mark.benchmark(group=f"Dice of {N} images of three classes at {SIDE} px")
@pytest.mark.parametrize("dice", [count, monai, torchmetrics])
def test_dice(benchmark, scene, dice):
    batch, prediction = scene
    found = benchmark(dice, prediction, batch)
    assert torch.allclose(found.double(), count(prediction, batch), atol=1e-6)
    benchmark.extra_info["device"] = "cpu"
    benchmark.extra_info["images_per_s"] = N / benchmark.stats.stats.median
