"""The data set `lgg`: MRI of low-grade gliomas, the folder kaggle_3m."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from advseg_bench.data.dataset import Dataset
from advseg_bench.data.files import is_ignored, list_entries
from advseg_bench.data.sources import Channel, Labels, Source, choose_inputs
from advseg_bench.data.splits import split_subjects
from advseg_bench.data.volumes import load_sources
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import LggData

CHANNELS = ("pre", "flair", "post")
"""The three channels of an image: before contrast, FLAIR, after contrast."""

CLASS = "tumour"

NOTE = "Where a sequence is missing, the authors of the data replaced it by FLAIR."

_SLICE = re.compile(r"(TCGA_\w+)_(\d+)\.tif")
_TOP_FILES = ("data.csv", "README.md")


def load(spec: LggData) -> Dataset:
    """Check every file and list the slices, by number within a patient.

    Subject and scan are the patient, which is a folder. The one class is every mask value above 0.

    Args:
        spec: The folder, and how images and labels are prepared; with one channel, `inputs` is FLAIR by default.

    Returns:
        The data set.

    Raises:
        DataError: If a file is missing, damaged, or not part of the layout.
    """
    if spec.inputs is None and spec.channels == 1:
        spec = spec.model_copy(update={"inputs": ("flair",)})
    inputs = choose_inputs(CHANNELS, spec, spec.path)
    labels = Labels("a mask", {CLASS: tuple(range(1, 256))})
    sources = []
    for folder in _list_patients(spec.path):
        for image, mask in _pair(folder):
            channels = tuple(Channel(image, number) for number in inputs)
            sources.append(Source(image.stem, folder.name, folder.name, channels, mask))
    splits = split_subjects((source.subject for source in sources), spec)
    return load_sources(sources, labels, splits, spec, [CHANNELS[n] for n in inputs], note=NOTE)


def _list_patients(root: Path) -> Iterator[Path]:
    """Yield the patients' folders."""
    if not root.is_dir():
        raise DataError(expected(root, "a folder", "nothing of that name", "Set `path` to kaggle_3m."))
    found = False
    for path in list_entries(root):
        if path.name in _TOP_FILES:
            continue
        if not path.is_dir() or not path.name.startswith("TCGA_"):
            remedy = "Set `path` to kaggle_3m." if (root / "kaggle_3m").is_dir() else "Move it elsewhere."
            raise DataError(expected(path, "a patient's folder TCGA_...", path.name, remedy))
        found = True
        yield path
    if not found:
        raise DataError(expected(root, "patients' folders TCGA_...", "none", "Set `path` to kaggle_3m."))


def _pair(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Match the images of a patient with their masks, in the order of their numbers."""
    files = {_lower_ending(path.name): path for path in folder.iterdir() if not is_ignored(path.name)}
    masks = {name: files.pop(name) for name in sorted(files) if name.endswith("_mask.tif")}
    numbers = {}
    for name in sorted(files):
        match = _SLICE.fullmatch(name)
        if match is None or match[1] != folder.name:
            wanted = f"a name {folder.name}_N.tif or {folder.name}_N_mask.tif"
            raise DataError(expected(files[name], wanted, name, "Rename it, or move it elsewhere."))
        numbers[name] = int(match[2])
    for name in sorted(numbers, key=lambda name: numbers[name]):
        mask = f"{name.removesuffix('.tif')}_mask.tif"
        if mask not in masks:
            remedy = "Add the mask, or remove the image."
            raise DataError(expected(folder / mask, f"a mask of {name}", "nothing of that name", remedy))
        yield files[name], masks.pop(mask)
    for name, path in masks.items():
        remedy = "Add the image, or remove the mask."
        raise DataError(expected(path, f"an image {name.replace('_mask', '')}", "none", remedy))


def _lower_ending(name: str) -> str:
    """Write the ending of a name in lower case."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}{dot}{ending.lower()}"
