"""Random boxes of the gradient-free attack: how large they are at each query, and where they lie in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The published schedule: after these of 10,000 moves, boxes of half the share of pixels are drawn."""


def box_share(move: int, moves: int, p_init: float) -> float:
    """Return the share of the pixels in the box of one move: the published schedule, scaled to the number of moves.

    Args:
        move: Number of the move, from 0.
        moves: Number of evaluations of the attack, the first image included.
        p_init: Share of the first box.

    Returns:
        `p_init` / 2^k, where k of the published halvings lie before the move.

    Source:
        Andriushchenko et al., ECCV 2020, arXiv:1912.00049, section 5.

    Example:
        >>> from advseg_bench.attacks.boxes import box_share
        >>> box_share(1, 1000, 0.8), box_share(2, 1000, 0.8), box_share(999, 1000, 0.8)
        (0.8, 0.4, 0.0015625)
    """
    passed = int(move / moves * 10_000)
    return p_init / 2.0 ** sum(passed > limit for limit in HALVINGS)


def box_sides(space: Sequence[int], spacing: Sequence[float], share: float, least: int = 1) -> tuple[int, ...]:
    """Return the sides of a box with equal edges in mm that holds a share of the pixels.

    An edge that is longer than the image is cut to the image, and the other edges grow so that the share stays. A side
    has at least one pixel, so boxes of thin volumes are never empty.

    Args:
        space: Sizes of the spatial axes, in pixels.
        spacing: Pixel size in mm along each axis; with NaN, 0 or infinity in it all edges count as equal.
        share: Share of the pixels, over 0 and at most 1.
        least: Smallest side in pixels, where the image has that many.

    Returns:
        One side per axis, in pixels.

    Example:
        >>> from advseg_bench.attacks.boxes import box_sides
        >>> box_sides((64, 64), (1.0, 1.0), 0.25), box_sides((64, 64, 12), (1.0, 1.0, 4.0), 0.01)
        ((32, 32), (13, 13, 3))
        >>> box_sides((64, 64, 2), (1.0, 1.0, 4.0), 0.25)
        (32, 32, 2)
    """
    spacing = pixel_edges(spacing)
    extents = sorted(size * edge for size, edge in zip(space, spacing, strict=True))
    rest, edge = share * math.prod(extents), 0.0
    for position, extent in enumerate(extents):
        edge = rest ** (1 / (len(extents) - position))
        if edge <= extent:
            break
        rest /= extent
    wanted = (round(edge / pixel) for pixel in spacing)
    return tuple(min(max(side, least), size) for side, size in zip(wanted, space, strict=True))


def place_boxes(sides: Tensor, space: Sequence[int], uniform: Tensor) -> Tensor:
    """Return the first pixel of boxes, uniform over all positions at which they fit, the last one too.

    Args:
        sides: Sides in pixels, int64 (..., D).
        space: Sizes of the D spatial axes.
        uniform: Random numbers in [0, 1), (..., D).

    Returns:
        First pixels, int64 (..., D).

    Example:
        >>> import torch
        >>> from advseg_bench.attacks.boxes import place_boxes
        >>> place_boxes(torch.tensor([3, 8]), (8, 8), torch.tensor([0.999, 0.5]))
        tensor([5, 0])
    """
    last = torch.tensor(list(space)) - sides
    return torch.minimum((uniform.double() * (last + 1)).long(), last)


def inside_boxes(first: Tensor, sides: Tensor, like: Tensor) -> Tensor:
    """Return which pixels lie in the box of each image.

    Args:
        first: First pixels, int64 (N, D).
        sides: Sides in pixels, int64 (N, D).
        like: Images (N, C, *S).

    Returns:
        bool (N, 1, *S).

    Example:
        >>> import torch
        >>> from advseg_bench.attacks.boxes import inside_boxes
        >>> inside_boxes(torch.tensor([[0, 1]]), torch.tensor([[1, 2]]), torch.zeros(1, 1, 2, 4)).int()
        tensor([[[[0, 1, 1, 0],
                  [0, 0, 0, 0]]]], dtype=torch.int32)
    """
    inside = torch.ones((1,) * like.dim(), dtype=torch.bool, device=like.device)
    for axis in range(like.dim() - 2):
        offset = offsets(first[:, axis], axis, like)
        inside = inside & (offset >= 0) & (offset < along(sides[:, axis], like))
    return inside


def offsets(first: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return the positions along a spatial axis relative to a first pixel per image, int64 (N, 1, ..., S_axis, ...)."""
    positions = torch.arange(like.shape[2 + axis], device=like.device)
    return positions.view(-1, *[1] * (like.dim() - 3 - axis)) - along(first, like)


def along(values: Tensor, like: Tensor) -> Tensor:
    """Return one value per image with as many axes as the images, (N, 1, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def bumps(first: Tensor, sides: Tensor, axes: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """Return the pattern of an L2 move in the box of each image: two bumps of opposite sign, side by side.

    The bump of half a box is highest at its centre: at Chebyshev distance k from it, in units of the smallest pixel
    edge, it is sum_{j=k}^{M} 1 / (j+1)^2, where M is the largest distance. Both halves have the same L2 norm.

    Args:
        first: First pixels of the boxes, int64 (N, D).
        sides: Sides in pixels, int64 (N, D).
        axes: The axis along which each box is halved, int64 (N,).
        scale: Pixel edges along each axis over the smallest of them, (N, D).
        like: Images (N, C, *S).

    Returns:
        Patterns of L2 norm 1, zero outside the boxes, (N, 1, *S).

    Source:
        Andriushchenko et al., ECCV 2020, arXiv:1912.00049, section 3.4 and the appendix on its update eta.

    Example:
        >>> import torch
        >>> from advseg_bench.attacks.boxes import bumps
        >>> one = torch.ones(1, 2, dtype=torch.int64)
        >>> bumps(0 * one, torch.tensor([[1, 2]]), one[:, 0], one, torch.zeros(1, 1, 1, 3))
        tensor([[[[ 0.7071, -0.7071,  0.0000]]]])
    """
    halved = torch.arange(sides.shape[1], device=sides.device) == axes.unsqueeze(1)
    front = torch.where(halved, sides // 2, sides)
    back = torch.where(halved, sides - front, sides)
    pattern = _bump(first, front, scale, like) - _bump(first + torch.where(halved, front, 0), back, scale, like)
    return unit(pattern, range(1, like.dim()))


def _bump(first: Tensor, sides: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """Return a bump of L2 norm 1 in the box of each image, zero everywhere if the box is empty, (N, 1, *S)."""
    distance = like.new_zeros((1,) * like.dim())
    for axis in range(like.dim() - 2):
        offset = offsets(first[:, axis] + sides[:, axis] // 2, axis, like).abs()
        distance = torch.maximum(distance, offset * along(scale[:, axis], like))
    height = heights(distance, along((sides // 2 * scale).amax(1), like))
    return unit(torch.where(inside_boxes(first, sides, like), height, 0), range(1, like.dim()))


def heights(distance: Tensor, furthest: Tensor) -> Tensor:
    """Return the height of a bump at some distances k, sum_{j=k}^{furthest} 1 / (j+1)^2, as a trigamma function."""
    return torch.polygamma(1, distance + 1) - torch.polygamma(1, furthest + 2)


def unit(values: Tensor, axes: Sequence[int] | range) -> Tensor:
    """Return values over their L2 norm along some axes; zeros stay zeros."""
    length = values.square().sum(tuple(axes), keepdim=True).sqrt()
    return values / torch.where(length > 0, length, 1)


def tiles(signs: Tensor, space: Sequence[int]) -> Tensor:
    """Return the first perturbation of an L2 search: a grid of bumps, at least five per axis, each with its sign.

    Args:
        signs: +1 or -1 for each channel and tile, (C, *T), with T of `tile_counts`.
        space: Sizes of the spatial axes.

    Returns:
        A perturbation of L2 norm 1, (C, *S).

    Example:
        >>> import torch
        >>> from advseg_bench.attacks.boxes import tile_counts, tiles
        >>> tile_counts((15, 4))
        (5, 4)
        >>> tiles(torch.ones(1, 5, 4), (15, 4)).norm()
        tensor(1.)
    """
    distance, furthest = torch.zeros((1,) * len(space)), 0
    for axis, size in enumerate(space):
        side = max(size // 5, 1)
        places = torch.arange(size)
        signs = signs.index_select(axis + 1, places // side)
        shape = [-1 if other == axis else 1 for other in range(len(space))]
        distance = torch.maximum(distance, (places % side - side // 2).abs().view(shape))
        furthest = max(furthest, side // 2)
    return unit(signs * heights(distance, torch.tensor(float(furthest))), range(signs.dim()))


def tile_counts(space: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of tiles along each axis."""
    return tuple(-(-size // max(size // 5, 1)) for size in space)


def pixel_edges(spacing: Sequence[float]) -> tuple[float, ...]:
    """Return the pixel edges in mm, or equal ones if one of them is unknown."""
    known = all(math.isfinite(edge) and edge > 0 for edge in spacing)
    return tuple(spacing) if known else (1.0,) * len(spacing)
