"""Measure the share of wall time that attacks spend outside the model, for the models of wang2024, 224 px, batch 4.

    python benchmarks/outside_model.py [--models unet-vgg16] [--size 224] [--steps 20]

The attacks are FGSM and PGD-20 with BCE on untrained networks. Time inside the model is that of its forward and
backward passes. The share outside it is reported for the attack alone; for the attack as the harness calls it, with
copies, a guard of the model and a check of the result; and for the latter with a forward pass for scores, metrics and
rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from advseg_bench.attacks import PGD
from advseg_bench.attacks.base import image_generators
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.batches import Batch
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.models.build import build_model
from advseg_bench.registry.loading import load_loss
from advseg_bench.running.scene import Scene
from advseg_bench.suite import cells
from advseg_bench.suite.cells import Cell
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Bounds, Budget, Task

TASK = Task("multilabel", ("stomach", "large bowel", "small bowel"))
EPS, BATCH = 4 / 255, 4


class _Clocked(nn.Module):
    """A model that accumulates the time of its forward and backward passes.

    A backward pass lasts from the gradient of the logits to the gradient of the images.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.inside, self.entered = model, 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        leaf = x.view_as(x)  # a new tensor per forward pass, for the hook below
        if leaf.requires_grad:
            leaf.register_hook(self._leave)
        self._enter()
        logits: Tensor = self.model(leaf)
        self._leave()
        if logits.requires_grad:
            logits.register_hook(self._enter)
        return logits

    def _enter(self, gradient: Tensor | None = None) -> None:
        self.entered = time.perf_counter()

    def _leave(self, gradient: Tensor | None = None) -> None:
        self.inside += time.perf_counter() - self.entered


@dataclass(frozen=True, slots=True)
class Share:
    """Shares of the wall time outside the model, as medians over the repeats.

    Attributes:
        model: Name in the suite.
        attack: "fgsm" or "pgd".
        call: For the attack alone.
        perturb: For the attack as the harness calls it.
        whole: For the attack as the harness calls it, with scoring, metrics and rows.
        seconds: Duration of the attack alone.
    """

    model: str
    attack: str
    call: float
    perturb: float
    whole: float
    seconds: float


def measure(names: Sequence[str] = (), *, size: int = 224, steps: int = 20, repeats: int = 3) -> Iterator[Share]:
    """Measure the models of wang2024, or the named ones, on the CPU with a batch of 4."""
    suite = Suite.load("wang2024")
    for spec in suite.models:
        if names and spec.name not in names:
            continue
        model = build_model(spec, channels=3, task=TASK, size=size, seed=0)
        clocked = _Clocked(model).eval().requires_grad_(False)
        loss = load_loss("bce", TASK)
        yield _measure(clocked, spec.name, FGSM(loss=loss), _make_batch(size, BATCH), repeats)
        yield _measure(clocked, spec.name, PGD(loss=loss, steps=steps), _make_batch(size, BATCH), 1)


def _measure(model: _Clocked, name: str, tried: FGSM | PGD, batch: Batch, repeats: int) -> Share:
    """Return the shares of one attack on one model, after a warm-up."""
    attack = "fgsm" if isinstance(tried, FGSM) else "pgd"
    budget = Budget("linf", EPS)
    clean = Cell("clean", name, cells.CLEAN, 0.0, 0, "", None)
    cell = replace(clean, id="attacked", arm=cells.Arm(attack, "bce", "{}", "linf"), eps=EPS)
    scene = Scene(model, ModelGuard(model), batch, dataset="made up", n=len(batch.x), seed=0)

    def call() -> None:
        tried(model, batch, budget=budget, generators=image_generators(0, "", batch.images))

    def perturb() -> None:
        scene.thorough = False  # as in a run, which compares values at the end of a batch
        scene.perturb(cell, tried, scene.look([tried])[1])

    def whole() -> None:
        scene.attack_and_score([clean, cell], {cell.id: tried})

    FGSM(loss=tried.loss)(model, batch, budget=budget, generators=())
    timed = {what.__name__: [_find_share(model, what) for _ in range(repeats)] for what in (call, perturb, whole)}
    shares = {what: median(share for share, _ in found) for what, found in timed.items()}
    return Share(name, attack, **shares, seconds=median(seconds for _, seconds in timed["call"]))


def _find_share(model: _Clocked, what: Callable[[], None]) -> tuple[float, float]:
    """Return the share of a call's time outside the model, and its seconds."""
    model.inside = 0.0
    started = time.perf_counter()
    what()
    seconds = time.perf_counter() - started
    return 1 - model.inside / seconds, seconds


def _make_batch(size: int, n: int) -> Batch:
    """Return noise images with discs as labels."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, size)
    masks = torch.stack([(axis[:, None] ** 2 + (axis[None] - shift) ** 2) < 0.1 for shift in (-0.4, 0.0, 0.4)])
    y = masks.expand(n, -1, -1, -1).contiguous()
    ids = tuple(str(i) for i in range(n))
    return Batch(
        x=torch.rand((n, 3, size, size), generator=generator),
        y=y,
        valid=torch.ones((n, size, size), dtype=torch.bool),
        task=TASK,
        bounds=Bounds(),
        images=ids,
        subjects=ids,
        blocks=ids,
        spacing=((1.0, 1.0),) * n,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the time that attacks spend outside the model.")
    parser.add_argument("--models", nargs="*", default=())
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20, help="Number of PGD steps.")
    given = parser.parse_args()
    for found in measure(given.models, size=given.size, steps=given.steps):
        print(
            f"{found.model:30s} {found.attack:5s} {found.seconds:7.2f} s, outside the model: attack {found.call:.2%}, "
            f"as the harness calls it {found.perturb:.2%}, with scoring {found.whole:.2%}"
        )
