"""The files of UW-Madison GI Tract: names of folders and slices, and the table of masks; no image is opened here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from advseg_bench.data.files import is_ignored, list_entries
from advseg_bench.data.uw_madison.rle import Runs, parse_runs
from advseg_bench.errors import DataError, expected, unknown
from advseg_bench.suite.text import read_text

ORGANS = ("large_bowel", "small_bowel", "stomach")
"""The classes, in the order of the table."""

COLUMNS = ("id", "class", "segmentation")

MARKER = "PHANTOM.txt"
"""A file beside train.csv that marks the folder as phantom data."""

COMMON_FAULTS = ("case7_day0", "case81_day30")
"""Scans whose masks are known to be shifted; most studies of these data leave them out."""

OFFICIAL_FAULTS = (
    "case7_day0",
    "case9_day27",
    "case13_day0",
    "case34_day20",
    "case43_day18",
    "case43_day26",
    "case61_day14",
    "case81_day30",
    "case83_day11",
    "case124_day19",
    "case138_day0",
    "case144_day15",
)
"""Scans that the authors of the data list as faulty."""

LAYOUT = "train/caseC/caseC_dayD/scans/slice_NNNN_WIDTH_HEIGHT_SW_SH.png"

_CASE = re.compile(r"case(\d+)")
_SCAN = re.compile(r"case(\d+)_day(\d+)")
_SLICE = re.compile(r"slice_(\d{4,})_([1-9]\d*)_([1-9]\d*)_(\d+\.\d+)_(\d+\.\d+)\.(?i:png)")


@dataclass(frozen=True, slots=True)
class SliceFile:
    """A slice, as described by its file name.

    Attributes:
        path: The PNG.
        size: Size of the file in bytes.
        case: Number of the case.
        day: Day of the scan.
        number: Position in the scan, from 1, inferior to superior.
        shape: Rows and columns; the name has columns first.
        spacing: Edge lengths of a pixel (rows, columns) in mm.
    """

    path: Path
    size: int
    case: int
    day: int
    number: int
    shape: tuple[int, int]
    spacing: tuple[float, float]

    @property
    def scan(self) -> str:
        """Name of its scan, such as "case7_day0"."""
        return f"case{self.case}_day{self.day}"

    @property
    def id(self) -> str:
        """Its name in the table of masks."""
        return f"{self.scan}_slice_{self.number:04d}"


@dataclass(frozen=True, slots=True)
class MaskTable:
    """The masks of all slices.

    Attributes:
        runs: The masks, in the order of the table.
        rows: Index of the mask of each slice and class, shape (slices, 3).
    """

    runs: Runs
    rows: NDArray[np.int64]

    def labelled(self, index: int) -> bool:
        """Whether a slice has any mask."""
        rows = self.rows[index]
        return bool((self.runs.offsets[rows + 1] > self.runs.offsets[rows]).any())

    def planes(self, index: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the masks of a slice, bool (3, H, W), in the order of `ORGANS`."""
        return np.stack([self.runs.paint(row, shape) for row in self.rows[index]])


def list_slices(root: Path) -> list[SliceFile]:
    """List the slices by case, day and number.

    Args:
        root: The folder that contains train.csv and train/.

    Returns:
        Every slice.

    Cost:
        One directory listing per scan; no image is opened.

    Raises:
        DataError: If an entry is not part of the layout, or there is no slice.
    """
    for path, wanted in ((root, "folder"), (root / "train", "folder"), (root / "train.csv", "file")):
        if not (path.is_dir() if wanted == "folder" else path.is_file()):
            remedy = "Set `path` to the extracted download, the folder with train.csv and train/."
            if not root.exists():
                remedy += " Without the data, `advseg-bench run wang2024 --profile cpu` uses phantom data."
            raise DataError(expected(path, f"a {wanted}", "nothing of that name", remedy))
    found = []
    for case in _folders(root / "train", _fits_case):
        for scan in _folders(case, _fits_scan(case.name)):
            for scans in _folders(scan, lambda name: name == "scans"):
                found += _list_scan(Path(scans), scan.name)
    if not found:
        raise DataError(expected(root / "train", f"slices {LAYOUT}", "none", "Extract the whole download."))
    return sorted(found, key=lambda s: (s.case, s.day, s.number))


def read_table(path: Path, slices: Sequence[SliceFile], excluded: Collection[str]) -> MaskTable:
    """Read train.csv and match it with the slices.

    Args:
        path: The table: one row for each slice and class, with an empty cell where there is no mask.
        slices: The slices that are used.
        excluded: Scans whose rows are skipped.

    Returns:
        The masks.

    Raises:
        DataError: If a row or a cell is wrong; the message names file and line.
    """
    ids, classes, codes = _read_csv(path)
    places = {s.id: place for place, s in enumerate(slices)}
    lines = [line for line, name in enumerate(ids) if name.rpartition("_slice_")[0] not in excluded]

    def where(row: int) -> str:
        return f"{path}, line {lines[row] + 2}"

    codes_of = {name: code for code, name in enumerate(ORGANS)}
    rows = np.full((len(slices), len(ORGANS)), -1, np.int64)
    owner = np.empty(len(lines), np.int64)
    for row, line in enumerate(lines):
        place, organ = places.get(ids[line]), codes_of.get(classes[line])
        if place is None:
            remedy = "Extract the whole download, or list the scan in `exclude`."
            raise DataError(expected(where(row), "an id with an image in train/", ids[line], remedy))
        if organ is None:
            raise DataError(unknown(where(row), "class", classes[line], ORGANS))
        if rows[place, organ] >= 0:
            first = lines[rows[place, organ]] + 2
            found = f"{ids[line]} as in line {first}"
            raise DataError(expected(where(row), "one row for each id and class", found, "Remove one of them."))
        rows[place, organ] = row
        owner[row] = place
    if (rows < 0).any():
        place, organ = np.argwhere(rows < 0)[0]
        what = f"a row for id {slices[place].id} and class {ORGANS[organ]}"
        remedy = f"Add the row for {slices[place].path}, or download train.csv again."
        raise DataError(expected(path, what, "none", remedy))
    pixels = np.array([s.shape[0] * s.shape[1] for s in slices], np.int64)[owner]
    return MaskTable(parse_runs(codes.gather(lines), pixels, where), rows)


def _read_csv(path: Path) -> tuple[list[str], list[str], pl.Series]:
    """Read the three columns as text."""
    try:
        table = pl.read_csv(read_text(path).encode(), infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise DataError(expected(path, "a readable CSV file", cause, "Download it again.")) from None
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(expected(path, f"the columns {', '.join(COLUMNS)}", table.columns, "Use train.csv of Kaggle."))
    named = table.select(pl.col(name).fill_null("") for name in COLUMNS[:2])
    return named["id"].to_list(), named["class"].to_list(), table["segmentation"]


def _folders(folder: Path, fits: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the subfolders; hidden entries are skipped, and entries that are not part of the layout are refused."""
    for path in list_entries(folder):
        if not path.is_dir() or not fits(path.name):
            found = path.name if path.is_dir() else f"file {path.name}"
            raise DataError(expected(path, f"a folder of the layout {LAYOUT}", found, "Move it away."))
        yield path


def _fits_case(name: str) -> bool:
    return _CASE.fullmatch(name) is not None


def _fits_scan(case: str) -> Callable[[str], bool]:
    return lambda name: _SCAN.fullmatch(name) is not None and name.startswith(f"{case}_")


def _list_scan(folder: Path, scan: str) -> list[SliceFile]:
    """Read the names of one scan's slices."""
    match = _SCAN.fullmatch(scan)
    assert match is not None, scan
    found: dict[int, SliceFile] = {}
    with os.scandir(folder) as listing:
        entries = list(listing)
    for entry in entries:
        if is_ignored(entry.name):
            continue
        parts = _SLICE.fullmatch(entry.name)
        if parts is None or min(float(parts[4]), float(parts[5])) <= 0:
            what = "a name slice_NNNN_WIDTH_HEIGHT_SW_SH.png (four digits, pixels, pixels, mm, mm)"
            raise DataError(expected(entry.path, what, entry.name, "Rename it, or move it elsewhere."))
        number, width, height = (int(parts[n]) for n in (1, 2, 3))
        if number in found:
            names = sorted([found[number].path.name, entry.name])
            raise DataError(expected(folder, f"one file for slice {number}", names, "Remove one of them."))
        shape, spacing = (height, width), (float(parts[5]), float(parts[4]))
        size = entry.stat().st_size
        found[number] = SliceFile(Path(entry.path), size, int(match[1]), int(match[2]), number, shape, spacing)
    return list(found.values())
