"""The one home of resizing: from an image and class planes of any size to the `Sample` that a model meets.

All data sets end in `prepare`, so that they agree on what a pixel, a label and a tie are. An output pixel is the
mean of the input pixels under it. With fit = "pad" images are padded to a square around their centre, and whole pixels
are averaged (`torch.nn.functional.adaptive_avg_pool2d`; where the sizes do not divide, neighbouring windows share a row
of pixels, and an image smaller than the result has its pixels repeated). With fit = "stretch" each edge is resized by
itself, and a pixel on the border of two windows is shared between them by area, as OpenCV's INTER_AREA does. Labels go
the same way as shares and are decided once, at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from advseg_bench.data.dataset import Sample
from advseg_bench.specs import DataSpec, Fit
from advseg_bench.types import Task, TaskKind

PREPARATION: dict[Fit, int] = {"pad": 1, "stretch": 2}
"""Version of this module's arithmetic, part of every fingerprint: raise it when any output pixel changes."""

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Array = NDArray[np.generic]


def task_for(kind: TaskKind, classes: Sequence[str], background: str = "background") -> Task:
    """Name the logit channels of a task.

    Args:
        kind: How the labels are put to the model.
        classes: The classes without the background; exactly one for binary.
        background: Name of the first class of a multiclass task; other kinds have none.
    Returns: The task, with `background` put first for multiclass.
    """
    assert len(classes) == 1 if kind == "binary" else classes, f"{kind} with classes {classes}"
    return Task(kind, (background, *classes) if kind == "multiclass" else tuple(classes))


def scaled_spacing(shape: tuple[int, ...], spacing: tuple[float, float], spec: DataSpec) -> tuple[float, float]:
    """Return a pixel's edge lengths after an image is made square and resized.

    Args:
        shape: Rows and columns (the last two entries) before.
        spacing: Edge lengths (rows, columns) in mm before; NaN stays NaN.
        spec: `size` and `fit` are used.
    Returns: Edge lengths (rows, columns) in mm. With "pad" both scale by one factor, the longer edge over
        `spec.size`; with "stretch" each by its own.
    """
    rows, columns = shape[-2:] if spec.fit == "stretch" else (max(shape[-2:]),) * 2
    return spacing[0] * (rows / spec.size), spacing[1] * (columns / spec.size)


def pad_to_square(array: Array, fill: float = 0) -> Array:
    """Pad the shorter of the last two axes, as evenly as possible, until both are equally long.

    Args:
        array: Shape (..., H, W), any type. An odd number of pixels puts the extra one at the end.
        fill: Value of the new pixels.
    Returns: Shape (..., E, E) with E = max(H, W); `array` itself if it is square already.
    """
    height, width = array.shape[-2:]
    if height == width:
        return array
    edge = max(height, width)
    before = [(edge - n) // 2 for n in (height, width)]
    pairs = [(b, edge - n - b) for b, n in zip(before, (height, width), strict=True)]
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + pairs, constant_values=fill)


def resize_image(image: Array, size: int, fit: Fit = "pad") -> Floats:
    """Resize images by area.

    Args:
        image: Shape (..., H, W), values in [0, 1].
        size: Edge length of the result.
        fit: How pixels on a border are counted.
    Returns: float32 (..., size, size), clipped to [0, 1] so that rounding cannot leave the bounds.
    """
    resized: Floats = np.clip(_AREA[fit](image, size), 0.0, 1.0).astype(np.float32)
    return resized


def resize_masks(masks: Array, valid: Bools, size: int, kind: TaskKind, fit: Fit = "pad") -> tuple[Array, Bools]:
    """Resize class planes by area and decide the label of each pixel once, at the end.

    Only valid pixels have a say: a class is present where it covers at least half of the *valid* part of the
    output pixel, and an output pixel is valid if at least half of it is. For multiclass the largest share
    wins, where the background has what the planes leave; of equal shares the first wins.

    Args:
        masks: Shares in [0, 1], shape (K, H, W), one plane for each class without the background.
        valid: Shape (H, W).
        size: Edge length of the result.
        kind: How the labels are put to the model.
        fit: How pixels on a border are counted.
    Returns: Labels, bool (K, size, size) for binary and multilabel, int64 (size, size) for multiclass; and
        the valid pixels, bool (size, size). The label of an invalid pixel is False or 0.
    """
    planes = masks.astype(np.float32)
    if kind == "multiclass":
        rest = np.clip(1.0 - planes.sum(axis=0, keepdims=True), 0.0, 1.0)
        planes = np.concatenate([rest, planes])
    covered = _AREA[fit](planes * valid, size)
    share = _AREA[fit](valid, size)
    still_valid = share >= 0.5
    if kind == "multiclass":
        return np.where(still_valid, covered.argmax(axis=0), 0).astype(np.int64), still_valid
    return (covered >= 0.5 * share) & still_valid, still_valid


def prepare(image: Array, masks: Array, valid: Bools | None, spec: DataSpec) -> Sample:
    """Turn one image and its class planes into what a model meets.

    Args:
        image: Grey, shape (H, W), or colour, shape (3, H, W) with `spec.channels == 3`; finite, in [0, 1].
        masks: bool, or shares in [0, 1]; shape (K, H, W), one plane for each class without the background;
            K = 1 for binary. Planes may overlap for multilabel; for multiclass their sum must not pass 1.
        valid: Shape (H, W), False where a pixel shall not count; None if all count.
        spec: Any data specification; `task`, `size`, `channels` and `fit` are used.
    Returns: The sample, `spec.size` pixels square. Pixels that padding adds are not valid; a data set whose
        surroundings are known to be background pads with `pad_to_square` before. A grey image is copied to
        `spec.channels` channels.
    """
    assert masks.ndim == 3, masks.shape
    assert image.shape[-2:] == masks.shape[-2:], (image.shape, masks.shape)
    assert spec.task != "binary" or len(masks) == 1, f"binary with {len(masks)} masks"
    assert np.isfinite(image).all(), "image has a value that is not finite"
    channels = image[None] if image.ndim == 2 else image
    assert len(channels) in (1, spec.channels), f"{len(channels)} channels for {spec.channels}"
    seen = np.ones(image.shape[-2:], bool) if valid is None else valid.astype(bool)
    if spec.fit == "pad":
        channels, masks, seen = pad_to_square(channels), pad_to_square(masks), pad_to_square(seen).astype(bool)
    label, still_valid = resize_masks(masks, seen, spec.size, spec.task, spec.fit)
    pixels = resize_image(channels, spec.size, spec.fit)
    if len(pixels) < spec.channels:
        pixels = np.repeat(pixels, spec.channels, axis=0)
    return Sample(pixels, label, still_valid)


def fingerprint(spec: DataSpec, content: str) -> str:
    """Hash all that decides a data set's samples.

    Args:
        spec: The specification; every key counts but `path`, so that a folder may move.
        content: What the specification does not say: a digest of the files, or the version of a generator.
    Returns: sha256 in hexadecimal.
    """
    parts = {
        "preparation": PREPARATION[spec.fit],
        "spec": spec.model_dump(mode="json", exclude={"path"}),
        "content": content,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _area_of_whole_pixels(array: Array, size: int) -> Floats:
    """Average (..., H, W) over the area of each of size x size pixels, in float32."""
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    planes = values.reshape(-1, *values.shape[-2:])
    pooled = torch.nn.functional.adaptive_avg_pool2d(planes, size)
    return pooled.reshape(*values.shape[:-2], size, size).numpy()


def _area_by_parts(array: Array, size: int) -> NDArray[np.float64]:
    """Average (..., H, W) over size x size windows, in float64 and without rounding where values are 0 and 1."""
    height, width = array.shape[-2:]
    rows, columns = _overlaps(height, size), _overlaps(width, size)
    planes = array.reshape(-1, height, width).astype(np.float64)
    sums = np.stack([(columns @ (rows @ plane).T).T for plane in planes])
    means: NDArray[np.float64] = sums.reshape(*array.shape[:-2], size, size) / (height * width)
    return means


@lru_cache(maxsize=32)
def _overlaps(pixels: int, size: int) -> sparse.csr_array:
    """Return how much of each window lies on each pixel, in units of 1 / size of a pixel, shape (size, pixels)."""
    edges, pixel = np.arange(size + 1)[:, None] * pixels, np.arange(pixels) * size
    shared = np.minimum(edges[1:], pixel + size) - np.maximum(edges[:-1], pixel)
    return sparse.csr_array(np.maximum(shared, 0).astype(np.float64))


_AREA: dict[Fit, Callable[[Array, int], NDArray[np.floating[Any]]]] = {
    "pad": _area_of_whole_pixels,
    "stretch": _area_by_parts,
}
