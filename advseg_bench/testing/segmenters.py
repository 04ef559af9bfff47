"""Segmenters whose strongest attack is known exactly, to hold attacks against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch
from advseg_bench.losses import one_hot
from advseg_bench.testing.optima import largest_rise, shortest_move
from advseg_bench.types import Budget, Task


def margins(logits: Tensor, y: Tensor, task: Task) -> Tensor:
    """Return how far each decision is on the side of its label; it is right where the margin is positive.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        task: What the channels mean.

    Returns:
        (N, D, *S). Binary and multilabel: D = K decisions a pixel, margin u_k or -u_k. Multiclass: D = 1, the logit of
        the label minus the largest other one.
    """
    if task.kind != "multiclass":
        return torch.where(y, logits, -logits)
    label = one_hot(y, task, torch.empty(0, dtype=torch.bool))
    rest = logits.masked_fill(label, -torch.inf).amax(1, keepdim=True)
    return (logits * label).sum(1, keepdim=True) - rest


class LinearSegmenter(nn.Module):
    """Decide each pixel by linear functions of its own channels: logits u_k = sum_c w_kc x_c + b_k.

    The number of space axes is free. For a pixel with label y, the *pairs* that an attack can break are linear too,
    m_p(x) = s_p . x + const: in binary and multilabel tasks one per channel, s_k = +w_k or -w_k by the label; in
    multiclass tasks one per other class j, s_j = w_y - w_j. A decision is wrong as soon as one of its pairs is not
    positive, so the worst margin of a decision is the least of its pairs' minima, each of which is exact:

    - L_inf within eps and the box [l, u]: channel c moves against sign(s_c) as far as it can, to
      max(x_c - eps, l) or min(x_c + eps, u).
    - L2, one pixel: the shortest move that breaks a pair is the projection onto m_p <= 0 within the box, a
      water-filling solved by sorting (`optima.shortest_move`).
    - L2, an image: pixels share nothing but the budget, and their squared lengths add up. So the most pixels that can
      be broken are those with the least squared lengths, as long as their sum is at most eps^2.
    - The sum of all pairs' margins is linear in the image, and its largest fall within an L2 ball and the box is a
      water-filling over all values (`optima.largest_rise`).

    If no channel is read by two logits, one point of the L_inf ball breaks all pairs at once, and one signed step of
    any loss that grows as margins fall ends there: FGSM must reach the optimum exactly.

    Args:
        weight: (C,) for one logit or (K, C).
        bias: Added to the logits; one number, or (K,).
    """

    def __init__(self, weight: Tensor, bias: float | Tensor) -> None:
        super().__init__()
        weight = weight.reshape(-1, weight.shape[-1])
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.as_tensor(bias).to(weight).expand(len(weight)).clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, K, *S), of the dtype of `x`.

        Channels are added one after the other, so that a pixel's bits depend on no other pixel and no other image.
        """
        space = [1] * (x.dim() - 2)
        weight, bias = self.weight.to(x), self.bias.to(x)
        logits = bias.view(1, -1, *space)
        for c in range(x.shape[1]):
            logits = logits + x[:, c : c + 1] * weight[:, c].view(1, -1, *space)
        return logits

    def worst_margin(self, batch: Batch, eps: float) -> Tensor:
        """Return each decision's smallest margin (positive: still right) within L_inf `eps` and the bounds.

        Args:
            batch: Images and labels.
            eps: Radius in input units.

        Returns:
            float64 (N, D, *S), see `margins`.
        """
        pairs, slopes = self._pairs(batch)
        up, down = _room(batch)
        fall = torch.where(slopes > 0, down.unsqueeze(1), up.unsqueeze(1)).clamp(max=eps)
        worst = pairs - (slopes.abs() * fall).sum(2)
        return worst.amin(1, keepdim=True) if batch.task.kind == "multiclass" else worst

    def flip_cost(self, batch: Batch) -> Tensor:
        """Return the L2 length of the shortest move inside the bounds that makes some decision of a pixel wrong.

        A margin of 0 counts as wrong, as the limit of wrong ones.

        Args:
            batch: Images and labels.

        Returns:
            float64 (N, *S); 0 where the pixel is wrong already, infinity where no image makes it wrong.
        """
        pairs, slopes = self._pairs(batch)
        up, down = _room(batch)
        room = torch.where(slopes > 0, down.unsqueeze(1), up.unsqueeze(1)).movedim(2, -1)
        steep = slopes.abs().movedim(2, -1)
        rows = steep.shape[-1]
        cost = shortest_move(steep.reshape(-1, rows), room.reshape(-1, rows), pairs.reshape(-1))
        return cost.view(pairs.shape).amin(1)

    def robust_accuracy(self, batch: Batch, budget: Budget) -> Tensor:
        """Return each image's exact share of valid pixels that no attack within the budget and the bounds breaks.

        That is the least share of pixels, over all attacks, whose decisions are all right.

        Args:
            batch: Images and labels.
            budget: L_inf: each pixel by itself. L2: the images' pixels share the radius.

        Returns:
            float64 (N,); NaN for an image without a valid pixel.
        """
        if budget.norm == "linf":
            right = (self.worst_margin(batch, budget.eps).amin(1) > 0) & batch.valid
            return right.flatten(1).sum(1).double() / batch.valid.flatten(1).sum(1)
        cost = torch.where(batch.valid, self.flip_cost(batch), torch.inf).flatten(1)
        spent = (cost**2).sort(1).values.cumsum(1)
        broken = (spent <= budget.eps**2).sum(1).double()
        valid = batch.valid.flatten(1).sum(1)
        return (valid - broken) / valid

    def accuracy(self, x: Tensor, batch: Batch) -> Tensor:
        """Return each image's share of valid pixels whose decisions are all right on the images `x`, float64 (N,)."""
        right = (margins(self(x.double()), batch.y, batch.task).amin(1) > 0) & batch.valid
        return right.flatten(1).sum(1).double() / batch.valid.flatten(1).sum(1)

    def slope(self, batch: Batch) -> Tensor:
        """Return the gradient of the sum of all pairs' margins over valid pixels, by the images: (N, C, *S).

        It does not depend on the images, so the sum falls by exactly the product of it with -(x' - x).
        """
        _, slopes = self._pairs(batch)
        total: Tensor = slopes.sum(1) * batch.valid.unsqueeze(1)
        return total

    def largest_fall(self, batch: Batch, budget: Budget, slope: Tensor | None = None) -> Tensor:
        """Return the most that the sum of margins can fall within the budget and the bounds: exact for both norms.

        Args:
            batch: Images and labels.
            budget: Norm and radius.
            slope: Another linear function of the images than `slope(batch)`.

        Returns:
            float64 (N,).
        """
        slope = self.slope(batch) if slope is None else slope
        up, down = _room(batch)
        room = torch.where(slope > 0, down, up).flatten(1)
        steep = slope.abs().flatten(1)
        if budget.norm == "linf":
            return (steep * room.clamp(max=budget.eps)).sum(1)
        return largest_rise(steep, room, budget.eps)

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Margins of all pairs, float64 (N, K, *S), and their slopes by the channels, (N, K, C, *S).

        In a multiclass task the pair of the label with itself has margin infinity and slope zero.
        """
        x, task = batch.x.double(), batch.task
        space = [1] * (x.dim() - 2)
        weight, logits = self.weight.double(), self(x)
        label = one_hot(batch.y, task, logits)
        if task.kind != "multiclass":
            side = 2 * label - 1
            return side * logits, side.unsqueeze(2) * weight.view(1, *weight.shape, *space)
        own = (logits * label).sum(1, keepdim=True)
        own_weight = torch.einsum("nk...,kc->nc...", label, weight).unsqueeze(1)
        pairs = torch.where(label > 0, torch.inf, own - logits)
        return pairs, own_weight - weight.view(1, *weight.shape, *space)


def _room(batch: Batch) -> tuple[Tensor, Tensor]:
    """How far each value can go up and down inside the bounds, float64."""
    x = batch.x.double()
    return batch.bounds.upper - x, x - batch.bounds.lower
