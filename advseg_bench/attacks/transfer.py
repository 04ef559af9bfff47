"""Transfer: adversarial images that are made for another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from advseg_bench.attacks.apgd import APGD
from advseg_bench.attacks.base import BaseAttack, cost_if_same
from advseg_bench.attacks.objective import find_loss, why_loss_unfit
from advseg_bench.attacks.stepping import SteppedAttack, Steps
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError, SettingError, expected
from advseg_bench.instruments.guard import lent
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.registry.ascents import TRANSFER_STEPS, transfer_traits
from advseg_bench.types import Budget, Traits


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(SteppedAttack):
    """Transfer: the adversarial images that APGD makes for another model, the source.

    The attacked model is never asked. x_adv is the result of `APGD` on the source, from the clean image, with the
    settings below; it keeps each image's iterate with the lowest hard Dice of the source. A transfer attack that does
    more damage than white-box attacks on an image is a sign of masked gradients.

    Attributes:
        source: The other model: a module or a function from images to logits. In a suite the name of another model of
            the suite, which the harness loads and passes to `bind`.
        loss: The loss that is followed on the source: a name or a function, see `advseg_bench.losses`.
        steps: Number of gradient steps.
        keep: "best" returns the iterate of each image with the largest value of `keep_by`; "last" the last one.
        objective: What judges the steps, as in `APGD`.
        keep_by: What the kept iterate maximises, as in `APGD`.

    Cost:
        `steps` + 1 forwards and `steps` backwards, all of the source.

    Source:
        Szegedy et al., ICLR 2014, arXiv:1312.6199, for the transfer between networks; Croce and Hein, ICML 2020,
        arXiv:2003.01690, for the attack on the source.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> source = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> attacked = ab.testing.LinearSegmenter(torch.tensor([3.0]), -1.6)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.Transfer(source=source, loss="present_dice")(attacked, batch, eps=0.125)
        >>> clean, moved = attacked.accuracy(x, batch), attacked.accuracy(x_adv, batch)
        >>> bool(moved < clean)
        True
    """

    source: Model | str
    loss: Loss | str
    steps: int = TRANSFER_STEPS
    keep: Literal["last", "best"] = "best"
    objective: Loss | str = "present_dice"
    keep_by: Loss | str = "hard_dice"

    def __post_init__(self) -> None:
        """Resolve the name of the loss and validate the settings."""
        if not (isinstance(self.source, str) and self.source) and (
            not callable(self.source) or isinstance(self.source, type)
        ):
            raise SettingError(expected("source", "another model: in a suite its name, else a module", self.source))
        object.__setattr__(self, "loss", find_loss(self.loss))
        self.inner()

    def inner(self) -> APGD:
        """Return the attack on the source."""
        return APGD(loss=self.loss, steps=self.steps, keep=self.keep, objective=self.objective, keep_by=self.keep_by)

    def bind(self, source: Model) -> Transfer:
        """Return the attack with a model in place of its name.

        Args:
            source: Images (N, C, *S) -> logits (N, K, *S).

        Returns:
            The attack; its settings are the same.
        """
        return replace(self, source=source)

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue for these settings; without a cost for a subclass with a loop of its own."""
        traits = transfer_traits({"steps": self.steps, "keep": self.keep})
        return cost_if_same(traits, self, Transfer, "perturb", "begin", "inner")

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or BaseAttack.why_not(self, batch, budget)

    def begin(self, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Steps:
        """Start the attack: the queries of APGD, each to the source, see `SteppedAttack.begin`."""
        source = self.source
        if isinstance(source, str):
            what = "a module as `source`"
            remedy = "A name stands for a model of the same suite or call of `evaluate`."
            raise IncompatibleError(expected("attack transfer", what, source, remedy))
        steps = self.inner().begin(batch, budget=budget, generators=generators)
        with lent(source):
            try:
                query = next(steps)
                while True:
                    query = steps.send((yield replace(query, model=source)))
            except StopIteration as end:
                x_adv: torch.Tensor = end.value
                return x_adv
