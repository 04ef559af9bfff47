"""What a TIFF says about its values in its tags, where Pillow would decode other values than those stored."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from advseg_bench.errors import DataError, expected

_BITS_PER_SAMPLE, _PLANAR = 258, 284


def check_tags(path: Path, picture: Image.Image) -> None:
    """Refuse a page of a TIFF whose values Pillow would change.

    Args:
        path: Its file, for messages.
        picture: The picture, at that page; other formats pass.

    Raises:
        DataError: If 16-bit colour is stored plane by plane.
    """
    tags = getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {}
    bits = tuple(tags.get(_BITS_PER_SAMPLE, (1,)))
    if tags.get(_PLANAR, 1) == 2 and len(bits) > 1 and max(bits) > 8:
        wanted, found = "interleaved channels in colour of more than 8 bits", "planar channels"
        remedy = "Save it with PlanarConfiguration = 1, or each channel as a grey page."
        raise DataError(expected(path, wanted, found, remedy))
