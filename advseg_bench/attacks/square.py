"""Square: random search with boxes, which needs logits and no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack, cost_if_same
from advseg_bench.attacks.boxes import (
    box_share,
    box_sides,
    bumps,
    inside_boxes,
    pixel_edges,
    place_boxes,
    tile_counts,
    tiles,
    unit,
)
from advseg_bench.attacks.objective import evaluate_objective, find_loss, why_loss_unfit
from advseg_bench.attacks.stepping import Query, SteppedAttack, Steps
from advseg_bench.batches import Batch
from advseg_bench.errors import SettingError
from advseg_bench.geometry import align, project
from advseg_bench.losses import Loss
from advseg_bench.metrics import predict
from advseg_bench.registry.ascents import SQUARE_QUERIES, square_traits
from advseg_bench.types import Budget, Norm, Traits


class Moves(NamedTuple):
    """The random part of the attack on a batch, sampled before its first query.

    Attributes:
        start: The first perturbation for a radius of 1, (N, C, *S).
        first: First pixel of each box, int64 (N, moves, boxes, D): one box for L_inf, two for L2.
        sides: Sides of the boxes in pixels, int64 (N, moves, D).
        signs: The sign of each move in each channel, (N, moves, C).
        axes: The axis along which a box is halved for L2, int64 (N, moves).
        scale: Pixel edges along each axis over the smallest of them, (N, D).
    """

    start: Tensor
    first: Tensor
    sides: Tensor
    signs: Tensor
    axes: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(SteppedAttack):
    """Square: a box is set to x + eps or x - eps, and kept if the loss of the image increases.

    The first image is striped: each line of pixels along the first spatial axis is x + eps or x - eps, with a random
    sign per line and channel. Each further query chooses one box per image and one sign per channel. A move of 2 eps
    followed by the projection ends at x + eps or x - eps, clipped to the bounds, whatever the value was. If that
    changes no value, the opposite signs are taken. An image keeps the result if its loss is larger.

    - Box: uniform over all positions, with equal edges in mm (`Batch.spacing`; equal in pixels if unknown). It holds
      the share `p_init` of the pixels at first, less by the published schedule later, and at least one pixel.
    - Loss: by default the margins by which decisions are wrong, summed over valid pixels and channels: a measure that
      still increases when the mask is lost, where Dice is flat. It is computed in float64.
    - End: an image whose every decision at every valid pixel is wrong does not change any more. Its row is still
      evaluated, so that the number of passes of an image does not depend on the images beside it.

    Attributes:
        queries: Number of forwards, at least 1; the first one evaluates the stripes.
        p_init: Share of the pixels in the first boxes, over 0 and at most 1.
        loss: The loss to increase: a name or a function, see `advseg_bench.losses`.

    Cost:
        `queries` forwards, no backward.

    Source:
        Andriushchenko et al., ECCV 2020, arXiv:1912.00049, Algorithms 1 and 2; on masks first in arXiv:2107.04263.
        Differs in the loss, in boxes per image instead of per batch, in their positions, which include the last one,
        in boxes with equal edges in mm, and in the opposite signs for a move without effect.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.Square(queries=100)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    queries: int = SQUARE_QUERIES
    p_init: float = 0.8
    loss: Loss | str = "margin"

    def __post_init__(self) -> None:
        """Resolve the name of the loss and validate the settings."""
        object.__setattr__(self, "loss", find_loss(self.loss))
        if isinstance(self.queries, bool) or not isinstance(self.queries, int) or self.queries < 1:
            raise SettingError(f"queries: expected a whole number of at least 1, got {self.queries!r}.")
        if not 0 < self.p_init <= 1:
            raise SettingError(f"p_init: expected a share of the pixels between 0 and 1, got {self.p_init!r}.")

    def begin(self, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Steps:
        """Start the attack on a batch.

        Args:
            batch: Images and labels.
            budget: Norm and radius.
            generators: One random generator per image.

        Yields:
            `queries` queries without a gradient.

        Returns:
            Images (N, C, *S) with the dtype of `batch.x`.
        """
        moves, move = self.draw_moves(batch, budget, generators), _MOVES[budget.norm]
        best = project(batch.x + budget.eps * moves.start, batch.x, budget, batch.bounds)
        value, done = self.read((yield Query(best, judge=self.judge)).value)
        for t in range(self.queries - 1):
            x_adv = move(best, moves, t, batch, budget)
            now, won = self.read((yield Query(x_adv, judge=self.judge)).value)
            better = ((now > value) | value.isnan() | won) & ~done
            best = torch.where(align(better, best), x_adv, best)
            value, done = torch.where(better, now, value), done | (better & won)
        return best

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue for these settings; without a cost for a subclass that has a loop of its own."""
        return cost_if_same(square_traits({"queries": self.queries}), self, Square, "perturb", "begin")

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or BaseAttack.why_not(self, batch, budget)

    def draw_moves(self, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Moves:
        """Sample all boxes and signs, those of an image from its own generator alone."""
        space, channels, least = tuple(batch.x.shape[2:]), batch.x.shape[1], 1 if budget.norm == "linf" else 3
        dims, boxes = len(space), 1 if budget.norm == "linf" else 2
        shares = [box_share(move, self.queries, self.p_init) for move in range(self.queries - 1)]
        drawn = []
        for spacing, generator in zip(batch.spacing, generators, strict=True):
            edges = pixel_edges(spacing)
            sides_of = {share: box_sides(space, edges, share, least) for share in set(shares)}
            sides = torch.tensor([sides_of[share] for share in shares], dtype=torch.int64).view(-1, dims)
            start = _stripes(channels, space, generator) if boxes == 1 else _grid(channels, space, generator)
            uniform = _draw((len(shares), boxes * dims + channels + 1), generator)
            places, signs, axes = uniform.tensor_split((boxes * dims, boxes * dims + channels), 1)
            first = place_boxes(sides.unsqueeze(1), space, places.view(-1, boxes, dims))
            scale = torch.tensor(edges) / min(edges)
            drawn.append((start, first, sides, _as_signs(signs), (axes[:, 0] * dims).long(), scale))
        return Moves(*(torch.stack(part).to(batch.x.device) for part in zip(*drawn, strict=True)))

    def judge(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each image, and 1 where every decision at every valid pixel is wrong, float64 (N, 2)."""
        value = evaluate_objective(self.loss, logits.double(), batch)
        right = predict(logits, batch.task) == batch.y
        valid = batch.valid if batch.task.kind == "multiclass" else batch.valid.unsqueeze(1)
        return torch.stack([value, (~(right & valid).flatten(1).any(1)).to(value)], 1)

    @staticmethod
    def read(judged: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each image, (N,), and whether nothing is left to break, bool (N,)."""
        return judged[:, 0], judged[:, 1] > 0


def set_boxes(best: Tensor, moves: Moves, t: int, batch: Batch, budget: Budget) -> Tensor:
    """Return the L_inf move: the box becomes x + eps * signs, or x - eps * signs where that changes nothing.

    Args:
        best: The images so far, (N, C, *S).
        moves: The random part.
        t: Number of the move.
        batch: Clean images and bounds.
        budget: The radius.

    Returns:
        Images (N, C, *S) inside budget and bounds.
    """
    inside = inside_boxes(moves.first[:, t, 0], moves.sides[:, t], best)
    offset = budget.eps * _per_channel(moves.signs[:, t], best)
    moved = torch.where(inside, project(batch.x + offset, batch.x, budget, batch.bounds), best)
    other = torch.where(inside, project(batch.x - offset, batch.x, budget, batch.bounds), best)
    same = (moved == best).flatten(1).all(1)
    return torch.where(align(same, best), other, moved)


def move_energy(best: Tensor, moves: Moves, t: int, batch: Batch, budget: Budget) -> Tensor:
    """Return the L2 move: the energy of two boxes goes into a pattern in the first one, the second becomes x.

    The perturbation in the first box, over its norm, plus two bumps of a random sign gives the new direction; its norm
    in each channel is that of both boxes together, with an equal share of the budget that the bounds left unused.

    Args:
        best: The images so far, (N, C, *S).
        moves: The random part.
        t: Number of the move.
        batch: Clean images and bounds.
        budget: The radius.

    Returns:
        Images (N, C, *S) inside budget and bounds.
    """
    delta, space = best - batch.x, range(2, best.dim())
    into, out = (inside_boxes(moves.first[:, t, k], moves.sides[:, t], best) for k in (0, 1))
    pattern = bumps(moves.first[:, t, 0], moves.sides[:, t], moves.axes[:, t], moves.scale, best)
    direction = _per_channel(moves.signs[:, t], best) * pattern + unit(torch.where(into, delta, 0), space)
    unused = (budget.eps**2 - delta.square().flatten(1).sum(1)).clamp(min=0) / best.shape[1]
    held = torch.where(into | out, delta, 0).square().sum(tuple(space), keepdim=True)
    filled = unit(direction, space) * (held + align(unused, best)).sqrt()
    delta = torch.where(into, filled, torch.where(out, 0, delta))
    return project(batch.x + budget.eps * unit(delta, range(1, best.dim())), batch.x, budget, batch.bounds)


_MOVES: dict[Norm, Callable[[Tensor, Moves, int, Batch, Budget], Tensor]] = {"linf": set_boxes, "l2": move_energy}


def _stripes(channels: int, space: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return stripes along the first axis, each +1 or -1, (C, *S)."""
    return _as_signs(_draw((channels, 1, *space[1:]), generator)).expand(channels, *space)


def _grid(channels: int, space: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return a grid of bumps of random signs, with L2 norm 1, (C, *S)."""
    return tiles(_as_signs(_draw((channels, *tile_counts(space)), generator)), space)


def _per_channel(signs: Tensor, like: Tensor) -> Tensor:
    """Return (N, C) signs with as many axes as the images."""
    return signs.view(*signs.shape, *[1] * (like.dim() - 2))


def _draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return uniform random numbers in [0, 1), on the CPU."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device).cpu()


def _as_signs(uniform: Tensor) -> Tensor:
    """Return +1 or -1 with equal probability."""
    return (uniform < 0.5).float() * 2 - 1
