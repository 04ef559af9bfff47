"""Norms, projections and random starts, for images with any number of spatial axes.

Every function works image by image: the result of one image never depends on the other images of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advseg_bench.types import Bounds, Budget, Norm

__all__ = [
    "Moves",
    "align",
    "blend_share",
    "distance",
    "measure_moves",
    "project",
    "random_in_ball",
    "random_sign",
    "random_uniform",
    "shuffle_pixels",
    "steepest",
]


def distance(x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Measure the distance between two images, in float64.

    Args:
        x: Images (N, C, *S).
        y: Images of the same shape.
        norm: "linf" or "l2", over all values of an image.

    Returns:
        float64 (N,), in input units.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> x = torch.zeros(2, 1, 2, 2)
        >>> geometry.distance(x, x + 0.5, "l2")
        tensor([1., 1.], dtype=torch.float64)
    """
    moved = (x.double() - y.double()).flatten(1)
    return moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)


def align(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per image so that it broadcasts with images.

    Args:
        values: (N,).
        like: Images (N, C, *S).

    Returns:
        View of shape (N, 1, ..., 1) with as many axes as `like`.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> geometry.align(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 1, 1, 1])
    """
    return values.view(-1, *[1] * (like.dim() - 1))


class Moves(NamedTuple):
    """The size of the perturbation of each image.

    Attributes:
        linf: L_inf distance in input units, float64 (N,).
        l2: L2 distance in input units, float64 (N,).
        unmoved: Fraction of the values that are unchanged, float64 (N,).

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> x = torch.zeros(1, 1, 2, 2)
        >>> y = torch.tensor([[[[0.0, 0.0], [0.0, 0.5]]]])
        >>> geometry.measure_moves(y, x).unmoved
        tensor([0.7500], dtype=torch.float64)
    """

    linf: Tensor
    l2: Tensor
    unmoved: Tensor


def measure_moves(x: Tensor, y: Tensor) -> Moves:
    """Measure all stored sizes of the perturbation between two images, in float64.

    Args:
        x: Images (N, C, *S).
        y: Images of the same shape.

    Returns:
        L_inf and L2 distance, and the fraction of unchanged values, each float64 (N,).

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> x = torch.zeros(1, 1, 2, 2)
        >>> linf, l2, unchanged = geometry.measure_moves(x + 0.5, x)
        >>> float(linf), float(l2), float(unchanged)
        (0.5, 1.0, 0.0)
    """
    moved = (x.double() - y.double()).flatten(1)
    low, high = moved.aminmax(dim=1)
    stayed = (moved == 0).view(torch.int8).sum(1, dtype=torch.int64).double() / moved.shape[1]
    return Moves(torch.maximum(low.abs(), high.abs()), moved.norm(dim=1), stayed)


def project(x_adv: Tensor, x: Tensor, budget: Budget, bounds: Bounds) -> Tensor:
    """Project images onto the budget around `x` and the bounds.

    For "linf" this is the nearest such image. For "l2" the perturbation is scaled and then clipped; since `x` is inside
    the bounds, clipping only shortens it.

    Args:
        x_adv: Images (N, C, *S).
        x: Clean images (N, C, *S), inside the bounds.
        budget: Norm and radius.
        bounds: Valid intensity range.

    Returns:
        Images (N, C, *S) with the dtype of `x`; bit-identical to `x_adv` where it is inside budget and bounds.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> x = torch.tensor([0.1, 0.5]).view(1, 1, 1, 2)
        >>> ab.geometry.project(x - 0.4, x, ab.Budget("linf", 0.25), ab.Bounds()).flatten()
        tensor([0.0000, 0.2500])
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
        norm: "linf": the sign, where sign(0) = 0. "l2": the gradient divided by its L2 norm; zero stays zero.

    Returns:
        Tensor like `gradient`.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> gradient = torch.tensor([3.0, -4.0]).view(1, 1, 1, 2)
        >>> geometry.steepest(gradient, "linf").flatten(), geometry.steepest(gradient, "l2").flatten()
        (tensor([ 1., -1.]), tensor([ 0.6000, -0.8000]))
    """
    if norm == "linf":
        return gradient.sign()
    # Dividing by the largest value first keeps a gradient of 1e-30 from vanishing when it is squared.
    largest = align(gradient.flatten(1).abs().amax(1), gradient)
    scaled = torch.where(largest > 0, gradient / largest, gradient)
    length = align(scaled.double().flatten(1).norm(dim=1), gradient)
    return torch.where(length > 0, scaled / length, scaled).to(gradient.dtype)


def blend_share(x: Tensor, direction: Tensor, reference: Tensor) -> Tensor:
    """Return the weight that blends each image with its sign pattern so that the largest change equals a given one.

    A blend is clip((1 - e) * x + e * direction, 0, 1). A value changes by e * |direction - x|, but by at most x if it
    decreases. So the smallest e is the required change divided by the largest |direction - x| among the values that can
    change that much; no other value then changes more.

    Args:
        x: Images (N, C, *S) between 0 and 1.
        direction: -1, 0 or 1 for each value, (N, C, *S).
        reference: clip(x + eps * direction), (N, C, *S): the images with the required largest change.

    Returns:
        e, float64 (N, 1, ...), between 0 and 1; 0 where nothing changes.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> geometry.blend_share(x, torch.ones_like(x), x + 0.125).item()
        0.25
    """
    clean, towards = x.double(), direction.double()
    wanted = align(distance(reference, x, "linf"), x)
    room = torch.where(towards < 0, clean, 1.0)
    reach = torch.where(room >= wanted, (towards - clean).abs(), 0.0).flatten(1).amax(1).view_as(wanted)
    return torch.where(wanted > 0, wanted / reach.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def random_sign(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Sample +1 or -1 with equal probability for each value.

    Args:
        x: Images (N, C, *S).
        generators: N random generators; image i uses generator i.

    Returns:
        Tensor like `x`.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> signs = geometry.random_sign(torch.zeros(1, 1, 8, 8), [torch.Generator().manual_seed(0)])
        >>> signs.unique()
        tensor([-1.,  1.])
    """
    return torch.stack([_draw(one, g).round() * 2 - 1 for one, g in zip(x, generators, strict=True)])


def shuffle_pixels(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Permute the pixels of each image at random; the channels of a pixel stay together.

    Args:
        x: Images (N, C, *S).
        generators: N random generators; image i uses generator i.

    Returns:
        Tensor like `x`.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> x = torch.arange(4.0).view(1, 1, 2, 2)
        >>> geometry.shuffle_pixels(x, [torch.Generator().manual_seed(0)]).flatten().sort().values
        tensor([0., 1., 2., 3.])
    """
    shuffled = []
    for one, generator in zip(x, generators, strict=True):
        order = torch.randperm(one[0].numel(), generator=generator, device=generator.device).to(one.device)
        shuffled.append(one.flatten(1)[:, order].view_as(one))
    return torch.stack(shuffled)


def random_uniform(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Sample each value uniformly from [-1, 1).

    Args:
        x: Images (N, C, *S).
        generators: N random generators; image i uses generator i.

    Returns:
        Tensor like `x`.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> noise = geometry.random_uniform(torch.zeros(1, 1, 8, 8), [torch.Generator().manual_seed(0)])
        >>> bool((noise.abs() <= 1).all()), bool(noise.std() > 0.5)
        (True, True)
    """
    return torch.stack([_draw(one, g) * 2 - 1 for one, g in zip(x, generators, strict=True)])


def random_in_ball(x: Tensor, norm: Norm, generators: Sequence[torch.Generator]) -> Tensor:
    """Sample uniformly from the unit ball of a norm.

    Args:
        x: Images (N, C, *S).
        norm: "linf" or "l2", over all values of an image.
        generators: N random generators; image i uses generator i.

    Returns:
        Tensor like `x`.

    Example:
        >>> import torch
        >>> from advseg_bench import geometry
        >>> x = torch.zeros(1, 1, 8, 8)
        >>> offset = geometry.random_in_ball(x, "l2", [torch.Generator().manual_seed(0)])
        >>> bool(geometry.distance(offset, x, "l2") <= 1)
        True
    """
    if norm == "linf":
        return random_uniform(x, generators)
    normal = torch.stack([_normal(one, g) for one, g in zip(x, generators, strict=True)])
    radius = torch.stack([_draw(one.flatten()[:1], g) for one, g in zip(x, generators, strict=True)])
    radius = radius ** (1 / x[0].numel())
    return steepest(normal, "l2") * align(radius, x)


def _normal(one: Tensor, generator: torch.Generator) -> Tensor:
    """Sample standard normal numbers on the generator's device and move them to the image's."""
    return torch.randn(one.shape, generator=generator, device=generator.device).to(one)


def _draw(one: Tensor, generator: torch.Generator) -> Tensor:
    """Sample uniform numbers in [0, 1) on the generator's device and move them to the image's."""
    return torch.rand(one.shape, generator=generator, device=generator.device).to(one)
