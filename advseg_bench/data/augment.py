"""Training augmentation with MONAI's transforms and an explicit random generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandScaleIntensityd, RandShiftIntensityd
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotate90d

from advseg_bench.batches import Batch

KEYS = ("x", "y", "valid")


class Augmentation:
    """Flips, rotations by 90 degrees, affine maps and brightness changes; labels and valid pixels are moved likewise.

    A volume is flipped, shifted and scaled along all its axes, and rotated about the depth axis only: a rotation about
    another axis would distort it, because slices lie farther apart than pixels.

    Args:
        names: Any of "flip", "rot90" (needs as many rows as columns), "affine" (each axis shifted by up to 6 %
            and scaled by up to 10 %, rotated by up to 20 degrees, with probability 0.5),
            "brightness" (contrast and offset, 15 %, with probability 0.5).
        edges: Edge lengths of the images in pixels, two or three.
    """

    def __init__(self, names: Sequence[str], edges: Sequence[int]) -> None:
        transforms: list[Any] = []
        axes = range(len(edges))
        if "flip" in names:
            transforms += [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in axes]
        if "rot90" in names:
            transforms.append(RandRotate90d(KEYS, prob=0.5, max_k=3, spatial_axes=(axes[-2], axes[-1])))
        if "affine" in names:
            transforms.append(_affine(edges))
        if "brightness" in names:
            transforms += [RandScaleIntensityd("x", 0.15, prob=0.5), RandShiftIntensityd("x", 0.15, prob=0.5)]
        self.transform = Compose(transforms)

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return a randomly transformed version of each image.

        Args:
            batch: Images on the CPU; not changed.
            rng: Source of all randomness.

        Returns:
            A new batch of the same form, with images within their bounds.
        """
        self.transform.set_random_state(seed=int(rng.integers(2**32)))
        multiclass = batch.y.dim() < batch.x.dim()
        labels = batch.y.unsqueeze(1) if multiclass else batch.y
        new: dict[str, list[torch.Tensor]] = {key: [] for key in KEYS}
        lower, width = batch.bounds.lower, batch.bounds.upper - batch.bounds.lower
        unit = (lower, width) == (0, 1)  # brightness and the zeros around a shifted image are those of [0, 1]
        images = batch.x if unit else (batch.x - lower) / width
        for x, y, valid in zip(images, labels, batch.valid, strict=True):
            out = self.transform({"x": x, "y": y.float(), "valid": valid[None].float()})
            for key in KEYS:
                new[key].append(torch.as_tensor(out[key]))
        x, y = torch.stack(new["x"]), torch.stack(new["y"])
        return replace(
            batch,
            x=(x if unit else x * width + lower).clamp(batch.bounds.lower, batch.bounds.upper),
            y=y[:, 0].round().long() if multiclass else y > 0.5,
            valid=torch.stack(new["valid"])[:, 0] > 0.5,
        )


def _affine(edges: Sequence[int]) -> RandAffined:
    """Shift, scale (each axis separately) and rotate about the depth axis, in the ranges of the study."""
    return RandAffined(
        KEYS,
        prob=0.5,
        rotate_range=np.deg2rad(20),
        translate_range=tuple(edge / 16 for edge in edges),
        scale_range=(0.1,) * len(edges),
        mode=("bilinear", "nearest", "nearest"),
        padding_mode="zeros",
    )
