"""Panels: the stored arrays of single cases, each in one NumPy file that is checked before anything is allocated.

The name of a panel is MODEL-CASE-CONTENT-DIGEST.npz: a hash of the case, and the first hex digits of the SHA-256 of the
file's bytes. The case is JSON in the array `meta`, with the id of the run. Panels of older versions have no digest.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advseg_bench.cache import content_hash, write_bytes
from advseg_bench.results.forms import PanelForm, find_fault
from advseg_bench.results.info import RunInfo
from advseg_bench.results.parts import DIGITS, Damage, claimed_digest, digest_of
from advseg_bench.results.selection import Extreme

MOST_BYTES = 2**30
"""Largest size of the arrays of a panel together."""

MODE = 0o600
"""Permissions of a panel, which holds the image of a patient: only its owner may read it."""

ARRAYS = {"x": 0, "x_adv": 1, "truth": 0, "clean": 0, "attacked": 1}
"""Arrays of a panel -> number of axes in front of channels or classes: one over the budgets for attacked ones."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, NotImplementedError)
"""Errors that reading a damaged panel raises, beside those of zip files."""


@dataclass(frozen=True, slots=True)
class Panel:
    """The arrays of one case.

    Attributes:
        case: The case.
        arrays: `x` (C, *S), `x_adv` (E, C, *S), `truth` and `clean` (K, *S), `attacked` (E, K, *S).
    """

    case: Extreme
    arrays: Mapping[str, NDArray[Any]]


def name_panel(case: Extreme) -> str:
    """Return the name of the panel of a case up to its digest."""
    return f"{case.model}-{case.kind}-{content_hash(case.as_record(), DIGITS)}"


def describe_panel(case: Extreme, run: str) -> str:
    """Return what a panel states about itself, as JSON."""
    return json.dumps(case.as_record() | {"run": run})


def write_panel(folder: Path, case: Extreme, data: bytes) -> Path:
    """Write the NumPy file of a case, readable by its owner only, and return its path."""
    path = folder / f"{name_panel(case)}-{digest_of(data)}.npz"
    write_bytes(path, data, MODE)
    return path


def list_panels(out: Path) -> list[Path]:
    """Return the files of the panels of a run, sorted."""
    return sorted((out / "panels").glob("*.npz"))


def read_panel(path: Path, about: RunInfo, images: frozenset[str], run: str = "") -> Panel | Damage:
    """Read a panel and check that it is one of a run.

    Args:
        path: The file.
        about: The description of the run.
        images: Names of its test images.
        run: Id of the run, not compared if "".

    Returns:
        The panel, or what is wrong with it. Sizes and types of arrays are read from the headers before any is read.
    """
    claimed = claimed_digest(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            return Damage(path, f"is damaged ({path.stat().st_size:,} bytes, above {MOST_BYTES:,})")
        data = path.read_bytes()
        if claimed is not None and digest_of(data) != claimed:
            return Damage(path, "is damaged (its bytes are not those that were written)")
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if fault := _check_members(file):
                return Damage(path, f"is damaged ({fault})")
            meta = json.loads(str(_read_array(file, "meta")))
            if fault := find_fault(PanelForm, meta):
                return Damage(path, f"is damaged (meta, {fault})")
            if run and meta.get("run", run) != run:
                return Damage(path, "is of another run")
            case = Extreme.from_record(meta)
            fault = _check_case(case, about, images) or _check_shapes(file, case, len(about.task.classes))
            if fault:
                return Damage(path, f"is damaged ({fault})")
            arrays = {name: _read_array(file, name) for name in ARRAYS}
        if not all(np.isfinite(arrays[name]).all() for name in ("x", "x_adv")):
            return Damage(path, "is damaged (x or x_adv: not finite)")
    except zipfile.BadZipFile:
        return Damage(path, "is damaged (not a NumPy archive)")
    except UNREADABLE as error:
        return Damage(path, f"is damaged ({type(error).__name__})")
    return Panel(case, arrays)


def _check_members(file: zipfile.ZipFile) -> str:
    """Compare the members of an archive with the arrays of a panel; return what is wrong, or ""."""
    names = sorted(each.filename for each in file.infolist())
    if names != sorted(f"{name}.npy" for name in (*ARRAYS, "meta")):
        return f"arrays {', '.join(ARRAYS)}, meta expected"
    size = sum(each.file_size for each in file.infolist())
    return f"arrays of {size:,} bytes, above {MOST_BYTES:,}" if size > MOST_BYTES else ""


def _check_case(case: Extreme, about: RunInfo, images: frozenset[str]) -> str:
    """Compare a case with the plan of its run; return what is wrong, or ""."""
    cells = {cell.id: cell for cell in about.cells}
    if case.image not in images:
        return f"image: {case.image[:60]!r} is not one of the run"
    steps = {step.cell: step.eps for step in case.sweep}
    if case.cell not in steps or len(steps) < len(case.sweep):
        return "sweep: the cell is not in it exactly once"
    for name, eps in (*steps.items(), (case.cell, case.eps)):
        cell = cells.get(name)
        if cell is None or (cell.model, cell.arm, cell.eps) != (case.model, case.arm, eps):
            return f"cell: {name[:60]!r} is not the cell of the run with this model, attack and eps"
    return ""


def _check_shapes(file: zipfile.ZipFile, case: Extreme, classes: int) -> str:
    """Compare the headers of a panel's arrays with each other; return what is wrong, or ""."""
    spatial: tuple[int, ...] = ()
    for name, extra in ARRAYS.items():
        shape, dtype = _read_header(file, name)
        of_image = name.startswith("x")
        front, channels, axes = shape[:extra], shape[extra : extra + 1], shape[extra + 1 :]
        spatial = spatial or axes
        fits = len(axes) in (2, 3) and axes == spatial and min(shape) > 0
        fits = fits and (extra == 0 or front == (len(case.sweep),)) and (of_image or channels == (classes,))
        if not fits or dtype.kind != ("f" if of_image else "b"):
            return f"{name}: {dtype} of shape {shape} does not fit the other arrays"
    return ""


def _read_header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type of an array; `ValueError` if its member has another size than they state."""
    info = file.getinfo(f"{name}.npy")
    with file.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](member)
        if dtype.hasobject or member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{name}: another size than its header states")
    return shape, dtype


def _read_array(file: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read one array whose header is right."""
    _read_header(file, name)
    with file.open(f"{name}.npy") as member:
        found: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return found
