"""The base of attacks: one call that serves the harness, and, with less said, a person with a model and a batch."""

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
from advseg_bench.instruments.guard import ModelGuard, lent
from advseg_bench.protocols import Attack, Model
from advseg_bench.registry import catalogue
from advseg_bench.registry.fitting import Images, why_not
from advseg_bench.registry.loading import check_call, check_loss
from advseg_bench.types import Budget, Norm, Traits

_FAULTS = {
    "over_budget": "moved the image further than `eps`, and was brought back",
    "out_of_bounds": "left the bounds, and was brought back",
    "unchanged": "left the image as it was, which says nothing about the model",
}


class BaseAttack(ABC):
    """An attack as a class: `perturb` does the work, calling the object adds what a person leaves out.

    Example:
        >>> attack = PGD(loss="dice", steps=20)                                        # doctest: +SKIP
        >>> x_adv = attack(model, Batch.of(x, y, task="multilabel"), eps=4 / 255)      # doctest: +SKIP
    """

    __slots__ = ()

    @property
    def traits(self) -> Traits:
        """What the attack can do and costs."""
        return Traits()

    @abstractmethod
    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images; shape and dtype of `batch.x`. Arguments are as `protocols.Attack` documents."""

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why it cannot be given a batch and a budget, or None."""
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
    ) -> Tensor:
        """Attack a batch.

        With budget and generators, as the harness calls it, this is `perturb` and nothing else. Without generators it
        is the whole of what a run does to one batch: the batch and the model's logits are checked, the model is lent in
        eval mode, frozen, and put back as it was, and the result is inspected and kept inside bounds and budget.

        Args:
            model: Any `torch.nn.Module`, or other callable, from images (N, C, *S) to logits (N, K, *S).
            batch: Images and labels, see `Batch.of`.
            budget: Norm and radius, in input units; or
            eps: the radius alone, 4/255 and not 4, with
            norm: "linf" or "l2".
            generators: One source of randomness per image; by default each is seeded from `seed` and the image's name,
                so that an image's result does not depend on its neighbours.
            seed: Of these generators.

        Returns:
            Adversarial images; shape, dtype and device of `batch.x`.

        Cost:
            That of the attack; without generators, two forwards of two images and a copy of the weights besides.

        Raises:
            UserError: One line: no or two radii, a batch or logits of the wrong form, probabilities instead of logits,
                an attack or a loss that does not fit the task.
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
        return attack_batch(self, model, batch, budget, image_generators(seed, "", batch.images))


def without_cost(traits: Traits) -> Traits:
    """Return traits that say nothing of the cost: for a subclass whose passes nobody has stated."""
    return replace(traits, forwards=None, backwards=None)


def why_unfit(name: str, traits: Traits, batch: Batch, budget: Budget) -> str | None:
    """Return the reason why an attack of some traits cannot be given a batch and a budget, or None."""
    if budget.norm not in traits.norms:
        return f"attack {name!r} knows {' and '.join(traits.norms)} budgets, not {budget.norm}"
    return why_not(name, traits, Images(batch.task.kind, batch.x.dim() - 2, batch.x.shape[1]))


def image_generators(seed: int, cell: str, images: Sequence[str]) -> list[torch.Generator]:
    """Return one generator per image, seeded by a seed, a cell's id and the image's name, and by nothing else."""
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
) -> Tensor:
    """Attack one batch outside a run, with a run's checks.

    Args:
        attack: Any attack.
        model: Images -> logits.
        batch: Images and labels.
        budget: Norm and radius.
        generators: One per image.
        name: What messages call the attack, if not by its own name.
        check_model: Look first whether the model yields logits for the task, which costs two forwards of two images.

    Returns:
        Adversarial images, detached, inside bounds and budget.

    Raises:
        UserError: One line about the batch, the model, the attack or its result.

    Warns: UserWarning: one line about what the attack did to the model or returned against the rules.
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
            probe("model", reader, ours.x[:2], batch.task)
            reader.announce()
            model = reader.simplest()
        guard = ModelGuard(model) if isinstance(model, nn.Module) else None
        try:
            result = attack(model, copy_batch(ours), budget=budget, generators=generators)
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
    faults = ["changed the model, which was put back"] if changed else []
    faults += [text for name, text in _FAULTS.items() if any(name in flags for flags in checked.flags)]
    if faults:
        warnings.warn(f"attack {name}: {'; '.join(faults)}.", stacklevel=3)
    return checked.x_adv


def check_fit(attack: Attack, batch: Batch, budget: Budget, name: str) -> None:
    """Refuse an attack that cannot be called, does not fit a batch, or follows what is no loss for its task.

    Raises:
        UserError: One line with the reason.
    """
    unfit = attack.why_not(batch, budget) if isinstance(attack, BaseAttack) else None
    if unfit := unfit or why_unfit(name, traits_of(attack), batch, budget):
        raise IncompatibleError(f"{unfit}.")
    check_call(name, attack)
    loss = getattr(attack, "loss", None)
    if callable(loss) and name_loss(loss) not in catalogue.LOSSES:
        with torch.inference_mode(False), torch.enable_grad():  # a loss is looked at by its gradient
            check_loss(loss, batch.task, name_loss(loss))


class FunctionModel(nn.Module):
    """A callable that is no module, as one."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.run = model

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        return self.run(x)
