"""Losses that change with the step of an attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from advseg_bench.errors import SettingError, expected
from advseg_bench.losses.base import Loss
from advseg_bench.losses.decisions import decision_mean, is_correct, label_log_p
from advseg_bench.types import Task


class ScheduledLoss(ABC):
    """A loss that changes with the step; called as a loss, it is that of the first of one step.

    A step-size rule and the choice of the best iterate need a fixed objective beside it: values of two steps are values
    of two functions.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> given = torch.full((1, 1, 4, 4), -1.0), batch.y, batch.valid, batch.task
        >>> isinstance(ab.losses.segpgd, ab.losses.ScheduledLoss)
        True
        >>> [round(ab.losses.segpgd.at(step, 4)(*given).item(), 4) for step in range(4)]
        [0.0, 0.1642, 0.3283, 0.4925]
    """

    @abstractmethod
    def at(self, step: int, steps: int) -> Loss:
        """Return the loss of a step.

        Args:
            step: Number of the gradient step, from 0 to steps - 1.
            steps: Number of gradient steps of the schedule.

        Returns:
            The loss that this step follows.
        """

    def __call__(self, logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
        """Return the loss of the first of one step, (N,).

        Args:
            logits: (N, K, *S).
            y: Labels as in `Batch.y`.
            valid: bool (N, *S).
            task: Any task.

        Returns:
            One value per image.
        """
        return self.at(0, 1)(logits, y, valid, task)


def loss_at(loss: Loss, step: int, steps: int) -> Loss:
    """Return the loss that a gradient step follows: that of the schedule, or the loss itself if it has none.

    Args:
        loss: A loss; one with a method `at(step, steps)` is scheduled.
        step: Number of the gradient step, from 0 to steps - 1.
        steps: Number of gradient steps.

    Returns:
        The loss of this step.

    Example:
        >>> import advseg_bench as ab
        >>> ab.losses.loss_at(ab.losses.tsallis, 9, 10)
        TsallisCE(q=1.0)
        >>> ab.losses.loss_at(ab.losses.dice, 9, 10) is ab.losses.dice
        True
    """
    scheduled = getattr(loss, "at", None)
    return scheduled(step, steps) if callable(scheduled) else loss


@dataclass(frozen=True, slots=True)
class TwoPartCE:
    """The cross-entropy with one weight for wrong decisions and another one for correct decisions.

    L = mean of (1 - share) 1[prediction = y] (-log p_y) + share 1[prediction != y] (-log p_y) over valid decisions; the
    masks have no gradient. For binary and multilabel tasks (extension) each sigmoid channel is a two-class softmax, and
    the mean is over pixels and channels.

    Attributes:
        share: Weight of wrong decisions, from 0 (`masked_ce`) to 1; 0.5 is half the cross-entropy.

    Source:
        Gu et al., ECCV 2022, arXiv:2207.12391.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.TwoPartCE(0.25)(torch.full((1, 1, 4, 4), 1.0), batch.y, batch.valid, batch.task)
        tensor([0.2349])
    """

    share: float

    def __call__(self, logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
        """Return one value per image, (N,).

        Args:
            logits: (N, K, *S).
            y: Labels as in `Batch.y`.
            valid: bool (N, *S).
            task: Any task.

        Returns:
            Values of at least 0.
        """
        weight = torch.where(is_correct(logits, y, valid, task), 1 - self.share, self.share).to(logits.dtype)
        return decision_mean(weight * -label_log_p(logits, y, valid, task), valid)


@dataclass(frozen=True, slots=True)
class SegPGDSchedule(ScheduledLoss):
    """SegPGD's loss: from the masked cross-entropy towards half the cross-entropy.

    Step t of T, from t = 0, follows `TwoPartCE` with share t / (2T). In the numbering of the paper, from t = 1, this is
    (t - 1) / (2T).

    Source:
        Gu et al., ECCV 2022, arXiv:2207.12391.

    Example:
        >>> import advseg_bench as ab
        >>> ab.losses.segpgd.at(5, 10)
        TwoPartCE(share=0.25)
    """

    def at(self, step: int, steps: int) -> TwoPartCE:
        """Return the loss of a step, numbered from 0.

        Raises:
            SettingError: The step is not one of the steps.
        """
        check_step("segpgd", step, steps)
        return TwoPartCE(step / (2 * steps))


@dataclass(frozen=True, slots=True)
class TsallisCE:
    """The Tsallis cross-entropy, averaged over valid decisions.

    L = mean of (1 - p_y^(1 - q)) / (1 - q); q = 1 is the cross-entropy, q = 0 the expected error. Its gradient weighs a
    decision by p_y^(1 - q) (1 - p_y), which is largest at p_y = (1 - q) / (2 - q). It is computed from log p_y without
    a lower limit. For binary and multilabel tasks (extension) each sigmoid channel is a two-class softmax, and the
    mean is over pixels and channels.

    Attributes:
        q: Order, at most 1. The smaller q, the less a confidently wrong decision counts.

    Source:
        arXiv:2605.03405.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.TsallisCE(0.0)(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.5000])
    """

    q: float

    def __post_init__(self) -> None:
        """Validate q. Raises: SettingError."""
        if not -float("inf") < self.q <= 1:
            raise SettingError(expected("TsallisCE: q", "a number of at most 1", self.q, "q = 1 is cross-entropy."))

    def __call__(self, logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
        """Return one value per image, (N,).

        Args:
            logits: (N, K, *S).
            y: Labels as in `Batch.y`.
            valid: bool (N, *S).
            task: Any task.

        Returns:
            Values between 0 and 1 / (1 - q).
        """
        log_p, power = label_log_p(logits, y, valid, task), 1 - self.q
        return decision_mean(-torch.expm1(power * log_p) / power if power else -log_p, valid)


@dataclass(frozen=True, slots=True)
class TsallisSchedule(ScheduledLoss):
    """Tsallis cross-entropy whose order q grows linearly with the step: first decisions in doubt, in the end all.

    Attributes:
        first: q of the first step, at most 1.
        last: q of the last step, at most 1; a schedule of one step uses `first`.

    Source:
        arXiv:2605.03405, with q from -2 to 1.

    Example:
        >>> import advseg_bench as ab
        >>> [ab.losses.tsallis.at(step, 4).q for step in range(4)]
        [-2.0, -1.0, 0.0, 1.0]
    """

    first: float = -2.0
    last: float = 1.0

    def __post_init__(self) -> None:
        """Validate both ends. Raises: SettingError."""
        for q in (self.first, self.last):
            TsallisCE(q)

    def at(self, step: int, steps: int) -> TsallisCE:
        """Return the loss of a step, numbered from 0.

        Raises:
            SettingError: The step is not one of the steps.
        """
        check_step("tsallis", step, steps)
        if step == steps - 1 and step > 0:
            return TsallisCE(self.last)
        return TsallisCE(self.first + (self.last - self.first) * step / max(steps - 1, 1))


def check_step(loss: str, step: int, steps: int) -> None:
    """Check that a step is one of the steps. Raises: SettingError."""
    if not 0 <= step < steps:
        raise SettingError(expected(f"loss {loss}: step", f"0 to {steps - 1}", step, "Count gradient steps from 0."))


segpgd = SegPGDSchedule()
"""SegPGD's loss; step t of T, from t = 0, gives wrong decisions the weight t / (2T)."""

tsallis = TsallisSchedule()
"""Tsallis cross-entropy with q from -2 to 1 over the steps."""
