"""Square: random search with boxes, which needs logits and no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack, without_cost
from advseg_bench.attacks.boxes import box_share, box_sides, inside_boxes, place_boxes
from advseg_bench.attacks.objective import evaluate_objective, find_loss, why_loss_unfit
from advseg_bench.attacks.stepping import Query, SteppedAttack, Steps
from advseg_bench.batches import Batch
from advseg_bench.errors import SettingError
from advseg_bench.geometry import align, project
from advseg_bench.losses import Loss
from advseg_bench.metrics import predict
from advseg_bench.registry.catalogue import SQUARE_QUERIES, square_traits
from advseg_bench.types import Budget, Traits


class Moves(NamedTuple):
    """The random part of the attack on a batch, drawn before its first query.

    Attributes:
        first: First pixel of each box, int64 (N, moves, D).
        sides: Sides of each box in pixels, int64 (N, moves, D).
        signs: The sign of each move in each channel, (N, moves, C).
        start: The signs of the first image, broadcastable to the images.
    """

    first: Tensor
    sides: Tensor
    signs: Tensor
    start: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(SteppedAttack):
    """Square: a box is set to x + eps or x - eps, and kept if the loss of the image increases.

    The first image is striped: each line of pixels along the first spatial axis is x + eps or x - eps, with a random
    sign per line and channel. Each further query draws one box per image and one sign per channel. A move of 2 eps
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

    def begin(
        self,
        batch: Batch,
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
        start: Tensor | None = None,
    ) -> Steps:
        """Start the attack on a batch.

        Args:
            batch: Images and labels.
            budget: Norm and radius.
            generators: One random generator per image.
            start: Images (N, C, *S) that are evaluated instead of the stripes, such as the result at a smaller radius.

        Yields:
            `queries` queries without a gradient.

        Returns:
            Images (N, C, *S) with the dtype of `batch.x`.
        """
        moves = self.draw_moves(batch, generators)
        best = project(batch.x + budget.eps * moves.start if start is None else start, batch.x, budget, batch.bounds)
        value, done = self.read((yield Query(best, judge=self.judge)).value)
        for t in range(self.queries - 1):
            inside = inside_boxes(moves.first[:, t], moves.sides[:, t], batch.x)
            signs = moves.signs[:, t].view(*batch.x.shape[:2], *[1] * (batch.x.dim() - 2))
            x_adv = set_boxes(best, inside, signs, batch, budget)
            now, won = self.read((yield Query(x_adv, judge=self.judge)).value)
            better = ((now > value) | value.isnan() | won) & ~done
            best = torch.where(align(better, best), x_adv, best)
            value, done = torch.where(better, now, value), done | (better & won)
        return best

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue for these settings; without a cost for a subclass that overrides `begin`."""
        traits = square_traits({"queries": self.queries})
        return traits if type(self).begin is Square.begin else without_cost(traits)

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or BaseAttack.why_not(self, batch, budget)

    def draw_moves(self, batch: Batch, generators: Sequence[torch.Generator]) -> Moves:
        """Draw all boxes and signs, those of an image from its own generator alone."""
        space, channels = tuple(batch.x.shape[2:]), batch.x.shape[1]
        shares = [box_share(move, self.queries, self.p_init) for move in range(self.queries - 1)]
        drawn = []
        for spacing, generator in zip(batch.spacing, generators, strict=True):
            sides_of = {share: box_sides(space, spacing, share) for share in set(shares)}
            sides = torch.tensor([sides_of[share] for share in shares], dtype=torch.int64).view(-1, len(space))
            start = _draw((channels, 1, *space[1:]), generator)
            places, signs = _draw((len(shares), len(space) + channels), generator).split((len(space), channels), 1)
            drawn.append((place_boxes(sides, space, places), sides, _as_signs(signs), _as_signs(start)))
        return Moves(*(torch.stack(part).to(batch.x.device) for part in zip(*drawn, strict=True)))

    def judge(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each image, and 1 where every decision at every valid pixel is wrong, float64 (N, 2)."""
        value = evaluate_objective(self.loss, logits.double(), batch)
        right = predict(logits, batch.task) == batch.y
        valid = batch.valid if batch.task.kind == "multiclass" else batch.valid.unsqueeze(1)
        return torch.stack([value, (~(right & valid).flatten(1).any(1)).to(value)], 1)

    @staticmethod
    def read(judged: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss of each image, (N,), and whether nothing is left to break, bool (N,)."""
        assert judged is not None
        return judged[:, 0], judged[:, 1] > 0


def set_boxes(best: Tensor, inside: Tensor, signs: Tensor, batch: Batch, budget: Budget) -> Tensor:
    """Return images whose box is set to x + eps * signs, or to x - eps * signs where that changes nothing.

    Args:
        best: The images so far, (N, C, *S).
        inside: Which pixels lie in the box, bool (N, 1, *S).
        signs: +1 or -1 for each channel, (N, C, 1, ...).
        batch: Clean images and bounds.
        budget: Norm "linf" and radius.

    Returns:
        Images (N, C, *S) inside budget and bounds.
    """
    moved = torch.where(inside, project(batch.x + budget.eps * signs, batch.x, budget, batch.bounds), best)
    same = align((moved == best).flatten(1).all(1), best)
    other = torch.where(inside, project(batch.x - budget.eps * signs, batch.x, budget, batch.bounds), best)
    return torch.where(same, other, moved)


def _draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return uniform random numbers in [0, 1), on the CPU."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device).cpu()


def _as_signs(uniform: Tensor) -> Tensor:
    """Return +1 or -1 with equal probability."""
    return (uniform < 0.5).float() * 2 - 1
