"""Reading PNG, TIFF and NIfTI files: one header and one stream of slices for every format.

Arrays are as the file stores them: rows before columns for PNG and TIFF, first axis before second axis for
NIfTI, whose last axis counts the slices. Nothing is rotated or flipped.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from PIL import Image

from advseg_bench.errors import DataError, expected

SUFFIXES = (".nii.gz", ".nii", ".png", ".tif", ".tiff")
"""Endings of files that can be read; upper and lower case are equal."""

# What the imaging libraries raise for damaged files; the unusual ones occur when bytes are changed at random.
_LIBRARY_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    SyntaxError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Header:
    """The properties of a file that are known before its pixels are read.

    Attributes:
        shape: Rows and columns.
        slices: Images in the file; None for a format that holds one.
        largest: Largest value of its integer type, or None if pixels are not unscaled integers.
        spacing: Edge lengths of a pixel (rows, columns) in mm; NaN where the file has none.
        axes: Orientation of a NIfTI file, such as "RAS"; "" for other formats.
        channels: Volumes in a NIfTI file, along its fourth axis.
        gap: Distance between neighbouring slices in mm; NaN where the file has none.
    """

    shape: tuple[int, int]
    slices: int | None
    largest: int | None
    spacing: tuple[float, float]
    axes: str
    channels: int = 1
    gap: float = math.nan


def list_files(folder: Path) -> dict[str, Path]:
    """Find the files of a folder by stem ("a" for a.png and for a.nii.gz); hidden files are skipped.

    Args:
        folder: An existing folder; subfolders are an error.

    Returns:
        Stem -> file, sorted by stem.

    Raises:
        DataError: If an entry has another ending, or two entries have the same stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        ending = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
        if ending is None or not path.is_file():
            wanted = f"a file ending in {', '.join(sorted(SUFFIXES))}"
            found_entry = "a folder" if path.is_dir() else path.name
            raise DataError(expected(path, wanted, found_entry, "Convert it, or move it elsewhere."))
        stem = path.name[: -len(ending)]
        if stem in found:
            both = [found[stem].name, path.name]
            raise DataError(expected(path, f"one file named {stem!r}", both, "Remove one of them."))
        found[stem] = path
    return dict(sorted(found.items()))


def read_header(path: Path, *, stacked: bool = False) -> Header:
    """Read the header of a file.

    Args:
        path: A file of one of `SUFFIXES`.
        stacked: Whether a NIfTI file may have a fourth axis, for channels.

    Returns:
        The header.

    Raises:
        DataError: If the file cannot be read, or contains more than one grey or colour image per slice.
    """
    with _one_line_errors(path):
        if _is_volume(path):
            return _volume_header(_open_volume(path, stacked))
        with Image.open(path) as picture:
            _check_single(path, picture)
            shape = (picture.height, picture.width)
            return Header(shape, None, _largest(picture), (math.nan, math.nan), "")


def read_slices(path: Path, *, first: int = 0, labels: bool = False, channel: int | None = None) -> Iterator[Array]:
    """Decode a file slice by slice, with only one slice in memory.

    Args:
        path: A file of one of `SUFFIXES`.
        first: Slice to begin with. A .nii.gz is decompressed up to that slice, a .nii is not.
        labels: Whether it is a mask: palette indices stay indices, and colour is an error. Otherwise palettes
            and colour spaces become RGB, and alpha is dropped.
        channel: Index of the channel to return, of a colour image or of a volume with a fourth axis; None for all.

    Returns:
        Slices, shape (H, W), or (3, H, W) for colour; with the data type and scale of the file.

    Raises:
        DataError: If the file is damaged, a mask has more than one channel, or an image lacks the requested channel.
    """
    with _one_line_errors(path):
        if not _is_volume(path):
            with Image.open(path) as picture:
                _check_single(path, picture)
                pixels = _decode(path, picture, labels)
                if channel is not None and pixels.ndim == 2:
                    raise DataError(
                        expected(path, "a colour image (several channels)", "one channel", "Replace the file.")
                    )
                yield pixels if channel is None else pixels[channel]
            return
        volume = _open_volume(path, channel is not None)
        if len(volume.shape) == 2:
            yield np.asanyarray(volume.dataobj)
            return
        for index in range(first, volume.shape[2]):
            place = (..., index) if len(volume.shape) == 3 else (..., index, channel)
            yield np.asarray(volume.dataobj[place])


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """Hash the contents of files and their paths relative to `root`."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{content}  {path.relative_to(root).as_posix()}\n".encode())
    return digest.hexdigest()


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn errors of the imaging libraries into a `DataError` that names the file."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        numbers = [f"{int(number):,} pixels" for number in re.findall(r"\d+", str(error))]
        what = f"an image of at most {numbers[1]}, Pillow's limit" if len(numbers) > 1 else "an image within the limit"
        remedy = "Cut it into tiles or reduce its resolution, such as with OpenSlide or `vips dzsave`."
        raise DataError(f"{path}: expected {what}, got {numbers[0] if numbers else error}. {remedy}") from error
    except _LIBRARY_ERRORS as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        wanted = f"a readable {'NIfTI' if _is_volume(path) else 'PNG or TIFF'} file"
        remedy = "The file is damaged or has another format: replace it."
        if isinstance(error, OSError) and error.errno:
            cause, remedy = error.strerror or cause, "Check that the file exists and that you may read it."
        elif isinstance(error, MemoryError):
            remedy = "It is larger than the free memory, or its header is damaged."
        raise DataError(expected(path, wanted, cause, remedy)) from error


def _is_volume(path: Path) -> bool:
    """Whether a file is NIfTI, by its ending."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _open_volume(path: Path, stacked: bool) -> Any:
    """Open a NIfTI file; the handle stays open, so that reading slices in order decompresses a .nii.gz once."""
    volume = nibabel.load(path, mmap=False, keep_file_open=True)
    if not isinstance(volume, Nifti1Pair):
        found = f"a {type(volume).__name__} without the axes of space"
        raise DataError(expected(path, "a NIfTI volume or image", found, "Export it as a volume, or leave it out."))
    kind = volume.get_data_dtype().kind
    if len(volume.shape) not in ((2, 3, 4) if stacked else (2, 3)) or 0 in volume.shape or kind not in "iuf":
        found = f"shape {volume.shape} of {volume.get_data_dtype()}"
        raise DataError(
            expected(path, "a volume of real numbers with 2 or 3 axes", found, "Save one file per channel.")
        )
    return volume


def _volume_header(volume: Any) -> Header:
    """Describe a NIfTI file."""
    dtype = volume.get_data_dtype()
    plain = dtype.kind in "iu" and (volume.dataobj.slope, volume.dataobj.inter) == (1, 0)
    scale = _MM.get(volume.header.get_xyzt_units()[0], 1.0)
    zooms = (*volume.header.get_zooms(), 0.0)[:3]
    rows, columns, gap = (float(z) * scale if z > 0 else math.nan for z in zooms)
    axes = "".join(code or "?" for code in nibabel.aff2axcodes(volume.affine))
    slices, channels = (*volume.shape[2:], 1, 1)[:2]
    largest = int(np.iinfo(dtype).max) if plain else None
    return Header((volume.shape[0], volume.shape[1]), slices, largest, (rows, columns), axes, channels, gap)


def _check_single(path: Path, picture: Image.Image) -> None:
    """Refuse a file with several pages."""
    pages = getattr(picture, "n_frames", 1)
    if pages != 1:
        raise DataError(expected(path, "one image per file", f"{pages} pages", "Save each page as a separate file."))


def _largest(picture: Image.Image) -> int | None:
    """Return the largest value that the file's pixel type can represent; Pillow's mode may be wider."""
    if picture.mode == "F":
        return None
    if picture.mode == "1":
        return 1
    if not picture.mode.startswith("I"):
        return 255
    tags = getattr(picture, "tag_v2", None)
    if tags is None:
        return 65535
    bits = int(tags[_BITS_PER_SAMPLE][0])
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


def _decode(path: Path, picture: Image.Image, labels: bool) -> Array:
    """Read the pixels of a PNG or TIFF file."""
    mode = picture.mode
    grey = mode in ("1", "L", "I", "F") or mode.startswith("I;16")
    if labels and not (grey or mode == "P"):
        remedy = "Save the mask with one channel that contains class values."
        raise DataError(expected(path, "a mask of one channel", f"mode {mode}", remedy))
    if grey or labels:
        pixels = np.asarray(picture)
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if mode == "LA":
        return np.asarray(picture.convert("L"))
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
