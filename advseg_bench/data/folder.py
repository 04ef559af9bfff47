"""The data set `folder`: images and masks on disk, in the layout that `FolderData` describes.

Every file is read once when the data set is loaded, so that a run does not fail after its models are trained; the
fingerprint needs every byte as well. Pixels are not kept: images are read again when they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.data.formats import Header, hash_files, list_files, read_header, read_slices
from advseg_bench.data.pixels import Array, Floats, check_labels, check_window, find_window, to_channels, to_planes
from advseg_bench.data.prepare import fingerprint, prepare, scaled_spacing, task_for
from advseg_bench.data.splits import check_pattern, find_subject, split_subjects
from advseg_bench.data.whole import check_volume, describe_whole, find_space, gather, is_whole
from advseg_bench.errors import DataError, expected, unknown
from advseg_bench.suite.specs import FolderData

NOTE = "Each file counts as a separate subject, because `subject` was not set."


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image file with its masks, as checked at load time.

    Attributes:
        stem: Name of the files without their ending.
        image: Image file.
        masks: One file, or one for each class if the task is multilabel.
        header: Header of the image file.
        lower: Intensity that becomes 0.
        upper: Intensity that becomes 1.
        tops: For each mask, the value of probability 1 if masks contain probabilities.
    """

    stem: str
    image: Path
    masks: tuple[Path, ...]
    header: Header
    lower: float
    upper: float
    tops: tuple[float, ...]


def load(spec: FolderData) -> Dataset:
    """Check every file of a folder and list its images.

    A 2-D image and a whole volume are named "stem", slice 7 of a volume "stem/z007". `Case.block` is the volume for a
    volume and its slices. For a 2-D image it is the subject, because images of one subject may be neighbouring slices.

    Args:
        spec: Where the files are and how they are read.

    Returns:
        The data set.

    Cost:
        At load, one pass over all files, with one slice in memory. Later, reading a slice of a .nii.gz decompresses the
        file up to that slice; a .nii needs no decompression.

    Raises:
        DataError: If a file is missing, unmatched, damaged, or does not fit `spec`.
    """
    _check(spec)
    entries = [_inspect(stem, image, masks, spec) for stem, image, masks in _pair(spec)]
    subjects = [find_subject(entry.stem, spec.subject, entry.image) for entry in entries]
    splits = split_subjects(subjects, spec)
    cases: list[Case] = []
    places: list[tuple[_Entry, int]] = []
    for entry, subject in zip(entries, subjects, strict=True):
        volume = entry.header.slices is not None
        spacing = scaled_spacing(*find_space(entry.header, spec, spec.spacing), spec)
        for z in range(1 if is_whole(spec) else entry.header.slices or 1):
            image = f"{entry.stem}/z{z:03d}" if volume and not is_whole(spec) else entry.stem
            cases.append(Case(image, subject, entry.stem if volume else subject, spacing, splits[subject]))
            places.append((entry, z))
    background, classes = _split_background(spec)
    headers = [entry.header for entry in entries]
    files = [path for entry in entries for path in (entry.image, *entry.masks)]
    return Dataset(
        name=spec.name,
        task=task_for(spec.task, classes, background),
        cases=cases,
        read=lambda index: _read(*places[index], spec),
        fingerprint=fingerprint(spec, hash_files(files, spec.path)),
        note=" ".join(filter(None, ("" if spec.subject else NOTE, describe_whole(cases, headers, spec)))),
    )


def _check(spec: FolderData) -> None:
    """Refuse a specification whose keys do not fit together."""
    where = f"data {spec.path}"
    if spec.task == "multiclass" and spec.soft:
        remedy = "Set soft = false, or use another task."
        raise DataError(expected(where, "class numbers in the masks of task 'multiclass'", "soft = true", remedy))
    check_window(spec.scale, where)
    check_pattern(spec.subject, where)


def _split_background(spec: FolderData) -> tuple[str, tuple[str, ...]]:
    """Return the background's name and the other classes; only multiclass lists the background."""
    return (spec.classes[0], spec.classes[1:]) if spec.task == "multiclass" else ("", spec.classes)


def _pair(spec: FolderData) -> Iterator[tuple[str, Path, tuple[Path, ...]]]:
    """Match images with masks by stem; yield stem, image and masks."""
    for folder in (spec.path, spec.path / "images", spec.path / "masks"):
        if not folder.is_dir():
            remedy = "Set `path` to the folder that contains images/ and masks/."
            raise DataError(expected(folder, "a folder", "nothing of that name", remedy))
    images = list_files(spec.path / "images")
    if not images:
        remedy = "Put the image files there, or correct `path`."
        raise DataError(expected(spec.path / "images", "images", "an empty folder", remedy))
    tables = {folder: list_files(folder) for folder in _mask_folders(spec)}
    for folder, masks in tables.items():
        for stem in sorted(images.keys() - masks.keys()):
            remedy = "Add the mask, all background if nothing is shown, or remove the image."
            raise DataError(expected(images[stem], f"a mask {stem}.* in {folder}", "none", remedy))
        for stem in sorted(masks.keys() - images.keys()):
            remedy = "Add the image, or remove the mask."
            raise DataError(expected(masks[stem], f"an image {stem}.* in {spec.path / 'images'}", "none", remedy))
    for stem, image in images.items():
        yield stem, image, tuple(masks[stem] for masks in tables.values())


def _mask_folders(spec: FolderData) -> list[Path]:
    """Return the folders with masks: one, or one for each class."""
    masks = spec.path / "masks"
    entries = [entry for entry in sorted(masks.iterdir()) if not entry.name.startswith(".")]
    folders = [entry.name for entry in entries if entry.is_dir()]
    if spec.task != "multilabel":
        if folders:
            remedy = 'Set task = "multilabel" for one folder per class, or move the masks up.'
            raise DataError(expected(masks, f"mask files for task {spec.task!r}", f"folder {folders[0]}", remedy))
        return [masks]
    for name in folders:
        if name not in spec.classes:
            raise DataError(unknown(masks, "class folder", name, spec.classes))
    for entry in entries:
        if not entry.is_dir():
            remedy = "Move it into masks/CLASS/."
            raise DataError(expected(entry, "a folder for each class (task 'multilabel')", "a file", remedy))
    for name in spec.classes:
        if name not in folders:
            remedy = "Add the folder, or remove the class from `classes`."
            raise DataError(expected(masks / name, f"a folder with the masks of class {name!r}", "none", remedy))
    return [masks / name for name in spec.classes]


def _inspect(stem: str, image: Path, masks: tuple[Path, ...], spec: FolderData) -> _Entry:
    """Read an image and its masks completely and check everything that can be wrong with them."""
    header = read_header(image)
    check_volume(image, header, spec)
    values = (to_channels(pixels, spec.channels) for pixels in read_slices(image))
    lower, upper = find_window(image, header, spec.scale, values)
    tops = []
    for mask in masks:
        found = read_header(mask)
        if (found.shape, found.slices or 1) != (header.shape, header.slices or 1):
            size, other = _size(header), _size(found)
            remedy = "Replace one of the two files."
            raise DataError(expected(mask, f"the size of its image {image.name}, {size}", other, remedy))
        if found.axes and header.axes and found.axes != header.axes:
            remedy = "Save both files in one orientation."
            raise DataError(expected(mask, f"the orientation of its image, {header.axes}", found.axes, remedy))
        check_labels(mask, found, spec)
        tops.append(float(found.largest or 1))
    return _Entry(stem, image, masks, header, lower, upper, tuple(tops))


def _size(header: Header) -> str:
    """Format a size for a message."""
    return " x ".join(str(n) for n in (*header.shape, *([header.slices] if header.slices else [])))


def _read(entry: _Entry, z: int, spec: FolderData) -> Sample:
    """Read one image with its masks."""
    scaled = gather((_scale(pixels, entry, spec) for pixels in read_slices(entry.image, first=z)), spec, np.float32)
    masks = [gather(read_slices(mask, first=z, labels=True), spec) for mask in entry.masks]
    planes, valid = to_planes(masks, entry.tops, spec)
    return prepare(scaled, planes, valid, spec)


def _scale(pixels: Array, entry: _Entry, spec: FolderData) -> Floats:
    """Scale intensities to [0, 1]."""
    values = to_channels(pixels, spec.channels)
    scaled: Floats = np.clip((values - entry.lower) / (entry.upper - entry.lower), 0.0, 1.0)
    return scaled
