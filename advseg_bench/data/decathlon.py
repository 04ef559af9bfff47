"""The data set `decathlon`: a task of the Medical Segmentation Decathlon, whose slices or volumes are the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advseg_bench.data.dataset import Dataset
from advseg_bench.data.description import check_number, find_title, read_description, read_numbered, refuse
from advseg_bench.data.formats import read_header
from advseg_bench.data.sources import Channel, Labels, Source, choose_inputs
from advseg_bench.data.splits import split_subjects
from advseg_bench.data.subjects import check_pattern, find_subjects
from advseg_bench.data.volumes import load_sources
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import DecathlonData


def load(spec: DecathlonData) -> Dataset:
    """Check every labelled file of a task and list its images.

    `Case.block` is the case. Only the files under `training` in dataset.json are used: those of `test` have no labels.

    Args:
        spec: The folder, and how images and labels are prepared. Multilabel: one plane for each label; multiclass: the
            same after the background; binary: any label.

    Returns:
        The data set.

    Raises:
        DataError: If a file is missing, damaged, or does not fit dataset.json.
    """
    check_pattern(spec.subject, f"data {spec.path}")
    path, content = read_description(spec.path, "decathlon")
    names = read_numbered(path, content, "modality")
    classes = read_numbered(path, content, "labels")
    if len(classes) < 2:
        refuse(path, "a label beside the background", classes)
    labels = Labels(path.name, {name: (value,) for value, name in enumerate(classes) if value}, classes[0])
    pairs = _list_pairs(path, content.get("training"))
    check_number(path, content, list(pairs))
    inputs = choose_inputs(names, spec, path)
    sources = []
    named = find_subjects(list(pairs), spec.subject, [image for image, _ in pairs.values()])
    for subject, (case, (image, label)) in zip(named, pairs.items(), strict=True):
        header = read_header(image, stacked=True)
        if header.channels != len(names):
            wanted = f"{len(names)} channels, the modalities of {path.name}"
            remedy = f"Correct `modality` in {path.name}, or replace the image."
            raise DataError(expected(image, wanted, header.channels, remedy))
        channels = tuple(Channel(image, number if len(names) > 1 else None) for number in inputs)
        sources.append(Source(case, subject, case, channels, label))
    splits = split_subjects((source.subject for source in sources), spec)
    title = find_title(spec.path, content)
    return load_sources(sources, labels, splits, spec, [names[n] for n in inputs], title)


def _list_pairs(path: Path, training: Any) -> dict[str, tuple[Path, Path]]:
    """Return case -> image and label, in the order of dataset.json."""
    keys = ("image", "label")
    if not isinstance(training, list) or not training:
        refuse(path, "a list `training` that is not empty", training)
    found: dict[str, tuple[Path, Path]] = {}
    for row in training:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            refuse(path, 'rows {"image": file, "label": file} in `training`', row)
        image, label = (path.parent / row[key] for key in keys)
        for file in (image, label):
            if not file.is_file():
                remedy = "Extract the whole download."
                raise DataError(expected(file, f"a file, as {path.name} lists it", "nothing of that name", remedy))
        case = image.name.removesuffix(".gz").removesuffix(".nii")
        if case in found:
            refuse(path, "each image once in `training`", row["image"])
        found[case] = (image, label)
    return found
