"""Masks with a palette: whether its colours or their indices are the mask values."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from advseg_bench.data.header import Array
from advseg_bench.errors import DataError, expected


def read_palette(path: Path, picture: Image.Image, known: Collection[float] | None) -> Array:
    """Return the grey levels of a mask with a palette, or its indices.

    The palette's table decides, not the values that the file uses, so that masks with one palette are read alike.

    Args:
        path: Its file, for messages.
        picture: The mask.
        known: Values with a meaning; None for all.

    Returns:
        Shape (H, W).

    Raises:
        DataError: If the grey levels of the table are not all known, and contradict the order of its indices.
    """
    indices = np.asarray(picture)
    table = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    if not len(table) or indices.max() >= len(table) or (len(table) > 1 and (table == table[0]).all()):
        return indices
    colours = _without_padding(table)
    is_grey = (colours == colours[:, :1]).all(axis=1)
    levels = colours[:, 0].astype(int)
    if is_grey.all():
        distinct = len(set(levels.tolist())) == len(levels)
        if distinct and (known is None or set(levels.tolist()) <= {int(value) for value in known}):
            by_colour: Array = table[:, 0][indices]
            return by_colour
        agrees = bool((np.diff(levels) > 0).all())
    else:
        agrees = not is_grey[0] or levels[0] <= levels[is_grey].min()
    if not agrees:
        wanted = "a palette whose grey levels are mask values, or increase with their indices"
        listed = [int(level) for level in levels[is_grey][:5]]
        found = [*listed, "..."] if is_grey.sum() > 5 else listed
        remedy = "Save the mask with one channel that contains class values."
        raise DataError(expected(path, wanted, found, remedy))
    return indices


def _without_padding(table: Array) -> Array:
    """Return a table without the equal colours at its end, which fill it up to a power of two."""
    different = np.flatnonzero((table != table[-1]).any(axis=1))
    end = int(different[-1]) + 1 if len(different) else 0
    seen = (table[:end] == table[-1]).all(axis=1).any()
    return table[: end if seen else end + 1]
