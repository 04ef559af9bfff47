"""Integer codes for the distinct values of a frame's rows, to group, sort and average a million rows fast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray


def number_rows(frame: pl.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """Number the distinct combinations of values of some columns, in sorted order.

    Args:
        frame: A frame without null in these columns.
        columns: Names of the columns.

    Returns:
        The number of each row's combination, and the distinct combinations in the order of their numbers.
    """
    numbers, first = find_distinct(frame, columns)
    return numbers, frame.select(pl.col(columns).gather(first))


def find_distinct(frame: pl.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the distinct combinations of values of some columns, in sorted order, and find the first row of each.

    It works column by column, since polars would concatenate all columns of each row into one long key.

    Args:
        frame: A frame without null in these columns.
        columns: Names of the columns.

    Returns:
        The number of each row's combination, and the first row of each number.
    """
    numbers = np.zeros(len(frame), dtype=np.int64)
    for name in columns:
        column = frame[name]
        if column.dtype in (pl.String, pl.Categorical):
            column = column.cast(pl.Categorical())
            values = column.unique()
            codes = values.to_physical().to_numpy()[values.cast(pl.String).arg_sort()]
            ranks = np.empty(int(codes.max(initial=0)) + 1, dtype=np.int64)
            ranks[codes] = np.arange(len(codes))
            places = ranks[column.to_physical().to_numpy()]
        else:
            values = column.unique().sort()
            places = np.searchsorted(values.to_numpy(), column.to_numpy())
        if numbers.max(initial=0) >= 2**62 // max(len(values), 1):
            numbers = close_gaps(numbers)[0]
        numbers = numbers * len(values) + places
    numbers, found = close_gaps(numbers)
    first = np.empty(len(found), dtype=np.int64)
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]
    return numbers, first


def close_gaps(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Renumber values so that the distinct ones are 0, 1, 2, ... in ascending order.

    If the largest value is smaller than their count, a lookup table is used, which is faster than sorting.

    Args:
        numbers: Values of at least 0.

    Returns:
        The new number of each value, and the distinct values, ascending.
    """
    highest = int(numbers.max(initial=-1))
    if highest >= len(numbers):
        found, places = np.unique(numbers, return_inverse=True)
        return places, found
    there = np.zeros(highest + 1, dtype=bool)
    there[numbers] = True
    return (np.cumsum(there) - 1)[numbers], np.flatnonzero(there)


def average_by(numbers: NDArray[np.int64], values: pl.Series, size: int) -> pl.Series:
    """Average values by group number, from 0 to `size` - 1; null for a group without values."""
    floats = values.cast(pl.Float64).to_numpy()
    known = ~np.isnan(floats)
    counts = np.bincount(numbers[known], minlength=size)
    sums = np.bincount(numbers[known], floats[known], minlength=size)
    means = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0)
    return pl.Series(values.name, means).fill_nan(None)
