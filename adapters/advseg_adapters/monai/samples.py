"""What a dictionary transform reads from samples: images, labels and masks, all checked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import torch
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from advseg_bench import arguments
from advseg_bench.errors import DataError, expected
from advseg_bench.types import Bounds, Task

WRONG_SHAPE = "Use EnsureChannelFirstd, or AsDiscreted where there is a channel a class, or none."
WRONG_VALUES = "Map its values (MapLabelValued, AsDiscreted), or name one that marks pixels of no class as `ignore`."
MASK = Task("binary", ("valid",))
"""What a mask of valid pixels is read as."""


def find(where: str, sample: Mapping[Hashable, object], key: Hashable, name: str) -> Tensor:
    """Return what a sample holds under a key, as a plain tensor. Raises: DataError: if it holds nothing there."""
    if key not in sample:
        raise DataError(expected(where, f"a sample with {key!r}", [*sample], f"Set `{name}`."))
    return cast(Tensor, convert_to_tensor(sample[key], track_meta=False))


def check_image(where: str, image: Tensor, bounds: Bounds) -> None:
    """Refuse an image that no budget in units of the image could speak of.

    Raises:
        DataError: If it is not float32 (C, *S) inside the bounds.
    """
    if image.dtype != torch.float32:
        remedy = "Scale it to the bounds (ScaleIntensityRanged) and cast it (EnsureTyped) before."
        raise DataError(expected(where, "a float32 image", str(image.dtype), remedy))
    if image.dim() < 2 or image.numel() == 0:
        raise DataError(expected(where, "an image of shape (C, *S)", tuple(image.shape), "Use EnsureChannelFirstd."))
    low, high = float(image.min()), float(image.max())
    if not (bounds.lower <= low and high <= bounds.upper):  # NaN is neither
        remedy = "Scale it before, as with ScaleIntensityRanged(clip=True), or give other `bounds`."
        what = f"intensities from {bounds.lower:g} to {bounds.upper:g}"
        raise DataError(f"{where}: expected {what}, got {low:g} to {high:g}. {remedy}")


def read_labels(
    where: str, labels: Tensor, space: Sequence[int], task: Task, ignore: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the labels of one image and its valid pixels, as `arguments.read_labels` does, with MONAI's remedies."""
    return arguments.read_labels(where, labels, space, task, ignore, remedies=(WRONG_SHAPE, WRONG_VALUES))
