"""The plan of a comparison: networks, tasks, losses, radii and implementations, validated before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import nn

from advseg_bench.attacks.apgd import APGD
from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.base import image_generators
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError, SpecError, UserError, expected, unknown
from advseg_bench.protocols import Attack
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Norm, Task, TaskKind

REFERENCES = ("fgsm", "bim", "pgd", "mifgsm", "nifgsm", "segpgd", "cospgd", "apgd")

OWN_LOSSES = {"segpgd": ("segpgd",), "cospgd": ("cosine", "cosine_sigmoid")}
"""References that define their loss -> its names."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to attack, with images for it.

    Attributes:
        name: Name in tables and files.
        model: Images -> logits for the task of `batch`; `crosscheck` freezes it and sets eval mode.
        batch: Images and labels.
        trained: Whether the network is trained; recorded in the certificate.
        spec: How to rebuild the network in scripts that reproduce a disagreement; None if that is unknown.
    """

    name: str
    model: nn.Module
    batch: Batch
    trained: bool = True
    spec: ModelSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The implementations to compare, and the tasks, losses and budgets to compare them on.

    Attributes:
        reference: One of `REFERENCES`.
        settings: Settings of the reference, such as {"steps": 10}.
        others: Name of each other implementation -> its settings.
        kinds: Task types that each network is recast to; see `models.recast`.
        losses: Names of losses; each is used for the task types it is defined for. None are those of the reference,
            or, where it follows any loss, all that judge their own iterates.
        norm: Norm of the budgets.
        eps: Radii of the budgets, in input units.
        seed: Seed of random starts.
    """

    reference: str = "fgsm"
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]]
    kinds: tuple[TaskKind, ...] = get_args(TaskKind)
    losses: tuple[str, ...] = ()
    norm: Norm = "linf"
    eps: tuple[float, ...] = (1 / 255, 4 / 255)
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the plan."""
        if self.reference not in REFERENCES:
            raise SpecError(unknown("crosscheck", "reference attack", self.reference, REFERENCES))
        own = OWN_LOSSES.get(self.reference, ())
        if not self.losses:
            free = tuple(name for name, entry in catalogue.LOSSES.items() if not entry.objective)
            object.__setattr__(self, "losses", own or free)
        for loss in self.losses:
            if own and loss not in own:
                raise SpecError(expected(f"crosscheck: losses of {self.reference}", " or ".join(own), loss))
        if not self.others:
            raise SpecError(expected("crosscheck: others", "an implementation to compare with", "none", "Name one."))
        for loss in self.losses:
            if loss not in catalogue.LOSSES and ":" not in loss:
                raise SpecError(unknown("crosscheck", "loss", loss, catalogue.LOSSES))
        for kind in self.kinds:
            if kind not in get_args(TaskKind):
                raise SpecError(unknown("crosscheck", "task", kind, get_args(TaskKind)))
        if self.norm not in get_args(Norm):
            raise SpecError(unknown("crosscheck", "norm", self.norm, get_args(Norm)))
        if not list_rows(self) or not self.eps:
            what = "a loss that is defined for one of the tasks, and a radius"
            raise SpecError(expected("crosscheck", what, (*self.losses, *self.kinds, *self.eps), "Name others."))
        for eps in self.eps:
            if not (isinstance(eps, (int, float)) and math.isfinite(eps) and eps > 0):
                raise SpecError(expected("crosscheck", "radii above 0", eps))


@dataclass(frozen=True, slots=True)
class Place:
    """One point of the grid: network, task type, loss, norm and radius."""

    subject: str
    kind: TaskKind
    loss: str
    norm: Norm
    eps: float


def list_rows(plan: Plan) -> list[tuple[TaskKind, str]]:
    """Return the pairs of a task type and a loss that is defined for it."""
    entries = catalogue.LOSSES
    return [(k, loss) for k in plan.kinds for loss in plan.losses if loss not in entries or k in entries[loss].kinds]


def load_implementation(name: str, settings: Mapping[str, Any], loss: str, plan: Plan, task: Task) -> Attack:
    """Build an implementation through the registry, as a suite does.

    Raises:
        UserError: It cannot be built, or a reference cannot be replayed step by step.
    """
    try:
        attack = load_attack(name, settings, loss, task)
    except UserError as error:
        raise type(error)(f"crosscheck: {error}") from None
    if name == plan.reference and not isinstance(attack, (FGSM, ProjectedAscent)):
        raise IncompatibleError(
            expected("crosscheck", f"an attack that can be replayed step by step as {name}", type(attack).__name__)
        )
    if name == plan.reference and type(attack) is not APGD and getattr(attack, "keep", "last") != "last":
        assert isinstance(attack, ProjectedAscent), "FGSM keeps nothing"
        remedy = "Steps are compared one by one, and no step shows which iterate is returned."
        raise IncompatibleError(expected(f"crosscheck: {name}", "keep 'last'", attack.keep, remedy))
    return attack


def make_generators(plan: Plan, batch: Batch) -> list[torch.Generator]:
    """Return the random generators that every implementation gets, one per image."""
    return image_generators(plan.seed, plan.reference, batch.images)
