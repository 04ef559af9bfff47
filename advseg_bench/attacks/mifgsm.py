"""MI-FGSM: signed steps along an accumulated gradient."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.attacks.ascent import ProjectedAscent


@dataclass(frozen=True, slots=True, kw_only=True)
class MIFGSM(ProjectedAscent):
    """MI-FGSM, the momentum iterative method: gradients with L1 norm 1 are accumulated with decay 1.

    Settings are those of `ProjectedAscent`.

    Attributes:
        decay: Weight of the accumulated gradient.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Dong et al., CVPR 2018, arXiv:1710.06081, Algorithm 1; differs in the clip to the bounds.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.MIFGSM(loss="margin", steps=5)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    decay: float | None = 1.0
