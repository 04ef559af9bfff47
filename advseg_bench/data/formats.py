"""Reading pictures and NIfTI files: one header and one stream of slices for every format.

Arrays are as the file stores them: rows before columns for pictures, first axis before second axis for NIfTI, whose
last axis counts the slices. Only a `Layout` that a suite asks for rotates or flips a volume.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError

from advseg_bench.data.header import AS_STORED, Array, Header, Layout
from advseg_bench.data.nifti import is_nifti, read_volume, read_volume_header
from advseg_bench.data.pictures import read_mask, read_picture, read_picture_header
from advseg_bench.errors import DataError, expected

SUFFIXES = (".nii.gz", ".nii", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
"""Endings of files that can be read; upper and lower case are equal."""

WHOLE = 1e-3
"""How far a label may be from a whole number, as resampling and floating-point files leave it."""

# What the imaging libraries raise for damaged files; the unusual ones occur when bytes are changed at random.
_LIBRARY_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    OrientationError,
)


def read_header(path: Path, *, stacked: bool = False, layout: Layout = AS_STORED) -> Header:
    """Read the header of a file.

    Args:
        path: A file of one of `SUFFIXES`.
        stacked: Whether a NIfTI file may have a fourth axis, for channels.
        layout: How the axes of a NIfTI file are read.

    Returns:
        The header.

    Raises:
        DataError: If the file cannot be read, or contains more than one grey or colour image per slice.
    """
    with _one_line_errors(path):
        if is_nifti(path):
            return read_volume_header(path, stacked, layout)
        if layout != AS_STORED:
            wanted, remedy = "a NIfTI volume for `orientation` and `axes`", "Remove these keys."
            raise DataError(expected(path, wanted, path.suffix, remedy))
        return read_picture_header(path)


def read_slices(
    path: Path,
    *,
    first: int = 0,
    labels: bool = False,
    channel: int | None = None,
    channels: int = 1,
    known: Collection[float] | None = None,
    layout: Layout = AS_STORED,
) -> Iterator[Array]:
    """Decode a file slice by slice; in the default layout, with only one slice in memory.

    Args:
        path: A file of one of `SUFFIXES`.
        first: Slice to begin with. A .nii.gz is decompressed up to that slice, a .nii is not.
        labels: Whether it is a mask, which has one channel, see `read_mask`; values within `WHOLE` of whole numbers
            become whole. Otherwise it is an image, see `read_picture`.
        channel: Index of the channel to return, of a colour image or of a volume with a fourth axis; None for all.
        channels: Channels that the data set needs; with more than one, a NIfTI image may have a fourth axis.
        known: Mask values with a meaning, which decide how a palette is read; None for all.
        layout: How the axes of a NIfTI file are read.

    Yields:
        Slices, shape (H, W), or (C, H, W) for several channels; with the data type and scale of the file.

    Raises:
        DataError: If the file is damaged, a mask has more than one channel, or an image lacks the requested channel.
    """
    with _one_line_errors(path):
        if is_nifti(path):
            stacked = not labels and (channel is not None or channels > 1)
            slices = read_volume(path, first, channel, stacked, layout)
            yield from map(_round, slices) if labels else slices
        elif labels:
            yield _round(read_mask(path, known))
        else:
            pixels = read_picture(path, channels)
            if channel is not None and pixels.ndim == 2:
                wanted = "a colour image (several channels)"
                raise DataError(expected(path, wanted, "one channel", "Replace the file."))
            yield pixels if channel is None else pixels[channel]


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """Hash the contents of files and their paths relative to `root`, or their names if they are elsewhere."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()


def _round(pixels: Array) -> Array:
    """Return labels as whole numbers if all of them are nearly whole; otherwise unchanged."""
    if pixels.dtype.kind != "f":
        return pixels
    whole = np.rint(pixels)
    return whole if np.isfinite(pixels).all() and (np.abs(pixels - whole) <= WHOLE).all() else pixels


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn errors of the imaging libraries into a `DataError` that names the file."""
    try:
        yield
    except _LIBRARY_ERRORS as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        wanted = f"a readable {'NIfTI' if is_nifti(path) else _name_format(path)} file"
        remedy = "The file is damaged or has another format: replace it."
        if isinstance(error, OSError) and error.errno:
            cause, remedy = error.strerror or cause, "Check that the file exists and that you may read it."
        elif isinstance(error, MemoryError):
            remedy = "It is larger than the free memory, or its header is damaged."
        raise DataError(expected(path, wanted, cause, remedy)) from error


def _name_format(path: Path) -> str:
    """Name the format of a picture by its ending."""
    names = {".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WebP"}
    return names.get(path.suffix.lower(), "PNG or TIFF")
