"""The base class of attacks: one call for the harness, and, with defaults, for a user with a model and a batch."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from advseg_bench.arguments import make_budget
from advseg_bench.attacks.objective import name_loss
from advseg_bench.batches import Batch, check_batch, copy_batch
from advseg_bench.checks.logits import probe
from advseg_bench.checks.outputs import read_model
from advseg_bench.checks.results import check_form, inspect, name_of, traits_of
from advseg_bench.errors import IncompatibleError, SpecError, UserError, expected, one_line
from advseg_bench.instruments.counter import Counter
from advseg_bench.instruments.guard import ModelGuard, lent
from advseg_bench.protocols import Attack, Model, NeedsModel
from advseg_bench.registry import catalogue
from advseg_bench.registry.fitting import Images, why_not
from advseg_bench.registry.loading import check_call, check_loss
from advseg_bench.types import Budget, Norm, Task, Traits

_FAULTS = {
    "over_budget": "moved the image further than `eps` (projected back)",
    "out_of_bounds": "left the bounds (clipped)",
    "unchanged": "returned the clean image, which is no evidence of robustness",
}


class BaseAttack(ABC):
    """Base class of attacks: a subclass implements `perturb`; calling the object adds defaults and checks.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> class Brighten(ab.attacks.BaseAttack):
        ...     def perturb(self, model, batch, *, budget, generators):
        ...         return (batch.x + budget.eps).clamp(batch.bounds.lower, batch.bounds.upper)
        >>> x = torch.full((1, 1, 4, 4), 0.5)
        >>> batch = ab.Batch.of(x, x > 0.25, task="binary")
        >>> Brighten()(lambda x: 4 * x - 2, batch, eps=0.125).unique()
        tensor([0.6250])
    """

    __slots__ = ()

    @property
    def traits(self) -> Traits:
        """What the attack supports and costs."""
        return Traits()

    @abstractmethod
    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images; the method that a subclass implements.

        Args:
            model: Images (N, C, *S) -> logits (N, K, *S).
            batch: Images and labels; must not be modified.
            budget: Norm and radius.
            generators: One random generator per image.

        Returns:
            Images (N, C, *S) with the dtype and device of `batch.x`, inside bounds and budget.
        """

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Check whether the attack supports a batch and a budget.

        Args:
            batch: Images and labels.
            budget: Norm and radius.

        Returns:
            The reason why it does not, or None.
        """
        return why_unfit(name_of(self), self.traits, batch, budget)

    def __call__(
        self,
        model: Model,
        batch: Batch,
        *,
        budget: Budget | None = None,
        generators: Sequence[torch.Generator] | None = None,
        eps: float | None = None,
        norm: Norm = "linf",
        seed: int = 0,
        stochastic: bool = False,
    ) -> Tensor:
        """Attack a batch.

        With `budget` and `generators`, as in the harness, this calls `perturb` and nothing else. Without `generators`
        it does what a run does for one batch: it checks the batch and the model's logits, switches the model to eval
        mode with frozen parameters, restores the model afterwards, inspects the result and projects it onto bounds and
        budget.

        Args:
            model: A `torch.nn.Module` or another callable, images (N, C, *S) -> logits (N, K, *S).
            batch: Images and labels, see `Batch.of`.
            budget: Norm and radius in input units; an alternative to `eps` and `norm`.
            generators: One random generator per image; by default seeded with `seed` and the image's name, so that the
                result of an image does not depend on the other images.
            eps: Radius in input units: 4/255, not 4.
            norm: Norm of the radius: "linf" or "l2".
            seed: Seed of the default generators.
            stochastic: Whether the model is known to be random in eval mode; another model must be a function of its
                image.

        Returns:
            Adversarial images (N, C, *S) with the dtype and device of `batch.x`.

        Raises:
            UserError: The radius is missing or given twice, the batch or the logits have the wrong form, the model
                returns probabilities or is random, or the attack or its loss does not support the task.

        Cost:
            The cost of the attack; without `generators`, additionally 3 forwards of two images and a copy of the
            weights.
        """
        if not isinstance(batch, Batch):
            remedy = "Make one of images and labels: ab.Batch.of(x, y, task=...)."
            raise SpecError(expected(f"attack {name_of(self)}", "an ab.Batch", type(batch).__name__, remedy))
        if budget is None:
            if eps is None:
                raise SpecError(f"attack {name_of(self)}: expected a radius, got none. Give `eps`, such as 4/255.")
            budget = make_budget(f"attack {name_of(self)}", norm, eps, batch.bounds)
        elif eps is not None:
            raise SpecError(f"attack {name_of(self)}: expected `budget` or `eps`, got both. Remove one.")
        elif not isinstance(budget, Budget):
            raise SpecError(expected(f"attack {name_of(self)}", "an ab.Budget as `budget`", budget, "Or give `eps`."))
        if generators is not None:
            return self.perturb(model, batch, budget=budget, generators=generators)
        drawn = image_generators(seed, "", batch.images)
        return attack_batch(self, model, batch, budget, drawn, stochastic=stochastic)


def without_cost(traits: Traits) -> Traits:
    """Return traits without a declared cost, for a subclass whose number of passes is unknown."""
    return replace(traits, forwards=None, backwards=None)


def cost_if_same(traits: Traits, attack: Attack, known: type, *methods: str) -> Traits:
    """Return traits, without a declared cost if the class of an attack overrides a method of a known class."""
    same = all(getattr(type(attack), method) is getattr(known, method) for method in methods)
    return traits if same else without_cost(traits)


def why_unfit(name: str, traits: Traits, batch: Batch, budget: Budget) -> str | None:
    """Return the reason why an attack with given traits does not support a batch and a budget, or None."""
    if budget.norm not in traits.norms:
        return f"attack {name!r} supports {' and '.join(traits.norms)} budgets, not {budget.norm}"
    return why_not(name, traits, Images(batch.task.kind, batch.x.dim() - 2, batch.x.shape[1]))


def image_generators(seed: int, cell: str, images: Sequence[str]) -> list[torch.Generator]:
    """Return one random generator per image, which depends only on the seed, the cell and the image's name.

    Args:
        seed: Seed of the suite.
        cell: Id of the cell, or "".
        images: N names of images.

    Returns:
        N generators on the CPU.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> first, second = ab.attacks.image_generators(0, "", ["image0", "image1"])
        >>> (again,) = ab.attacks.image_generators(0, "", ["image1"])
        >>> torch.equal(torch.rand(3, generator=second), torch.rand(3, generator=again))
        True
    """
    keys = (hashlib.sha256(f"{seed}/{cell}/{image}".encode()).digest()[:8] for image in images)
    return [torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1) for key in keys]


def attack_batch(
    attack: Attack,
    model: Model,
    batch: Batch,
    budget: Budget,
    generators: Sequence[torch.Generator],
    *,
    name: str = "",
    check_model: bool = True,
    stochastic: bool = False,
) -> Tensor:
    """Attack one batch outside a run, with the checks of a run.

    Args:
        attack: Any attack.
        model: Images -> logits.
        batch: Images and labels.
        budget: Norm and radius.
        generators: One per image.
        name: Name of the attack in messages; by default its own name.
        check_model: Whether to check first that the model returns logits for the task, which depend on the image alone.
        stochastic: Whether logits may depend on random numbers.

    Returns:
        Adversarial images, detached, inside bounds and budget.

    Raises:
        UserError: The batch, the model, the attack or its result is invalid.

    Warns:
        UserWarning: The attack changed the model, or its result violated bounds or budget.

    Cost:
        The cost of the attack; with `check_model`, additionally 3 forwards of two images.
    """
    name = name or name_of(attack)
    check_batch(batch, "batch")
    make_budget("budget", budget.norm, budget.eps, batch.bounds)
    check_fit(attack, batch, budget, name)
    if not callable(model) or isinstance(model, type):
        raise SpecError(expected("model", "a network from images to logits", model))
    with torch.inference_mode(False), torch.enable_grad(), lent(model):
        ours = copy_batch(batch)
        if check_model:
            reader = read_model("model", model)
            probe("model", reader, ours.x[:2], batch.task, function=not stochastic)
            reader.announce()
            model = reader.simplest()
            attack = read_source(attack, ours.x[:2], batch.task, name)
        guard = ModelGuard(model, ours.x[:1]) if isinstance(model, nn.Module) else None
        counter = Counter(model)
        try:
            with counter.count(len(ours.x)) as tally:
                result = attack(counter.model, copy_batch(ours), budget=budget, generators=generators)
        except UserError:
            raise
        except Exception as error:
            shape = tuple(batch.x.shape[1:])
            raise IncompatibleError(f"attack {name}: fails on an image of {shape}: {one_line(error)}.") from error
        finally:
            changed = guard is not None and guard.restore()
        checked = inspect(check_form(result, ours, name), ours, budget, traits_of(attack))
    if any("non_finite" in flags for flags in checked.flags):
        raise IncompatibleError(f"attack {name}: expected finite intensities, got NaN or infinity.")
    faults = ["changed the model (restored)"] if changed else []
    faults += ["met gradients with NaN or infinity, so its result is no measurement"] if tally.find_non_finite() else []
    faults += [text for name, text in _FAULTS.items() if any(name in flags for flags in checked.flags)]
    if faults:
        warnings.warn(f"attack {name}: {'; '.join(faults)}.", stacklevel=3)
    return checked.x_adv


def read_source(attack: Attack, x: Tensor, task: Task, name: str) -> Attack:
    """Check the model that a transfer attack asks as the attacked model is checked, and read its outputs.

    Args:
        attack: Any attack; one that asks no other model is returned unchanged.
        x: Images, float32 (N, C, *S).
        task: The task.
        name: Name of the attack in messages.

    Returns:
        The attack.

    Raises:
        UserError: The source does not return logits for the task, or they depend on more than the image.
    """
    if not isinstance(attack, NeedsModel) or isinstance(attack.source, str):
        return attack
    reader = read_model(f"attack {name}, source", attack.source)
    with lent(attack.source):
        probe(f"attack {name}, source", reader, x, task)
    reader.announce()
    return attack.bind(reader.simplest())


def check_fit(attack: Attack, batch: Batch, budget: Budget, name: str) -> None:
    """Refuse an attack that is not callable, does not support a batch, or has an invalid loss for its task.

    Raises:
        UserError: The reason.
    """
    unfit = attack.why_not(batch, budget) if isinstance(attack, BaseAttack) else None
    if unfit := unfit or why_unfit(name, traits_of(attack), batch, budget):
        raise IncompatibleError(f"{unfit}.")
    check_call(name, attack)
    loss = getattr(attack, "loss", None)
    if callable(loss) and name_loss(loss) not in catalogue.LOSSES:
        with torch.inference_mode(False), torch.enable_grad():  # the check of a loss computes its gradient
            check_loss(loss, batch.task, name_loss(loss))


class FunctionModel(nn.Module):
    """Wraps a callable as a module."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.run = model

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        return self.run(x)
