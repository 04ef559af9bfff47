"""An attack under test: its declared traits, and how to build and run it in isolation."""

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
from advseg_bench.errors import PluginError, SpecError, UserError, expected, one_line
from advseg_bench.instruments.process_state import seed_globals
from advseg_bench.protocols import Attack
from advseg_bench.registry import catalogue
from advseg_bench.registry.environment import describe_device
from advseg_bench.registry.loading import load_attack, load_loss
from advseg_bench.testing.process import isolated
from advseg_bench.testing.violations import ContractViolation
from advseg_bench.types import Budget, Task, TaskKind, Traits

USUAL_LOSS: dict[TaskKind, str] = {"binary": "bce", "multilabel": "bce", "multiclass": "ce"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An attack under test; `find_case` makes one.

    Attributes:
        name: Name of the attack in messages.
        traits: The declared traits, which the rules verify.
        attacks: The attack for each supported task type.
        losses: Name of the loss of each attack; "" if it has a built-in loss or none.
        left_out: For each task type that is not tested, the reason.
        device: Device of images and models.

    Example:
        >>> import advseg_bench as ab
        >>> case = ab.testing.find_case("fgsm", loss="bce")
        >>> case.kinds, case.losses["binary"]
        (('binary', 'multilabel'), 'bce')
    """

    name: str
    traits: Traits
    attacks: Mapping[TaskKind, Attack]
    losses: Mapping[TaskKind, str]
    left_out: Mapping[TaskKind, str]
    device: str = "cpu"

    @property
    def kinds(self) -> tuple[TaskKind, ...]:
        """The task types that are tested."""
        return tuple(self.attacks)

    def run(
        self, model: nn.Module, batch: Batch, budget: Budget, where: object, *, seed: int = 0, elsewhere: int = 0
    ) -> Tensor:
        """Run the attack on a copy of a batch, with one generator per image name, and restore the global state.

        Args:
            model: Images (N, C, *S) -> logits (N, K, *S); passed as it is.
            batch: Images and labels; the attack gets a copy.
            budget: Norm and radius.
            where: Description of the test for messages.
            seed: Seed of the images' generators.
            elsewhere: Seed of the global generators, which must not influence the result.

        Returns:
            Adversarial images (N, C, *S), detached.

        Raises:
            ContractViolation: The attack raises, or does not return a tensor like `batch.x`.

        Cost:
            The cost of the attack.
        """
        with isolated():
            seed_globals(elsewhere)
            x_adv = self.call(model, copy_batch(batch), budget, where, seed=seed)
        return check_form(x_adv, batch, where).detach()

    def call(self, model: nn.Module, batch: Batch, budget: Budget, where: object, *, seed: int = 0) -> object:
        """Run the attack without copies or isolation, for rules that check side effects; other rules use `run`.

        Args:
            model: Images (N, C, *S) -> logits (N, K, *S).
            batch: Images and labels.
            budget: Norm and radius.
            where: Description of the test for messages.
            seed: Seed of the images' generators.

        Returns:
            The return value of the attack.

        Raises:
            ContractViolation: The attack raises.
        """
        generators = [make_generator(image, seed) for image in batch.images]
        try:
            return self.attacks[batch.task.kind](model, batch, budget=budget, generators=generators)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and its like
            raise ContractViolation(f"raised {one_line(error)} [{where}, {show(budget)}]") from error


def find_case(
    attack: object,
    *,
    loss: str | None = None,
    settings: Mapping[str, Any] | None = None,
    traits: Traits | None = None,
    device: str = "cpu",
) -> Case:
    """Prepare an attack for the contract.

    Args:
        attack: An attack; a function decorated with `advseg_bench.attack`; a class, built with `settings` and, if it
            has such a parameter, a loss; or a name: in the catalogue, of an entry point, of a toolkit's attack, or
            "package.module:object".
        loss: Name of the loss; by default "bce", and "ce" for multiclass tasks.
        settings: Constructor arguments.
        traits: Replaces the traits that the attack declares.
        device: Device of images and models.

    Returns:
        The attack under test.

    Raises:
        UserError: The attack cannot be built, or no task type is left to test.

    Example:
        >>> import advseg_bench as ab
        >>> case = ab.testing.find_case("pgd", settings={"steps": 5})
        >>> case.name, case.traits.backwards
        ('pgd', 5)
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
        if (reason := _built_in_loss_unfit(built, kind)) is not None:
            left_out[kind] = reason
        elif kind not in wanted.kinds:
            left_out[kind] = "not claimed"
        else:
            attacks[kind], used[kind] = built, used_loss
    if wanted is None or not attacks:
        raise SpecError(f"attack {name}: expected a task type to test it on, got none: {json.dumps(left_out)}.")
    return Case(
        name=name, traits=_sort_out(wanted, name), attacks=attacks, losses=used, left_out=left_out, device=device
    )


Builder = Callable[[TaskKind], tuple[Attack, str]]


def _builder(attack: object, settings: dict[str, Any], loss: str | None) -> tuple[Builder, str]:
    """Return a builder of the attack for a task type, and its name."""
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
        raise SpecError(f"attack {name}: expected no settings and no loss for an instance, got some. Pass its class.")
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
    """Build through the registry. A plug-in that cannot be built without a loss gets the default one."""
    entry = catalogue.ATTACKS.get(name)

    def load(kind: TaskKind, used: str) -> tuple[Attack, str]:
        try:
            return load_attack(name, settings, used, _task(kind)), used
        except UserError:
            raise
        except Exception as error:
            remedy = "Correct its constructor."
            raise PluginError(f"attack {name}: cannot be created: {one_line(error)}. {remedy}") from error

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
    """Return the reason why a named loss does not support a task type, or None."""
    entry = catalogue.LOSSES.get(loss or "")
    if entry is None or kind in entry.kinds:
        return None
    return f"loss {loss} is defined for {' and '.join(entry.kinds)} tasks"


def _built_in_loss_unfit(attack: Attack, kind: TaskKind) -> str | None:
    """Return the reason why the built-in loss of an attack does not support a task type, or None."""
    loss = getattr(attack, "loss", None)
    return None if loss is None else _unfit(kind, name_loss(loss))


def _sort_out(traits: Traits, name: str) -> Traits:
    """Validate the declared traits; a noise baseline is not a gradient attack."""
    if not traits.norms or not traits.kinds or not traits.dims:
        raise SpecError(
            f"attack {name}: expected at least one each of `norms`, `kinds` and `dims` in its traits, got {traits}."
        )
    if traits.share is not None and not 0 < traits.share <= 1:
        raise SpecError(expected(f"attack {name}", "a `share` between 0 and 1", traits.share))
    return replace(traits, gradient=False) if traits.control else traits


def _task(kind: TaskKind) -> Task:
    return Task(kind, ("a",) if kind == "binary" else ("a", "b", "c"))


def make_generator(image: str, seed: int) -> torch.Generator:
    """Return the random generator of an image, which does not depend on its position in a batch."""
    return torch.Generator().manual_seed(1000 * seed + int(image.removeprefix("image")))


def check_form(x_adv: object, batch: Batch, where: object) -> Tensor:
    """Check that a result has the shape, dtype and device of the images.

    Args:
        x_adv: The return value of an attack.
        batch: The batch it attacked.
        where: Description of the test for messages.

    Returns:
        The result.

    Raises:
        ContractViolation: It is not a tensor, or has another shape, dtype or device.
    """
    x = batch.x
    if not isinstance(x_adv, Tensor):
        raise ContractViolation(
            f"expected a tensor of adversarial images, got {type(x_adv).__name__} [{where}]. "
            "Return the images, not the perturbation, a tuple or an array."
        )
    for what, got, wanted, remedy in (
        ("shape", tuple(x_adv.shape), tuple(x.shape), "Keep the batch axis and all spatial axes."),
        ("dtype", x_adv.dtype, x.dtype, "End with `.to(batch.x.dtype)`, and project after that."),
        ("device", x_adv.device, x.device, "End with `.to(batch.x.device)`."),
    ):
        if got != wanted:
            raise ContractViolation(f"expected images of {what} {wanted}, got {got} [{where}]. {remedy}")
    return x_adv


def show(budget: Budget) -> str:
    """Format a budget for a message."""
    return f"{budget.norm} eps {budget.eps:.4g}"
