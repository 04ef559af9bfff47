"""NI-FGSM: MI-FGSM that asks for gradients one momentum step ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.errors import SettingError
from advseg_bench.types import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class NIFGSM(ProjectedAscent):
    """NI-FGSM, the Nesterov iterative method: MI-FGSM with gradients at x_t + step_size * eps * decay * m_t.

    Settings are those of `ProjectedAscent` with `keep` "last": the points at which gradients are asked for are no
    iterates, and may lie outside of budget and bounds.

    Attributes:
        decay: Weight of the accumulated gradient.
        momentum_norm: Normalisation of a gradient before it is accumulated. "mean" is that of the released code; with
            "l1", which is that of the paper, the points ahead are almost the iterates.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Lin et al., ICLR 2020, arXiv:1908.06281, Algorithm 1 without scale invariance; differs in the clip to the
        bounds and in the normalisation.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.NIFGSM(loss="bce", steps=5)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    decay: float | None = 1.0
    momentum_norm: Literal["l1", "l2", "mean", "sign", "none"] = "mean"

    def __post_init__(self) -> None:
        """Validate the settings."""
        ProjectedAscent.__post_init__(self)
        if self.keep != "last":
            raise SettingError("keep: expected 'last' for nifgsm, whose gradients are not asked for at its iterates.")

    def look_from(self, x_adv: Tensor, memory: Tensor | None, budget: Budget) -> Tensor:
        """Return the point ahead, (N, C, *S)."""
        if memory is None or self.decay is None:
            return x_adv
        return x_adv + budget.eps * self.share * self.decay * memory
