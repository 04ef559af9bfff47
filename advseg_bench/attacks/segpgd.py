"""SegPGD: PGD on a cross-entropy that turns from the correct pixels to all of them."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.attacks.pgd import PGD
from advseg_bench.losses import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class SegPGD(PGD):
    """SegPGD: PGD on (1 - l_t) CE of the correct pixels + l_t CE of the wrong ones, with l_t = t / (2 T).

    Step t runs from 0 to T - 1, so the first gradient is that of the correct pixels alone. Settings are those of
    `ProjectedAscent`; the objective is the mean cross-entropy. For binary and multilabel tasks every channel is a
    decision of two classes and is correct or wrong by itself: an extension, since the paper treats softmax only.

    Attributes:
        loss: The loss "segpgd".

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Gu et al., ECCV 2022, arXiv:2207.12391, Algorithm 1; differs in the step size, 0.01 at eps 8/255 there. Papers
        and code disagree on whether t runs from 0 or from 1, see the conventions in the documentation.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.SegPGD(steps=20)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    loss: Loss | str = "segpgd"
