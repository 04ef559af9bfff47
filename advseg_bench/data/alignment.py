"""Do two files of one scan have the same voxels? Their sizes, orientations and affines are compared."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from advseg_bench.data.header import Affine, Header
from advseg_bench.errors import DataError, expected

TOLERANCE = 0.1
"""How far a voxel of one file may be from that of the other, anywhere in the volume, in voxels."""


def check_alignment(name: str, header: Header, other: Path, found: Header) -> bool:
    """Refuse a file whose voxels are not those of its image.

    Args:
        name: The image, for messages.
        header: Its header.
        other: A mask, or another channel.
        found: Its header.

    Returns:
        Whether only the headers differ: one file declares no affine, or it declares two, of which one agrees.

    Raises:
        DataError: If sizes differ, or a voxel is more than `TOLERANCE` from its place in the image.
    """
    if found.edges != header.edges:
        what = f"the size of {name}, {header.size}"
        raise DataError(expected(other, what, found.size, "Replace one of the two files."))
    if not header.affines or not found.affines:
        return bool(header.affines) != bool(found.affines) and bool(header.axes) and bool(found.axes)
    shifts = [_measure_shift(a, b, header.edges) for a, b in product(header.affines, found.affines)]
    if shifts[0] <= TOLERANCE:
        return False
    if min(shifts) <= TOLERANCE:
        return True
    if found.axes != header.axes:
        remedy = 'Save both files in one orientation, or set `orientation`, such as "RAS".'
        raise DataError(expected(other, f"the orientation of {name}, {header.axes}", found.axes, remedy))
    what = f"the place of {name} in space (affine), to {TOLERANCE:g} voxels"
    remedy = "Resample it onto the image, or copy the header of the image if only the header is wrong."
    raise DataError(expected(other, what, f"up to {shifts[0]:.3g} voxels away", remedy))


def describe_headers(different: int, total: int) -> str:
    """Describe how many files have another header than their image; "" if none has."""
    if not different:
        return ""
    return (
        f"In {different} of {total} files the header gives no or another place in space (affine) than that of its "
        "image; voxels are matched by index."
    )


def _measure_shift(affine: Affine, other: Affine, edges: tuple[int, ...]) -> float:
    """Return the largest distance of two voxels of one index, in voxels of the first file; infinite if undefined."""
    corners = np.array([(*corner, 1) for corner in product(*((0, edge - 1) for edge in edges))], float).T
    try:
        moved = np.linalg.solve(affine, other @ corners)
    except np.linalg.LinAlgError:
        return float("inf")
    shift = float(np.linalg.norm((moved - corners)[:3], axis=0).max())
    return shift if np.isfinite(shift) else float("inf")
