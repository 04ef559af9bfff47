"""Models x tasks x losses x budgets x implementations -> findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.gradient import FGSM, input_gradients
from advseg_bench.batches import Batch, check_batch
from advseg_bench.checks.logits import probe
from advseg_bench.crosscheck.decision import judge
from advseg_bench.crosscheck.plan import Place, Plan, Subject, list_rows, load_implementation, make_generators
from advseg_bench.crosscheck.trace import run_traced
from advseg_bench.crosscheck.verdict import Case, Effect, Finding, measure_effect
from advseg_bench.errors import SpecError, expected, one_line
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.models.recast import RecastModel, recast_batch
from advseg_bench.protocols import Attack
from advseg_bench.types import Budget, Task


@dataclass(frozen=True, slots=True)
class Pair:
    """One implementation at one point of the grid.

    Attributes:
        implementation: Its name.
        place: The point of the grid.
        finding: The verdict with its evidence.
        cost: Forwards and backwards per image and seconds of the implementation; seconds of the reference where it ran
            separately.
        case: The inputs of both, kept for a real disagreement; else None.
    """

    implementation: str
    place: Place
    finding: Finding
    cost: Mapping[str, float | None]
    case: Case | None = None


def crosscheck(
    plan: Plan, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Pair]:
    """Run the reference and other implementations on the same batches, and judge each pair.

    Every implementation is built before anything is computed, so that a misspelt name is found at once.

    Args:
        plan: The implementations, tasks, losses and radii to compare.
        subjects: The networks, with their images.
        progress: Called with (done, total) after each point of the grid.

    Returns:
        One `Pair` per implementation, network, task type, loss and radius.

    Raises:
        UserError: An implementation or a loss cannot be built.

    Cost:
        One forward and one backward per step of each implementation; see `judge` for results that differ.
    """
    for subject in subjects:
        subject.model.eval().requires_grad_(False)
        where = f"crosscheck: {subject.name}"
        check_batch(subject.batch, where)
        if subject.spec is None:  # not built from a spec, hence unchecked
            probe(where, subject.model, subject.batch.x[:2], subject.batch.task)
    if not subjects:
        raise SpecError(expected("crosscheck", "a network to attack", "none"))
    others: dict[tuple[str, str, Task], Attack] = {}
    for subject in subjects:
        for kind, loss in list_rows(plan):
            task = recast_batch(subject.batch, kind).task
            for name, settings in plan.others.items():
                if (name, loss, task) not in others:
                    others[name, loss, task] = load_implementation(name, settings, loss, plan, task)
    total, done = len(subjects) * len(list_rows(plan)) * len(plan.eps), 0
    pairs = []
    for subject in subjects:
        for point in _scenes(plan, subject):
            for name in plan.others:
                attack = others[name, point.place.loss, point.case.batch.task]
                pairs.append(_judge_one(name, attack, plan, point))
            done += 1
            progress(done, total)
    return pairs


@dataclass(frozen=True, slots=True)
class _Scene:
    """One point of the grid, with the result of the reference."""

    place: Place
    case: Case
    ours: Tensor
    effect: Effect
    seconds: float | None
    guard: ModelGuard


def _scenes(plan: Plan, subject: Subject) -> Iterator[_Scene]:
    """Run the reference at every point; for FGSM, losses share a forward pass and radii share a gradient."""
    for kind in plan.kinds:
        batch = recast_batch(subject.batch, kind)
        model = RecastModel(subject.model, subject.batch.task, kind).eval()
        losses = [loss for k, loss in list_rows(plan) if k == kind]
        attacks = {loss: load_implementation(plan.reference, plan.settings, loss, plan, batch.task) for loss in losses}
        gradients = _share_gradients(attacks, model, batch)
        guard = ModelGuard(model)
        with torch.no_grad():
            clean = model(batch.x)
        for loss, attack in attacks.items():
            assert isinstance(attack, (FGSM, ProjectedAscent))
            for eps in plan.eps:
                case = Case(attack, model, batch, Budget(plan.norm, eps), clean)
                if isinstance(attack, FGSM):
                    ours, seconds = attack.step(batch, gradients[loss], case.budget), None
                else:
                    run = run_traced(attack, model, batch, case.budget, make_generators(plan, batch), guard)
                    ours, seconds = run.x_adv, run.seconds
                place = Place(subject.name, kind, loss, plan.norm, eps)
                yield _Scene(place, case, ours, measure_effect(case, ours), seconds, guard)


def _share_gradients(attacks: Mapping[str, Attack], model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    fgsm = {loss: attack for loss, attack in attacks.items() if isinstance(attack, FGSM)}
    if not fgsm:
        return {}
    objectives = [lambda out, a=attack: a.objective(out, batch) for attack in fgsm.values()]
    return dict(zip(fgsm, input_gradients(model, batch.x, objectives)[1], strict=True))


def judge_at(plan: Plan, place: Place, name: str, model: nn.Module, batch: Batch) -> Finding:
    """Run the reference and one implementation at one point of the grid.

    Args:
        plan: The comparison.
        place: Loss and radius; `model` and `batch` determine network and task type.
        name: The implementation.
        model: Images -> logits of the task of `batch`.
        batch: Images and labels.

    Returns:
        The finding.

    Raises:
        Exception: Any exception of the implementation.
    """
    reference = load_implementation(plan.reference, plan.settings, place.loss, plan, batch.task)
    assert isinstance(reference, (FGSM, ProjectedAscent))
    with torch.no_grad():
        clean = model(batch.x)
    case = Case(reference, model, batch, Budget(place.norm, place.eps), clean)
    ours = reference(model, batch, budget=case.budget, generators=make_generators(plan, batch))
    attack = load_implementation(name, plan.others[name], place.loss, plan, batch.task)
    theirs = run_traced(attack, model, batch, case.budget, make_generators(plan, batch))
    return judge(case, ours, theirs, measure_effect(case, ours))


def _judge_one(name: str, attack: Attack, plan: Plan, scene: _Scene) -> Pair:
    """Run one implementation; an exception is the verdict "fails"."""
    case, place = scene.case, scene.place
    try:
        theirs = run_traced(attack, case.model, case.batch, case.budget, make_generators(plan, case.batch), scene.guard)
    except Exception as error:
        return Pair(name, place, Finding("fails", one_line(error)), {})
    finding = judge(case, scene.ours, theirs, scene.effect)
    cost = {
        "forwards": theirs.forwards,
        "backwards": theirs.backwards,
        "seconds": theirs.seconds,
        "reference_seconds": scene.seconds,
    }
    kept = finding.real is not None and finding.real.any()
    return Pair(name, place, finding, cost, case if kept else None)
