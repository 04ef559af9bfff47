"""The common part of the readers of volumes: files with one or more channels and their label files, checked and read.

A reader lists `Source`s and gives the meaning of label values; `load_sources` does the rest. Every file is read once
when the data set is loaded, so that a run does not fail after its models are trained. The images are slices, or whole
volumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.alignment import check_alignment, describe_headers
from advseg_bench.data.dataset import Case, Dataset, Sample, Split
from advseg_bench.data.formats import hash_files, read_header, read_slices
from advseg_bench.data.header import Header
from advseg_bench.data.intensities import (
    Intensities,
    Window,
    check_inside,
    check_values,
    check_window,
    choose_intensities,
    describe_blank,
)
from advseg_bench.data.prepare import fingerprint, prepare, scaled_spacing, task_for
from advseg_bench.data.sources import BINARY_CLASS, Channel, Labels, Source, VolumeData
from advseg_bench.data.splits import counts_images, describe_unknown
from advseg_bench.data.values import Values, is_blank, measure
from advseg_bench.data.whole import (
    check_volume,
    describe_layout,
    describe_whole,
    find_layout,
    find_space,
    gather,
    is_whole,
)
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import LggData


@dataclass(frozen=True, slots=True)
class _Entry:
    """A source as checked at load time.

    Attributes:
        source: The source.
        header: Header of its first channel.
        values: The values of each channel.
        shown: Whether each slice shows a class.
        moved: Number of its files whose header differs from that of the first channel in its place in space only.
    """

    source: Source
    header: Header
    values: tuple[Values, ...]
    shown: tuple[bool, ...]
    moved: int


def load_sources(
    sources: Sequence[Source],
    labels: Labels,
    splits: Mapping[str, Split],
    spec: VolumeData,
    channels: Sequence[str],
    title: str = "",
    note: str = "",
) -> Dataset:
    """Check every file and list the images.

    A 2-D image and a whole volume have the name of their source, slice 7 of a volume is "name/z007".

    Args:
        sources: In the order of the data set.
        labels: Meaning of the label values.
        splits: Subject -> split.
        spec: How to scale intensities, which images to use, and how images and labels are prepared.
        channels: Names of the channels of a source.
        title: What the data set is called.
        note: Sentence that the reader adds to the note of the data set.

    Returns:
        The data set.

    Cost:
        One pass over all files; later, reading a slice of a .nii.gz decompresses the file up to that slice.

    Raises:
        DataError: If a file is missing, damaged, or does not fit `labels` or `spec`.
    """
    check_window(spec.scale, f"data {spec.path}")
    _check_regions(labels, spec)
    entries = [_inspect(source, labels, spec) for source in sources]
    values, headers = [entry.values for entry in entries], [entry.header for entry in entries]
    check_inside([entry.source.channels[0].path for entry in entries], values, headers, spec)
    intensities = choose_intensities(
        [entry.source.name for entry in entries],
        values,
        headers,
        [splits[entry.source.subject] for entry in entries],
        spec,
    )
    cases: list[Case] = []
    places: list[tuple[int, int]] = []
    for number, entry in enumerate(entries):
        source, split = entry.source, splits[entry.source.subject]
        spacing = scaled_spacing(*find_space(entry.header, spec), spec)
        for z in _choose(entry, split, spec):
            one = is_whole(spec) or entry.header.slices is None
            name = source.name if one else f"{source.name}/z{z:03d}"
            cases.append(Case(name, source.subject, source.block, spacing, split))
            places.append((number, z))
    if not any(case.split == "test" for case in cases):
        what = "a volume" if is_whole(spec) else "a slice"
        remedy = "Set labelled_only = false, every = 1, or another seed."
        raise DataError(expected(spec.path, f"{what} of the test split that shows a class", "none", remedy))
    files = dict.fromkeys(path for s in sources for path in (*(c.path for c in s.channels), s.label))
    classes = list(labels.values)
    if spec.task == "binary" and len(classes) > 1:
        classes = [BINARY_CLASS]

    def read(index: int) -> Sample:
        number, z = places[index]
        return _read(entries[number], intensities.windows[number], z, labels, intensities, spec)

    blank = describe_blank([is_blank(entries[number].values, None if is_whole(spec) else z) for number, z in places])
    pattern = "" if isinstance(spec, LggData) else spec.subject
    by_image = counts_images(pattern, headers)
    others = sum(len(source.channels) for source in sources)
    return Dataset(
        name=spec.name,
        task=task_for(spec.task, classes, labels.background),
        cases=cases,
        read=read,
        fingerprint=fingerprint(spec, hash_files(files, spec.path)),
        note=" ".join(
            filter(
                None,
                (
                    note,
                    describe_unknown(by_image, "case") if pattern is None else "",
                    _scored(spec),
                    describe_whole(cases, headers, spec),
                    blank,
                    describe_headers(sum(entry.moved for entry in entries), others),
                ),
            )
        ),
        bounds=intensities.bounds,
        channels=channels,
        record={**intensities.record, **describe_layout(headers, spec)},
        title=title,
        by_image=by_image,
    )


def _choose(entry: _Entry, split: Split, spec: VolumeData) -> list[int]:
    """Return the index of the first slice of each image of a source; a whole volume begins at 0."""
    every = split != "test" or not spec.labelled_only
    if is_whole(spec):
        return [0] if every or any(entry.shown) else []
    return [z for z in range(0, len(entry.shown), spec.every) if every or entry.shown[z]]


def _scored(spec: VolumeData) -> str:
    """Describe which images are scored."""
    what = "volumes" if is_whole(spec) else "slices"
    return f"Test images are the {what} that show a class." if spec.labelled_only else ""


def _check_regions(labels: Labels, spec: VolumeData) -> None:
    """Refuse classes that share a value in a multiclass task."""
    values = [value for values in labels.values.values() for value in values]
    if spec.task == "multiclass" and len(set(values)) < len(values):
        remedy = 'Set task = "multilabel" or "binary".'
        raise DataError(expected(labels.where, "labels that exclude each other", "overlapping regions", remedy))


def _inspect(source: Source, labels: Labels, spec: VolumeData) -> _Entry:
    """Read a source completely and check everything that can be wrong with it."""
    layout = find_layout(spec)
    paths = [channel.path for channel in source.channels]
    headers = [
        read_header(channel.path, stacked=channel.number is not None, layout=layout) for channel in source.channels
    ]
    check_volume(paths[0], headers[0], spec)
    label = read_header(source.label, layout=layout)
    if label.lossy:
        what = "labels without loss, since numbers do not survive compression"
        raise DataError(expected(source.label, what, "a lossy format", "Save the labels as PNG or NIfTI."))
    others = [*zip(paths[1:], headers[1:], strict=True), (source.label, label)]
    moved = sum(check_alignment(paths[0].name, headers[0], path, header) for path, header in others)
    values: list[Values] = []
    for channel, header in zip(source.channels, headers, strict=True):
        found = measure(channel.path, _stream(channel, spec), spec)
        check_values(channel.path, header, found, spec)
        values += found
    return _Entry(source, headers[0], tuple(values), tuple(_find_shown(source.label, labels, spec)), moved)


def _stream(channel: Channel, spec: VolumeData, first: int = 0) -> Iterator[NDArray[np.generic]]:
    """Yield the slices of a channel, each (H, W)."""
    for pixels in read_slices(channel.path, first=first, channel=channel.number, layout=find_layout(spec)):
        if pixels.ndim != 2:
            what, remedy = "one channel", "Save each channel as a separate file."
            raise DataError(expected(channel.path, what, f"{len(pixels)} channels in one image", remedy))
        yield pixels


def _read_labels(path: Path, labels: Labels, spec: VolumeData, first: int = 0) -> Iterator[NDArray[np.generic]]:
    """Yield the slices of a label file; label numbers do not survive a lossy format."""
    known = {int(value) for value in labels.known}
    return read_slices(path, first=first, labels=True, known=known, layout=find_layout(spec))


def _find_shown(path: Path, labels: Labels, spec: VolumeData) -> Iterator[bool]:
    """Read label values, refuse unknown ones, and yield for each slice whether it shows a class."""
    known = labels.known
    empty = {0, labels.ignore}
    for pixels in _read_labels(path, labels, spec):
        seen = set(np.unique(pixels).tolist())
        if wrong := sorted(seen - known):
            values = [int(v) if float(v).is_integer() else v for v in wrong[:5]]
            listed = ", ".join(f"{value:g}" for value in sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
            remedy = f"Correct the labels, or {labels.where}."
            raise DataError(expected(path, f"the label values of {labels.where}, {listed}", values, remedy))
        yield bool(seen - empty)


def _read(
    entry: _Entry, windows: Sequence[Window], z: int, labels: Labels, intensities: Intensities, spec: VolumeData
) -> Sample:
    """Read one slice with its labels, or a whole volume."""
    channels = []
    for channel, window in zip(entry.source.channels, windows, strict=True):
        scaled = (window.apply(pixels) for pixels in _stream(channel, spec, z))
        channels.append(gather(scaled, spec, np.float32))
    label = gather(_read_labels(entry.source.label, labels, spec, z), spec)
    valid = np.ones(label.shape, bool) if labels.ignore is None else label != labels.ignore
    fill = [window.ends[0] for window in windows]
    return prepare(np.stack(channels), labels.planes(label, spec.task), valid, spec, intensities.bounds, fill)
