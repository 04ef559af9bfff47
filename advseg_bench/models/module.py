"""The one form every network takes: images in [0, 1] go in, logits come out, and nothing else shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from advseg_bench.errors import SpecError, expected


class SegmentationModule(nn.Module):
    """A network with its normalisation and its padding inside: all that an attack may know of a model.

    An attack bounds a perturbation of the *image*. Were the normalisation outside, a budget of 4/255 would mean
    something else for every model, and were the padding outside, an attack could write into pixels no one sees.

    The image is padded on the right and at the bottom (behind, in 3-D) by repeating its last row and column, and
    the logits are cropped back. At multiples of the stride neither happens, and the logits are those of the bare
    network bit for bit, up to the normalisation. Padding is done by concatenation: its gradient is a plain sum,
    which is deterministic on a GPU, where that of `torch.nn.functional.pad(mode="replicate")` is not.

    Args:
        net: Network, (N, C, *S) -> logits (N, K, *S) for every S whose edges are multiples of `stride`.
        mean: Subtracted from the image: one number, or one per channel.
        std: The image is divided by it, after `mean`: one positive number, or one per channel.
        stride: Multiple of pixels the network wants along every space axis.
        head: Dotted name, inside `net`, of the layer whose output is the logits (up to resizing); None if unknown.
    Attributes:
        net: The bare network; its state dict is what checkpoints hold.
        mean: float32, shape (1,) or (C,). Neither it nor `std` is in the state dict: they belong to the spec.
        std: float32, shape (1,) or (C,).
        stride: As given.
        head: As given.

    Raises:
        SpecError: If a std is not positive or the stride is below 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        stride: int = 1,
        head: str | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1), persistent=False)
        if not bool((self.std > 0).all()):
            raise SpecError(expected("std", "positive numbers", std))
        if stride < 1:
            raise SpecError(expected("stride", "1 or more pixels", stride))
        self.stride = stride
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            x: Images, float32, shape (N, C, *S) with any number of space axes.

        Returns:
            Logits, float32, shape (N, K, *S).

        Cost:
            One forward.
        """
        space = (1,) * (x.dim() - 2)
        z = (x - self.mean.view(-1, *space)) / self.std.view(-1, *space)
        logits: Tensor = self.net(_pad(z, self.stride))
        return _crop(logits, x.shape[2:])


def _pad(x: Tensor, stride: int) -> Tensor:
    """Repeat the last slice along each space axis up to the next multiple of `stride`."""
    for axis in range(2, x.dim()):
        missing = -x.shape[axis] % stride
        if missing:
            sizes = [-1] * x.dim()
            sizes[axis] = missing
            x = torch.cat([x, x.narrow(axis, -1, 1).expand(sizes)], dim=axis)
    return x


def _crop(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Cut what was padded off the end of each space axis."""
    for axis, length in enumerate(size, start=2):
        if logits.shape[axis] != length:
            logits = logits.narrow(axis, 0, length)
    return logits
