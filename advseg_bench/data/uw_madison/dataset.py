"""The data set `uw_madison`: UW-Madison GI Tract, abdominal MRI in the folder that Kaggle distributes.

When the data set is loaded, the names of all files are read and the whole table of masks is checked against them;
slices are opened when they are used. Known differences from the study of arXiv 2401.11224 are listed in the note.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.dataset import Case, Dataset, Sample, Split
from advseg_bench.data.formats import read_slices
from advseg_bench.data.prepare import fingerprint, prepare, scaled_spacing, task_for
from advseg_bench.data.splits import split_rest
from advseg_bench.data.uw_madison.files import (
    COMMON_FAULTS,
    MARKER,
    OFFICIAL_FAULTS,
    ORGANS,
    MaskTable,
    SliceFile,
    list_slices,
    read_table,
)
from advseg_bench.data.uw_madison.make import draw_phantom
from advseg_bench.errors import DataError, expected, unknown
from advseg_bench.suite.specs import UwMadisonData

BINARY_CLASS = "gi_tract"
"""The class of a binary task: any of the three organs."""

PHANTOM_NOTE = "Procedural phantom in the format of UW-Madison GI Tract; no patient data."

NOTE = "Resized masks are binarised at 0.5, whereas the study of arXiv 2401.11224 keeps soft borders."


def load(spec: UwMadisonData) -> Dataset:
    """List the slices and check the table of masks.

    The subject is the case and `Case.block` the scan, so that days of one case are never in two splits. An image is
    divided by its maximum; with `neighbours`, by the maximum of the three slices. Where a neighbour is missing, as at
    the ends of a scan, the slice itself is used; `every` does not change which slices are neighbours.

    The fingerprint covers train.csv and the names and sizes of the files, not their pixels, because reading 38,496
    files takes minutes.

    Args:
        spec: The folder, and how images and labels are prepared. Multilabel: the three organs, which may overlap;
            binary: any of them. With `phantom`, phantom data are generated into the cache if necessary, and read there.

    Returns:
        The data set.

    Raises:
        DataError: If a file, a name or a row of the table is wrong; a damaged PNG is found when it is read.
    """
    if spec.phantom:
        spec = spec.model_copy(update={"path": draw_phantom(spec.phantom), "phantom": None})
    everything = list_slices(spec.path)
    excluded = _find_excluded(spec, {s.scan for s in everything})
    slices = [s for s in everything if s.scan not in excluded]
    masks = read_table(spec.path / "train.csv", slices, _excluded_names(spec))
    splits = split_cases(Counter(s.case for s in slices), spec)
    places = _choose(slices, masks, splits, spec)
    neighbours = _find_neighbours(slices) if spec.neighbours else {}

    def read(index: int) -> Sample:
        place = places[index]
        return _read(slices[place], [slices[n] for n in neighbours.get(place, ())], masks, place, spec)

    return Dataset(
        name=spec.name,
        task=task_for(spec.task, (BINARY_CLASS,) if spec.task == "binary" else ORGANS),
        cases=[_case(slices[place], splits, spec) for place in places],
        read=read,
        fingerprint=fingerprint(spec, _digest(slices, spec.path)),
        note=_note(excluded, spec),
    )


def split_cases(sizes: Mapping[int, int], spec: UwMadisonData) -> dict[int, Split]:
    """Assign each case to a split.

    Cases are distributed over `folds` parts: those with most slices first, ties by case number, each into the part that
    has fewest slices so far. This is the rule of scikit-learn's `GroupKFold`, with a defined order of ties. One part is
    for test; a share of the other cases, chosen at random by `seed`, is for validation.

    Args:
        sizes: Case -> number of slices, before `every` leaves any out.
        spec: `folds`, `fold`, `validation` and `seed` are used.

    Returns:
        Case -> split.

    Raises:
        DataError: If there are too few cases.
    """
    if len(sizes) < spec.folds:
        remedy = f"Set folds = {len(sizes)} or lower." if len(sizes) > 2 else "Add cases."
        raise DataError(expected(spec.path, f"a case for each of {spec.folds} folds", f"{len(sizes)} cases", remedy))
    filled = [0] * spec.folds
    held_out = set()
    for case in sorted(sizes, key=lambda case: (-sizes[case], case)):
        fold = filled.index(min(filled))
        filled[fold] += sizes[case]
        if fold == spec.fold:
            held_out.add(case)
    splits = split_rest(sizes.keys() - held_out, spec.validation, spec.seed, spec.path)
    return splits | dict.fromkeys(held_out, "test")


def _excluded_names(spec: UwMadisonData) -> tuple[str, ...]:
    """Return the scans that `exclude` refers to."""
    if isinstance(spec.exclude, tuple):
        return spec.exclude
    return {"common": COMMON_FAULTS, "official": OFFICIAL_FAULTS, "none": ()}[spec.exclude]


def _find_excluded(spec: UwMadisonData, scans: Collection[str]) -> tuple[str, ...]:
    """Return the existing scans that are left out; a user's list may name only existing scans."""
    names = _excluded_names(spec)
    for name in names:
        if isinstance(spec.exclude, tuple) and name not in scans:
            raise DataError(unknown(f"{spec.path}: exclude", "scan", name, scans))
    left_out = tuple(name for name in names if name in scans)
    if len(left_out) == len(scans):
        raise DataError(
            expected(f"{spec.path}: exclude", "at least one scan left", "all excluded", "Shorten the list.")
        )
    return left_out


def _choose(
    slices: Sequence[SliceFile], masks: MaskTable, splits: Mapping[int, Split], spec: UwMadisonData
) -> list[int]:
    """Return the places of the slices that are used: each n-th of a scan, in the test split only labelled ones."""
    seen: Counter[str] = Counter()
    places = []
    for place, file in enumerate(slices):
        seen[file.scan] += 1
        if (seen[file.scan] - 1) % spec.every:
            continue
        if splits[file.case] != "test" or not spec.labelled_only or masks.labelled(place):
            places.append(place)
    if not any(splits[slices[place].case] == "test" for place in places):
        remedy = "Set labelled_only = false, every = 1, or another `fold`."
        raise DataError(expected(spec.path, f"a slice with a mask in fold {spec.fold}", "none", remedy))
    return places


def _find_neighbours(slices: Sequence[SliceFile]) -> dict[int, tuple[int, int]]:
    """Return the places of the slices before and after each slice, or of the slice itself where there is none."""
    places = {(s.scan, s.number): place for place, s in enumerate(slices)}
    found = {}
    for place, file in enumerate(slices):
        pair = tuple(places.get((file.scan, file.number + step), place) for step in (-1, 1))
        for other in pair:
            if slices[other].shape != file.shape:
                what = f"the size of its neighbour {file.path.name} (neighbours = true)"
                raise DataError(expected(slices[other].path, what, "another size", "Set neighbours = false."))
        found[place] = (pair[0], pair[1])
    return found


def _case(file: SliceFile, splits: Mapping[int, Split], spec: UwMadisonData) -> Case:
    """Describe a slice."""
    spacing = scaled_spacing(file.shape, file.spacing, spec)
    return Case(file.id, f"case{file.case}", file.scan, spacing, splits[file.case])


def _digest(slices: Sequence[SliceFile], root: Path) -> str:
    """Hash the table's content and the files' names and sizes."""
    with (root / "train.csv").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for s in slices:
        digest.update(f"{s.size}  {s.scan}/{s.path.name}\n".encode())
    return digest.hexdigest()


def _note(excluded: Sequence[str], spec: UwMadisonData) -> str:
    """Describe what a reader of the report must know."""
    parts = [
        PHANTOM_NOTE if (spec.path / MARKER).exists() else "",
        f"Left out because of faulty masks: {', '.join(excluded)}." if excluded else "",
        "Test images are the slices with a mask." if spec.labelled_only else "",
        NOTE,
    ]
    return " ".join(part for part in parts if part)


def _read(file: SliceFile, around: Sequence[SliceFile], masks: MaskTable, place: int, spec: UwMadisonData) -> Sample:
    """Read a slice, with the slices before and after it if requested, and scale them."""
    pixels = _open(file).astype(np.float32)
    if around:
        pixels = np.stack([_open(around[0]), pixels, _open(around[1])])
    planes = masks.planes(place, file.shape)
    if spec.task == "binary":
        planes = np.logical_or.reduce(planes)[None]
    return prepare(pixels / max(float(pixels.max()), 1.0), planes, None, spec)


def _open(file: SliceFile) -> NDArray[np.generic]:
    """Decode a PNG and check it against the size in its name."""
    pixels = next(read_slices(file.path))
    if pixels.ndim != 2 or pixels.dtype.itemsize < 2:
        found = f"{pixels.dtype} {pixels.shape}"
        raise DataError(expected(file.path, "16-bit grey pixels", found, "Download the file again."))
    if pixels.shape != file.shape:
        (rows, columns), found = file.shape, " x ".join(str(n) for n in pixels.shape)
        what = f"{rows} rows x {columns} columns, as in its name"
        raise DataError(
            expected(file.path, what, found, "Download the file again, or name it after its width and height.")
        )
    return pixels
