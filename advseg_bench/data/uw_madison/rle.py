"""Run-length encoded masks: "start length start length ...", counted from 1 along the rows of an image.

A table of masks is parsed and checked as a whole, by array operations, and kept as numbers; a mask is rasterised when
it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from advseg_bench.errors import DataError, expected

CHUNK = 8192
"""Number of codes that are parsed at a time, which limits the memory for their words."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Runs(NamedTuple):
    """The runs of many masks, end to end.

    Attributes:
        starts: First pixel of each run, from 0, in row-major order; int32.
        lengths: Pixels of each run; int32.
        offsets: Mask i has the runs offsets[i] to offsets[i + 1].
    """

    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    offsets: Ints

    def paint(self, mask: int, shape: tuple[int, int]) -> Bools:
        """Return one mask, bool (H, W)."""
        mine = slice(self.offsets[mask], self.offsets[mask + 1])
        return decode_runs(self.starts[mine], self.lengths[mine], shape)


def encode_runs(mask: NDArray[np.generic]) -> str:
    """Encode a mask (H, W) as the shortest run-length code; "" if it is empty."""
    edges = np.diff(np.pad(mask.reshape(-1) != 0, 1).astype(np.int8))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return " ".join(str(n) for n in np.stack([starts + 1, ends - starts], axis=1).reshape(-1))


def decode_runs(starts: NDArray[np.integer], lengths: NDArray[np.integer], shape: tuple[int, int]) -> Bools:
    """Rasterise runs that do not overlap.

    Args:
        starts: First pixels, from 0, in row-major order.
        lengths: Pixels of each run.
        shape: Rows and columns.

    Returns:
        The mask, bool (H, W).
    """
    steps = np.zeros(shape[0] * shape[1] + 1, np.int8)
    steps[starts] += 1
    steps[starts + lengths] -= 1
    painted: Bools = np.cumsum(steps[:-1], dtype=np.int8).astype(bool).reshape(shape)
    return painted


def parse_runs(codes: pl.Series, pixels: Ints, where: Callable[[int], str]) -> Runs:
    """Read and check many run-length codes.

    Args:
        codes: Strings; null or blank is an empty mask.
        pixels: Number of pixels of each mask's image.
        where: Index of a code -> its location, for messages.

    Returns:
        The runs.

    Cost:
        Linear in the number of runs; 8 bytes of memory for each.

    Raises:
        DataError: If a code contains anything but whole numbers, an odd count of them, a run outside the image, or runs
            that overlap or are not in order.
    """
    parts = []
    for first in range(0, len(codes), CHUNK):
        some = slice(first, first + CHUNK)
        parts.append(_parse_some(codes[some], pixels[some], partial(_shifted, where, first)))
    counts = np.concatenate([np.zeros(1, np.int64), *(part.counts for part in parts)])
    starts, lengths = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    return Runs(starts, lengths, np.cumsum(counts))


def _shifted(where: Callable[[int], str], first: int, code: int) -> str:
    return where(first + code)


class _Part(NamedTuple):
    """Runs of some masks, and how many each has."""

    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    counts: Ints


def _parse_some(codes: pl.Series, pixels: Ints, where: Callable[[int], str]) -> _Part:
    """Parse and check one chunk of codes."""
    stripped = codes.fill_null("").str.strip_chars()
    filled = (stripped != "").to_numpy().nonzero()[0]
    words = stripped.gather(filled).str.split(" ")
    counts = words.list.len().to_numpy().astype(np.int64)
    flat = words.explode()
    numbers = flat.cast(pl.Int64, strict=False)
    owner = np.repeat(filled, counts)
    if numbers.null_count():
        bad = int(numbers.is_null().arg_max() or 0)
        _refuse(where(owner[bad]), "whole numbers separated by single spaces", flat[bad])
    if (odd := np.flatnonzero(counts % 2)).size:
        _refuse(where(filled[odd[0]]), "pairs of start and length", f"{counts[odd[0]]} numbers")
    values = numbers.to_numpy()
    firsts, lengths, owner = values[::2], values[1::2], owner[::2]
    limit = pixels[owner]
    outside = np.flatnonzero((firsts < 1) | (lengths < 1) | (firsts > limit) | (lengths > limit + 1 - firsts))
    if outside.size:
        run, most = _show(firsts, lengths, outside[0]), limit[outside[0]]
        _refuse(where(owner[outside[0]]), f"runs of at least one pixel within 1 to {most}", run)
    tangled = np.flatnonzero((owner[1:] == owner[:-1]) & (firsts[1:] < firsts[:-1] + lengths[:-1])) + 1
    if tangled.size:
        last, run = (_show(firsts, lengths, tangled[0] - step) for step in (1, 0))
        _refuse(where(owner[tangled[0]]), f"runs in order that do not overlap, after {last!r}", run)
    runs = np.zeros(len(codes), np.int64)
    runs[filled] = counts // 2
    return _Part((firsts - 1).astype(np.int32), lengths.astype(np.int32), runs)


def _show(firsts: Ints, lengths: Ints, run: int) -> str:
    """Format a run as in the file."""
    return f"{firsts[run]} {lengths[run]}"


def _refuse(where: str, what: str, found: str) -> NoReturn:
    raise DataError(expected(where, what, found, "Download the file again."))
