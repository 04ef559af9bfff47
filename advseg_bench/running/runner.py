"""Work unit -> rows: the only place where models, data, attacks and metrics meet.

For one batch and one model: one clean forward shared by everything, one backward per loss shared by all budgets, and
one forward per result to score it. The harness trusts no attack: it measures every result in float64, records what
it broke, brings it back into bounds and budget, and scores only that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advseg_bench import geometry, metrics
from advseg_bench.attacks.gradient import OneGradientAttack, input_gradients, is_shared
from advseg_bench.batches import move_batch
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import one_line
from advseg_bench.instruments.counter import Counter
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.instruments.profiling import timed
from advseg_bench.losses import one_hot
from advseg_bench.models.prepare import Prepared
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.running.work import Failure, Unit
from advseg_bench.suite.cells import CLEAN, Arm, Cell
from advseg_bench.types import Attack, Batch, Budget, Claims

BUDGET_TOLERANCE = 1e-6
"""Rounding in float32 moves a result past its budget by less than this; more is a violation."""

Row = dict[str, Any]
Passes = list[tuple[int, int]]
"""Forwards and backwards of each image."""


@dataclass(frozen=True, slots=True)
class Setting:
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
    unit: Unit, model: nn.Module, dataset: Dataset, setting: Setting, attacked: nn.Module | None = None
) -> tuple[list[Row], list[Failure]]:
    """Attack and score some images.

    Args:
        unit: Images and cells.
        model: Logits from images; it is frozen and put into eval mode here.
        dataset: Where the images are.
        setting: Compute batch, seed, device.
        attacked: What attacks are given instead of the model, such as a prepared copy; scores are the model's own.
    Returns: Rows of `records.ROW_SCHEMA`, and what failed. Cost per batch: 1 forward, a backward per loss of
        one-gradient attacks, each other attack's own cost, and a forward per cell; a forward more if the copy that
        attacks are given does not have every bit of the model's logits.
    """
    model.to(setting.device).eval().requires_grad_(False)
    attacks, failures = _load_attacks(unit, dataset)
    guard = ModelGuard(model if attacked is None else attacked)
    rows: list[Row] = []
    for start in range(0, len(unit.indices), setting.batch):
        indices = unit.indices[start : start + setting.batch]
        padded = [indices[i % len(indices)] for i in range(setting.batch)]
        batch = move_batch(dataset.batch(padded), setting.device)
        scene = _Scene(model, guard, batch, dataset=dataset.name, n=len(indices), seed=setting.seed)
        new, failed = scene.attack_and_score([c for c in unit.cells if c.arm == CLEAN or c.id in attacks], attacks)
        rows += new
        failures += failed
    return rows, failures


def attack_one(
    cells: Sequence[Cell],
    index: int,
    model: nn.Module,
    dataset: Dataset,
    setting: Setting,
    attacked: nn.Module | None = None,
) -> dict[str, np.ndarray]:
    """Return the images behind rows of one image, for the report: clean, attacked, truth and predictions.

    Args:
        cells: E cells of one attack with one loss and settings, such as the budgets of a sweep.
        index: The image's position in the data set.
        model: Logits from images; it is frozen and put into eval mode here.
        dataset: Where the image is.
        setting: Compute batch, seed, device.
        attacked: As `run_unit` takes it.
    Returns: Arrays `x` float32 (C, *S), `x_adv` float32 (E, C, *S), `truth` and `clean` bool (K, *S), `attacked` bool
        (E, K, *S); the bits that were scored. Cost: 1 forward and, for a one-gradient attack, 1 backward for all
        cells; each other attack's own cost, and a forward, per cell.
    """
    model.to(setting.device).eval().requires_grad_(False)
    batch = move_batch(dataset.batch([index] * setting.batch), setting.device)
    guard = ModelGuard(model if attacked is None else attacked)
    scene = _Scene(model, guard, batch, dataset=dataset.name, n=1, seed=setting.seed)
    arm = cells[0].arm
    attack = load_attack(arm.attack, arm.options, arm.loss, dataset.task)
    logits, gradients = scene.shared_gradients({cell.id: attack for cell in cells})
    moved = [scene.perturb(cell, attack, gradients.get(cell.id))[0] for cell in cells]

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


def overshoot(attack: Attack) -> float:
    """Return how many times eps an attack may move an image: 1, unless its definition says more."""
    return max(1.0, float(getattr(attack, "overshoot", 1.0)))


def stated_cost(arm: Arm, attack: Attack) -> tuple[float | None, float | None]:
    """Return the forwards and backwards per image that an attack says it needs on its own, None if it does not say."""
    claims = getattr(attack, "claims", Claims())
    shipped = catalogue.attack_cost(arm.attack, arm.options)
    return shipped or (claims.forwards, claims.backwards)


def image_generators(seed: int, cell: str, images: Sequence[str]) -> list[torch.Generator]:
    """Return one generator per image, seeded by suite, cell and image and by nothing else."""
    keys = (hashlib.sha256(f"{seed}/{cell}/{image}".encode()).digest()[:8] for image in images)
    return [torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1) for key in keys]


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


class _Scene:
    """One batch in front of one model, with everything its cells share."""

    def __init__(self, model: nn.Module, guard: ModelGuard, batch: Batch, *, dataset: str, n: int, seed: int) -> None:
        self.model, self.batch, self.dataset, self.n, self.seed = model, batch, dataset, n, seed
        self.guard, self.attacked = guard, guard.model
        self.exact = not isinstance(self.attacked, Prepared) or self.attacked.exact
        self.thorough, self.changed = True, False

    def attack_and_score(self, cells: Sequence[Cell], attacks: dict[str, Attack]) -> tuple[list[Row], list[Failure]]:
        """Run all cells; a cell that raises is a failure and costs no other cell its result.

        The model's values are compared once, at the end; if one was changed that no write counter told of, all cells
        are run again with a comparison after each, so that the change is laid to its cell and affects no other.
        """
        self.thorough = False
        done = self._run_cells(cells, attacks)
        if self.guard.restore() or self.changed:
            self.thorough = True
            done = self._run_cells(cells, attacks)
        return done

    def _run_cells(self, cells: Sequence[Cell], attacks: dict[str, Attack]) -> tuple[list[Row], list[Failure]]:
        rows: list[Row] = []
        failures = []
        logits, gradients = self.shared_gradients({c.id: attacks[c.id] for c in cells if c.id in attacks})
        clean = metrics.predict(logits, self.batch.task)
        target = metrics.Target(clean, self.batch)
        for cell in cells:
            try:
                if cell.arm == CLEAN:
                    prediction, flags = clean, [set[str]() for _ in self.batch.x]
                    moves = geometry.measure_moves(self.batch.x, self.batch.x)
                    passes: Passes | None = [(0, 0)] * len(flags)
                else:
                    x_adv, moves, flags, passes = self.perturb(cell, attacks[cell.id], gradients.get(cell.id))
                    attacked = self.forward(x_adv)
                    prediction = metrics.predict(attacked, self.batch.task)
                    self._note_success(attacks[cell.id], attacked, logits, flags)
            except (Exception, SystemExit) as error:
                self.changed |= self.guard.restore()
                failures.append(Failure(cell.model, "attack", cell.id, one_line(error)))
                continue
            rows += self._rows(cell, moves, flags, passes, target.count(prediction))
        return rows, failures

    @timed("scoring: forwards")
    def forward(self, x: Tensor) -> Tensor:
        """Logits, without a graph."""
        with torch.no_grad():
            logits: Tensor = self.model(x)
        return logits

    @timed("attack: losses and steps")
    def shared_gradients(self, attacks: dict[str, Attack]) -> tuple[Tensor, dict[str, Tensor | Exception]]:
        """Clean logits, and for each one-gradient cell its gradient: one forward, one backward per distinct gradient.

        If that raises, each attack is tried alone, and what raises then stands in the gradient's place.
        """
        keys = {cell: attack.gradient_key() for cell, attack in attacks.items() if is_shared(attack)}
        distinct = {keys[cell]: attack for cell, attack in attacks.items() if is_shared(attack)}
        of: dict[Hashable, Tensor | Exception] = {}
        if not distinct:
            logits = self.forward(self.batch.x)
        else:
            try:
                logits, gradients = self._differentiate(list(distinct.values()))
                of.update(zip(distinct, gradients, strict=True))
            except Exception:
                logits = self.forward(self.batch.x)
                of = {key: self._differentiate_alone(attack) for key, attack in distinct.items()}
            if not self.exact:
                logits = self.forward(self.batch.x)
        return logits, {cell: of[key] for cell, key in keys.items()}

    def _differentiate(self, attacks: Sequence[OneGradientAttack]) -> tuple[Tensor, list[Tensor]]:
        objectives = [lambda out, a=attack: a.objective(out, self.batch) for attack in attacks]
        return input_gradients(self.attacked, self.batch.x, objectives)

    def _differentiate_alone(self, attack: OneGradientAttack) -> Tensor | Exception:
        try:
            return self._differentiate([attack])[1][0]
        except Exception as error:
            return error

    @timed("attack: losses and steps")
    def perturb(
        self, cell: Cell, attack: Attack, gradient: Tensor | Exception | None
    ) -> tuple[Tensor, geometry.Moves, list[set[str]], Passes | None]:
        """Run one attack and check its result.

        The attack gets a copy of images and labels: neither what is scored against nor what other attacks see can
        be changed by it.

        Returns: Images inside bounds and budget; how far they moved; for each image the names of what was wrong with
            the result, and what the attack asked of the model for it, None if that is not known exactly.
        """
        if isinstance(gradient, Exception):
            raise gradient
        budget, x = Budget(cell.arm.norm, cell.eps), self.batch.x
        lent = replace(self.batch, x=x.clone(), y=self.batch.y.clone(), valid=self.batch.valid.clone())
        generators = image_generators(self.seed, cell.id, self.batch.images)
        passes: Passes | None = [(1, 1)] * len(x)  # of an attack that shares its gradient, had it been alone
        if gradient is not None:
            assert is_shared(attack)
            x_adv = attack.step(lent, gradient, budget, generators)
        else:
            counted = Counter(self.attacked).count(len(x), cell.max_forwards)
            with counted as tally, torch.enable_grad():  # a mode that it leaves behind ends here
                x_adv = attack(self.attacked, lent, budget=budget, generators=generators)
            passes = tally.per_image()
        if not isinstance(x_adv, Tensor):
            raise TypeError(f"expected a tensor of adversarial images, got {type(x_adv).__name__}")
        if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
            raise ValueError(f"expected {x.dtype} {tuple(x.shape)}, got {x_adv.dtype} {tuple(x_adv.shape)}")
        common = set()
        if self.guard.restore(thorough=self.thorough):
            common.add("model_changed")
        pairs = ((lent.x, x), (lent.y, self.batch.y), (lent.valid, self.batch.valid))
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            common.add("input_changed")
        x_adv, moves, flags = self._check(x_adv.detach(), budget, overshoot(attack), common)
        if passes is not None:
            self._note_cost(stated_cost(cell.arm, attack), passes, flags)
        return x_adv, moves, flags, passes

    @timed("check of results")
    def _check(
        self, x_adv: Tensor, budget: Budget, times: float, common: set[str]
    ) -> tuple[Tensor, geometry.Moves, list[set[str]]]:
        """Measure in float64, name the violations, and project."""
        x, bounds = self.batch.x, self.batch.bounds
        is_finite = x_adv.isfinite()
        finite = is_finite.flatten(1).all(1)
        x_adv = torch.where(is_finite, x_adv, x)
        lowest, highest = x_adv.flatten(1).aminmax(dim=1)
        outside = (lowest < bounds.lower) | (highest > bounds.upper)
        moves = geometry.measure_moves(x_adv, x)
        moved = moves.linf if budget.norm == "linf" else moves.l2
        over = moved > times * budget.eps + BUDGET_TOLERANCE
        beyond = ~over & (moved > budget.eps + BUDGET_TOLERANCE)
        same = (moves.linf == 0) & (budget.eps > 0)
        found = {"non_finite": ~finite, "out_of_bounds": outside, "over_budget": over}
        found |= {"beyond_eps": beyond, "unchanged": same}
        columns = {name: mask.tolist() for name, mask in found.items()}
        flags = [common | {name for name, mask in columns.items() if mask[i]} for i in range(len(x))]
        if (outside | over).any():
            fixed = geometry.project(x_adv, x, Budget(budget.norm, times * budget.eps), bounds)
            broken = geometry.align(outside | over, x)
            x_adv = torch.where(broken, fixed, x_adv)
            moves = geometry.measure_moves(x_adv, x)
        return x_adv, moves, flags

    def _note_cost(self, stated: tuple[float | None, float | None], passes: Passes, flags: list[set[str]]) -> None:
        """Flag the images for which an attack asked more of the model than it says."""
        for names, counted in zip(flags, passes, strict=True):
            if any(most is not None and found > most for found, most in zip(counted, stated, strict=True)):
                names.add("over_cost")

    def _note_success(self, attack: Attack, attacked: Tensor, clean: Tensor, flags: list[set[str]]) -> None:
        """Flag the images on which an attack that knows success did not have it, by the scored images' logits."""
        tell = getattr(attack, "reached", None)
        reached = tell(attacked, clean, self.batch) if tell is not None else None
        if reached is not None:
            for names, success in zip(flags, reached.tolist(), strict=True):
                names |= set() if success else {"not_reached"}

    @timed("records")
    def _rows(
        self, cell: Cell, moves: geometry.Moves, flags: list[set[str]], passes: Passes | None, counts: metrics.Counts
    ) -> list[Row]:
        """One row per image, the padding left out."""
        batch = self.batch
        columns: dict[str, list[Any]] = {
            "image": list(batch.images),
            "subject": list(batch.subjects),
            "block": list(batch.blocks),
            "tp": counts.tp.tolist(),
            "fp": counts.fp.tolist(),
            "fn": counts.fn.tolist(),
            "valid_pixels": counts.valid.tolist(),
            "wrong_pixels": counts.wrong.tolist(),
            "flipped_pixels": counts.flipped.tolist(),
            "linf": moves.linf.tolist(),
            "l2": moves.l2.tolist(),
            "unmoved": moves.unmoved.tolist(),
            "forwards": [None if passes is None else passes[i][0] for i in range(len(flags))],
            "backwards": [None if passes is None else passes[i][1] for i in range(len(flags))],
            "flags": [sorted(names) for names in flags],
        }
        fixed = {
            "cell": cell.id,
            "dataset": self.dataset,
            "model": cell.model,
            "attack": cell.arm.attack,
            "loss": cell.arm.loss,
            "settings": cell.arm.settings,
            "norm": cell.arm.norm,
            "eps": cell.eps,
            "draw": cell.draw,
        }
        return [fixed | {name: values[i] for name, values in columns.items()} for i in range(self.n)]
