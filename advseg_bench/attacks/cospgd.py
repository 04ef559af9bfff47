"""CosPGD: PGD on a cross-entropy weighted by how well each pixel's prediction points at its label."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.attacks.pgd import PGD
from advseg_bench.losses import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class CosPGD(PGD):
    """CosPGD: PGD on the cross-entropy of each pixel times the cosine of its probabilities and its label.

    The cosine is p_y / ||p||_2 and is a constant weight of the gradient. The loss "cosine" takes p from a softmax, and
    for the channels of binary and multilabel tasks from the vector (s, 1 - s) of its two outcomes, which is an
    extension. The loss "cosine_sigmoid" is the first version of the paper, with a sigmoid of each logit. Settings are
    those of `ProjectedAscent`; the objective is the mean cross-entropy.

    Attributes:
        loss: The loss "cosine", or "cosine_sigmoid".

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Agnihotri et al., ICML 2024, arXiv:2302.02213, eq. 5 and 7; differs in the step size, 0.01 at eps 8/255 there.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.CosPGD(steps=20)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    loss: Loss | str = "cosine"
