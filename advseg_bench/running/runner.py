"""Work unit -> rows: the images of a unit, batch by batch, in front of its model (`scene.Scene`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from advseg_bench import metrics
from advseg_bench.batches import move_batch
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import one_line
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.losses import one_hot
from advseg_bench.protocols import Attack
from advseg_bench.registry.loading import load_attack
from advseg_bench.running.scene import Scene
from advseg_bench.running.work import Failure, Row, Unit
from advseg_bench.suite.cells import CLEAN, Arm, Cell


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all units of a run share.

    Attributes:
        seed: Of the suite.
        batch: Images a forward pass; a short batch is padded by repeating images, and the padding is cut off, so
            that an image's result has the same bits in every unit.
        device: Where models and images are put.
    """

    seed: int
    batch: int
    device: str = "cpu"


def run_unit(
    unit: Unit,
    model: nn.Module,
    dataset: Dataset,
    conditions: Conditions,
    attacked: nn.Module | None = None,
    attacks: Mapping[str, Attack] | None = None,
) -> tuple[list[Row], list[Failure]]:
    """Attack and score some images.

    Args:
        unit: Images and cells.
        model: Logits from images; it is frozen and put into eval mode here.
        dataset: Where the images are.
        conditions: Compute batch, seed, device.
        attacked: What attacks are given instead of the model, such as a prepared copy; scores are the model's own.
        attacks: Id of each cell but the clean one -> its attack; loaded by the names of the cells if None.

    Returns:
        Rows of `records.ROW_SCHEMA`, and what failed. Cost per batch: 1 forward, a backward per loss of one-gradient
        attacks, each other attack's own cost, and a forward per cell; a forward more if the copy that attacks are given
        does not have every bit of the model's logits.
    """
    model.to(conditions.device).eval().requires_grad_(False)
    failures: list[Failure] = []
    if attacks is None:
        attacks, failures = _load_attacks(unit, dataset)
    guard = ModelGuard(model if attacked is None else attacked)
    rows: list[Row] = []
    for start in range(0, len(unit.indices), conditions.batch):
        indices = unit.indices[start : start + conditions.batch]
        padded = [indices[i % len(indices)] for i in range(conditions.batch)]
        batch = move_batch(dataset.batch(padded), conditions.device)
        scene = Scene(model, guard, batch, dataset=dataset.name, n=len(indices), seed=conditions.seed)
        new, failed = scene.attack_and_score([c for c in unit.cells if c.arm == CLEAN or c.id in attacks], attacks)
        rows += new
        failures += failed
    return rows, failures


def attack_one(
    cells: Sequence[Cell],
    index: int,
    model: nn.Module,
    dataset: Dataset,
    conditions: Conditions,
    attacked: nn.Module | None = None,
) -> dict[str, np.ndarray]:
    """Return the images behind rows of one image, for the report: clean, attacked, truth and predictions.

    Args:
        cells: E cells of one attack with one loss and settings, such as the budgets of a sweep.
        index: The image's position in the data set.
        model: Logits from images; it is frozen and put into eval mode here.
        dataset: Where the image is.
        conditions: Compute batch, seed, device.
        attacked: As `run_unit` takes it.

    Returns:
        Arrays `x` float32 (C, *S), `x_adv` float32 (E, C, *S), `truth` and `clean` bool (K, *S), `attacked` bool (E, K,
        *S); the bits that were scored.

    Cost:
        1 forward and, for a one-gradient attack, 1 backward for all cells; each other attack's own cost, and a forward,
        per cell.
    """
    model.to(conditions.device).eval().requires_grad_(False)
    batch = move_batch(dataset.batch([index] * conditions.batch), conditions.device)
    guard = ModelGuard(model if attacked is None else attacked)
    scene = Scene(model, guard, batch, dataset=dataset.name, n=1, seed=conditions.seed)
    arm = cells[0].arm
    attack = load_attack(arm.attack, arm.options, arm.loss, dataset.task)
    logits, shared = scene.look([attack])
    moved = [scene.perturb(cell, attack, shared)[0].x_adv for cell in cells]

    def mask(labels: Tensor) -> Tensor:
        return one_hot(labels, batch.task, torch.empty(0, dtype=torch.bool))[0]

    arrays = {
        "x": batch.x[0],
        "x_adv": torch.stack([x_adv[0] for x_adv in moved]),
        "truth": mask(batch.y),
        "clean": mask(metrics.predict(logits, batch.task)),
        "attacked": torch.stack([mask(metrics.predict(scene.forward(x_adv), batch.task)) for x_adv in moved]),
    }
    return {name: array.cpu().numpy() for name, array in arrays.items()}


def _load_attacks(unit: Unit, dataset: Dataset) -> tuple[dict[str, Attack], list[Failure]]:
    """Build every cell's attack; cells of equal settings share one object."""
    built: dict[Arm, Attack] = {}
    attacks: dict[str, Attack] = {}
    failures = []
    for cell in unit.cells:
        arm = cell.arm
        if arm == CLEAN:
            continue
        try:
            if arm not in built:
                built[arm] = load_attack(arm.attack, arm.options, arm.loss, dataset.task)
            attacks[cell.id] = built[arm]
        except Exception as error:
            failures.append(Failure(unit.model, "attack", cell.id, one_line(error)))
    return attacks, failures
