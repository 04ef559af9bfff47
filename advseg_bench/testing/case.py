"""One attack as the contract sees it: what it claims, and how to build and run it without harm to anything else."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from advseg_bench.attacks.function import FunctionAttack
from advseg_bench.attacks.objective import name_loss
from advseg_bench.batches import Batch, copy_batch
from advseg_bench.checks.results import name_of, traits_of
from advseg_bench.environment import describe_device
from advseg_bench.errors import SpecError, UserError, expected, one_line
from advseg_bench.protocols import Attack
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack, load_loss
from advseg_bench.testing.process import isolated, seed_globals
from advseg_bench.testing.violations import ContractViolation
from advseg_bench.types import Budget, Task, TaskKind, Traits

USUAL_LOSS: dict[TaskKind, str] = {"binary": "bce", "multilabel": "bce", "multiclass": "ce"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An attack under test.

    Attributes:
        name: What messages call it.
        traits: What it is held to.
        attacks: The attack for each kind of task it can be given.
        losses: The name of the loss that each of them follows, "" if the attack has its own or none.
        left_out: Why a kind that is claimed is not tried.
        device: Where images and models are put.
    """

    name: str
    traits: Traits
    attacks: Mapping[TaskKind, Attack]
    losses: Mapping[TaskKind, str]
    left_out: Mapping[TaskKind, str]
    device: str = "cpu"

    @property
    def kinds(self) -> tuple[TaskKind, ...]:
        """Return the kinds of task that are tried."""
        return tuple(self.attacks)

    def run(
        self, model: nn.Module, batch: Batch, budget: Budget, where: object, *, seed: int = 0, elsewhere: int = 0
    ) -> Tensor:
        """Run the attack on copies, with generators that belong to the images by name; return its result, detached.

        Whatever it does to global state is undone.

        Args:
            model: Handed over as it is.
            batch: Copied.
            budget: Norm and radius.
            where: Tells the reader of a message what was tried.
            seed: Other seeds give other generators.
            elsewhere: What the global generators, which are no business of an attack, are seeded with.

        Raises:
            ContractViolation: If it raises, or returns no tensor like `batch.x`.
        """
        with isolated():
            seed_globals(elsewhere)
            x_adv = self.call(model, copy_batch(batch), budget, where, seed=seed)
        return check_form(x_adv, batch, where).detach()

    def call(self, model: nn.Module, batch: Batch, budget: Budget, where: object, *, seed: int = 0) -> object:
        """Run the attack on the very objects given, and return what it returns. Raises: ContractViolation: if it does.

        For the rules that look at what it leaves behind; the others use `run`.
        """
        generators = [make_generator(image, seed) for image in batch.images]
        try:
            return self.attacks[batch.task.kind](model, batch, budget=budget, generators=generators)
        except Exception as error:
            raise ContractViolation(f"raised {one_line(error)} [{where}, {show(budget)}]") from error


def find_case(
    attack: object,
    *,
    loss: str | None = None,
    settings: Mapping[str, Any] | None = None,
    traits: Traits | None = None,
    device: str = "cpu",
) -> Case:
    """Get an attack ready for the contract.

    Args:
        attack: The attack itself; a function that `advseg_bench.attack` decorates; its class, built with `settings`
            and, if it takes one, a loss; or its name in the catalogue, of an entry point, of a toolkit, or
            "package.module:object".
        loss: Name of the loss to follow; by default "bce", and "ce" in multiclass tasks.
        settings: Constructor arguments.
        traits: In place of what the attack says by its attribute `traits`.
        device: Where to try it.

    Raises:
        UserError: If it cannot be built as said.
    """
    describe_device(device)
    build, name = _builder(attack, dict(settings or {}), loss)
    attacks: dict[TaskKind, Attack] = {}
    used: dict[TaskKind, str] = {}
    left_out: dict[TaskKind, str] = {}
    wanted = traits
    for kind in catalogue.ALL_KINDS:
        if (reason := _unfit(kind, loss)) is not None:
            left_out[kind] = reason
            continue
        built, used_loss = build(kind)
        wanted = wanted or traits_of(built)
        if (reason := _own_loss_unfit(built, kind)) is not None:
            left_out[kind] = reason
        elif kind not in wanted.kinds:
            left_out[kind] = "not claimed"
        else:
            attacks[kind], used[kind] = built, used_loss
    if wanted is None or not attacks:
        raise SpecError(f"attack {name}: there is no kind of task to try it on: {json.dumps(left_out)}.")
    return Case(
        name=name, traits=_sort_out(wanted, name), attacks=attacks, losses=used, left_out=left_out, device=device
    )


Builder = Callable[[TaskKind], tuple[Attack, str]]


def _builder(attack: object, settings: dict[str, Any], loss: str | None) -> tuple[Builder, str]:
    """How to build an attack for a kind of task, and what to call it."""
    if isinstance(attack, str):
        return _by_name(attack, settings, loss), attack
    if isinstance(attack, type):
        return _by_class(attack, settings, loss), attack.__name__
    name = name_of(cast(Attack, attack))
    if isinstance(attack, FunctionAttack):
        return _by_function(attack, settings, loss), name
    if not callable(attack):
        raise SpecError(expected("attack", "an attack, its class or its name", attack))
    if settings or loss:
        raise SpecError(f"attack {name}: is built already, so it takes neither settings nor a loss. Give its class.")
    return lambda kind: (cast(Attack, attack), ""), name


def _by_class(attack: type, settings: dict[str, Any], loss: str | None) -> Builder:
    def build(kind: TaskKind) -> tuple[Attack, str]:
        takes = "loss" in inspect.signature(attack).parameters
        used = (loss or USUAL_LOSS[kind]) if loss or (takes and "loss" not in settings) else ""
        given = settings | ({"loss": load_loss(used, _task(kind))} if used else {})
        try:
            return cast(Attack, attack(**given)), used
        except (TypeError, ValueError) as error:
            raise SpecError(f"attack {attack.__name__}: does not take these settings: {error}") from None

    return build


def _by_function(attack: FunctionAttack, settings: dict[str, Any], loss: str | None) -> Builder:
    def build(kind: TaskKind) -> tuple[Attack, str]:
        used = loss or (USUAL_LOSS[kind] if attack.needs_loss and attack.loss is None else "")
        return attack.configure(load_loss(used, _task(kind)) if used else None, **settings), used

    return build


def _by_name(name: str, settings: dict[str, Any], loss: str | None) -> Builder:
    """Through the registry. A plug-in that cannot be built without a loss is given the usual one."""
    entry = catalogue.ATTACKS.get(name)

    def load(kind: TaskKind, used: str) -> tuple[Attack, str]:
        return load_attack(name, settings, used, _task(kind)), used

    def build(kind: TaskKind) -> tuple[Attack, str]:
        if loss or (entry and entry.needs_loss):
            return load(kind, loss or USUAL_LOSS[kind])
        try:
            return load(kind, "")
        except UserError as error:
            if entry:
                raise
            try:
                return load(kind, USUAL_LOSS[kind])
            except UserError:
                raise error from None

    return build


def _unfit(kind: TaskKind, loss: str | None) -> str | None:
    """Why a loss asked for by name does not serve a kind of task, or None."""
    entry = catalogue.LOSSES.get(loss or "")
    if entry is None or kind in entry.kinds:
        return None
    return f"loss {loss} is defined for {' and '.join(entry.kinds)} tasks"


def _own_loss_unfit(attack: Attack, kind: TaskKind) -> str | None:
    """Why the loss that an attack was built with does not serve a kind of task, or None."""
    loss = getattr(attack, "loss", None)
    return None if loss is None else _unfit(kind, name_loss(loss))


def _sort_out(traits: Traits, name: str) -> Traits:
    """A control is no gradient attack, whatever else it says."""
    if not traits.norms or not traits.kinds or not traits.dims:
        raise SpecError(f"attack {name}: claims no norm, no kind of task or no number of axes. Name at least one.")
    if traits.share is not None and not 0 < traits.share <= 1:
        raise SpecError(expected(f"attack {name}", "a claimed share between 0 and 1", traits.share))
    return replace(traits, gradient=False) if traits.control else traits


def _task(kind: TaskKind) -> Task:
    return Task(kind, ("a",) if kind == "binary" else ("a", "b", "c"))


def make_generator(image: str, seed: int) -> torch.Generator:
    """Return the source of randomness of an image, which is its own wherever it stands in a batch."""
    return torch.Generator().manual_seed(1000 * seed + int(image.removeprefix("image")))


def check_form(x_adv: object, batch: Batch, where: object) -> Tensor:
    """Return a result if it has the form of the images. Raises: ContractViolation: otherwise."""
    x = batch.x
    if not isinstance(x_adv, Tensor):
        raise ContractViolation(
            f"expected a tensor of adversarial images, got {type(x_adv).__name__} [{where}]. "
            "Return the images, not the perturbation, a tuple or an array."
        )
    for what, got, wanted, remedy in (
        ("shape", tuple(x_adv.shape), tuple(x.shape), "Keep the batch axis and every space axis."),
        ("dtype", x_adv.dtype, x.dtype, "End with `.to(batch.x.dtype)`, and project after that."),
        ("device", x_adv.device, x.device, "End with `.to(batch.x.device)`."),
    ):
        if got != wanted:
            raise ContractViolation(f"expected images of {what} {wanted}, got {got} [{where}]. {remedy}")
    return x_adv


def show(budget: Budget) -> str:
    """Return a budget for a message."""
    return f"{budget.norm} eps {budget.eps:.4g}"
