"""Transformations that smooth an image: Gaussian, median, total variation. They are differentiated as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advseg_bench.defences.base import InputTransformation, scale_from_unit, scale_to_unit
from advseg_bench.errors import SettingError, expected
from advseg_bench.types import Bounds


@dataclass(frozen=True, kw_only=True)
class GaussianSmoothing(InputTransformation):
    """Convolves each channel with a Gaussian; the border is repeated.

    Attributes:
        sigma: Standard deviation in pixels, above 0; the kernel reaches 3 sigma.

    Source:
        arXiv 1704.01155 (feature squeezing).

    Cost:
        One forward of the network per image.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import GaussianSmoothing
        >>> from advseg_bench.types import Bounds
        >>> x = torch.full((1, 1, 8, 8), 0.5)
        >>> torch.allclose(GaussianSmoothing(sigma=1.0).transform(x, Bounds()), x)
        True
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Validate the setting."""
        _check_positive("gaussian_smoothing: sigma", self.sigma)

    def transform(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Return smooth images, as `InputTransformation.transform`."""
        reach = max(1, math.ceil(3 * self.sigma))
        away = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        bell = torch.exp(-(away**2) / (2 * self.sigma**2))
        bell = bell / bell.sum()
        for axis in range(2, x.dim()):
            padded = repeat_border(x, axis, reach)
            windows = padded.unfold(axis, 2 * reach + 1, 1)
            x = windows @ bell
        return x.clamp(bounds.lower, bounds.upper)


@dataclass(frozen=True, kw_only=True)
class MedianFilter(InputTransformation):
    """Replaces each pixel by the median of its neighbourhood; the border is repeated.

    The gradient goes to the pixel that is the median.

    Attributes:
        size: Edge of the neighbourhood in pixels, odd, along every space axis.

    Source:
        arXiv 1704.01155 (feature squeezing).

    Cost:
        One forward of the network per image; memory of size^d copies of it.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import MedianFilter
        >>> from advseg_bench.types import Bounds
        >>> x = torch.zeros(1, 1, 5, 5)
        >>> x[0, 0, 2, 2] = 1
        >>> float(MedianFilter(size=3).transform(x, Bounds()).max())
        0.0
    """

    size: int = 3

    def __post_init__(self) -> None:
        """Validate the setting."""
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 3 or not self.size % 2:
            raise SettingError(expected("median: size", "an odd number of pixels from 3", self.size))

    def transform(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Return filtered images, as `InputTransformation.transform`."""
        axes = range(2, x.dim())
        found = x
        for axis in axes:
            found = repeat_border(found, axis, self.size // 2)
        for axis in axes:
            found = found.unfold(axis, self.size, 1)
        return found.flatten(x.dim()).median(-1).values


@dataclass(frozen=True, kw_only=True)
class TotalVariation(InputTransformation):
    """Reduces the total variation of an image: the model of Rudin, Osher and Fatemi, by Chambolle's projection.

    Attributes:
        weight: Weight of the total variation, above 0, for intensities scaled to [0, 1]; .05 is a visible smoothing.
        steps: Steps of the projection; all are differentiated.

    Source:
        arXiv 1711.00117 (input transformations); Chambolle, J. Math. Imaging Vis. 20 (2004).

    Cost:
        One forward of the network per image.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import TotalVariation
        >>> from advseg_bench.types import Bounds
        >>> x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> bool(TotalVariation(weight=0.1).transform(x, Bounds()).std() < x.std())
        True
    """

    weight: float = 0.05
    steps: int = 20

    def __post_init__(self) -> None:
        """Validate the settings."""
        _check_positive("total_variation: weight", self.weight)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise SettingError(expected("total_variation: steps", "an integer of at least 1", self.steps))

    def transform(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Return smooth images, as `InputTransformation.transform`."""
        image = scale_to_unit(x, bounds)
        axes = range(2, x.dim())
        step = 1 / (4 * len(axes))
        dual = [torch.zeros_like(image) for _ in axes]
        for _ in range(self.steps):
            slopes = _differ(_diverge(dual, axes) - image / self.weight, axes)
            # The square root has no gradient at 0, as in flat regions.
            length = torch.stack(slopes).square().sum(0).add(1e-12).sqrt()
            dual = [(each + step * slope) / (1 + step * length) for each, slope in zip(dual, slopes, strict=True)]
        return scale_from_unit((image - self.weight * _diverge(dual, axes)).clamp(0, 1), bounds)


def repeat_border(x: Tensor, axis: int, reach: int) -> Tensor:
    """Repeat the first and the last slice along an axis; its gradient is a sum, the same on every device."""
    shape = [-1] * x.dim()
    shape[axis] = reach
    first, last = x.narrow(axis, 0, 1).expand(shape), x.narrow(axis, -1, 1).expand(shape)
    return torch.cat([first, x, last], dim=axis)


def _differ(x: Tensor, axes: range) -> list[Tensor]:
    """Forward differences along each axis, 0 at its end."""
    found = []
    for axis in axes:
        step = x.diff(dim=axis)
        found.append(torch.cat([step, torch.zeros_like(x.narrow(axis, 0, 1))], dim=axis))
    return found


def _diverge(dual: list[Tensor], axes: range) -> Tensor:
    """The divergence: minus the adjoint of `_differ`."""
    total = torch.zeros_like(dual[0])
    for each, axis in zip(dual, axes, strict=True):
        inner = each.narrow(axis, 0, each.shape[axis] - 1)
        edge = torch.zeros_like(each.narrow(axis, 0, 1))
        total = total + torch.cat([inner, edge], dim=axis) - torch.cat([edge, inner], dim=axis)
    return total


def _check_positive(where: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 and math.isfinite(value)):
        raise SettingError(expected(where, "a number above 0", value))
