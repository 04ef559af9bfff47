"""The data set `folder`: images and masks on disk, in the layout that `FolderData` describes.

Every file is read once when the data set is loaded, so that a run does not fail after its models are trained; the
fingerprint needs every byte as well. Pixels are not kept: images are read again when they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advseg_bench.data.alignment import check_alignment, describe_headers
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.data.description import find_title
from advseg_bench.data.files import compose_name, find_folder, list_entries, list_files, list_masks
from advseg_bench.data.formats import hash_files, read_header, read_slices
from advseg_bench.data.header import Array, Header
from advseg_bench.data.intensities import (
    Intensities,
    Window,
    check_inside,
    check_values,
    check_window,
    choose_intensities,
    describe_blank,
)
from advseg_bench.data.nifti import is_nifti
from advseg_bench.data.pixels import Shown, check_foreground, check_labels, read_mask_slices, to_channels, to_planes
from advseg_bench.data.prepare import fingerprint, prepare, scaled_spacing, task_for
from advseg_bench.data.splits import counts_images, describe_unknown, split_subjects
from advseg_bench.data.subjects import check_pattern, find_subjects
from advseg_bench.data.values import Values, is_blank, measure
from advseg_bench.data.whole import (
    apply_windows,
    check_volume,
    describe_layout,
    describe_whole,
    find_layout,
    find_space,
    gather,
    is_whole,
)
from advseg_bench.errors import DataError, expected, unknown
from advseg_bench.suite.specs import FolderData

COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image file with its masks, as checked at load time.

    Attributes:
        stem: Name of the files without their ending.
        image: Image file.
        masks: One file, or one for each class if the task is multilabel.
        header: Header of the image file.
        values: Its values, for each channel or for all together.
        mask_headers: Headers of the masks.
        shown: What the masks show.
        moved: Number of masks whose header differs from that of the image in its place in space only.
    """

    stem: str
    image: Path
    masks: tuple[Path, ...]
    header: Header
    values: tuple[Values, ...]
    mask_headers: tuple[Header, ...]
    shown: tuple[Shown, ...]
    moved: int


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
    subjects = find_subjects([entry.stem for entry in entries], spec.subject, [entry.image for entry in entries])
    splits = split_subjects(subjects, spec)
    values, headers = [entry.values for entry in entries], [entry.header for entry in entries]
    check_inside([entry.image for entry in entries], values, headers, spec)
    intensities = choose_intensities(
        [entry.stem for entry in entries],
        values,
        headers,
        [splits[subject] for subject in subjects],
        spec,
    )
    cases: list[Case] = []
    places: list[tuple[int, int]] = []
    for number, (entry, subject) in enumerate(zip(entries, subjects, strict=True)):
        volume = entry.header.slices is not None
        spacing = scaled_spacing(*find_space(entry.header, spec, spec.spacing), spec)
        for z in range(1 if is_whole(spec) else entry.header.slices or 1):
            image = f"{entry.stem}/z{z:03d}" if volume and not is_whole(spec) else entry.stem
            cases.append(Case(image, subject, entry.stem if volume else subject, spacing, splits[subject]))
            places.append((number, z))
    background, classes = _split_background(spec)
    files = [path for entry in entries for path in (entry.image, *entry.masks)]

    def read(index: int) -> Sample:
        number, z = places[index]
        return _read(entries[number], intensities.windows[number], z, intensities, spec)

    return Dataset(
        name=spec.name,
        task=task_for(spec.task, classes, background),
        cases=cases,
        read=read,
        fingerprint=fingerprint(spec, hash_files(files, spec.path)),
        note=_note(entries, cases, places, spec),
        bounds=intensities.bounds,
        channels=_name_channels(entries, spec),
        record={**intensities.record, **describe_layout(headers, spec)},
        title=find_title(spec.path),
        by_image=counts_images(spec.subject, headers),
    )


def _note(entries: Sequence[_Entry], cases: Sequence[Case], places: Sequence[tuple[int, int]], spec: FolderData) -> str:
    """Describe what a reader of the report must know."""
    headers = [entry.header for entry in entries]
    turned = sum(header.turned for header in headers)
    parts = (
        describe_unknown(counts_images(spec.subject, headers), "file") if spec.subject is None else "",
        describe_whole(cases, headers, spec),
        describe_blank([is_blank(entries[number].values, None if is_whole(spec) else z) for number, z in places]),
        describe_headers(sum(entry.moved for entry in entries), sum(len(entry.masks) for entry in entries)),
        *(
            check_foreground(mask.parent, [entry.shown[i] for entry in entries], spec)
            for i, mask in enumerate(entries[0].masks)
        ),
        f"Images that ask viewers to rotate them (EXIF): {turned}; they are read as stored." if turned else "",
    )
    return " ".join(part for part in parts if part)


def _name_channels(entries: Sequence[_Entry], spec: FolderData) -> tuple[str, ...]:
    """Name the channels of an image, if their names are known."""
    colour = spec.channels == 3 and any(not is_nifti(e.image) and e.header.channels in (3, 4) for e in entries)
    return spec.channel_names or (COLOURS if colour else ())


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
    folders = [find_folder(spec.path, name) for name in ("images", "masks")]
    for folder in (spec.path, *folders):
        if not folder.is_dir():
            remedy = "Set `path` to the folder that contains images/ and masks/."
            raise DataError(expected(folder, "a folder", "nothing of that name", remedy))
    images = list_files(folders[0])
    if not images:
        remedy = "Put the image files there, or correct `path`."
        raise DataError(expected(folders[0], "images", "an empty folder", remedy))
    tables = {folder: list_masks(folder, images) for folder in _mask_folders(folders[1], spec)}
    for folder, masks in tables.items():
        for stem in sorted(images.keys() - masks.keys()):
            remedy = "Add the mask, all background if nothing is shown, or remove the image."
            raise DataError(expected(images[stem], f"a mask {stem}.* in {folder}", "none", remedy))
        for stem in sorted(masks.keys() - images.keys()):
            remedy = "Add the image, or remove the mask."
            raise DataError(expected(masks[stem], f"an image {stem}.* in {spec.path / 'images'}", "none", remedy))
    for stem, image in images.items():
        yield stem, image, tuple(masks[stem] for masks in tables.values())


def _mask_folders(masks: Path, spec: FolderData) -> list[Path]:
    """Return the folders with masks: one, or one for each class."""
    entries = list(list_entries(masks))
    found = {compose_name(entry.name): entry for entry in entries if entry.is_dir()}
    folders, known = list(found), {compose_name(name): name for name in spec.classes}
    if spec.task != "multilabel":
        if folders:
            remedy = 'Set task = "multilabel" for one folder per class, or move the masks up.'
            raise DataError(expected(masks, f"mask files for task {spec.task!r}", f"folder {folders[0]}", remedy))
        return [masks]
    for name in folders:
        if name not in known:
            raise DataError(unknown(masks, "class folder", name, spec.classes))
    for entry in entries:
        if not entry.is_dir():
            remedy = "Move it into masks/CLASS/."
            raise DataError(expected(entry, "a folder for each class (task 'multilabel')", "a file", remedy))
    for name in spec.classes:
        if compose_name(name) not in found:
            remedy = "Add the folder, or remove the class from `classes`."
            raise DataError(expected(masks / name, f"a folder with the masks of class {name!r}", "none", remedy))
    return [found[name] for name in known]


def _inspect(stem: str, image: Path, masks: tuple[Path, ...], spec: FolderData) -> _Entry:
    """Read an image and its masks completely and check everything that can be wrong with them."""
    layout = find_layout(spec)
    header = read_header(image, stacked=spec.channels > 1, layout=layout)
    check_volume(image, header, spec)
    joint = not is_nifti(image) and spec.normalisation == "none"
    values = measure(image, _read_image(image, spec), spec, joint=joint)
    check_values(image, header, values, spec)
    headers, shown, moved = [], [], 0
    for mask in masks:
        found = read_header(mask, layout=find_layout(spec))
        moved += check_alignment(f"its image {image.name}", header, mask, found)
        shown.append(check_labels(mask, found, spec, find_layout(spec)))
        headers.append(found)
    return _Entry(stem, image, masks, header, values, tuple(headers), tuple(shown), moved)


def _read_image(path: Path, spec: FolderData, first: int = 0) -> Iterator[Array]:
    """Yield the slices of an image, with one channel or as many as the data set has."""
    layout = find_layout(spec)
    for pixels in read_slices(path, first=first, channels=spec.channels, layout=layout):
        values = to_channels(pixels, spec.channels)
        found = 1 if values.ndim == 2 else len(values)
        if found != spec.channels and (found > 1 or spec.channels != 3):
            remedy = f"Set channels = {found}, or replace the file."
            raise DataError(expected(path, f"{spec.channels} channels", found, remedy))
        yield values


def _read(entry: _Entry, windows: Sequence[Window], z: int, intensities: Intensities, spec: FolderData) -> Sample:
    """Read one image with its masks."""
    scaled = gather((apply_windows(p, windows) for p in _read_image(entry.image, spec, z)), spec, np.float32)
    pairs = zip(entry.masks, entry.mask_headers, strict=True)
    masks = [gather(read_mask_slices(m, header, spec, find_layout(spec), z), spec) for m, header in pairs]
    planes, valid = to_planes(masks, tuple(float(header.largest or 1) for header in entry.mask_headers), spec)
    fill = [window.ends[0] for window in windows]
    return prepare(scaled, planes, valid, spec, intensities.bounds, fill)
