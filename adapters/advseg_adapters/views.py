"""Image-level views: what lets an attack on classifiers attack a segmenter.

A view is a classifier of two classes whose decision and whose cross-entropy speak of one image's segmentation. It
carries the mask of ONE image and accepts any number of rows, because attacks subset, repeat and reorder their batch;
a view that carries several masks accepts only its own images, in order and all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model

ROWS = 32
"""Rows a forward pass: attacks that search send hundreds of candidates at once."""


class _View(nn.Module):
    """The part both views share: rows in, one loss value per row.

    The model is not a submodule: what an attack does to its classifier (modes, flags, hooks, looking for batch norms)
    does not reach it. The dummy parameter tells attacks where to put their images.
    """

    def __init__(self, model: Model, batch: Batch, loss: Loss) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros((), device=batch.x.device), requires_grad=False)
        self._model: Callable[[Tensor], Tensor] = _Hidden(model)
        self._batch, self._loss = batch, loss
        self.eval()

    def values(self, x: Tensor) -> Tensor:
        """Return the loss of each row, (N,). Casts `x` to the type of the images: some attacks send float64."""
        batch = self._batch
        own = len(batch.x)
        if x.shape[1:] != batch.x.shape[1:]:
            raise IncompatibleError(
                f"view: expected rows of shape {tuple(batch.x.shape[1:])}, got {tuple(x.shape[1:])}. "
                "The attack changes the shape of images."
            )
        if own > 1 and len(x) != own:
            raise IncompatibleError(
                f"view: expected the {own} images it was made for, got {len(x)} rows, which belong to no mask. "
                "Make a view for each image."
            )
        x = x.to(batch.x)
        parts = [x] if own > 1 else torch.split(x, ROWS)
        return torch.cat([self._values(part) for part in parts])

    def _values(self, x: Tensor) -> Tensor:
        batch, n = self._batch, len(x)
        y, valid = (labels.expand(n, *labels.shape[1:]) for labels in (batch.y, batch.valid))
        return self._loss(self._model(x), y, valid, batch.task)


class LossView(_View):
    """A two-class classifier whose cross-entropy for class 0 is 1 + L, and whose gradient is that of L.

    The logits are [0, M + log(-expm1(-M))] with M = 1 + L: then log(1 + exp(logit)) = M exactly, for binary, multilabel
    and multiclass masks alike, and an attack that climbs cross-entropy climbs our loss. A loss that can be negative
    enters as M = 1 / (1 - L) there: the same value and slope at 0, increasing, never 0. (In float32 a toolkit's own
    cross-entropy of a small M is M to 1e-7, so far below 0 its value is coarse; its gradient is not.)

    Args:
        model: Images -> logits of the segmentation.
        batch: One image with its mask (then any number of rows may come), or several (then exactly these).
        loss: One value per image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, 2). Cost: one forward of the model."""
        value = self.values(x)
        above, below = torch.where(value >= 0, value, 0), torch.where(value < 0, value, 0)
        m = torch.where(value >= 0, 1 + above, 1 / (1 - below))
        logit = m + torch.log(-torch.expm1(-m))
        return torch.stack([torch.zeros_like(logit), logit], 1)


class MarginView(_View):
    """A two-class classifier that asks "is this segmentation still good?": class 1 where L exceeds a threshold.

    The logits are [-m/2, m/2] with m = (L - threshold) / scale, so the class flips exactly at the threshold and the
    gradient of the cross-entropy is a positive multiple of that of L. For attacks that stop at success or search for a
    minimal norm. Neither logit is constant: attacks that look at one class at a time (CW, saliency maps) need both.

    Args:
        model: Images -> logits of the segmentation.
        batch: One image with its mask, or several, as for `LossView`.
        loss: One value per image.
        threshold: (N,) loss above which the segmentation counts as broken.
        scale: (N,) positive; what a margin of 1 means in units of the loss.
    """

    def __init__(self, model: Model, batch: Batch, loss: Loss, *, threshold: Tensor, scale: Tensor) -> None:
        super().__init__(model, batch, loss)
        self._threshold, self._scale = threshold, scale

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, 2). Cost: one forward of the model."""
        margin = (self.values(x) - self._threshold) / self._scale
        return torch.stack([-margin / 2, margin / 2], 1)


class BlindView(nn.Module):
    """Stands in for the model of an attack that never looks at it: logits of zero for any image.

    Args:
        batch: Tells the device.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros((), device=batch.x.device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, 2)."""
        return x.new_zeros(len(x), 2)


class _Hidden:
    """Holds a model so that `torch.nn.Module` does not take it for a part of the view."""

    def __init__(self, model: Model) -> None:
        self._held = (model,)

    def __call__(self, x: Tensor) -> Tensor:
        return self._held[0](x)
