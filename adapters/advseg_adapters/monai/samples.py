"""Read and validate the images, labels and masks in the samples of a dictionary transform."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import torch
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from advseg_bench import arguments
from advseg_bench.errors import DataError, expected
from advseg_bench.types import Bounds, Task

WRONG_SHAPE = "Use EnsureChannelFirstd to add a channel, or AsDiscreted to convert to or from one channel per class."
WRONG_VALUES = "Map its values (MapLabelValued, AsDiscreted), or give the value of unlabelled pixels as `ignore`."
MASK = Task("binary", ("valid",))
"""The task as which a mask of valid pixels is read."""


def find(where: str, sample: Mapping[Hashable, object], key: Hashable, name: str) -> Tensor:
    """Return the value of a sample under a key as a plain tensor.

    Raises:
        DataError: The sample has no such key.
    """
    if key not in sample:
        raise DataError(expected(where, f"a sample with {key!r}", [*sample], f"Set `{name}`."))
    return cast(Tensor, convert_to_tensor(sample[key], track_meta=False))


def check_image(where: str, image: Tensor, bounds: Bounds) -> None:
    """Reject an image for which a budget in units of intensity is undefined.

    Raises:
        DataError: The image is not float32 (C, *S) inside the bounds.
    """
    if image.dtype != torch.float32:
        remedy = "First scale it to the bounds (ScaleIntensityRanged) and cast it (EnsureTyped)."
        raise DataError(expected(where, "a float32 image", str(image.dtype), remedy))
    if image.dim() < 2 or image.numel() == 0:
        raise DataError(expected(where, "an image of shape (C, *S)", tuple(image.shape), "Use EnsureChannelFirstd."))
    low, high = float(image.min()), float(image.max())
    if not (bounds.lower <= low and high <= bounds.upper):  # False for NaN
        remedy = "First scale it, for example by ScaleIntensityRanged(clip=True), or give other `bounds`."
        what = f"intensities from {bounds.lower:g} to {bounds.upper:g}"
        raise DataError(f"{where}: expected {what}, got {low:g} to {high:g}. {remedy}")


def read_labels(
    where: str, labels: Tensor, space: Sequence[int], task: Task, ignore: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return labels and valid pixels of one image by `arguments.read_labels`, with remedies for MONAI."""
    return arguments.read_labels(where, labels, space, task, ignore, remedies=(WRONG_SHAPE, WRONG_VALUES))
