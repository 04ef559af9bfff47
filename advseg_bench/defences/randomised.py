"""Random transformations: noise, and a random size and place. A model with one of them is stochastic.

They use the global generator of torch, which the harness seeds with the repeat and the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advseg_bench.defences.base import InputTransformation
from advseg_bench.errors import SettingError, expected
from advseg_bench.instruments.modes import set_mode
from advseg_bench.types import Bounds, DefenceTraits, Task


@dataclass(frozen=True, kw_only=True)
class RandomNoise(InputTransformation):
    """Adds Gaussian noise, and clips to the bounds.

    Attributes:
        sigma: Standard deviation as a share of the width of the bounds, above 0.

    Source:
        arXiv 1712.00673 (random self-ensemble), noise at the input alone.

    Cost:
        One forward of the network per image.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import RandomNoise
        >>> from advseg_bench.types import Bounds
        >>> x = torch.full((1, 1, 8, 8), 0.5)
        >>> with torch.random.fork_rng(devices=()):
        ...     bool((RandomNoise(sigma=0.1).transform(x, Bounds()) != x).any())
        True
    """

    sigma: float = 0.05
    traits: ClassVar[DefenceTraits] = DefenceTraits(random=True)

    def __post_init__(self) -> None:
        """Validate the setting."""
        valid = isinstance(self.sigma, (int, float)) and not isinstance(self.sigma, bool)
        if not (valid and 0 < self.sigma < math.inf):
            raise SettingError(expected("random_noise: sigma", "a number above 0", self.sigma))

    def transform(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Return noisy images, as `InputTransformation.transform`."""
        width = bounds.upper - bounds.lower
        return (x + self.sigma * width * torch.randn_like(x)).clamp(bounds.lower, bounds.upper)


@dataclass(frozen=True, kw_only=True)
class RandomResize:
    """Shrinks each image by a random factor and puts it at a random place; logits are moved back.

    The size of the image stays; what the shrunk image leaves free has the lower bound. Images and logits are sampled
    linearly.

    Attributes:
        smallest: Smallest factor, above 0 and below 1; factors are uniform from it to 1.

    Source:
        arXiv 1711.01991 (random resizing and padding), with the inverse map for masks.

    Cost:
        One forward of the network per image.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import RandomResize
        >>> from advseg_bench.types import Bounds, Task
        >>> defended = RandomResize(smallest=0.8)(torch.nn.Identity(), Task("binary", ("organ",)), Bounds())
        >>> with torch.random.fork_rng(devices=()):
        ...     tuple(defended(torch.ones(2, 1, 16, 16)).shape)
        (2, 1, 16, 16)
    """

    smallest: float = 0.8
    traits: ClassVar[DefenceTraits] = DefenceTraits(random=True)

    def __post_init__(self) -> None:
        """Validate the setting."""
        valid = isinstance(self.smallest, (int, float)) and not isinstance(self.smallest, bool)
        if not (valid and 0 < self.smallest < 1):
            raise SettingError(expected("random_resize: smallest", "a number between 0 and 1", self.smallest))

    def __call__(self, model: nn.Module, task: Task, bounds: Bounds) -> nn.Module:
        """Return the network behind the random map, as `Defence`."""
        return _Resized(model, self.smallest, bounds.lower)


class _Resized(nn.Module):
    """A network that sees a shrunk and shifted image."""

    def __init__(self, model: nn.Module, smallest: float, fill: float) -> None:
        super().__init__()
        self.model, self.smallest, self.fill = model, smallest, fill
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images, at their own places."""
        n, axes = len(x), x.dim() - 2
        scale = self.smallest + (1 - self.smallest) * torch.rand(n, 1, device=x.device, dtype=x.dtype)
        shift = (1 - scale) * (2 * torch.rand(n, axes, device=x.device, dtype=x.dtype) - 1)
        shrunk = _sample(x - self.fill, 1 / scale, -shift / scale, "zeros") + self.fill
        return _sample(self.model(shrunk), scale, shift, "border")

    def train(self, mode: bool = True) -> _Resized:
        """Set the mode of the network, if it has one."""
        self.training = mode
        set_mode(self.model, mode)
        return self


def _sample(x: Tensor, scale: Tensor, shift: Tensor, padding: str) -> Tensor:
    """Return x at the places scale * place + shift, where places are from -1 to 1 along each space axis."""
    axes = x.dim() - 2
    theta = torch.cat([scale[:, :, None] * torch.eye(axes, device=x.device, dtype=x.dtype), shift[:, :, None]], dim=2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)
