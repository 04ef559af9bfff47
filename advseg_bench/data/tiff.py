"""The tags of a TIFF that describe its values, where Pillow would decode other values than those stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from advseg_bench.data.header import Array
from advseg_bench.errors import DataError, expected

_BITS_PER_SAMPLE, _PLANAR, _SAMPLE_FORMAT = 258, 284, 339
_PHOTOMETRIC, _EXTRA_SAMPLES = 262, 338
_SIGNED = 2


def check_tags(path: Path, picture: Image.Image) -> None:
    """Refuse a page of a TIFF whose values Pillow would change.

    Args:
        path: Its file, for messages.
        picture: The picture, at that page; other formats pass.

    Raises:
        DataError: If 16-bit colour is stored plane by plane, colours are multiplied by alpha, or 0 is white in more
            than 8 bits.
    """
    tags = getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {}
    bits = tuple(tags.get(_BITS_PER_SAMPLE, (1,)))
    if tags.get(_PLANAR, 1) == 2 and len(bits) > 1 and max(bits) > 8:
        wanted, found = "interleaved channels in colour of more than 8 bits", "planar channels"
        remedy = "Save it with PlanarConfiguration = 1, or each channel as a grey page."
        raise DataError(expected(path, wanted, found, remedy))
    if 1 in tags.get(_EXTRA_SAMPLES, ()):
        wanted, found = "colours that are not multiplied by alpha", "associated alpha (ExtraSamples = 1)"
        raise DataError(expected(path, wanted, found, "Save it without alpha, or with ExtraSamples = 2."))
    if tags.get(_PHOTOMETRIC) == 0 and max(bits) > 8:
        wanted, found = "a TIFF of more than 8 bits in which 0 is black", "WhiteIsZero (PhotometricInterpretation = 0)"
        raise DataError(expected(path, wanted, found, "Invert its values and save it with BlackIsZero."))


def restore_sign(picture: Image.Image, pixels: Array) -> Array:
    """Return the values of a grey page; Pillow reads int8 as uint8 and uint32 as int32."""
    if picture.format != "TIFF":
        return pixels
    bits, signed = read_type(picture)
    if picture.mode == "L" and bits == 8 and signed:
        return pixels.view(np.int8)
    return pixels.view(np.uint32) if picture.mode == "I" and bits == 32 and not signed else pixels


def read_type(picture: Image.Image) -> tuple[int, bool]:
    """Return the bits per value of a page of a TIFF, and whether its values are signed."""
    tags = picture.tag_v2  # type: ignore[attr-defined]
    return int(tags.get(_BITS_PER_SAMPLE, (1,))[0]), tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
