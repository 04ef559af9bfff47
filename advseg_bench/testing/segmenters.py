"""Segmenters whose strongest attack is known exactly, as a reference for attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch
from advseg_bench.losses import one_hot
from advseg_bench.testing.optima import largest_rise, shortest_move
from advseg_bench.types import Budget, Task


def margins(logits: Tensor, y: Tensor, task: Task) -> Tensor:
    """Return the margin of each decision, which is positive where the prediction is correct.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        task: What the channels mean.

    Returns:
        Margins, (N, D, *S). Binary and multilabel: D = K decisions per pixel with margin u_k or -u_k. Multiclass:
        D = 1, the logit of the label minus the largest other logit.
    """
    if task.kind != "multiclass":
        return torch.where(y, logits, -logits)
    label = one_hot(y, task, torch.empty(0, dtype=torch.bool))
    rest = logits.masked_fill(label, -torch.inf).amax(1, keepdim=True)
    return (logits * label).sum(1, keepdim=True) - rest


class LinearSegmenter(nn.Module):
    """A segmenter that is linear in the channels of each pixel: logits u_k = sum_c w_kc x_c + b_k.

    It supports any number of spatial axes. The margins that an attack can break, called *pairs*, are linear too:
    m_p(x) = s_p . x + const. Binary and multilabel tasks have one pair per channel, with s_k = +w_k or -w_k by the
    label. Multiclass tasks have one pair per other class j, with s_j = w_y - w_j. A decision is wrong if one of its
    pairs is not positive, so the worst margin of a decision is the smallest minimum of its pairs. These are exact:

    - L_inf within eps and the box [l, u]: channel c moves against sign(s_c) as far as possible, to max(x_c - eps, l) or
      min(x_c + eps, u).
    - L2, one pixel: the shortest move that breaks a pair is the projection onto m_p <= 0 within the box, a
      water-filling problem solved by sorting (`optima.shortest_move`).
    - L2, one image: pixels share only the budget, and their squared lengths add up. So the largest set of pixels that
      can be broken has the smallest squared lengths, with a sum of at most eps^2.
    - The sum of all margins is linear in the image. Its largest decrease within an L2 ball and the box is a
      water-filling problem over all values (`optima.largest_rise`).

    If no channel affects two logits, one image in the L_inf ball breaks all pairs at once. A signed step of any loss
    that increases as margins decrease ends there, so FGSM must reach the optimum exactly.

    Args:
        weight: (C,) for one logit, or (K, C).
        bias: Bias of the logits: one number, or (K,).

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.tensor([0.25, 0.5, 0.75, 1.0]).view(1, 1, 2, 2)
        >>> batch = ab.Batch.of(x, x > 0.6, task="binary")
        >>> model.robust_accuracy(batch, ab.Budget("linf", 0.25))
        tensor([0.2500], dtype=torch.float64)
    """

    def __init__(self, weight: Tensor, bias: float | Tensor) -> None:
        super().__init__()
        weight = weight.reshape(-1, weight.shape[-1])
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.as_tensor(bias).to(weight).expand(len(weight)).clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits; the bits of a pixel do not depend on other pixels or images.

        Args:
            x: Images (N, C, *S).

        Returns:
            Logits (N, K, *S) with the dtype of `x`.
        """
        space = [1] * (x.dim() - 2)
        weight, bias = self.weight.to(x), self.bias.to(x)
        logits = bias.view(1, -1, *space)
        for c in range(x.shape[1]):
            logits = logits + x[:, c : c + 1] * weight[:, c].view(1, -1, *space)
        return logits

    def worst_margin(self, batch: Batch, eps: float) -> Tensor:
        """Return the smallest margin of each decision within L_inf `eps` and the bounds; positive means correct.

        Args:
            batch: Images and labels.
            eps: Radius in input units.

        Returns:
            Margins in logits, float64 (N, D, *S), see `margins`.
        """
        pairs, slopes = self._pairs(batch)
        up, down = _room(batch)
        fall = torch.where(slopes > 0, down.unsqueeze(1), up.unsqueeze(1)).clamp(max=eps)
        worst = pairs - (slopes.abs() * fall).sum(2)
        return worst.amin(1, keepdim=True) if batch.task.kind == "multiclass" else worst

    def flip_cost(self, batch: Batch) -> Tensor:
        """Return the L2 norm of the smallest perturbation inside the bounds that makes a pixel wrong.

        A margin of 0 counts as wrong, as the limit of wrong margins.

        Args:
            batch: Images and labels.

        Returns:
            L2 norms in input units, float64 (N, *S); 0 where the clean pixel is wrong, infinity where no image inside
            the bounds makes it wrong.
        """
        pairs, slopes = self._pairs(batch)
        up, down = _room(batch)
        room = torch.where(slopes > 0, down.unsqueeze(1), up.unsqueeze(1)).movedim(2, -1)
        steep = slopes.abs().movedim(2, -1)
        rows = steep.shape[-1]
        cost = shortest_move(steep.reshape(-1, rows), room.reshape(-1, rows), pairs.reshape(-1))
        return cost.view(pairs.shape).amin(1)

    def robust_accuracy(self, batch: Batch, budget: Budget) -> Tensor:
        """Return the exact robust accuracy of each image within the budget and the bounds.

        This is the minimum over all attacks of the fraction of valid pixels whose decisions are all correct.

        Args:
            batch: Images and labels.
            budget: Norm and radius; the pixels of an image share an L2 radius.

        Returns:
            Fractions, float64 (N,); NaN for an image without a valid pixel.
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
        """Return the accuracy of each image: the fraction of valid pixels whose decisions are all correct.

        Args:
            x: Images (N, C, *S), such as adversarial images.
            batch: Labels and valid pixels.

        Returns:
            Fractions, float64 (N,).
        """
        right = (margins(self(x.double()), batch.y, batch.task).amin(1) > 0) & batch.valid
        return right.flatten(1).sum(1).double() / batch.valid.flatten(1).sum(1)

    def slope(self, batch: Batch) -> Tensor:
        """Return the gradient of the sum of all margins over valid pixels with respect to the images.

        The gradient does not depend on the intensities, so the sum decreases by exactly its product with -(x' - x).

        Args:
            batch: Images and labels.

        Returns:
            Gradient, float64 (N, C, *S).
        """
        _, slopes = self._pairs(batch)
        total: Tensor = slopes.sum(1) * batch.valid.unsqueeze(1)
        return total

    def largest_fall(self, batch: Batch, budget: Budget, slope: Tensor | None = None) -> Tensor:
        """Return the largest decrease of the sum of margins within the budget and the bounds; exact for both norms.

        Args:
            batch: Images and labels.
            budget: Norm and radius.
            slope: Gradient of another linear function to decrease, (N, C, *S); by default `slope(batch)`.

        Returns:
            Decrease in logits, float64 (N,).
        """
        slope = self.slope(batch) if slope is None else slope
        up, down = _room(batch)
        room = torch.where(slope > 0, down, up).flatten(1)
        steep = slope.abs().flatten(1)
        if budget.norm == "linf":
            return (steep * room.clamp(max=budget.eps)).sum(1)
        return largest_rise(steep, room, budget.eps)

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the margins of all pairs, float64 (N, K, *S), and their gradients, (N, K, C, *S).

        In a multiclass task the pair of the label with itself has margin infinity and gradient zero.
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
    """Return how far each value can increase and decrease inside the bounds, float64."""
    x = batch.x.double()
    return batch.bounds.upper - x, x - batch.bounds.lower
