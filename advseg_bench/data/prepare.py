"""Resizing for all data sets: from an image and class planes of any size to the `Sample` that a model gets.

All data sets use `prepare`, so that they share one definition of a pixel, a label and a tie. An output pixel is the
mean of the input pixels under it. With fit = "pad" images are padded to a square around their centre, and whole pixels
are averaged (`torch.nn.functional.adaptive_avg_pool2d`, or 3d; where the sizes do not divide, neighbouring windows
share a row of pixels, and an image smaller than the result has its pixels repeated). With fit = "stretch" each edge is
resized separately, and a pixel on the border of two windows is split between them by area, as in OpenCV's INTER_AREA.
Labels are averaged in the same way, as fractions, and thresholded once, at the end.

A volume is averaged in depth as well. With "pad" its rows and columns are padded as those of a slice are, and a volume
of fewer slices than the result is padded with invalid slices, so that none is repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from advseg_bench.data.dataset import UNIT, Sample
from advseg_bench.suite.specs import DataSpec, Fit
from advseg_bench.types import Bounds, Task, TaskKind

PREPARATION: dict[Fit, int] = {"pad": 1, "stretch": 2}
"""Version of this module's arithmetic, part of every fingerprint: increase it when any output pixel changes."""

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Array = NDArray[np.generic]


def task_for(task_type: TaskKind, classes: Sequence[str], background: str = "background") -> Task:
    """Name the logit channels of a task.

    Args:
        task_type: "binary", "multilabel" or "multiclass".
        classes: The classes without the background; exactly one for binary.
        background: Name of the first class of a multiclass task; the other task types have none.

    Returns:
        The task, with `background` put first for multiclass.
    """
    assert len(classes) == 1 if task_type == "binary" else classes, f"{task_type} with classes {classes}"
    return Task(task_type, (background, *classes) if task_type == "multiclass" else tuple(classes))


def find_frame(shape: Sequence[int], spec: DataSpec) -> tuple[int, ...]:
    """Return the edges of an image before it is resized; with "pad" they include the padding.

    Args:
        shape: Edges of the image; only the last two or three, as `spec.edges` has.
        spec: `size` and `fit` are used.

    Returns:
        With "pad" the smallest frame around the image whose rows and columns shrink by one factor. Depth has a separate
        factor, since slices lie farther apart than pixels, and is never enlarged.
    """
    edges = spec.edges
    shape = tuple(shape[-len(edges) :])
    if spec.fit == "stretch":
        return shape
    *depth, height, width = shape
    *slices, rows, columns = edges
    if height * columns > width * rows:
        width = max(width, round(height * columns / rows))
    else:
        height = max(height, round(width * rows / columns))
    return (*(max(pair) for pair in zip(depth, slices, strict=True)), height, width)


def scaled_spacing(shape: Sequence[int], spacing: Sequence[float], spec: DataSpec) -> tuple[float, ...]:
    """Return the edge lengths of a pixel after its image was padded and resized.

    Args:
        shape: Edges before (the last two or three entries).
        spacing: Edge lengths of a pixel in mm before, in the same order; NaN stays NaN.
        spec: `size` and `fit` are used.

    Returns:
        Edge lengths in mm, each scaled by the edge of the frame over that of the result.
    """
    frame = find_frame(shape, spec)
    return tuple(mm * (before / after) for mm, before, after in zip(spacing, frame, spec.edges, strict=True))


def pad_to_frame(array: Array, frame: Sequence[int], fill: float = 0) -> Array:
    """Pad the last axes around the centre.

    Args:
        array: Shape (..., *S), any type. An odd number of pixels puts the extra one at the end.
        frame: Edges of the result, none shorter than those of S.
        fill: Value of the new pixels.

    Returns:
        Shape (..., *frame); `array` itself if it already has these edges.
    """
    edges = array.shape[-len(frame) :]
    if edges == tuple(frame):
        return array
    before = [(wanted - n) // 2 for wanted, n in zip(frame, edges, strict=True)]
    pairs = [(b, wanted - n - b) for b, wanted, n in zip(before, frame, edges, strict=True)]
    return np.pad(array, [(0, 0)] * (array.ndim - len(frame)) + pairs, constant_values=fill)


def pad_to_square(array: Array, fill: float = 0) -> Array:
    """Pad the shorter of the last two axes evenly until both are equally long; see `pad_to_frame`."""
    return pad_to_frame(array, (max(array.shape[-2:]),) * 2, fill)


def resize_image(image: Array, edges: Sequence[int], fit: Fit = "pad", bounds: Bounds = UNIT) -> Floats:
    """Resize images by area.

    Args:
        image: Shape (..., *S), values in `bounds`, with two or three space axes.
        edges: Edge lengths of the result in pixels.
        fit: How pixels on the border of two windows are counted.
        bounds: Smallest and largest intensity of an image.

    Returns:
        float32 (..., *edges), clipped to the bounds against rounding errors.
    """
    resized: Floats = np.clip(_AREA[fit](image, edges), bounds.lower, bounds.upper).astype(np.float32)
    return resized


def resize_masks(
    masks: Array, valid: Bools, edges: Sequence[int], task_type: TaskKind, fit: Fit = "pad"
) -> tuple[Array, Bools]:
    """Resize class planes by area and decide the label of each pixel once, at the end.

    Only valid pixels count: a class is present where it covers at least half of the *valid* part of the output pixel,
    and an output pixel is valid if at least half of it is. For multiclass the class with the largest fraction is
    chosen, the background covering what the planes leave; of equal fractions the first class is chosen.

    Args:
        masks: Fractions in [0, 1], shape (K, *S), one plane for each class without the background.
        valid: Shape S.
        edges: Edge lengths of the result.
        task_type: "binary", "multilabel" or "multiclass".
        fit: How pixels on the border of two windows are counted.

    Returns:
        Labels, bool (K, *edges) for binary and multilabel, int64 of shape `edges` for multiclass; and the valid pixels,
        bool of shape `edges`. The label of an invalid pixel is False or 0.
    """
    planes: Iterable[Array] = (plane.astype(np.float32) for plane in masks)  # one at a time, since volumes are large
    if task_type == "multiclass":
        planes = chain([np.clip(1.0 - masks.sum(axis=0, dtype=np.float32), 0.0, 1.0)], planes)
    covered = np.stack([_AREA[fit](plane * valid, edges) for plane in planes])
    share = _AREA[fit](valid, edges)
    still_valid = share >= 0.5
    if task_type == "multiclass":
        return np.where(still_valid, covered.argmax(axis=0), 0).astype(np.int64), still_valid
    return (covered >= 0.5 * share) & still_valid, still_valid


def prepare(
    image: Array,
    masks: Array,
    valid: Bools | None,
    spec: DataSpec,
    bounds: Bounds = UNIT,
    fill: float | Sequence[float] = 0.0,
) -> Sample:
    """Turn one image and its class planes into a sample for a model.

    Args:
        image: Grey, shape S, or of several channels, shape (C, *S) with `spec.channels == C`; finite, in `bounds`. S
            has as many axes as `spec.edges`: (H, W) for a slice, (D, H, W) for a volume.
        masks: bool, or fractions in [0, 1]; shape (K, *S), one plane for each class without the background;
            K = 1 for binary. Planes may overlap for multilabel; for multiclass their sum must not exceed 1.
        valid: Shape S, False where a pixel is to be ignored; None if all count.
        spec: Any data specification; `task`, `size`, `channels` and `fit` are used.
        bounds: Smallest and largest intensity of an image.
        fill: Intensity of the pixels that padding adds, one or one for each channel.

    Returns:
        The sample, with the edges of `spec`. Pixels that padding adds are not valid; a data set whose surroundings are
        known to be background pads with `pad_to_square` first. A grey image is copied to `spec.channels` channels.
    """
    space = len(spec.edges)
    assert masks.ndim == space + 1, f"masks of shape {masks.shape} for size = {spec.size}"
    assert image.shape[-space:] == masks.shape[-space:], (image.shape, masks.shape)
    assert spec.task != "binary" or len(masks) == 1, f"binary with {len(masks)} masks"
    assert np.isfinite(image).all(), "image has a value that is not finite"
    channels = image[None] if image.ndim == space else image
    assert len(channels) in (1, spec.channels), f"{len(channels)} channels for {spec.channels}"
    seen = np.ones(image.shape[-space:], bool) if valid is None else valid.astype(bool)
    frame = find_frame(seen.shape, spec)
    channels = _pad_channels(channels, frame, fill)
    masks, seen = (pad_to_frame(array, frame) for array in (masks, seen))
    label, still_valid = resize_masks(masks, seen.astype(bool), spec.edges, spec.task, spec.fit)
    pixels = resize_image(channels, spec.edges, spec.fit, bounds)
    if len(pixels) < spec.channels:
        pixels = np.repeat(pixels, spec.channels, axis=0)
    return Sample(pixels, label, still_valid)


def _pad_channels(channels: Array, frame: Sequence[int], fill: float | Sequence[float]) -> Array:
    """Pad an image (C, *S), each channel with its own value if there are several."""
    if isinstance(fill, float) or len(set(fill)) == 1:
        return pad_to_frame(channels, frame, fill if isinstance(fill, float) else fill[0])
    return np.stack([pad_to_frame(plane, frame, value) for plane, value in zip(channels, fill, strict=True)])


def fingerprint(spec: DataSpec, content: str) -> str:
    """Hash everything that a data set's samples depend on.

    Args:
        spec: The specification; every key counts except `path`, so that a folder may be moved.
        content: What the specification does not contain: a digest of the files, or the version of a generator.

    Returns:
        sha256 in hexadecimal.
    """
    parts = {
        "preparation": PREPARATION[spec.fit],
        "spec": spec.model_dump(mode="json", exclude={"path"}),
        "content": content,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _area_of_whole_pixels(array: Array, edges: Sequence[int]) -> Floats:
    """Average (..., *S) over the area of each pixel of the result, in float32."""
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    space = len(edges)
    pool: Any = torch.nn.functional.adaptive_avg_pool2d if space == 2 else torch.nn.functional.adaptive_avg_pool3d
    pooled: torch.Tensor = pool(values.reshape(-1, *values.shape[-space:]), tuple(edges))
    return pooled.reshape(*values.shape[:-space], *edges).numpy()


def _area_by_parts(array: Array, edges: Sequence[int]) -> NDArray[np.float64]:
    """Average (..., *S) over windows in float64, exactly where values are 0 and 1."""
    shape = array.shape[-len(edges) :]
    sums = array.astype(np.float64)
    for axis, (pixels, edge) in enumerate(zip(shape, edges, strict=True), start=-len(edges)):
        lines = np.moveaxis(sums, axis, 0)
        summed = _overlaps(pixels, edge) @ lines.reshape(pixels, -1)
        sums = np.moveaxis(summed.reshape(edge, *lines.shape[1:]), 0, axis)
    means: NDArray[np.float64] = sums / math.prod(shape)
    return means


@lru_cache(maxsize=32)
def _overlaps(pixels: int, size: int) -> sparse.csr_array:
    """Return the overlap of each window with each pixel, in units of 1 / size of a pixel, shape (size, pixels)."""
    edges, pixel = np.arange(size + 1)[:, None] * pixels, np.arange(pixels) * size
    shared = np.minimum(edges[1:], pixel + size) - np.maximum(edges[:-1], pixel)
    return sparse.csr_array(np.maximum(shared, 0).astype(np.float64))


_AREA: dict[Fit, Callable[[Array, Sequence[int]], NDArray[np.floating[Any]]]] = {
    "pad": _area_of_whole_pixels,
    "stretch": _area_by_parts,
}
