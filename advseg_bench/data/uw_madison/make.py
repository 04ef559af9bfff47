"""Write a small folder in the format of UW-Madison GI Tract, drawn by the phantom, to try the whole path without data.

It is drawn, not acquired: no claim about patients follows from it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from PIL import Image

from advseg_bench.cache import cache_dir, make_folder, write_bytes
from advseg_bench.data.phantom.bowel import ORGANS
from advseg_bench.data.phantom.scanner import View, prepare_scan, render_slice
from advseg_bench.data.uw_madison.files import COLUMNS, MARKER, OFFICIAL_FAULTS
from advseg_bench.data.uw_madison.phantom import locate_phantom, slice_heights
from advseg_bench.data.uw_madison.rle import encode_runs
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import PhantomFolder

VIEWS = (View(266, 266, 1.5), View(310, 360, 1.5), View(266, 266, 1.5))
"""The pixels of the first, second, third, fourth ... case, in turn; of 360 columns and 310 rows in the second."""


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan to be written: its folder, who and when, and how it is cut."""

    folder: Path
    seed: int
    case: int
    day: int
    slices: int
    view: View


def write_uw_madison(
    path: Path, *, cases: int, slices: int = 8, days: int = 1, seed: int = 0, workers: int = 1
) -> Path:
    """Write train.csv and train/ as Kaggle's download has them, and a file `MARKER` from which reports know.

    The numbers of cases that have faulty scans in the real data are not used, so that no scan is left out for its name.

    Args:
        path: A new or empty folder, or one that an earlier call did not finish, which begins again.
        cases: Number of subjects; every third has slices of 360 x 310 pixels, the others of 266 x 266.
        slices: Slices of a scan, evenly over the abdomen.
        days: Scans of a case, called day0, day1 ...
        seed: Another seed, other anatomies.
        workers: Processes; the files do not depend on it.

    Returns:
        `path`.

    Cost:
        About 0.15 s a slice and process.

    Raises:
        DataError: if the folder holds something.
        RecordError: if it cannot be written.
    """
    _take_folder(path)
    write_bytes(path / MARKER, b"Drawn by the phantom of advseg-bench; no patient data.\n")
    scans = list(_plan(path, cases, days, slices, seed))
    rows = [row for part in _write_all(scans, workers) for row in part]
    write_bytes(path / "train.csv", "\n".join([",".join(COLUMNS), *rows, ""]).encode())
    return path


def draw_phantom(phantom: PhantomFolder) -> Path:
    """Draw phantom data into the cache, unless they are there.

    They are drawn beside their folder, by one process at a time, and moved there once they are complete.

    Args:
        phantom: What to draw.

    Returns:
        The folder.

    Cost:
        As `write_uw_madison`.

    Raises:
        RecordError: If the cache cannot be written.
    """
    folder = locate_phantom(phantom)
    if folder.is_dir():
        return folder
    unfinished = cache_dir("drawn") / f"{folder.name}.unfinished"
    with unfinished.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():  # nobody drew it while this process waited
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            write_uw_madison(unfinished, **phantom.model_dump())
            unfinished.rename(folder)
    return folder


def _take_folder(path: Path) -> None:
    """Make the folder, or empty it of what an interrupted call has left; nothing else is touched."""
    held = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if (path.exists() and not path.is_dir()) or (held and not {MARKER} <= held <= {MARKER, "train"}):
        raise DataError(expected(path, "a new or an empty folder", "something there", "Choose another, or remove it."))
    if "train" in held:
        shutil.rmtree(path / "train")
    make_folder(path)


def _plan(path: Path, cases: int, days: int, slices: int, seed: int) -> Iterator[_Scan]:
    """List the scans in order."""
    faulty = {name.partition("_")[0] for name in OFFICIAL_FAULTS}
    numbers = (number for number in count(1) if f"case{number}" not in faulty)
    for place, case in enumerate(islice(numbers, cases)):
        for day in range(days):
            folder = path / "train" / f"case{case}" / f"case{case}_day{day}" / "scans"
            yield _Scan(folder, seed, case, day, slices, VIEWS[place % len(VIEWS)])


def _write_all(scans: list[_Scan], workers: int) -> Iterator[list[str]]:
    """Write scans, in this process or in others; yield the rows of each in order."""
    if workers == 1:
        yield from map(_write_scan, scans)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    try:
        yield from pool.map(_write_scan, scans)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_scan(scan: _Scan) -> list[str]:
    """Write the slices of a scan. Returns: its rows of the table."""
    make_folder(scan.folder)
    person = prepare_scan(scan.seed, scan.case, scan.day)
    view = scan.view
    rows = []
    for number, height in enumerate(slice_heights(scan.slices), start=1):
        image, masks = render_slice(person, float(height), view)
        size = f"{view.width}_{view.height}_{view.spacing:.2f}_{view.spacing:.2f}"
        Image.fromarray(image).save(scan.folder / f"slice_{number:04d}_{size}.png")
        name = f"case{scan.case}_day{scan.day}_slice_{number:04d}"
        rows += [f"{name},{organ},{encode_runs(mask)}" for organ, mask in zip(ORGANS, masks, strict=True)]
    return rows
