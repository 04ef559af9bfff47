"""Properties of a network that may correlate with attack success: floating-point operations and receptive field."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from advseg_bench.attacks.gradient import input_gradients
from advseg_bench.protocols import Model

SHARE = 0.95
"""Share of the gradient that an effective receptive field contains."""


def count_flops(model: Model, x: Tensor) -> int:
    """Count the floating-point operations of the forward pass of one image: two for each multiply-add.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S); the first is used.

    Returns:
        The number of operations of convolutions and matrix products, which are nearly all.

    Cost:
        1 forward of one image.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:1])
    return int(counter.get_total_flops())


def measure_receptive_field(model: Model, x: Tensor, batch: int | None = None) -> float:
    """Measure the effective receptive field of the central pixel, which is smaller than the theoretical one.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S).
        batch: Images per pass; all by default.

    Returns:
        Edge length in pixels of the square around the centre that holds 95 % of the absolute gradient of the central
        pixel's logits, the median over images; 0 if there is no gradient.

    Cost:
        1 forward, 1 backward of each image.

    Source:
        Luo et al., NeurIPS 2016, arXiv:1701.04128; they use twice the standard deviation of a Gaussian fit.
    """
    centre = [size // 2 for size in x.shape[2:]]
    middle = int(np.ravel_multi_index(centre, x.shape[2:]))
    axes = [torch.arange(size, device=x.device) - c for size, c in zip(x.shape[2:], centre, strict=True)]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).abs().amax(0).flatten()
    within = torch.zeros((len(x), int(radius.max()) + 1), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), batch or len(x)):
        some = slice(start, start + (batch or len(x)))
        _, (gradient,) = input_gradients(model, x[some], [lambda logits: logits.flatten(2)[..., middle].sum(1)])
        within[some].index_add_(1, radius, gradient.abs().double().sum(1).flatten(1))
    grown = within.cumsum(1)
    smallest = (grown < SHARE * grown[:, -1:]).sum(1)
    edges = torch.where(grown[:, -1] > 0, 2 * smallest + 1, 0)
    return float(edges.double().quantile(0.5))
