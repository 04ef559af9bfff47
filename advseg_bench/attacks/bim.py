"""BIM: small signed steps from the clean image."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.attacks.ascent import ProjectedAscent


@dataclass(frozen=True, slots=True, kw_only=True)
class BIM(ProjectedAscent):
    """BIM, the basic iterative method (I-FGSM): steps of eps / steps from the clean image.

    Settings are those of `ProjectedAscent`.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Kurakin et al., ICLR 2017 workshop, arXiv:1607.02533, section 2.2; differs in the default step size, which is
        1/255 in the paper, so that every value can reach the border of the budget.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.BIM(loss="bce", steps=5)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """
