"""The data set `nnunet`: a raw data set of nnU-Net v2, whose slices or volumes are the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advseg_bench.data.dataset import Dataset, Split
from advseg_bench.data.description import check_number, find_title, read_description, read_json, read_numbered, refuse
from advseg_bench.data.files import compose_name, list_entries
from advseg_bench.data.formats import SUFFIXES
from advseg_bench.data.nifti import is_nifti
from advseg_bench.data.sources import Channel, Labels, Source, choose_inputs
from advseg_bench.data.splits import split_rest, split_subjects
from advseg_bench.data.subjects import check_pattern, find_subjects
from advseg_bench.data.volumes import load_sources
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import NnunetData

IGNORE = "ignore"
"""The label that nnU-Net gives to pixels that are ignored."""

VOLUMES = (".nii", ".nii.gz")

Cases = dict[str, tuple[list[Path], Path]]
"""Case -> its image files, one for each channel or one colour image, and its label file."""


def load(spec: NnunetData) -> Dataset:
    """Check every file of a raw data set and list its images.

    `Case.block` is the case. Classes (including regions) and channels are those of dataset.json; pixels with the label
    "ignore" are not valid.

    Args:
        spec: The folder, and how images and labels are prepared. Multilabel: one plane for each label or region;
            multiclass: labels that exclude each other; binary: any label.

    Returns:
        The data set.

    Raises:
        DataError: If a file is missing, unmatched, damaged, or does not fit dataset.json.
    """
    check_pattern(spec.subject, f"data {spec.path}")
    path, content = read_description(spec.path, "nnunet")
    names = read_numbered(path, content, "channel_names")
    labels = _read_labels(path, content["labels"])
    ending = content.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in SUFFIXES:
        refuse(path, f"`file_ending`, one of {', '.join(SUFFIXES)}", ending)
    cases = _read_table(path, content["dataset"], len(names)) if "dataset" in content else None
    if cases is None:
        cases = _list_cases(spec.path, ending, len(names))
    check_number(path, content, list(cases))
    inputs = choose_inputs(names, spec, path)
    sources = []
    named = find_subjects(list(cases), spec.subject, [files[0] for files, _ in cases.values()])
    for subject, (case, (files, label)) in zip(named, cases.items(), strict=True):
        one = len(files) < len(names)
        channels = tuple(Channel(files[0], n) if one else Channel(files[n], None) for n in inputs)
        block = case if is_nifti(files[0]) else subject
        sources.append(Source(case, subject, block, channels, label))
    subjects = {source.name: source.subject for source in sources}
    splits = split_subjects(subjects.values(), spec) if spec.fold is None else _read_fold(subjects, spec)
    sources = [source for source in sources if source.subject in splits]
    title = find_title(spec.path, content)
    return load_sources(sources, labels, splits, spec, [names[n] for n in inputs], title)


def _read_labels(path: Path, table: Mapping[str, Any]) -> Labels:
    """Read name -> value, or name -> values for regions."""
    values: dict[str, tuple[int, ...]] = {}
    for name, given in table.items():
        several = given if isinstance(given, list) else [given]
        if not several or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in several):
            refuse(path, f"a whole number >= 0, or a list of them, as label {name!r}", given)
        values[name] = tuple(several)
    background = values.pop("background", None)
    ignore = values.pop(IGNORE, None)
    if background != (0,):
        refuse(path, "label background = 0", list(background) if background else "none")
    if ignore is not None and len(ignore) != 1:
        refuse(path, "one value as label ignore", list(ignore))
    if not values or any(0 in numbers for numbers in values.values()):
        refuse(path, "labels above 0 beside the background", {name: list(v) for name, v in values.items()})
    return Labels(path.name, values, ignore=ignore[0] if ignore else None)


def _read_table(path: Path, table: Any, channels: int) -> Cases:
    """Read the table `dataset` of dataset.json: case -> {"images": [file ...], "label": file}."""
    if not isinstance(table, dict) or not table:
        refuse(path, 'a table `dataset` such as {"case": {"images": [file ...], "label": file}}', table)
    found: Cases = {}
    for case, row in sorted(table.items()):
        images = row.get("images") if isinstance(row, dict) else None
        label = row.get("label") if isinstance(row, dict) else None
        if not isinstance(images, list) or not all(isinstance(name, str) for name in [*images, label]):
            refuse(path, f'{{"images": [file ...], "label": file}} for case {case!r} of `dataset`', row)
        files = [path.parent / name for name in (*images, label)]
        for file in files:
            if not file.is_file():
                remedy = "Add the file, or correct the table `dataset`."
                raise DataError(expected(file, f"a file, as {path.name} lists it", "nothing of that name", remedy))
            if not file.name.lower().endswith(SUFFIXES):
                raise DataError(expected(file, f"a file ending in {', '.join(SUFFIXES)}", file.name, "Convert it."))
        colour = channels == 3 and len(images) == 1 and not is_nifti(files[0])
        if len(images) != channels and not colour:
            refuse(path, f"{channels} images for case {case!r} of `dataset`, one for each channel", len(images))
        found[str(case)] = (files[:-1], files[-1])
    return found


def _list_cases(root: Path, ending: str, channels: int) -> Cases:
    """Match images with labels by their names in imagesTr/ and labelsTr/."""
    for folder in (root / "imagesTr", root / "labelsTr"):
        if not folder.is_dir():
            remedy = "Set `path` to the folder that contains imagesTr/ and labelsTr/."
            raise DataError(expected(folder, "a folder", "nothing of that name", remedy))
    labels = _list_files(root / "labelsTr", ending)
    images = _list_files(root / "imagesTr", ending)
    if not labels:
        remedy = "Add the labels, or correct `path`."
        raise DataError(expected(root / "labelsTr", f"labels CASE{ending}", "an empty folder", remedy))
    colour = channels == 3 and ending.lower() not in VOLUMES and not any(stem.endswith("_0001") for stem in images)
    found: Cases = {}
    images = {compose_name(stem): path for stem, path in images.items()}
    for case, label in labels.items():
        stems = [compose_name(f"{case}_{number:04d}") for number in range(1 if colour else channels)]
        for stem in stems:
            if stem not in images:
                what = f"an image {stem}{ending} for label {case}{ending}"
                remedy = "Add the image, or remove the label."
                raise DataError(expected(root / "imagesTr" / f"{stem}{ending}", what, "none", remedy))
        found[case] = ([images.pop(stem) for stem in stems], label)
    for stem, path in images.items():
        what = f"a label {stem[:-5]}{ending} in labelsTr/, and a channel of dataset.json"
        raise DataError(expected(path, what, "none", "Add it, or remove the image."))
    return found


def _list_files(folder: Path, ending: str) -> dict[str, Path]:
    """Return stem -> file, sorted; a file with another ending is refused, see `is_ignored` for what does not count."""
    found = {}
    for path in list_entries(folder):
        if not path.is_file() or not path.name.lower().endswith(ending.lower()):
            wanted = f"a file ending in {ending}, the `file_ending` of dataset.json"
            raise DataError(expected(path, wanted, path.name, "Move it elsewhere, or correct `file_ending`."))
        found[path.name[: -len(ending)]] = path
    return found


def _read_fold(subjects: Mapping[str, str], spec: NnunetData) -> dict[str, Split]:
    """Take the test split from splits_final.json, and choose validation subjects among the fold's training cases."""
    assert spec.fold is not None
    path = spec.path / "splits_final.json"
    if not path.is_file():
        remedy = "Copy it from nnU-Net's preprocessed folder, or remove `fold`."
        raise DataError(expected(path, "a file (fold is set)", "nothing of that name", remedy))
    folds = read_json(path)
    if not _is_folds(folds):
        refuse(path, 'a list of {"train": [case ...], "val": [case ...]}', type(folds).__name__)
    if spec.fold >= len(folds):
        raise DataError(
            expected(path, f"a fold {spec.fold}", f"{len(folds)} folds", f"Set `fold` to 0 to {len(folds) - 1}.")
        )
    sides = [_find_subjects(path, folds[spec.fold][key], subjects) for key in ("train", "val")]
    if both := sorted(sides[0] & sides[1]):
        remedy = "Split the folds by subject, or correct the regular expression `subject`."
        raise DataError(expected(path, "no subject in both train and val", both[0], remedy))
    splits = split_rest(sides[0], spec.validation, spec.seed, path)
    return splits | dict.fromkeys(sides[1], "test")


def _is_folds(folds: object) -> bool:
    """Whether JSON has the form of splits_final.json."""
    return isinstance(folds, list) and all(
        isinstance(fold, dict) and all(isinstance(fold.get(key), list) and fold[key] for key in ("train", "val"))
        for fold in folds
    )


def _find_subjects(path: Path, cases: Sequence[object], subjects: Mapping[str, str]) -> set[str]:
    """Return the subjects of some cases."""
    known = {compose_name(case): subject for case, subject in subjects.items()}
    for case in cases:
        if not isinstance(case, str) or compose_name(case) not in known:
            raise DataError(expected(path, "cases that are in labelsTr/", case, "Correct the file."))
    return {known[compose_name(str(case))] for case in cases}
