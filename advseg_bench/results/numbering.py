"""Numbers for the distinct values of a frame's rows: what groups, orders and averages a million of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray


def number_rows(frame: pl.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """Number the distinct values of some columns together, in sorted order.

    Args:
        frame: Without null in the columns.
        columns: Some of its columns.

    Returns:
        For each row the number of its values, and the distinct values in the order of their numbers.
    """
    numbers, first = find_distinct(frame, columns)
    return numbers, frame.select(pl.col(columns).gather(first))


def find_distinct(frame: pl.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the distinct values of some columns together, in sorted order, and find where each appears first.

    Column by column, since polars would write all columns of each row into one long key.

    Args:
        frame: Without null in the columns.
        columns: Some of its columns.

    Returns:
        For each row the number of its values, and for each number its first row.
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
    """Number the distinct values among numbers from 0 on, in their order.

    Where there are no more possible ones than numbers, by a table of them, which is faster than sorting.

    Args:
        numbers: At least 0.

    Returns:
        For each number its place among the distinct ones, and the distinct ones, ascending.
    """
    highest = int(numbers.max(initial=-1))
    if highest >= len(numbers):
        found, places = np.unique(numbers, return_inverse=True)
        return places, found
    there = np.zeros(highest + 1, dtype=bool)
    there[numbers] = True
    return (np.cumsum(there) - 1)[numbers], np.flatnonzero(there)


def average_by(numbers: NDArray[np.int64], values: pl.Series, size: int) -> pl.Series:
    """Average values by the numbers of their rows, from 0 to `size` - 1; null where there is none."""
    floats = values.cast(pl.Float64).to_numpy()
    known = ~np.isnan(floats)
    counts = np.bincount(numbers[known], minlength=size)
    sums = np.bincount(numbers[known], floats[known], minlength=size)
    means = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0)
    return pl.Series(values.name, means).fill_nan(None)
