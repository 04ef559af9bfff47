"""Pictures (PNG, TIFF, JPEG, BMP, GIF, WebP): headers and pixels, with all bits that the file has."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from advseg_bench.data.header import Array, Header
from advseg_bench.data.palettes import read_palette
from advseg_bench.data.tiff import check_tags, read_type, restore_sign
from advseg_bench.errors import DataError, expected

MOST_PIXELS = 2**30
"""Largest picture that is read, in pixels; Pillow's own limit is below the size of a microscope slide."""

PLAIN_PIXELS = 2**25
"""Pictures up to this size are decoded whatever the size of their file: they take at most 0.3 GB."""

DENSEST = 8_300
"""Most pixels in one byte of a larger picture's file: a byte holds up to 8, and Deflate shrinks to a 1032nd at most."""

_ROTATION = 274
_MAY_BE_TURNED = ("JPEG", "MPO", "TIFF", "WEBP")
_STRAY = 40
"""Largest difference between the channels of a grey mask after lossy compression."""


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture of up to `MOST_PIXELS` pixels."""
    usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                found = f"{picture.width} x {picture.height}"
                remedy = "Save it at a lower resolution, or in tiles."
                raise DataError(expected(path, f"a picture of at most {MOST_PIXELS:,} pixels", found, remedy))
            _check_density(path, picture)
            check_tags(path, picture)
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _check_density(path: Path, picture: Image.Image) -> None:
    """Refuse a large picture in a file that cannot hold it, before anything is allocated."""
    pixels, size = picture.width * picture.height, path.stat().st_size
    if pixels > PLAIN_PIXELS and pixels > DENSEST * size:
        found = f"{size:,} bytes for {picture.width} x {picture.height} pixels"
        raise DataError(expected(path, "a whole picture", found, "The file is damaged: replace it."))


def read_picture_header(path: Path) -> Header:
    """Describe a picture.

    Args:
        path: The file.

    Returns:
        The header; the pages of a TIFF count as channels.
    """
    with open_picture(path) as picture:
        pages = _count_pages(path, picture)
        channels = pages if pages > 1 else len(picture.getbands())
        return Header(
            shape=(picture.height, picture.width),
            slices=None,
            largest=_largest(picture),
            spacing=(math.nan, math.nan),
            axes="",
            channels=channels,
            lossy=_is_lossy(path, picture),
            turned=picture.format in _MAY_BE_TURNED and picture.getexif().get(_ROTATION, 1) not in (0, 1),
        )


def read_picture(path: Path, channels: int) -> Array:
    """Decode an image.

    Args:
        path: The file.
        channels: Channels that the data set needs; with four, those of RGBA and CMYK are kept as stored,
            otherwise alpha is dropped and colour spaces become RGB.

    Returns:
        Shape (H, W), or (C, H, W) for colour and for the pages of a TIFF.
    """
    with open_picture(path) as picture:
        pages = _count_pages(path, picture)
        if pages > 1:
            if pages != channels:
                remedy = f"Set channels = {pages}, or save each page as a separate file."
                raise DataError(
                    expected(path, "one image per file, or as many pages as `channels`", f"{pages} pages", remedy)
                )
            if pages * picture.width * picture.height > MOST_PIXELS:
                found = f"{pages} pages of {picture.width} x {picture.height}"
                raise DataError(
                    expected(path, f"pages of at most {MOST_PIXELS:,} pixels", found, "Lower the resolution.")
                )
            return np.stack([_decode_page(path, picture, page) for page in range(pages)])
        if channels == 4 and picture.mode in ("RGBA", "CMYK"):
            return _read_all_bits(picture).transpose(2, 0, 1)
        return _decode(picture)


def read_mask(path: Path, known: Collection[float] | None) -> Array:
    """Decode a mask of one channel, of equal channels, or with a palette.

    A palette is read by colour if all colours of its table are grey levels with a meaning, otherwise by index.

    Args:
        path: The file.
        known: Values with a meaning; None for all.

    Returns:
        Shape (H, W).

    Raises:
        DataError: If its channels differ, or its transparency or palette contradicts its grey levels.
    """
    with open_picture(path) as picture:
        if _count_pages(path, picture) > 1:
            found = f"{_count_pages(path, picture)} pages"
            raise DataError(expected(path, "one image per file", found, "Save each page as a separate file."))
        if picture.mode == "P":
            return read_palette(path, picture, known)
        if _is_grey(picture.mode):
            return _read_grey(picture)
        remedy = "Save the mask with one channel that contains class values."
        if picture.mode not in ("RGB", "RGBA", "RGBX", "LA"):
            raise DataError(expected(path, "a mask of one channel", f"mode {picture.mode}", remedy))
        return _merge(path, _read_all_bits(picture), _is_lossy(path, picture), remedy)


def _merge(path: Path, pixels: Array, lossy: bool, remedy: str) -> Array:
    """Return the grey levels of a mask (H, W, C) whose channels are equal."""
    colours = pixels[..., :1] if pixels.shape[-1] == 2 else pixels[..., :3]
    values = colours.astype(np.int64)
    if np.ptp(values, axis=-1).max() > (_STRAY if lossy else 0):
        raise DataError(expected(path, "a mask of one channel, or of equal channels", "colours", remedy))
    grey = np.sort(values, axis=-1)[..., values.shape[-1] // 2].astype(pixels.dtype)
    alpha = pixels[..., -1] if pixels.shape[-1] in (2, 4) else None
    if alpha is not None and alpha.min() != alpha.max() and (alpha.astype(bool) != grey.astype(bool)).any():
        found = "a transparency of another shape"
        raise DataError(expected(path, "a mask whose transparency agrees with its grey levels", found, remedy))
    return grey


def _count_pages(path: Path, picture: Image.Image) -> int:
    """Count the pages of a TIFF; other formats with several images are refused."""
    pages = int(getattr(picture, "n_frames", 1))
    if pages != 1 and picture.format != "TIFF":
        raise DataError(expected(path, "one image per file", f"{pages} frames", "Save each one as a separate file."))
    return pages


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "I", "F") or mode.startswith("I;16")


def _read_grey(picture: Image.Image) -> Array:
    pixels = np.asarray(picture)
    return pixels.astype(np.uint8) if pixels.dtype == bool else restore_sign(picture, pixels)


def _decode_page(path: Path, picture: Image.Image, page: int) -> Array:
    """Read one page of a TIFF, which must be grey."""
    picture.seek(page)
    check_tags(path, picture)
    if not _is_grey(picture.mode):
        remedy = "Save each channel as a grey page."
        raise DataError(expected(path, "grey pages", f"mode {picture.mode} on page {page}", remedy))
    return _read_grey(picture)


def _decode(picture: Image.Image) -> Array:
    """Read an image as (H, W), or (3, H, W) for colour."""
    if _is_grey(picture.mode):
        return _read_grey(picture)
    if picture.mode == "LA":
        return np.asarray(picture)[..., 0]
    if picture.mode == "P":
        alone = picture.convert("RGB")
    elif picture.mode in ("RGB", "RGBA", "RGBX"):
        pixels = _read_all_bits(picture)
        return pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3].transpose(2, 0, 1)
    else:
        alone = picture.convert("RGB")
    return np.asarray(alone).transpose(2, 0, 1)


def _read_all_bits(picture: Image.Image) -> NDArray[np.generic]:
    """Read colour (H, W, C); of 16-bit channels, of which Pillow keeps the upper 8 bits, all bits are read."""
    raw = _raw_mode(picture)
    if ";16" not in raw:
        return np.asarray(picture)
    if raw.startswith("LA"):  # four bytes, which Pillow can read as four channels
        parts = _decode_as(picture, "RGBA").astype(np.uint16)
        return np.stack([256 * parts[..., 0] + parts[..., 1], 256 * parts[..., 2] + parts[..., 3]], axis=-1)
    name, order = raw.split(";16")
    little = order.startswith("L") or (order.startswith("N") and np.little_endian)
    with Image.open(str(picture.filename)) as again:  # type: ignore[attr-defined]
        lower = _decode_as(again, f"{name};16{'B' if little else 'L'}").astype(np.uint16)
    return 256 * np.asarray(picture).astype(np.uint16) + lower


def _raw_mode(picture: Image.Image) -> str:
    """Return how Pillow unpacks the bytes of a picture, such as "RGB;16B"."""
    tiles = getattr(picture, "tile", [])
    found = tiles[0].args if tiles else ""
    return str(found[0] if isinstance(found, tuple) and found else found)


def _decode_as(picture: Image.Image, raw: str) -> Array:
    """Decode a picture whose bytes are unpacked in another way."""
    tiles = getattr(picture, "tile", [])
    picture.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in tiles
    ]
    return np.asarray(picture)


def _largest(picture: Image.Image) -> int | None:
    """Return the largest value that the file's pixel type can represent; Pillow's mode may be wider."""
    if picture.mode == "F":
        return None
    if picture.mode == "1":
        return 1
    if ";16" in _raw_mode(picture) and not picture.mode.startswith("I"):
        return 65535
    tiff = picture.format == "TIFF"
    if not picture.mode.startswith("I"):
        return 127 if tiff and picture.mode == "L" and read_type(picture) == (8, True) else 255
    if not tiff:
        return 65535
    bits, signed = read_type(picture)
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


def _is_lossy(path: Path, picture: Image.Image) -> bool:
    """Whether the compression of a picture changes its values."""
    if picture.format == "WEBP":
        return b"VP8L" not in path.read_bytes()[:512]
    return picture.format in ("JPEG", "MPO") or picture.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
