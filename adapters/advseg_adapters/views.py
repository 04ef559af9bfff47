"""Image-level views: adapters that let an attack on classifiers attack a segmentation model.

A view is a two-class classifier whose decision and cross-entropy measure the segmentation of one image. It holds the
mask of one image and accepts any number of rows, because attacks subset, repeat and reorder their batch. A view that
holds several masks accepts exactly its images, in order.
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
"""Rows per forward pass: search attacks evaluate hundreds of candidates at once."""


class _View(nn.Module):
    """Base of both views: rows in, one loss value per row.

    The model is not a submodule, so that an attack cannot reach it through its classifier (modes, flags, hooks,
    batch norms). The dummy parameter shows the device to attacks.
    """

    def __init__(self, model: Model, batch: Batch, loss: Loss) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros((), device=batch.x.device), requires_grad=False)
        self._model: Callable[[Tensor], Tensor] = _Hidden(model)
        self._batch, self._loss = batch, loss
        self.eval()

    def values(self, x: Tensor) -> Tensor:
        """Return the loss of each row, (N,).

        Args:
            x: Rows (N, C, *S); cast to the type of the images, since some attacks use float64.

        Raises:
            IncompatibleError: The shape of the rows, or their number, does not match the images.
        """
        batch = self._batch
        own = len(batch.x)
        if x.shape[1:] != batch.x.shape[1:]:
            raise IncompatibleError(
                f"view: expected rows of shape {tuple(batch.x.shape[1:])}, got {tuple(x.shape[1:])}. "
                "Use an attack that keeps the shape of images."
            )
        if own > 1 and len(x) != own:
            raise IncompatibleError(
                f"view: expected the {own} images it was made for, got {len(x)} rows without a mask. "
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

    The logits are [0, M + log(-expm1(-M))] with M = 1 + L. Then log(1 + exp(logit)) = M exactly, for every task type,
    and an attack that increases the cross-entropy increases the loss L. For negative L, M = 1 / (1 - L): it has the
    same value and slope at 0, is increasing, and never 0. (In float32 the cross-entropy of a small M is exact to 1e-7,
    so for L far below 0 its value is coarse, but its gradient is not.)

    Args:
        model: Images (N, C, *S) -> segmentation logits (N, K, *S).
        batch: One image with its mask, for any number of rows; or several, for exactly these images.
        loss: (logits, y, valid, task) -> one value per image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, 2). Cost: one forward of the model."""
        value = self.values(x)
        above, below = torch.where(value >= 0, value, 0), torch.where(value < 0, value, 0)
        m = torch.where(value >= 0, 1 + above, 1 / (1 - below))
        logit = m + torch.log(-torch.expm1(-m))
        return torch.stack([torch.zeros_like(logit), logit], 1)


class MarginView(_View):
    """A two-class classifier for attacks that stop at success or search for a minimal norm.

    Class 1 wins where the loss L exceeds a threshold. The logits are [-m/2, m/2] with m = (L - threshold) / scale,
    so the class changes exactly at the threshold, and the gradient of the cross-entropy is a positive multiple of that
    of L. Neither logit is constant, since some attacks (CW, saliency maps) differentiate each logit separately.

    Args:
        model: Images (N, C, *S) -> segmentation logits (N, K, *S).
        batch: One image with its mask, or several, as for `LossView`.
        loss: (logits, y, valid, task) -> one value per image.
        threshold: (N,) loss above which an attack succeeds.
        scale: (N,) positive: the loss difference of a margin of 1.
    """

    def __init__(self, model: Model, batch: Batch, loss: Loss, *, threshold: Tensor, scale: Tensor) -> None:
        super().__init__(model, batch, loss)
        self._threshold, self._scale = threshold, scale

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, 2). Cost: one forward of the model."""
        margin = (self.values(x) - self._threshold) / self._scale
        return torch.stack([-margin / 2, margin / 2], 1)


class BlindView(nn.Module):
    """A placeholder for the model of an attack that ignores it: zero logits for any image.

    Args:
        batch: Determines the device.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros((), device=batch.x.device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 2) of zero."""
        return x.new_zeros(len(x), 2)


class _Hidden:
    """Holds a model such that `torch.nn.Module` does not register it as a submodule."""

    def __init__(self, model: Model) -> None:
        self._held = (model,)

    def __call__(self, x: Tensor) -> Tensor:
        return self._held[0](x)
