"""Models x tasks x losses x budgets x implementations -> findings and a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from advseg_bench import environment
from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.base import image_generators
from advseg_bench.attacks.gradient import FGSM, input_gradients
from advseg_bench.batches import Batch, check_batch
from advseg_bench.checks.logits import probe
from advseg_bench.crosscheck.trace import run_traced
from advseg_bench.crosscheck.verdict import SOUND, Case, Effect, Finding, Verdict, judge, measure_effect
from advseg_bench.errors import IncompatibleError, SpecError, UserError, expected, one_line, unknown
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.models.prepare import prepare_checked
from advseg_bench.models.recast import RecastModel, recast_batch
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.suite.specs import Compute, ModelSpec
from advseg_bench.types import Attack, Budget, Norm, Task, TaskKind

SCHEMA = 1
REFERENCES = ("fgsm", "bim", "pgd", "mifgsm")


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to attack, with images for it.

    Attributes:
        name: Shown.
        model: Images -> logits for the task of `batch`; frozen and put into eval mode by the check.
        batch: Images and labels.
        trained: Whether the network has learned anything; said in the certificate.
        spec: How to build it again, for the scripts that reproduce a disagreement; None if that is unknown.
    """

    name: str
    model: nn.Module
    batch: Batch
    trained: bool = True
    spec: ModelSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared with what.

    Attributes:
        reference: One of `REFERENCES`.
        settings: Of the reference, such as {"steps": 10}.
        others: Name of an implementation -> its settings.
        kinds: Kinds of task each network is put to, see `models.recast`.
        losses: Names; each is used for the kinds it is defined for.
        norm: Norm of the budgets.
        eps: Radii.
        seed: Of the random starts.
    """

    reference: str = "fgsm"
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]]
    kinds: tuple[TaskKind, ...] = get_args(TaskKind)
    losses: tuple[str, ...] = tuple(catalogue.LOSSES)
    norm: Norm = "linf"
    eps: tuple[float, ...] = (1 / 255, 4 / 255)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        if self.reference not in REFERENCES:
            raise SpecError(unknown("crosscheck", "reference attack", self.reference, REFERENCES))
        if not self.others:
            raise SpecError(expected("crosscheck", "something to compare with", "nothing", "Name an implementation."))
        for loss in self.losses:
            if loss not in catalogue.LOSSES and ":" not in loss:
                raise SpecError(unknown("crosscheck", "loss", loss, catalogue.LOSSES))
        for kind in self.kinds:
            if kind not in get_args(TaskKind):
                raise SpecError(unknown("crosscheck", "task", kind, get_args(TaskKind)))
        if self.norm not in get_args(Norm):
            raise SpecError(unknown("crosscheck", "norm", self.norm, get_args(Norm)))
        if not _rows(self) or not self.eps:
            what = "a loss that is defined for one of the tasks, and a radius"
            raise SpecError(expected("crosscheck", what, (*self.losses, *self.kinds, *self.eps), "Name others."))
        for eps in self.eps:
            if not (isinstance(eps, (int, float)) and math.isfinite(eps) and eps > 0):
                raise SpecError(expected("crosscheck", "radii above 0", eps))


@dataclass(frozen=True, slots=True)
class Place:
    """One point of the grid."""

    subject: str
    kind: TaskKind
    loss: str
    norm: Norm
    eps: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One implementation at one point of the grid.

    Attributes:
        implementation: Its name.
        place: Where.
        finding: The verdict.
        cost: The other's forwards, backwards (per image) and seconds; and the reference's seconds where both ran alone.
        case: What both were given, kept where the disagreement is real; else None.
    """

    implementation: str
    place: Place
    finding: Finding
    cost: Mapping[str, float | None]
    case: Case | None = None


def crosscheck(
    plan: Plan, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Pair]:
    """Put the same batches through the reference and other implementations, and judge each pair.

    Every implementation is built before anything is computed, so a misspelt name costs nothing.

    Args:
        plan: What is compared.
        subjects: On which networks and images.
        progress: Told (done, in all) after each point of the grid.
    Returns: One `Pair` per implementation, network, kind, loss and radius.
    Raises: UserError: an implementation or loss that cannot be built.
    """
    for subject in subjects:
        subject.model.eval().requires_grad_(False)
        where = f"crosscheck: {subject.name}"
        check_batch(subject.batch, where)
        if subject.spec is None:  # nobody has looked at it yet
            probe(where, subject.model, subject.batch.x[:2], subject.batch.task)
    if not subjects:
        raise SpecError(expected("crosscheck", "a network to attack", "none"))
    others: dict[tuple[str, str, Task], Attack] = {}
    for subject in subjects:
        for kind, loss in _rows(plan):
            task = recast_batch(subject.batch, kind).task
            for name, settings in plan.others.items():
                if (name, loss, task) not in others:
                    others[name, loss, task] = _load(name, settings, loss, plan, task)
    total, done = len(subjects) * len(_rows(plan)) * len(plan.eps), 0
    pairs = []
    for subject in subjects:
        for point in _scenes(plan, subject):
            for name in plan.others:
                attack = others[name, point.place.loss, point.case.batch.task]
                pairs.append(_judge_one(name, attack, plan, point))
            done += 1
            progress(done, total)
    return pairs


def certify(plan: Plan, subjects: Sequence[Subject], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the certificate: what was compared, with what versions and seeds, and every finding, as JSON."""
    libraries = environment.describe_libraries() | environment.describe_machine()
    toolkits = environment.describe_packages(sorted({name.split(".")[0] for name in plan.others}))
    return {
        "schema": SCHEMA,
        "plan": {name: getattr(plan, name) for name in plan.__slots__} | {"others": dict(plan.others)},
        "environment": libraries | toolkits | {"threads": torch.get_num_threads()},
        "subjects": [
            {"name": s.name, "trained": s.trained, "images": list(s.batch.images)}
            | {"spec": s.spec.model_dump(mode="json") if s.spec else None, "prepared": _check_prepared(s)}
            for s in subjects
        ],
        "verdicts": count_verdicts(pairs),
        "findings": [_describe(pair) for pair in pairs],
    }


def _check_prepared(subject: Subject) -> dict[str, Any]:
    """How the copy that runs give to attacks agrees with the model that is compared here."""
    return prepare_checked(subject.model, subject.batch.x, catalogue.read_steps(Compute().prepare)).as_record()


def count_verdicts(pairs: Sequence[Pair]) -> dict[str, dict[Verdict, int]]:
    """Return how often each implementation got each verdict; verdicts that none got are left out."""
    counts: dict[str, dict[Verdict, int]] = {}
    for pair in pairs:
        mine = counts.setdefault(pair.implementation, {})
        mine[pair.finding.verdict] = mine.get(pair.finding.verdict, 0) + 1
    return counts


def is_sound(pairs: Sequence[Pair]) -> bool:
    """Whether every implementation computes what the reference does, up to rounding and conventions."""
    return all(pair.finding.verdict in SOUND for pair in pairs)


@dataclass(frozen=True, slots=True)
class _Scene:
    """One point of the grid with the reference's result."""

    place: Place
    case: Case
    ours: Tensor
    effect: Effect
    seconds: float | None
    guard: ModelGuard


def _rows(plan: Plan) -> list[tuple[TaskKind, str]]:
    """Kinds with the losses that are defined for them."""
    entries = catalogue.LOSSES
    return [(k, loss) for k in plan.kinds for loss in plan.losses if loss not in entries or k in entries[loss].kinds]


def _scenes(plan: Plan, subject: Subject) -> Iterator[_Scene]:
    """Run the reference at every point; FGSM's losses share a forward, its radii a gradient."""
    for kind in plan.kinds:
        batch = recast_batch(subject.batch, kind)
        model = RecastModel(subject.model, subject.batch.task, kind).eval()
        losses = [loss for k, loss in _rows(plan) if k == kind]
        attacks = {loss: _load(plan.reference, plan.settings, loss, plan, batch.task) for loss in losses}
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
                    run = run_traced(attack, model, batch, case.budget, _generators(plan, batch), guard)
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
        plan: What is compared.
        place: Loss and radius; network and kind are given by `model` and `batch`.
        name: The implementation.
        model: Images -> logits of the task of `batch`.
        batch: Images and labels.
    Returns: The finding. Raises: whatever the implementation raises.
    """
    reference = _load(plan.reference, plan.settings, place.loss, plan, batch.task)
    assert isinstance(reference, (FGSM, ProjectedAscent))
    with torch.no_grad():
        clean = model(batch.x)
    case = Case(reference, model, batch, Budget(place.norm, place.eps), clean)
    ours = reference(model, batch, budget=case.budget, generators=_generators(plan, batch))
    attack = _load(name, plan.others[name], place.loss, plan, batch.task)
    theirs = run_traced(attack, model, batch, case.budget, _generators(plan, batch))
    return judge(case, ours, theirs, measure_effect(case, ours))


def _judge_one(name: str, attack: Attack, plan: Plan, scene: _Scene) -> Pair:
    """Run one implementation; whatever it raises is its verdict."""
    case, place = scene.case, scene.place
    try:
        theirs = run_traced(attack, case.model, case.batch, case.budget, _generators(plan, case.batch), scene.guard)
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


def _load(name: str, settings: Mapping[str, Any], loss: str, plan: Plan, task: Task) -> Attack:
    """Build an implementation through the registry, as a suite would; one that follows no loss is refused."""
    try:
        attack = load_attack(name, settings, loss, task)
    except UserError as error:
        raise type(error)(f"crosscheck: {error}") from None
    if name == plan.reference and not isinstance(attack, (FGSM, ProjectedAscent)):
        raise IncompatibleError(f"crosscheck: {name} cannot be replayed step by step.")
    if name == plan.reference and isinstance(attack, ProjectedAscent) and attack.keep != "last":
        remedy = "It compares step by step, and no step shows which iterate is kept."
        raise IncompatibleError(expected(f"crosscheck: {name}", "keep 'last'", attack.keep, remedy))
    return attack


def _generators(plan: Plan, batch: Batch) -> list[torch.Generator]:
    return image_generators(plan.seed, plan.reference, batch.images)


def _describe(pair: Pair) -> dict[str, Any]:
    """One finding as JSON."""
    finding, steps = pair.finding, pair.finding.steps
    return {
        "implementation": pair.implementation,
        **asdict(pair.place),
        "verdict": finding.verdict,
        "reason": finding.reason,
        "free_running": asdict(finding.difference) if finding.difference else None,
        "step_wise": steps
        and {
            "values": steps.values,
            "disagree": steps.disagree,
            "explained_by_rounding": steps.explained,
            "real": steps.disagree - steps.explained,
            "opposite": steps.opposite,
            "step_size": None if math.isnan(steps.size) else steps.size,
        },
        "reference": asdict(finding.ours) if finding.ours else None,
        "other": asdict(finding.theirs) if finding.theirs else None,
        "cost": dict(pair.cost),
    }
