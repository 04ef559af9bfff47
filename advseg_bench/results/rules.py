"""Rules that every row of a run obeys: it fits its cell and its image, and its counts and distances are possible.

The rules are checked on whole columns of names as integer codes, so that they take a fraction of the time of reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from advseg_bench.results.arms import ARM
from advseg_bench.results.info import RunInfo
from advseg_bench.results.parts import NULLABLE

KEYS = ("cell", "image")
"""Columns that identify a row; its other columns are read in the groups below."""

NAMES = ("dataset", "model", *ARM, "eps", "draw", "subject", "block")
"""Columns that a cell, the run or the image of a row decides."""

COUNTS = ("tp", "fp", "fn", "valid_pixels", "wrong_pixels", "flipped_pixels")
"""Columns that count pixels."""

MEASURES = ("linf", "l2", "unmoved", "forwards", "backwards", "flags")
"""Columns that are measured on the attacked image."""

GROUPS = (NAMES, COUNTS, MEASURES)
"""Columns that are checked together; fewer at once take less memory."""

MOST_PIXELS = 2**40
"""Most pixels that a row may count, so that sums over all rows stay integers."""

SLACK = 1e-3
"""Relative rounding error that is allowed in a distance, far above that of float32."""

FOREIGN = "a cell that the run does not have"

Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that some rows break.

    Attributes:
        rows: For each row of the frame, whether it breaks the rule.
        what: What such a row has, as in "rows with ...".
    """

    rows: Mask
    what: str


class Rules:
    """The rules of one run.

    Args:
        about: The description of the run.
        images: Its test images, in order.
    """

    def __init__(self, about: RunInfo, images: Sequence[str]) -> None:
        cells = [cell for cell in about.cells if cell.skip is None]
        self.cells = tuple(cell.id for cell in cells)
        self._k = len(about.task.classes)
        self._width = about.data.width if about.data.has_bounds else np.inf
        self._rounding = 1e-5 * max(1.0, *map(abs, about.data.bounds))
        self._cells = _Codes(self.cells)
        self._images = _Codes(images)
        self.images = len(images)
        records = [cell.as_record() for cell in cells]
        self._fixed = {name: _Codes([record[name] for record in records]) for name in ("model", *ARM)}
        self._dataset = _Codes([about.data.name])
        self._eps = np.array([cell.eps for cell in cells], dtype=np.float64)
        self._draws = np.array([cell.draw for cell in cells], dtype=np.int64)
        self._linf = np.array([cell.arm.norm != "l2" for cell in cells], dtype=bool)

    def place(self, keys: pl.DataFrame) -> tuple[Codes, Codes, list[Broken]]:
        """Find cell and image of each row.

        Args:
            keys: The columns of `KEYS`.

        Returns:
            Position of each row's cell among `cells`, position of its image, and broken rules; -1 where unknown.
        """
        cells = self._cells.find(keys["cell"])
        images = self._images.find(keys["image"])
        found = [Broken(keys[name].is_null().to_numpy(), f"no {name}") for name in list_gaps(keys)]
        found += [Broken(cells < 0, FOREIGN), Broken(images < 0, "an unknown image")]
        return cells, images, [each for each in found if each.rows.any()]

    def place_images(self, images: pl.Series) -> Codes:
        """Return the position of each image, -1 for an unknown one."""
        return self._images.find(images)

    def check(self, frame: pl.DataFrame, cells: Codes) -> list[Broken]:
        """Check the columns of one of `GROUPS`.

        Args:
            frame: Rows with these columns.
            cells: Position of each row's cell, see `place`; none is -1.

        Returns:
            The rules that some rows break.
        """
        found = [Broken(frame[name].is_null().to_numpy(), f"no {name}") for name in list_gaps(frame)]
        if found:
            return found
        if "tp" in frame.columns:
            found = self._check_counts(frame)
        elif "linf" in frame.columns:
            found = self._check_measures(frame, cells)
        else:
            found = self._check_names(frame, cells)
        return [each for each in found if each.rows.any()]

    def _check_names(self, frame: pl.DataFrame, cells: Codes) -> list[Broken]:
        """Compare the names of rows with those of their cells."""
        other = "another {} than their cell"
        found = [Broken(self._dataset.find(frame["dataset"]) < 0, "another dataset than the run")]
        for name, codes in self._fixed.items():
            found.append(Broken(_to_codes(frame[name]) != codes.of_values[cells], other.format(name)))
        found.append(Broken(frame["eps"].to_numpy() != self._eps[cells], other.format("eps")))
        found.append(Broken(frame["draw"].to_numpy() != self._draws[cells], other.format("draw")))
        return found

    def _check_counts(self, frame: pl.DataFrame) -> list[Broken]:
        """Check that every class has counts, and that they are possible."""
        valid = frame["valid_pixels"].to_numpy()
        found = [Broken((valid < 0) | (valid > MOST_PIXELS), "an impossible valid_pixels")]
        lengths = frame.select(pl.col("tp", "fp", "fn").list.len() != self._k)
        uneven = lengths.select(pl.any_horizontal(pl.all())).to_series().to_numpy()
        if uneven.any():
            return [*found, Broken(uneven, f"no counts of all {self._k} classes")]
        total: Codes = np.zeros(len(frame) * self._k, dtype=np.int64)
        for name in ("tp", "fp", "fn"):
            flat = frame[name].explode()
            counts = flat.fill_null(-1).to_numpy() if flat.null_count() else flat.to_numpy()
            if counts.min(initial=0) < 0 or counts.max(initial=0) > MOST_PIXELS:
                wrong = (counts < 0) | (counts > MOST_PIXELS)
                found.append(Broken(wrong.reshape(-1, self._k).max(axis=1), f"an impossible {name}"))
                counts = counts.clip(0, MOST_PIXELS)
            total += counts
        above = total > np.repeat(valid, self._k)
        if above.any():
            found.append(Broken(above.reshape(-1, self._k).max(axis=1), "tp + fp + fn above valid_pixels"))
        for name in ("wrong_pixels", "flipped_pixels"):
            pixels = frame[name].to_numpy()
            found.append(Broken((pixels < 0) | (pixels > valid), f"an impossible {name}"))
        return found

    def _check_measures(self, frame: pl.DataFrame, cells: Codes) -> list[Broken]:
        """Check that distances and passes are finite and possible."""
        found = []
        for name in ("linf", "l2", "unmoved", "forwards", "backwards"):
            values = frame[name].fill_null(0.0).to_numpy() if name in NULLABLE else frame[name].to_numpy()
            most = {"linf": self._width * (1 + SLACK), "unmoved": 1.0}.get(name, np.inf)
            found.append(Broken(~((values >= 0) & (values <= most) & np.isfinite(values)), f"an impossible {name}"))
        moved = np.where(self._linf[cells], frame["linf"].to_numpy(), frame["l2"].to_numpy())
        beyond = moved > self._eps[cells] * (1 + SLACK) + self._rounding
        if beyond.any():
            flags = pl.col("flags").list
            told = frame.select(flags.contains("beyond_eps") | flags.contains("over_budget")).to_series().to_numpy()
            found.append(Broken(beyond & ~told, "a distance above eps without a flag"))
        return found


class _Codes:
    """Names as the integer codes that polars gives the values of categorical columns, one for the whole process."""

    def __init__(self, names: Sequence[str]) -> None:
        self._kept = pl.Series(names, dtype=pl.String).cast(pl.Categorical())  # a code lives as long as a series
        self.of_values = _to_codes(self._kept)
        self._places = np.full(int(self.of_values.max(initial=-1)) + 2, -1, dtype=np.int64)
        self._places[self.of_values[::-1]] = np.arange(len(names))[::-1]

    def find(self, column: pl.Series) -> Codes:
        """Return the position of each value of a categorical column among the names, -1 for another value or null."""
        last = len(self._places) - 1  # stays -1, and is also the place of the code -1
        return self._places[np.minimum(_to_codes(column), last)]


def _to_codes(column: pl.Series) -> Codes:
    """Return the codes of a categorical column; -1 for null."""
    codes = column.to_physical()
    found: Codes = (codes.cast(pl.Int64).fill_null(-1) if codes.null_count() else codes).to_numpy().astype(np.int64)
    return found


def list_gaps(rows: pl.DataFrame) -> list[str]:
    """Return the columns that have a null although they must not."""
    return [name for name in rows.columns if name not in NULLABLE and rows[name].null_count()]


def describe_broken(found: Sequence[Broken]) -> str:
    """Return broken rules as the reason why a part is damaged."""
    told = ", ".join(f"{int(each.rows.sum()):,} of {len(each.rows):,} with {each.what}" for each in found)
    what = "of another run" if any(each.what == FOREIGN for each in found) else "that cannot be"
    return f"holds rows {what} ({told})"
