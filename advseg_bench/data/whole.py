"""Whole volumes as 3-D images: what the readers of NIfTI files do if `size` has three edges.

A file's last axis, which counts its slices, becomes the first one, depth. Nothing is rotated, flipped or resampled to
equal spacing; the note of the data set gives the size of a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from advseg_bench.data.dataset import Case
from advseg_bench.data.formats import Header
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import ImageData


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
    """Return the next slice, or for a volume all that follow as (D, H, W), converted to `dtype` to save memory."""
    return np.stack([np.asarray(pixels, dtype) for pixels in slices]) if is_whole(spec) else next(slices)


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
    return f" Files differ in orientation ({', '.join(found)}); none was reoriented." if len(found) > 1 else ""


def _range(values: Sequence[float]) -> str:
    """Format values as a range."""
    known = sorted(value for value in values if not math.isnan(value))
    if len(known) < len(values):
        return "(unknown)"
    first, last = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return first if first == last else f"{first}-{last}"
