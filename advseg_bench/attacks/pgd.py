"""PGD: signed steps from a random start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from advseg_bench.attacks.ascent import ProjectedAscent


@dataclass(frozen=True, slots=True, kw_only=True)
class PGD(ProjectedAscent):
    """PGD, projected gradient descent: steps of 2.5 eps / moves from a random point of the ball.

    Settings are those of `ProjectedAscent`. By default the steps together are 2.5 eps long, so that a result can lie
    anywhere in the ball, whatever the start; with a random start, steps of eps / moves leave half of the values inside
    the ball under a constant gradient, and the attack is weaker than FGSM.

    Attributes:
        random_start: Start at a uniform sample from the ball, clipped to the bounds.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Madry et al., ICLR 2018, arXiv:1706.06083, section 2.1; one restart, returns the last iterate; the step rule is
        that of section 5.1 there, 2.5 eps / steps.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.PGD(loss="dice", steps=20)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    travel: ClassVar[float] = 2.5

    random_start: bool = True
