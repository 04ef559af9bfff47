"""The workloads of the suites and of `targets.py`: a model, images, and several versions of an FGSM sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from advseg_bench import metrics
from advseg_bench.batches import Batch, move_batch
from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Dataset
from advseg_bench.models.build import build_model
from advseg_bench.models.prepare import prepare
from advseg_bench.registry.loading import load_attack
from advseg_bench.running import runner
from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import CLEAN as CLEAN_ARM
from advseg_bench.suite.cells import Arm, Cell
from advseg_bench.suite.specs import Mni152Data, ModelSpec
from advseg_bench.types import Budget

RESNET18 = ModelSpec(name="unet-resnet18", architecture="smp.Unet", encoder="resnet18")
CLEAN = Cell("clean", "m", CLEAN_ARM, 0.0, 0, "", None)
TOOLKITS = {
    "torchattacks": "torchattacks.FGSM",
    "art": "art.FastGradientMethod",
    "foolbox": "foolbox.LinfFastGradientAttack",
}


def make_scene(spec: ModelSpec, size: int, batch: int, device: str) -> tuple[nn.Module, Dataset, tuple[int, ...]]:
    """Return a frozen model with random weights, and images of a data set that needs no download."""
    data = load_dataset(Mni152Data(name="mni152", size=size))
    model = build_model(spec, channels=1, task=data.task, size=size, seed=0)
    return model.to(device).eval().requires_grad_(False), data, data.split("test")[:batch]


def sweep_works(
    model: nn.Module,
    data: Dataset,
    images: tuple[int, ...],
    losses: Sequence[str],
    eps: Sequence[float],
    device: str,
    attacked: nn.Module | None = None,
) -> dict[str, Callable[[], object]]:
    """Return an FGSM sweep of one batch with scoring: by the harness, as a loop over each toolkit, and its limit.

    The "limit" is the least that any sweep needs: one forward, a backward per loss, and a forward per result.
    """
    arms = [Arm("fgsm", loss, "{}", "linf") for loss in losses]
    cells = [replace(CLEAN, id=f"{arm.loss}{e}", arm=arm, eps=e) for arm in arms for e in eps]
    batch = move_batch(data.batch(list(images)), device)
    setting = runner.Conditions(seed=0, batch=len(images), device=device)
    attacked = attacked or prepare(model, batch.x, ["lean"])
    works: dict[str, Callable[[], object]] = {
        "limit": partial(_limit, model, batch, len(losses), len(cells)),
        "ours": partial(runner.run_unit, Unit("m", images, (CLEAN, *cells)), model, data, setting, attacked),
    }
    for toolkit, name in TOOLKITS.items():
        named = [replace(cell, arm=replace(cell.arm, attack=name)) for cell in cells]
        works[toolkit] = partial(_loop, model, batch, named)
    return works


def _loop(model: nn.Module, batch: Batch, cells: Sequence[Cell]) -> None:
    """Attack and score cell by cell, without the checks of the harness."""
    generators = [torch.Generator() for _ in batch.images]
    with torch.inference_mode():
        target = metrics.Target(metrics.predict(model(batch.x), batch.task), batch)
    for cell in cells:
        attack = load_attack(cell.arm.attack, cell.arm.options, cell.arm.loss, batch.task)
        x_adv = attack(model, batch, budget=Budget(cell.arm.norm, cell.eps), generators=generators)
        with torch.inference_mode():
            target.count(metrics.predict(model(x_adv), batch.task))


def _limit(model: nn.Module, batch: Batch, backwards: int, forwards: int) -> None:
    leaf = batch.x.detach().requires_grad_()
    logits = model(leaf)
    for i in range(backwards):
        torch.autograd.grad(logits, leaf, torch.ones_like(logits), retain_graph=i + 1 < backwards)
    with torch.inference_mode():
        for _ in range(forwards):
            model(batch.x)
