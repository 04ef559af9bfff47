"""Norms, projections and random starts, for images with any number of space axes.

Every function works image by image: what happens to one image never depends on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advseg_bench.types import Bounds, Budget, Norm


def distance(x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Measure how far each image moved, in float64.

    Args:
        x: Images (N, C, *S).
        y: Images of the same shape.
        norm: "linf" or "l2".

    Returns:
        float64 (N,), in input units; for "l2" over all values of an image.
    """
    moved = (x.double() - y.double()).flatten(1)
    return moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)


def align(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value per image, (N,), as (N, 1, ..., 1), so that it broadcasts with images `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


class Moves(NamedTuple):
    """How far each image of a batch was moved, float64 (N,).

    Attributes:
        linf: As `distance`.
        l2: As `distance`.
        unmoved: The share of its values that stayed as they were.
    """

    linf: Tensor
    l2: Tensor
    unmoved: Tensor


def measure_moves(x: Tensor, y: Tensor) -> Moves:
    """Measure how far each image moved, in every way that is written down; x and y are as `distance` takes them."""
    moved = (x.double() - y.double()).flatten(1)
    low, high = moved.aminmax(dim=1)
    stayed = (moved == 0).view(torch.int8).sum(1, dtype=torch.int64).double() / moved.shape[1]
    return Moves(torch.maximum(low.abs(), high.abs()), moved.norm(dim=1), stayed)


def project(x_adv: Tensor, x: Tensor, budget: Budget, bounds: Bounds) -> Tensor:
    """Bring images back into the budget around `x` and into the bounds: the nearest such point for "linf".

    For "l2" the perturbation is scaled and then clipped; since `x` is inside the bounds, clipping only shortens it.

    Args:
        x_adv: Images (N, C, *S).
        x: Clean images, inside the bounds.
        budget: Norm and radius.
        bounds: Allowed intensities.

    Returns:
        Images like `x`; equal to `x_adv` bit for bit where that was allowed already.
    """
    if budget.norm == "linf":
        inside = torch.minimum(torch.maximum(x_adv, x - budget.eps), x + budget.eps)
    else:
        length = distance(x_adv, x, "l2").clamp(min=torch.finfo(torch.float64).tiny)
        factor = align((budget.eps / length).clamp(max=1.0), x)
        inside = torch.where(factor < 1, (x + (x_adv - x) * factor).to(x.dtype), x_adv)
    return inside.clamp(bounds.lower, bounds.upper)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return each image's direction of steepest ascent within the unit ball of a norm.

    Args:
        gradient: (N, C, *S).
        norm: "linf": the sign, where sign(0) = 0. "l2": the gradient over its length; zero stays zero.

    Returns:
        Tensor like `gradient`.
    """
    if norm == "linf":
        return gradient.sign()
    # Dividing by the largest value first keeps a gradient of 1e-30 from vanishing when it is squared.
    largest = align(gradient.flatten(1).abs().amax(1), gradient)
    scaled = torch.where(largest > 0, gradient / largest, gradient)
    length = align(scaled.double().flatten(1).norm(dim=1), gradient)
    return torch.where(length > 0, scaled / length, scaled).to(gradient.dtype)


def blend_share(x: Tensor, direction: Tensor, reference: Tensor) -> Tensor:
    """Return how far to blend each image into its sign pattern for the same largest change as another image has.

    A blend is clip((1 - e) * x + e * direction, 0, 1). A value changes by e * |direction - x|, but by no more than x
    where it is pushed down. So the smallest e is the wanted change over the largest |direction - x| of the values
    that can change so much, and no other value then changes more.

    Args:
        x: Images (N, C, *S) between 0 and 1.
        direction: -1, 0 or 1 for each value.
        reference: clip(x + eps * direction): the images whose largest change is wanted.

    Returns:
        e, float64 (N, 1, ...), between 0 and 1; 0 where nothing changes.
    """
    clean, towards = x.double(), direction.double()
    wanted = align(distance(reference, x, "linf"), x)
    room = torch.where(towards < 0, clean, 1.0)
    reach = torch.where(room >= wanted, (towards - clean).abs(), 0.0).flatten(1).amax(1).view_as(wanted)
    return torch.where(wanted > 0, wanted / reach.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def random_sign(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw +1 or -1 for each value, image i from generator i. Returns: Tensor like `x`."""
    return torch.stack([_draw(one, g).round() * 2 - 1 for one, g in zip(x, generators, strict=True)])


def shuffle_pixels(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Put each image's pixels in random order, channels together, image i by generator i. Returns: Tensor like `x`."""
    shuffled = []
    for one, generator in zip(x, generators, strict=True):
        order = torch.randperm(one[0].numel(), generator=generator, device=generator.device).to(one.device)
        shuffled.append(one.flatten(1)[:, order].view_as(one))
    return torch.stack(shuffled)


def random_uniform(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw uniformly from [-1, 1) for each value, image i from generator i. Returns: Tensor like `x`."""
    return torch.stack([_draw(one, g) * 2 - 1 for one, g in zip(x, generators, strict=True)])


def random_in_ball(x: Tensor, norm: Norm, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw uniformly from the unit ball of a norm, image i from generator i. Returns: Tensor like `x`."""
    if norm == "linf":
        return random_uniform(x, generators)
    normal = torch.stack([_normal(one, g) for one, g in zip(x, generators, strict=True)])
    radius = torch.stack([_draw(one.flatten()[:1], g) for one, g in zip(x, generators, strict=True)])
    radius = radius ** (1 / x[0].numel())
    return steepest(normal, "l2") * align(radius, x)


def _normal(one: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn on the generator's device, moved to the image's."""
    return torch.randn(one.shape, generator=generator, device=generator.device).to(one)


def _draw(one: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) on the generator's device, moved to the image's."""
    return torch.rand(one.shape, generator=generator, device=generator.device).to(one)
