"""The file dataset.json, which nnU-Net v2 and the Medical Segmentation Decathlon write in two different formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from advseg_bench.errors import DataError, expected
from advseg_bench.suite.text import read_text

Format = Literal["nnunet", "decathlon"]
LARGEST_JSON = 2**26
"""Bytes of a description: a hundred thousand cases."""

_NAMES: dict[Format, str] = {"nnunet": "nnU-Net v2", "decathlon": "the Medical Segmentation Decathlon"}


def read_description(folder: Path, wanted: Format) -> tuple[Path, dict[str, Any]]:
    """Read dataset.json and check that it has the right format.

    Args:
        folder: The folder that contains it.
        wanted: The format that the caller reads.

    Returns:
        The file's path and its content.

    Raises:
        DataError: If it is missing, damaged, or in the other format; the message then names the right reader.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        remedy = "Set `path` to the folder that contains dataset.json, imagesTr/ and labelsTr/."
        raise DataError(expected(path, "a file", "nothing of that name", remedy))
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        refuse(path, "a table `labels` that is not empty", labels)
    found: Format = "decathlon" if all(isinstance(name, str) for name in labels.values()) else "nnunet"
    if found != wanted:
        what = f"the dataset.json of {_NAMES[wanted]}"
        raise DataError(expected(path, what, f"that of {_NAMES[found]}", f'Set name = "{found}".'))
    return path, content


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is not valid JSON.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            what = f"a file of at most {LARGEST_JSON:,} bytes"
            raise DataError(expected(path, what, f"{size:,}", "Replace or correct the file."))
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(expected(path, "a readable JSON file", str(error), "Replace or correct the file.")) from None


def read_numbered(path: Path, content: dict[str, Any], key: str) -> list[str]:
    """Return the names of a table {"0": name, "1": name ...} in order."""
    table = content.get(key)
    wanted = [str(number) for number in range(len(table))] if isinstance(table, dict) else []
    if not isinstance(table, dict) or not table or sorted(table) != sorted(wanted):
        refuse(path, f'a table `{key}` such as {{"0": "T2", "1": "ADC"}}, numbered from 0', table)
    names = [table[number] for number in wanted]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        refuse(path, f"names in `{key}` that differ from each other", names)
    return names


def check_number(path: Path, content: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse a data set whose number of cases is not the one in its `numTraining`."""
    stated = content.get("numTraining")
    if stated is not None and stated != len(names):
        refuse(path, f"numTraining = {len(names)}, the number of cases found", stated)


def find_title(folder: Path, content: Mapping[str, Any] | None = None) -> str:
    """Return what a data set is called: by the `name` of its description, or else by its folder."""
    given = (content or {}).get("name")
    return (" ".join(given.split()) if isinstance(given, str) else "") or folder.resolve().name


def refuse(path: Path, what: str, found: object) -> NoReturn:
    """Raise the error about a wrong entry of a description."""
    raise DataError(expected(path, what, found, "Correct the file."))
