"""Tsallis-PGD: PGD on a cross-entropy that first follows the pixels that are nearly decided."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.attacks.pgd import PGD
from advseg_bench.losses import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TsallisPGD(PGD):
    """Tsallis-PGD: PGD on L_q = (1 - p_y^(1 - q)) / (1 - q), where q increases from -2 to 1 over the steps.

    The weight of a pixel's gradient, p^(1 - q) (1 - p), is largest at p = (1 - q) / (2 - q): at 3/4 first, and at 0,
    as in cross-entropy, in the end. Settings are those of `ProjectedAscent`; the objective is the mean cross-entropy.
    Channels of binary and multilabel tasks use the probability of their label, which is exact for two classes.

    Attributes:
        loss: The loss "tsallis".

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        arXiv:2605.03405; differs in the step size, which is that of PGD.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.TsallisPGD(steps=20)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    loss: Loss | str = "tsallis"
