"""Runs a unit of work: attacks and scores its images batch by batch (`scene.Scene`), and returns rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from advseg_bench import metrics
from advseg_bench.attacks.base import image_generators
from advseg_bench.batches import Batch, move_batch
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import TaintedError, one_line
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.instruments.process_state import make_flags, watched
from advseg_bench.losses import one_hot
from advseg_bench.protocols import Attack, NeedsModel
from advseg_bench.running.interrupts import is_ctrl_c
from advseg_bench.running.packing import Fill
from advseg_bench.running.scene import Scene
from advseg_bench.running.supply import Supply
from advseg_bench.running.watch import Announce, keep_silent
from advseg_bench.running.work import Failure, Row, Unit
from advseg_bench.suite.cells import CLEAN, Arm, Cell
from advseg_bench.types import Task


@dataclass(frozen=True, slots=True)
class Conditions:
    """Settings that all units of a run share.

    Attributes:
        seed: Seed of the suite.
        batch: Images per forward pass; a short batch is padded by repeating images, and the padding is discarded, so
            that an image's result has the same bits in every unit.
        device: Device of models and images.
        stochastic: Whether the model is random in eval mode: each repeat then has a clean forward and gradients of its
            own, and global random numbers that are seeded with the repeat and the images.
        announce: Called with the cells and the batch before each attack, or group of attacks that run together.
    """

    seed: int
    batch: int
    device: str = "cpu"
    stochastic: bool = False
    announce: Announce = keep_silent


def run_unit(
    unit: Unit,
    model: nn.Module,
    dataset: Dataset,
    conditions: Conditions,
    attacked: nn.Module | None = None,
    attacks: Mapping[str, Attack] | None = None,
    fill: Fill | None = None,
    supply: Supply | None = None,
) -> tuple[list[Row], list[Failure]]:
    """Attack and score the images of a unit.

    Args:
        unit: Images and cells.
        model: Maps images (N, C, *S) to logits (N, K, *S); it is frozen and set to eval mode here.
        dataset: The data set of the images.
        conditions: Compute batch, seed, device.
        attacked: The model that is attacked, such as a prepared copy; by default `model`, which computes all scores.
        attacks: Id of each attacked cell -> its attack; by default loaded by name.
        fill: Counts the rows of forward passes of stepped attacks.
        supply: Builds the attacks, with what they need beside the model.

    Returns:
        Rows of `records.ROW_SCHEMA`, and failures.

    Cost:
        Per batch 1 forward, 1 backward per loss of one-gradient attacks, the cost of every other attack, and 1 forward
        per cell; 1 more forward if the logits of the attacked copy are not bit-equal to those of the model.
    """
    model.to(conditions.device).eval().requires_grad_(False)
    failures: list[Failure] = []
    built: dict[str, set[str]] = {}
    if attacks is None:
        attacks, failures, built = _load_attacks(unit, dataset, supply or Supply())
    guard = ModelGuard(model if attacked is None else attacked)
    sources = {cell: attack.source for cell, attack in attacks.items() if isinstance(attack, NeedsModel)}
    others = {id(source): ModelGuard(source) for source in sources.values() if isinstance(source, nn.Module)}
    rows: list[Row] = []
    fill = Fill() if fill is None else fill
    for start in range(0, len(unit.indices), conditions.batch):
        indices = unit.indices[start : start + conditions.batch]
        padded = [indices[i % len(indices)] for i in range(conditions.batch)]
        batch = move_batch(dataset.batch(padded), conditions.device)
        for repeat, cells in _split_repeats(unit.all_cells, conditions.stochastic):
            scene = Scene(
                model,
                guard,
                batch,
                dataset=dataset.name,
                n=len(indices),
                seed=conditions.seed,
                pack=not conditions.stochastic,
                fill=fill,
                announce=conditions.announce,
            )
            with _drawing(conditions, repeat, batch):
                new, failed = scene.attack_and_score([c for c in cells if c.arm == CLEAN or c.id in attacks], attacks)
            rows += new
            failures += failed
    changed = {place for place, other in others.items() if other.model is not guard.model and other.restore()}
    for row in rows:
        if id(sources.get(row["cell"])) in changed:
            row["flags"] = sorted({*row["flags"], "model_changed"})
        if row["cell"] in built:
            row["flags"] = sorted({*row["flags"], *built[row["cell"]]})
    if not unit.again:
        return rows, failures
    known = {cell.id for cell in unit.again}
    return [row for row in rows if row["cell"] not in known], [each for each in failures if each.cell not in known]


def _split_repeats(cells: Sequence[Cell], stochastic: bool) -> list[tuple[int, Sequence[Cell]]]:
    """Cells by repeat, since those of one repeat share a clean forward; all together if the model is not random."""
    if not stochastic:
        return [(0, cells)]
    repeats = dict.fromkeys(cell.draw for cell in cells)
    return [(repeat, [cell for cell in cells if cell.draw == repeat]) for repeat in repeats]


@contextmanager
def _drawing(conditions: Conditions, repeat: int, batch: Batch) -> Iterator[None]:
    """Seed the global generator of a stochastic model with repeat and images, and restore it."""
    if not conditions.stochastic:
        yield
        return
    (generator,) = image_generators(conditions.seed, f"repeat {repeat}", batch.images[:1])
    devices = () if batch.x.device.type == "cpu" else (batch.x.device,)
    with torch.random.fork_rng(devices, device_type=batch.x.device.type if devices else "cuda"):
        torch.manual_seed(generator.initial_seed())
        yield


def attack_one(
    cells: Sequence[Cell],
    index: int,
    model: nn.Module,
    dataset: Dataset,
    conditions: Conditions,
    attacked: nn.Module | None = None,
    supply: Supply | None = None,
) -> dict[str, np.ndarray]:
    """Return the arrays of one image for the report: clean and attacked images, ground truth and predictions.

    Args:
        cells: E cells of one arm, such as the radii of a sweep.
        index: Position of the image in the data set.
        model: Maps images (N, C, *S) to logits (N, K, *S); it is frozen and set to eval mode here.
        dataset: The data set of the image.
        conditions: Compute batch, seed, device.
        attacked: As for `run_unit`.
        supply: As for `run_unit`.

    Returns:
        Arrays `x` float32 (C, *S), `x_adv` float32 (E, C, *S), `truth` and `clean` bool (K, *S), `attacked` bool (E, K,
        *S), bit-equal to those that were scored.

    Cost:
        1 forward, and for a one-gradient attack 1 backward, for all cells; per cell the cost of any other attack, and
        1 forward.
    """
    model.to(conditions.device).eval().requires_grad_(False)
    batch = move_batch(dataset.batch([index] * conditions.batch), conditions.device)
    guard = ModelGuard(model if attacked is None else attacked)
    announce = conditions.announce
    scene = Scene(model, guard, batch, dataset=dataset.name, n=1, seed=conditions.seed, announce=announce)
    announce(cells, batch)
    arm = cells[0].arm
    attack, _ = _build(arm, dataset.task, supply or Supply())
    with _drawing(conditions, cells[0].draw, batch):
        logits, shared = scene.look([attack])
        moved = [scene.perturb(cell, attack, shared)[0].x_adv for cell in cells]
        attacked_logits = [scene.forward(x_adv) for x_adv in moved]

    def mask(labels: Tensor) -> Tensor:
        return one_hot(labels, batch.task, torch.empty(0, dtype=torch.bool))[0]

    arrays = {
        "x": batch.x[0],
        "x_adv": torch.stack([x_adv[0] for x_adv in moved]),
        "truth": mask(batch.y),
        "clean": mask(metrics.predict(logits, batch.task)),
        "attacked": torch.stack([mask(metrics.predict(logits, batch.task)) for logits in attacked_logits]),
    }
    return {name: array.cpu().numpy() for name, array in arrays.items()}


def _load_attacks(
    unit: Unit, dataset: Dataset, supply: Supply
) -> tuple[dict[str, Attack], list[Failure], dict[str, set[str]]]:
    """Build the attack of every cell; cells of one arm share one object.

    Returns:
        Id of a cell -> its attack; failures; id of a cell -> flags, if building its attack changes the process.
    """
    built: dict[Arm, tuple[Attack, set[str]]] = {}
    attacks: dict[str, Attack] = {}
    flags: dict[str, set[str]] = {}
    failures = []
    for cell in unit.all_cells:
        arm = cell.arm
        if arm == CLEAN:
            continue
        try:
            if arm not in built:
                built[arm] = _build(arm, dataset.task, supply)
            attacks[cell.id], found = built[arm]
            if found:
                flags[cell.id] = found
        except TaintedError:
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            failures.append(Failure(unit.model, "attack", cell.id, one_line(error)))
    return attacks, failures, flags


def _build(arm: Arm, task: Task, supply: Supply) -> tuple[Attack, set[str]]:
    """Build an attack in an unchanged process; return it with the flags that its construction earns.

    What only the import of its module changes is restored and not flagged: a second worker would not see it again.
    """
    with watched(wait=False) as changes:
        attack = supply.build(arm, task)
    if not changes.names:
        return attack, set()
    with watched() as changes:
        attack = supply.build(arm, task)
    return attack, make_flags(changes.names)
