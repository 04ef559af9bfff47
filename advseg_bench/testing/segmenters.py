"""Segmenters whose strongest attack is known in closed form, to hold attacks against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advseg_bench.types import Batch


class LinearSegmenter(nn.Module):
    """Decide each pixel of a binary task by a linear function of its own channels: logit = w . x + b.

    Within an L_inf ball and a box every pixel's worst margin is reached at one point, the same for any increasing
    loss of the margin, and one signed step of full size ends there: FGSM must reach the optimum exactly.

    Args:
        weight: (C,), no entry zero.
        bias: Added to the logit.
    """

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, 1, *S)."""
        weight = self.get_buffer("weight").to(x).view(1, -1, *[1] * (x.dim() - 2))
        return (x * weight).sum(1, keepdim=True) + self.bias

    def worst_margin(self, batch: Batch, eps: float) -> Tensor:
        """Return each pixel's smallest margin (positive: still right) within L_inf `eps` and the bounds.

        Args:
            batch: Binary labels.
            eps: Radius in input units.
        Returns: float64 (N, 1, *S).
        """
        x = batch.x.double()
        side = batch.y.double() * 2 - 1
        weight = self.get_buffer("weight").to(x).view(1, -1, *[1] * (x.dim() - 2))
        worst = (x - eps * torch.sign(side * weight)).clamp(batch.bounds.lower, batch.bounds.upper)
        margin: Tensor = side * self(worst)
        return margin
