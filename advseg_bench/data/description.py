"""The file dataset.json, of which nnU-Net v2 and the Medical Segmentation Decathlon each have a kind of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from advseg_bench.errors import DataError, expected

Kind = Literal["nnunet", "decathlon"]
_OWNERS: dict[Kind, str] = {"nnunet": "nnU-Net v2", "decathlon": "the Medical Segmentation Decathlon"}


def read_description(folder: Path, kind: Kind) -> tuple[Path, dict[str, Any]]:
    """Read dataset.json and see that it is of the right kind.

    Args:
        folder: The folder that holds it.
        kind: The reader that wants it.

    Returns:
        The file's path and its content.

    Raises:
        DataError: If it is missing, damaged, or of the other kind; the message then names the right reader.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        remedy = "Set `path` to the folder that holds dataset.json, imagesTr/ and labelsTr/."
        raise DataError(expected(path, "a file", "nothing of that name", remedy))
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise DataError(expected(path, "a table `labels` that is not empty", labels))
    found: Kind = "decathlon" if all(isinstance(name, str) for name in labels.values()) else "nnunet"
    if found != kind:
        what = f"the dataset.json of {_OWNERS[kind]}"
        raise DataError(expected(path, what, f"that of {_OWNERS[found]}", f'Set name = "{found}".'))
    return path, content


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises: DataError: if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(expected(path, "a readable JSON file", str(error), "Replace the file.")) from None


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
    """Refuse a data set that has not as many cases as it says."""
    said = content.get("numTraining")
    if said is not None and said != len(names):
        refuse(path, f"numTraining = {len(names)}, the number of cases that are there", said)


def refuse(path: Path, what: str, found: object) -> NoReturn:
    """Say what is wrong with a description."""
    raise DataError(expected(path, what, found, "Mend the file."))
