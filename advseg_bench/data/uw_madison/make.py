"""Write phantom data in the format of UW-Madison GI Tract, to try the whole workflow without the real data.

The images are synthetic: they support no claim about patients.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from PIL import Image

from advseg_bench.cache import cache_dir, is_writable, make_folder, sweep, write_bytes
from advseg_bench.cache.digests import find_change, list_files, write_sums
from advseg_bench.cache.holder import Holder
from advseg_bench.cache.lease import LEASE, hold
from advseg_bench.cache.notices import report
from advseg_bench.data.phantom.bowel import ORGANS
from advseg_bench.data.phantom.scanner import View, prepare_scan, render_slice
from advseg_bench.data.uw_madison.files import COLUMNS, MARKER, OFFICIAL_FAULTS
from advseg_bench.data.uw_madison.phantom import locate_phantom, slice_heights
from advseg_bench.data.uw_madison.rle import encode_runs
from advseg_bench.errors import DataError, WorkerError, expected
from advseg_bench.suite.specs import PhantomFolder

VIEWS = (View(266, 266, 1.5), View(310, 360, 1.5), View(266, 266, 1.5))
"""Image sizes, which the cases use in turn."""


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan to be written: its folder, seed, case and day, and its slices."""

    folder: Path
    seed: int
    case: int
    day: int
    slices: int
    view: View


def write_uw_madison(
    path: Path, *, cases: int, slices: int = 8, days: int = 1, seed: int = 0, workers: int = 1
) -> Path:
    """Write train.csv and train/ as in Kaggle's download, and a file `MARKER` that marks the data as phantom data.

    Case numbers that have faulty scans in the real data are not used, so that `exclude` leaves out no scan.

    Args:
        path: A new or empty folder, or one that an interrupted call left incomplete, which is written again.
        cases: Number of subjects; every third has slices of 360 x 310 pixels, the others of 266 x 266.
        slices: Slices of each scan, evenly spaced over the abdomen.
        days: Scans of each case, named day0, day1 ...
        seed: Random seed of the anatomies.
        workers: Number of processes; the files do not depend on it.

    Returns:
        `path`.

    Cost:
        One call of `render_slice` for each slice.

    Raises:
        DataError: If the folder is not empty.
        RecordError: If it cannot be written.
    """
    _take_folder(path)
    write_bytes(path / MARKER, b"Drawn by the phantom of advseg-bench; no patient data.\n")
    scans = list(_plan(path, cases, days, slices, seed))
    rows = [row for part in _write_all(scans, workers) for row in part]
    write_bytes(path / "train.csv", "\n".join([",".join(COLUMNS), *rows, ""]).encode())
    return path


def draw_phantom(phantom: PhantomFolder) -> Path:
    """Generate phantom data in the cache, unless they exist.

    They are written to a temporary folder, by one process at a time, and moved to their folder when they are complete.
    The digests of all files lie beside the folder and are compared at every call. Files that do not match are made
    again, which is reported; data without digests, as older versions wrote, get them.

    Args:
        phantom: Size and seed of the data.

    Returns:
        The folder.

    Cost:
        Reading all files if they exist, else that of `write_uw_madison`.

    Raises:
        RecordError: If data have to be generated and the cache cannot be written.
    """
    folder = locate_phantom(phantom)
    sums = _beside(folder, "sha256")
    if folder.is_dir() and _find_damage(folder) is None and (sums.exists() or is_writable(folder.parent) is not None):
        return folder
    with hold(cache_dir("drawn") / LEASE, what="generating phantom data", on_wait=_report_wait):
        sweep(folder.parent)
        fault = _find_damage(folder) if folder.is_dir() else None
        if fault is not None:
            report(f"data uw_madison: {folder}: {fault}. The phantom data are generated again.")
        if fault is not None or not folder.is_dir():  # no other process wrote it while this one waited
            _draw_anew(folder, phantom)
        if not sums.exists():
            write_sums(sums, folder, list_files(folder))
    return folder


def _draw_anew(folder: Path, phantom: PhantomFolder) -> None:
    """Generate data beside their folder, then put them in its place."""
    unfinished, damaged = (_beside(folder, ending) for ending in ("unfinished", "damaged"))
    for leftover in (unfinished, damaged):
        if leftover.is_dir():
            shutil.rmtree(leftover)
    write_uw_madison(unfinished, **phantom.model_dump())
    _beside(folder, "sha256").unlink(missing_ok=True)
    if folder.is_dir():
        folder.rename(damaged)
    unfinished.rename(folder)
    shutil.rmtree(damaged, ignore_errors=True)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def _find_damage(folder: Path) -> str | None:
    """Compare a folder of phantom data with its digests, if there are any; return what is wrong."""
    sums = _beside(folder, "sha256")
    try:
        return find_change(sums, folder, list_files(folder)) if sums.exists() else None
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def _report_wait(holder: Holder) -> None:
    report(f"data uw_madison: waiting for {holder}, which generates the phantom data now.")


def _take_folder(path: Path) -> None:
    """Create the folder, or remove what an interrupted call left in it; nothing else is deleted."""
    held = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if (path.exists() and not path.is_dir()) or (held and not {MARKER} <= held <= {MARKER, "train"}):
        found = f"a folder with {min(held)}" if held else "a file"
        raise DataError(expected(path, "a new or an empty folder", found, "Choose another folder, or empty it."))
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
    """Write scans, in this process or in several; yield the rows of each in order."""
    if workers == 1:
        yield from map(_write_scan, scans)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    try:
        yield from pool.map(_write_scan, scans)
    except BrokenProcessPool:
        remedy = 'Put what the script does under `if __name__ == "__main__":`, or use workers=1.'
        raise WorkerError(f"make-data: a worker process ended before its scan was written. {remedy}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_scan(scan: _Scan) -> list[str]:
    """Write the slices of a scan, and return its rows of train.csv."""
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
