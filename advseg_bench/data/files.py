"""The files of a folder: which count, which belong to the operating system, and which image a mask belongs to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

from advseg_bench.data.formats import SUFFIXES
from advseg_bench.errors import DataError, expected, is_tidy

MASK_ENDINGS = (
    "segmentation",
    "segmentations",
    "mask",
    "masks",
    "label",
    "labels",
    "seg",
    "gt",
    "groundtruth",
    "lesion",
)
"""Endings that published masks have after the stem of their image, behind "_" or "-"."""

LONGEST_FILE = 255
"""Characters of a file's name, as many as file systems allow bytes."""

_SYSTEM = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
}
_NOTICE = re.compile(r"(licen[cs]e|readme|attribution)(\.(txt|md|rst))?", re.IGNORECASE)
_MASK_ENDING = re.compile(rf"[_-](?:{'|'.join(MASK_ENDINGS)})$", re.IGNORECASE)


def is_ignored(name: str) -> bool:
    """Whether an entry is hidden, a file of the operating system, or a licence or readme of the publisher."""
    return name.startswith(".") or name.lower() in _SYSTEM or _NOTICE.fullmatch(name) is not None


def list_entries(folder: Path) -> Iterator[Path]:
    """Yield the entries of a folder that count, sorted by name.

    Raises:
        DataError: If a name has characters that steer a terminal or the direction of writing, or are no text.
    """
    for path in sorted(folder.iterdir()):
        if is_ignored(path.name):
            continue
        if not is_tidy(path.name, LONGEST_FILE):  # it becomes the name of an image, in tables and on terminals
            what = "a file whose name has visible characters only"
            raise DataError(expected(folder, what, path.name, "Rename it."))
        yield path


def compose_name(name: str) -> str:
    """Return a name in which an accented letter is one character, as some file systems store it and others do not."""
    return unicodedata.normalize("NFC", name)


def find_folder(root: Path, name: str) -> Path:
    """Return a subfolder whose name may differ in upper and lower case; if there is none, the path it should have."""
    exact = root / name
    if exact.is_dir() or not root.is_dir():
        return exact
    alike = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() == name.lower()]
    return alike[0] if len(alike) == 1 else exact


def list_files(folder: Path) -> dict[str, Path]:
    """Find the files of a folder by stem ("a" for a.png and for a.nii.gz); see `is_ignored` for what does not count.

    Args:
        folder: An existing folder; subfolders are an error.

    Returns:
        Stem -> file, sorted by stem.

    Raises:
        DataError: If an entry has another ending, or two entries have the same stem.
    """
    found: dict[str, Path] = {}
    for path in list_entries(folder):
        ending = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
        if ending is None or not path.is_file():
            wanted = f"a file ending in {', '.join(sorted(SUFFIXES))}"
            found_entry = "a folder" if path.is_dir() else path.name
            raise DataError(expected(path, wanted, found_entry, "Convert it, or move it elsewhere."))
        stem = path.name[: -len(ending)]
        if stem in found:
            both = [found[stem].name, path.name]
            raise DataError(expected(path, f"one file named {stem!r}", both, "Remove one of them."))
        found[stem] = path
    return dict(sorted(found.items()))


def list_masks(folder: Path, images: Collection[str]) -> dict[str, Path]:
    """Find the masks of a folder by the stem of their image, after which a name may end as in `MASK_ENDINGS`.

    Args:
        folder: An existing folder.
        images: Stems of the images.

    Returns:
        Stem of the image -> mask; a mask without an image keeps its own stem.

    Raises:
        DataError: As `list_files`, or if an image has two masks.
    """
    found: dict[str, Path] = {}
    spelled = {compose_name(image): image for image in images}
    for stem, path in list_files(folder).items():
        names = (stem, spelled.get(compose_name(stem)), spelled.get(compose_name(_MASK_ENDING.sub("", stem))))
        image = next((name for name in names if name is not None and name in images), stem)
        if image in found:
            both = [found[image].name, path.name]
            raise DataError(expected(path, f"one mask of image {image!r}", both, "Remove one of them."))
        found[image] = path
    return found
