"""APGD of the package `adv-lib` through the image-level loss view, for cross-validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from adv_lib.attacks import auto_pgd
from torch import Tensor, nn

from advseg_adapters.foreign import ForeignAttack, Route
from advseg_bench.batches import Batch
from advseg_bench.errors import SettingError, expected
from advseg_bench.geometry import project
from advseg_bench.protocols import Model
from advseg_bench.types import Budget

__all__ = ["APGD"]

ROUTE = Route(norms=("linf", "l2"), random=True)
"""It follows the loss of the view."""


@dataclass(frozen=True, kw_only=True)
class APGD(ForeignAttack):
    """APGD of adv-lib on a view of one image.

    By its default it returns the last iterate that its classifier gets wrong, which in a loss view is every iterate. So
    it returns the last one. With `best_loss` it returns the one of the largest loss, but takes 100 steps.

    Attributes:
        steps: Number of gradient steps.
        best_loss: Whether to return the iterate of the largest loss; requires 100 steps.

    Cost:
        `steps` + 1 forwards, `steps` + 1 backwards.

    Source:
        Croce and Hein, ICML 2020, arXiv:2003.01690, as implemented in adv-lib.
    """

    unit: ClassVar[bool] = True

    name: str = "adv_lib.APGD"
    route: Route = ROUTE
    steps: int = 100
    best_loss: bool = False

    def __post_init__(self) -> None:
        """Validate the settings."""
        ForeignAttack.__post_init__(self)
        if self.best_loss and self.steps != 100:
            remedy = "adv-lib passes no other number on."
            raise SettingError(expected("steps", "100 with best_loss", self.steps, remedy))

    def attack(self, target: Model, batch: Batch, budget: Budget) -> Tensor:
        """Run the attack on images of the view; see `ForeignAttack.attack`."""
        assert isinstance(target, nn.Module), "a view is a module"
        labels = torch.zeros(len(batch.x), dtype=torch.int64)
        norm = math.inf if budget.norm == "linf" else 2
        options = {"n_iter": self.steps, "loss_function": "ce", "best_loss": self.best_loss}
        found = auto_pgd.apgd(target, batch.x, labels, budget.eps, norm, **options)
        return project(found, batch.x, budget, batch.bounds)
