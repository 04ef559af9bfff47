"""Volumes as one 3-D image each: what the readers of NIfTI files do where `size` has three edges.

A file's last axis, which counts its slices, comes first as depth; nothing is turned, flipped or brought to an equal
spacing. What a voxel then measures is a sentence of the data set's note.
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
    """Tell whether volumes are images, not their slices."""
    return len(spec.edges) == 3


def check_volume(path: Path, header: Header, spec: ImageData) -> None:
    """Refuse a picture where a volume is wanted."""
    if is_whole(spec) and header.slices is None:
        remedy = "Give one edge, such as size = 64."
        raise DataError(expected(path, f"a NIfTI volume for size = {list(spec.edges)}", "a picture", remedy))


def find_space(
    header: Header, spec: ImageData, spacing: tuple[float, float] | None = None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return edges and spacing of an image before it is resized.

    Args:
        header: Of its file.
        spec: Whether it is a slice or the whole volume.
        spacing: Edge lengths of a pixel (rows, columns) in mm if they are known better than the header has them.
    """
    plane = spacing or header.spacing
    return ((header.slices or 1, *header.shape), (header.gap, *plane)) if is_whole(spec) else (header.shape, plane)


def gather(slices: Iterator[NDArray[Any]], spec: ImageData, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return the next slice, or all that follow as (D, H, W), those of a volume in a type that takes less memory."""
    return np.stack([np.asarray(pixels, dtype) for pixels in slices]) if is_whole(spec) else next(slices)


def say_whole(cases: Sequence[Case], headers: Sequence[Header], spec: ImageData) -> str:
    """Say how volumes were resized and what a voxel is afterwards; "" where slices are the images."""
    if not is_whole(spec):
        return ""
    edges = " x ".join(map(str, spec.edges))
    how = "rows and columns by one factor, depth by its own" if spec.fit == "pad" else "each edge by its own factor"
    shallow = sum((header.slices or 1) < spec.edges[0] for header in headers) if spec.fit == "pad" else 0
    padded = f" {shallow} of {len(headers)} have fewer slices; those added around them do not count." if shallow else ""
    voxel = " x ".join(_range([case.spacing[axis] for case in cases]) for axis in range(3))
    return (
        f"Each image is a whole volume, resized by area to {edges} (depth, rows, columns), {how}.{padded} Spacing is "
        f"not made equal: a resized voxel measures {voxel} mm.{_say_turned(headers)}"
    )


def _say_turned(headers: Sequence[Header]) -> str:
    """Name orientations if there are several: the same axis of two volumes is then not the same direction."""
    found = sorted({header.axes for header in headers})
    return f" Files differ in orientation ({', '.join(found)}), and none was turned." if len(found) > 1 else ""


def _range(values: Sequence[float]) -> str:
    """Write values by their ends."""
    known = sorted(value for value in values if not math.isnan(value))
    if len(known) < len(values):
        return "(unknown)"
    first, last = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return first if first == last else f"{first}-{last}"
