"""NIfTI files: headers, orientation, and slices in any order of axes."""

from __future__ import annotations

import gzip
import logging
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from advseg_bench.data.header import AS_STORED, Affine, Array, Header, Layout
from advseg_bench.errors import DataError, expected

MOST_VOXELS = 2**30
"""Largest volume that is read, in voxels times channels: 512 x 512 x 4,096."""

DENSEST = 1_100
"""Most bytes that one byte of a gzip file becomes; its format allows 1,032."""

LARGEST_OFFSET = 2**26
"""Most bytes of header and extensions before the voxels, which nibabel reads into memory."""

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its ending."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_volume_header(path: Path, stacked: bool, layout: Layout) -> Header:
    """Describe a NIfTI file.

    Args:
        path: The file.
        stacked: Whether a fourth axis, for channels, is allowed.
        layout: How its axes are read.

    Returns:
        The header, for the axes as they are read.
    """
    volume, shape = _open(path, stacked)
    dtype = volume.get_data_dtype()
    plain = dtype.kind in "iu" and (volume.dataobj.slope, volume.dataobj.inter) == (1, 0)
    scale = _MM.get(volume.header.get_xyzt_units()[0], 1.0)
    edges = (*shape, 1)[:3]
    zooms = [float(z) * scale if z > 0 else math.nan for z in (*volume.header.get_zooms(), 0.0)[:3]]
    turn = _find_turn(path, volume, layout)
    sources = [int(axis) for axis in np.argsort(turn[:, 0])]  # file axis of each axis of the oriented volume
    slices, rows, columns = (sources[axis] for axis in layout.order)
    codes = layout.orientation or "".join(code or "?" for code in aff2axcodes(volume.affine))
    return Header(
        shape=(edges[rows], edges[columns]),
        slices=edges[slices],
        largest=int(np.iinfo(dtype).max) if plain else None,
        spacing=(zooms[rows], zooms[columns]),
        axes=codes,
        channels=shape[3] if len(shape) == 4 else 1,
        gap=zooms[slices],
        affines=tuple(_reorder(affine, turn, edges, layout) for affine in _declared(volume)),
    )


def read_volume(path: Path, first: int, channel: int | None, stacked: bool, layout: Layout) -> Iterator[Array]:
    """Yield the slices of a NIfTI file from a given one on.

    Slices along the last axis of the file are decoded one by one; for those along another one, the file is decoded as a
    whole.

    Args:
        path: The file.
        first: Slice to begin with.
        channel: Index along the fourth axis; None for all, as (C, H, W) if there are several.
        stacked: Whether a fourth axis is allowed.
        layout: How its axes are read.

    Yields:
        Slices, (H, W) or (C, H, W).
    """
    volume, shape = _open(path, stacked)
    tail = (0,) * (len(volume.shape) - len(shape))
    if layout == AS_STORED:
        wanted = slice(None) if channel is None else channel
        for index in range(first, (*shape, 1)[2]):
            place = (..., *(index, wanted)[: len(shape) - 2], *tail)
            yield _pick(np.asarray(volume.dataobj[place]), len(shape) == 4 and channel is None, None)
        return
    voxels = np.asanyarray(volume.dataobj).reshape(*shape, *([1] if len(shape) == 2 else []))
    voxels = apply_orientation(voxels, _find_turn(path, volume, layout))
    moved = voxels.transpose(*layout.order, *range(3, voxels.ndim))
    for pixels in moved[first:]:
        yield _pick(pixels, len(shape) == 4, channel)


def _pick(pixels: Array, several: bool, channel: int | None) -> Array:
    """Choose a channel of a slice (H, W, C), or put all channels first."""
    if not several:
        return pixels
    if channel is not None:
        return pixels[..., channel]
    return np.moveaxis(pixels, -1, 0) if pixels.shape[-1] > 1 else pixels[..., 0]


def _open(path: Path, stacked: bool) -> tuple[Any, tuple[int, ...]]:
    """Open a file and return it with its shape, without trailing axes of length 1.

    The handle stays open, so that reading slices in order decompresses a .nii.gz once.
    """
    _check_offset(path)
    with _silenced():
        volume: Any = nibabel.load(path, mmap=False, keep_file_open=True)
    if not isinstance(volume, nibabel.spatialimages.SpatialImage):
        remedy = "Convert the data to a volume."
        raise DataError(expected(path, "a volume", type(volume).__name__, remedy))
    shape = tuple(int(n) for n in volume.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    kind = volume.get_data_dtype().kind
    if len(shape) not in ((2, 3, 4) if stacked else (2, 3)) or min(shape) < 1 or kind not in "iuf":
        found = f"shape {volume.shape} of {volume.get_data_dtype()}"
        remedy = "Set `channels` if the fourth axis holds channels, or save one file per channel."
        raise DataError(expected(path, "a volume of real numbers with 2 or 3 axes", found, remedy))
    _check_size(path, math.prod(shape), volume.get_data_dtype().itemsize)
    return volume, shape


def _check_size(path: Path, voxels: int, width: int) -> None:
    """Refuse a volume that is too large, or cannot be in its file, before anything is allocated."""
    if voxels > MOST_VOXELS:
        remedy = "Crop it or lower its resolution."
        raise DataError(expected(path, f"a volume of at most {MOST_VOXELS:,} voxels", f"{voxels:,}", remedy))
    size = path.stat().st_size
    if voxels * width > size * (DENSEST if path.name.lower().endswith(".gz") else 1):
        found = f"{size:,} bytes for {voxels:,} voxels of {width} bytes"
        raise DataError(expected(path, "a whole NIfTI file", found, "The file is damaged: replace it."))


def _check_offset(path: Path) -> None:
    """Refuse a header that places the voxels far behind it: all between would be read into memory."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        start = file.read(176)
    order: Literal["<", ">"] = "<" if start[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    second = start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    form, where = ("q", 168) if second else ("f", 108)
    if len(start) < 176 or not struct.unpack_from(f"{order}{form}", start, where)[0] <= LARGEST_OFFSET:
        what = f"a NIfTI file with voxels in its first {LARGEST_OFFSET:,} bytes"
        raise DataError(expected(path, what, "none", "The file is damaged: replace it."))


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep nibabel from printing what it corrects in a header."""
    logger = logging.getLogger("nibabel.global")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _find_turn(path: Path, volume: Any, layout: Layout) -> Any:
    """Return nibabel's transform from the orientation of the file to that of the layout, (3, 2)."""
    if layout.orientation is None:
        return np.array([[0, 1], [1, 1], [2, 1]], float)
    if not _declared(volume):
        remedy = "Remove `orientation`, or set the affine of the file."
        raise DataError(expected(path, f"an affine, for orientation = {layout.orientation!r}", "none", remedy))
    return ornt_transform(io_orientation(volume.affine), axcodes2ornt(layout.orientation))


def _declared(volume: Any) -> list[Affine]:
    """Return the affines that the file declares, the preferred one first."""
    found = [volume.get_sform(coded=True), volume.get_qform(coded=True)]
    return [np.asarray(affine, float) for affine, code in found if code and affine is not None]


def _reorder(affine: Affine, turn: Any, edges: tuple[int, ...], layout: Layout) -> Affine:
    """Change an affine of the file's axes into one of slices, rows and columns as they are read."""
    oriented = affine @ inv_ornt_aff(turn, edges)
    columns: Affine = oriented[:, [*layout.order, 3]]
    return columns
