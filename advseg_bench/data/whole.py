"""Whole volumes as 3-D images: what the readers of NIfTI files do if `size` has three edges.

A file's last axis, which counts its slices, becomes the first one, depth, unless a suite sets `axes`. Nothing is
resampled to equal spacing, and nothing is rotated or flipped unless a suite sets `orientation`; the note of the data
set gives the size of a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from advseg_bench.data.dataset import Case
from advseg_bench.data.header import Array, Header, Layout
from advseg_bench.data.intensities import Floats, Window
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import FileData, ImageData


def is_whole(spec: ImageData) -> bool:
    """Whether the images are whole volumes, not slices."""
    return len(spec.edges) == 3


def check_volume(path: Path, header: Header, spec: ImageData) -> None:
    """Refuse a 2-D image where a volume is needed."""
    if is_whole(spec) and header.slices is None:
        remedy = "Give one edge for 2-D images, such as size = 64."
        raise DataError(expected(path, f"a NIfTI volume for size = {list(spec.edges)}", "a 2-D image", remedy))


def find_space(
    header: Header, spec: ImageData, spacing: tuple[float, float] | None = None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return edges and spacing of an image before it is resized.

    Args:
        header: Of its file.
        spec: Whether the image is a slice or the whole volume.
        spacing: Edge lengths of a pixel (rows, columns) in mm, which replace those of the header.

    Returns:
        Edges in pixels and spacing in mm, each (rows, columns) or (depth, rows, columns).
    """
    plane = spacing or header.spacing
    return ((header.slices or 1, *header.shape), (header.gap, *plane)) if is_whole(spec) else (header.shape, plane)


def gather(slices: Iterator[NDArray[Any]], spec: ImageData, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return the next slice, or for a volume all that follow, converted to `dtype` to save memory.

    Args:
        slices: Each (H, W), or (C, H, W) for several channels.
        spec: Whether the image is a slice or the whole volume.
        dtype: Type of the result; by default that of the slices.

    Returns:
        Shape (H, W) or (C, H, W); of a volume (D, H, W) or (C, D, H, W).
    """
    if not is_whole(spec):
        return next(slices)
    volume = np.stack([np.asarray(pixels, dtype) for pixels in slices])
    return volume if volume.ndim == 3 else np.moveaxis(volume, 1, 0)


def apply_windows(pixels: Array, windows: Sequence[Window]) -> Floats:
    """Convert the intensities of a slice (H, W) or (C, H, W), by one window for all channels or one for each."""
    if pixels.ndim == 2 or len(windows) == 1:
        return windows[0].apply(pixels)
    return np.stack([window.apply(plane) for plane, window in zip(pixels, windows, strict=True)])


def find_layout(spec: FileData) -> Layout:
    """Return how the axes of a file are read."""
    return Layout(spec.orientation, spec.axes)


def describe_layout(headers: Sequence[Header], spec: FileData) -> dict[str, Any]:
    """Return what a run records about the axes of its volumes; nothing for pictures."""
    found = sorted({header.axes for header in headers} - {""})
    return {"orientation": ", ".join(found), "axes": spec.axes} if found else {}


def describe_whole(cases: Sequence[Case], headers: Sequence[Header], spec: ImageData) -> str:
    """Describe how volumes were resized and the size of the resulting voxels; "" if the images are slices."""
    if not is_whole(spec):
        return ""
    edges = " x ".join(map(str, spec.edges))
    how = "rows and columns by one factor, depth by another" if spec.fit == "pad" else "each edge by a separate factor"
    shallow = sum((header.slices or 1) < spec.edges[0] for header in headers) if spec.fit == "pad" else 0
    padded = (
        f" {shallow} of {len(headers)} have fewer slices and are padded with slices that are ignored."
        if shallow
        else ""
    )
    voxel = " x ".join(_range([case.spacing[axis] for case in cases]) for axis in range(3))
    return (
        f"Each image is a whole volume, resized by area to {edges} (depth, rows, columns), {how}.{padded} Volumes are "
        f"not resampled to equal spacing: a resized voxel measures {voxel} mm.{_describe_orientations(headers)}"
    )


def _describe_orientations(headers: Sequence[Header]) -> str:
    """List the orientations if there are several: one axis then has different directions in different volumes."""
    found = sorted({header.axes for header in headers})
    return (
        f" Files differ in orientation ({', '.join(found)}); none was reoriented (set `orientation`)."
        if len(found) > 1
        else ""
    )


def _range(values: Sequence[float]) -> str:
    """Format values as a range."""
    known = sorted(value for value in values if not math.isnan(value))
    if len(known) < len(values):
        return "(unknown)"
    first, last = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return first if first == last else f"{first}-{last}"
