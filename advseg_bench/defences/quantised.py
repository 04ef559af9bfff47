"""Transformations that round an image: fewer grey values, JPEG. Their gradient is 0 almost everywhere, hence BPDA."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from advseg_bench.defences.base import Defended, InputTransformation, no_graph, scale_from_unit, scale_to_unit
from advseg_bench.errors import IncompatibleError, SettingError, expected
from advseg_bench.types import Bounds, DefenceTraits, Task

GREY_VALUES = (Bounds(), Bounds(0.0, 255.0))
"""Bounds of images that JPEG, which stores 8 bits, can represent."""


@dataclass(frozen=True, kw_only=True)
class BitDepth(InputTransformation):
    """Rounds intensities to 2^bits levels, equally spaced between the bounds.

    Attributes:
        bits: 1 to 16.

    Source:
        arXiv 1704.01155 (feature squeezing).

    Cost:
        One forward of the network per image.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import BitDepth
        >>> from advseg_bench.types import Bounds
        >>> BitDepth(bits=1).transform(torch.tensor([0.2, 0.8]), Bounds())
        tensor([0., 1.])
    """

    bits: int = 4
    traits: ClassVar[DefenceTraits] = DefenceTraits(differentiable=False)

    def __post_init__(self) -> None:
        """Validate the setting."""
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise SettingError(expected("bit_depth: bits", "an integer from 1 to 16", self.bits))

    def transform(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Return images of few levels, as `InputTransformation.transform`."""
        return no_graph(lambda image: self._round(image, bounds), x)

    def _round(self, x: Tensor, bounds: Bounds) -> Tensor:
        levels = 2**self.bits - 1
        return scale_from_unit((scale_to_unit(x, bounds) * levels).round() / levels, bounds)


@dataclass(frozen=True, kw_only=True)
class Jpeg(InputTransformation):
    """Compresses each channel of a 2-D image as a grey JPEG, and decodes it.

    Attributes:
        quality: 1 to 95, as Pillow defines it.

    Source:
        arXiv 1711.00117 (input transformations).

    Cost:
        One forward of the network, and one JPEG per channel, per image.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import Jpeg
        >>> from advseg_bench.types import Bounds
        >>> x = torch.full((1, 1, 16, 16), 0.5)
        >>> bool((Jpeg(quality=50).transform(x, Bounds()) - x).abs().max() < 0.01)
        True
    """

    quality: int = 75
    traits: ClassVar[DefenceTraits] = DefenceTraits(differentiable=False, dims=(2,))

    def __post_init__(self) -> None:
        """Validate the setting."""
        if isinstance(self.quality, bool) or not isinstance(self.quality, int) or not 1 <= self.quality <= 95:
            raise SettingError(expected("jpeg: quality", "an integer from 1 to 95", self.quality))

    def __call__(self, model: nn.Module, task: Task, bounds: Bounds) -> Defended:
        """Return the network behind the compression; images of more than 8 bits are refused."""
        if bounds not in GREY_VALUES:
            what = "images with bounds 0 to 1 or 0 to 255, since JPEG stores 8 bits"
            remedy = "Use bit_depth or another defence."
            raise IncompatibleError(expected("defence jpeg", what, f"{bounds.lower:g} to {bounds.upper:g}", remedy))
        return super().__call__(model, task, bounds)

    def transform(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Return compressed images, as `InputTransformation.transform`.

        Raises:
            IncompatibleError: If the images are volumes.
        """
        if x.dim() != 4:
            axes = f"{x.dim() - 2} space axes"
            raise IncompatibleError(expected("defence jpeg", "images with 2 space axes", axes, "Use another defence."))
        return no_graph(lambda images: self._compress(images, bounds), x)

    def _compress(self, x: Tensor, bounds: Bounds) -> Tensor:
        stored = (scale_to_unit(x, bounds) * 255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
        decoded = np.stack([[_code(channel, self.quality) for channel in image] for image in stored])
        return scale_from_unit(torch.from_numpy(decoded).to(x.device, x.dtype) / 255, bounds)


def _code(grey: np.ndarray, quality: int) -> np.ndarray:
    """Store grey values as JPEG and read them again."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
