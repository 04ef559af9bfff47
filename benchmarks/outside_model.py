"""How much of an attack's wall time is spent outside the model, on the models of the wang2024 grid, at 224 px, batch 4.

    python benchmarks/outside_model.py [--models unet-vgg16] [--size 224] [--steps 20]

FGSM and PGD-20 with BCE on untrained networks. Inside the model are its forwards, and the backwards through what the
forward recorded. Three figures: outside it in the attack call alone; in the attack as the harness calls it, with
copies, a guard of the model and a check of the result; and in that with a forward to score it, metrics and rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from advseg_bench.attacks.ascent import PGD
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
    """A model that sums up the time of its forwards and of the backwards through them.

    A backward lasts from when the gradient of the logits is known to when that of the images is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.inside, self.entered = model, 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        leaf = x.view_as(x)  # so that the hook below is on a tensor of this very forward
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
    """What part of the wall time passes outside the model.

    Attributes:
        model: Its name in the suite.
        attack: "fgsm" or "pgd".
        call: In the attack call alone, median over the repeats.
        perturb: In the attack as the harness calls it.
        whole: In that with a forward to score the result, metrics and rows.
        seconds: Of the attack call.
    """

    model: str
    attack: str
    call: float
    perturb: float
    whole: float
    seconds: float


def measure(names: Sequence[str] = (), *, size: int = 224, steps: int = 20, repeats: int = 3) -> Iterator[Share]:
    """Measure the models of wang2024, or some of them, on the CPU, with a batch of 4."""
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
    """The shares of one attack on one model, after a warm-up."""
    attack = "fgsm" if isinstance(tried, FGSM) else "pgd"
    budget = Budget("linf", EPS)
    clean = Cell("clean", name, cells.CLEAN, 0.0, 0, "", None)
    cell = replace(clean, id="attacked", arm=cells.Arm(attack, "bce", "{}", "linf"), eps=EPS)
    scene = Scene(model, ModelGuard(model), batch, dataset="made up", n=len(batch.x), seed=0)

    def call() -> None:
        tried(model, batch, budget=budget, generators=image_generators(0, "", batch.images))

    def perturb() -> None:
        scene.thorough = False  # as in a run, where values are compared at the end of a batch
        scene.perturb(cell, tried, scene.look([tried])[1])

    def whole() -> None:
        scene.attack_and_score([clean, cell], {cell.id: tried})

    FGSM(loss=tried.loss)(model, batch, budget=budget, generators=())
    timed = {what.__name__: [_find_share(model, what) for _ in range(repeats)] for what in (call, perturb, whole)}
    shares = {what: median(share for share, _ in found) for what, found in timed.items()}
    return Share(name, attack, **shares, seconds=median(seconds for _, seconds in timed["call"]))


def _find_share(model: _Clocked, what: Callable[[], None]) -> tuple[float, float]:
    """The share of a call's time that is outside the model, and its seconds."""
    model.inside = 0.0
    started = time.perf_counter()
    what()
    seconds = time.perf_counter() - started
    return 1 - model.inside / seconds, seconds


def _make_batch(size: int, n: int) -> Batch:
    """Images of noise, with discs for organs."""
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
    parser.add_argument("--steps", type=int, default=20, help="Of PGD.")
    given = parser.parse_args()
    for found in measure(given.models, size=given.size, steps=given.steps):
        print(
            f"{found.model:30s} {found.attack:5s} {found.seconds:7.2f} s, outside the model: attack {found.call:.2%}, "
            f"as the harness calls it {found.perturb:.2%}, with scoring {found.whole:.2%}"
        )
