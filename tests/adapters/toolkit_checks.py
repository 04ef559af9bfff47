"""What the tests of toolkits share: a small trained network, and one run of a class with everything checked."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from strategies import make_batch
from torch import Tensor, nn

from advseg_adapters.measure_support import Scene, make_scenes
from advseg_bench.batches import select_images
from advseg_bench.geometry import distance
from advseg_bench.instruments.counter import Counter
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.losses import dice
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Budget, Norm, TaskKind

KINDS: tuple[TaskKind, ...] = ("binary", "multilabel", "multiclass")
PATIENT = ("PointwiseAttack",)
EPS: dict[Norm, float] = {"linf": 8 / 255, "l2": 0.5}


class CountedModel(nn.Module):
    """A model that evaluates one image after the other and counts images, in another way than `Counter`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = torch.cat([self.model(row) for row in torch.split(x, 1)])
        return _Counted.apply(logits, self) if logits.requires_grad else logits


class _Counted(torch.autograd.Function):
    """The identity; tells its model how many images are differentiated."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, model: CountedModel) -> Tensor:
        ctx.model = model
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.model.backwards += len(gradients[0])
        return gradients[0], None


@lru_cache(maxsize=1)
def scenes() -> dict[TaskKind, Scene]:
    """The network of the suite `smoke`, on two images of 32 x 32, evaluated row by row."""
    return {
        kind: Scene(CountedModel(scene.model), select_images(scene.batch, [0, 1]))
        for kind, scene in make_scenes("smoke", "basicunet-xs").items()
    }


@lru_cache(maxsize=1)
def tiny() -> Scene:
    """A network of one layer on two images of 8 x 8, for classes that look a thousand times."""
    batch, _ = make_batch("binary", n=2, space=(8, 8))
    return Scene(CountedModel(LinearSegmenter(torch.tensor([4.0, -4.0]), 0.1)), batch)


def scene_for(name: str) -> Scene:
    """Each class meets one kind of task, another class another."""
    if name in PATIENT:
        return tiny()
    return scenes()[KINDS[sum(map(ord, name)) % 3]]


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(n)]


def run(module: ModuleType, name: str, norm: Norm, settings: dict[str, Any], scene: Scene, **changes: Any):
    """Run a class once; returns the attack and its result."""
    attack = replace(module.load(name, settings, dice, scene.batch.task), **changes)
    budget = Budget(norm, EPS[norm])
    return attack, attack(scene.model, scene.batch, budget=budget, generators=generators(len(scene.batch.x)))


def run_counted(module: ModuleType, name: str, norm: Norm, settings: dict[str, Any], scene: Scene, **changes: Any):
    """Run a class once; returns the attack, its result, and each image's forwards and backwards if they are known.

    What is counted equals what the scene's own model counts in another way.
    """
    scene.model.forwards = scene.model.backwards = 0
    with Counter(scene.model).count(len(scene.batch.x)) as tally:
        attack, x_adv = run(module, name, norm, settings, scene, **changes)
    passes = tally.per_image()
    found = (scene.model.forwards, scene.model.backwards)
    assert (tally.all_forwards, tally.all_backwards) == found
    assert passes is None or tuple(map(sum, zip(*passes, strict=True))) == found
    return attack, x_adv, passes


def check_class(module: ModuleType, toolkit: str, name: str, settings: dict[str, Any], row: dict[str, Any]) -> None:
    """One class on a trained network: nothing foreign is touched, the budget holds, and the table tells the truth."""
    scene = scene_for(name)
    batch = scene.batch
    before = replace(batch, x=batch.x.clone(), y=batch.y.clone(), valid=batch.valid.clone())
    scene.model.model.train()  # whatever mode the owner chose stays; the network has no layer that minds
    guard = ModelGuard(scene.model)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    norm = module.ROUTES[name].norms[-1]
    attack, x_adv, passes = run_counted(module, name, norm, settings, scene)
    assert guard.find_changes() == []
    scene.model.model.eval()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert all(torch.equal(getattr(batch, part), getattr(before, part)) for part in ("x", "y", "valid"))
    assert x_adv.shape == batch.x.shape
    assert x_adv.dtype == batch.x.dtype
    assert x_adv.isfinite().all()
    assert 0 <= x_adv.amin() <= x_adv.amax() <= 1
    assert (distance(x_adv, batch.x, norm) <= EPS[norm] + 1e-6).all()
    assert attack.name == f"{toolkit}.{name}" == row["name"]
    assert attack.batched == (row["batching"] == "batch-preserving")
    _, again, alone = run_counted(module, name, norm, settings, scene, batched=False)
    assert torch.equal(again, x_adv), "one call of two images is not two calls of one"
    assert alone is not None, "a row of nobody"
    assert passes in (alone, None)
