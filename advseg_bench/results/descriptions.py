"""The JSON files of a run: `run.json`, `models/*.json` and `failures.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, RootModel

from advseg_bench.cache import content_hash, write_json
from advseg_bench.errors import RecordError, expected, one_line
from advseg_bench.results.forms import DescriptionForm, FailureForm, ModelForm, find_fault
from advseg_bench.results.parts import Damage, digest_of
from advseg_bench.suite.specs.experiment import RESOURCES

RUN_SCHEMA = 1

SEAL = "digest"
"""Key of the digest of a JSON object; an object of an older version has none."""

DEEPEST = 64
"""Most levels of a JSON file of a run."""

MOST_BYTES = 2**28
"""Largest size of a JSON file of a run."""

RESTORE = "Restore it, or run the suite again in a new --out."
"""Remedy for a damaged `run.json`."""

PRESENTATION = ("title", "scoring")
"""Keys of a suite that do not affect the rows; nor do `RESOURCES` of its table `compute`."""


def identify_run(info: Mapping[str, Any]) -> str:
    """Return the id of a run: a hash of its suite, apart from keys that do not affect rows, its data and its binding.

    Args:
        info: The content of a `run.json`.

    Returns:
        16 hex digits, equal on every machine that computes the same rows with the same versions.
    """
    return content_hash([_select_binding(info["suite"]), info["data"], info["binding"]])


def _select_binding(suite: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a suite that affect the rows."""
    kept = {name: value for name, value in suite.items() if name not in PRESENTATION}
    if isinstance(compute := kept.get("compute"), Mapping):
        kept["compute"] = {name: value for name, value in compute.items() if name not in RESOURCES}
    return kept


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a digest of its other values, which is compared when it is read."""
    return dict(value) | {SEAL: _digest(value)}


def write_sealed(path: Path, value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON object, or a list of objects, each with its digest; raises the errors of `write_json`."""
    write_json(path, seal(value) if isinstance(value, Mapping) else [seal(each) for each in value])


def _digest(value: Mapping[str, Any]) -> str:
    """Return the first hex digits of the SHA-256 of an object's values other than its digest."""
    text = json.dumps({name: value[name] for name in value if name != SEAL}, sort_keys=True, separators=(",", ":"))
    return digest_of(text.encode())


def _open(value: Any) -> str:
    """Remove the digests of an object or a list of objects that was read; return what is wrong with one, or ""."""
    try:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict) and SEAL in each and each.pop(SEAL) != _digest(each):
                return f"{SEAL}: not that of the other values"
    except (ValueError, RecursionError) as error:
        return one_line(error)
    return ""


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; a missing or damaged one raises `RecordError`."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise RecordError(expected(path, f"at most {MOST_BYTES:,} bytes", f"{size:,}", RESTORE))
        value = json.loads(path.read_bytes())
        if _is_deep(value):
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        return value
    except FileNotFoundError:
        raise RecordError(f"{path}: missing, so this is not the folder of a run. Pass the --out of a run.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: cannot be read: {one_line(error)}. {RESTORE}") from None


def _is_deep(value: Any) -> bool:
    """Return whether a JSON value is nested deeper than `DEEPEST`, where writing it would exceed Python's stack."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for children in inside for child in children if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def read_description(out: Path) -> dict[str, Any]:
    """Read `run.json`; a missing or damaged one, or another schema version, raises `RecordError`."""
    path = out / "run.json"
    info = read_json(path)
    found = info.get("schema") if isinstance(info, dict) else None
    if found != RUN_SCHEMA or isinstance(found, bool):
        newer = isinstance(found, int) and found > RUN_SCHEMA
        remedy = "Upgrade advseg-bench." if newer else "Run the suite again in a new --out."
        raise RecordError(expected(path, f"schema {RUN_SCHEMA}", found, remedy))
    if fault := _open(info) or find_fault(DescriptionForm, info):
        raise RecordError(f"{path}: is damaged ({fault}). {RESTORE}")
    for what, values in (("cells", [cell["id"] for cell in info["cells"]]), ("images", info["images"])):
        if len(set(values)) < len(values):
            raise RecordError(f"{path}: is damaged ({what}: the same one is there twice). {RESTORE}")
    if info["data"]["splits"].get("test") != len(info["images"]):
        raise RecordError(f"{path}: is damaged (data.splits.test: not the number of images). {RESTORE}")
    if info.get("run") and info["run"] != _identify_again(info):
        raise RecordError(f"{path}: is damaged (run: not the hash of suite, data and binding). {RESTORE}")
    return dict(info)


def _identify_again(info: Mapping[str, Any]) -> str:
    """Return the id of a run that was read; "" if its values have none, such as NaN."""
    try:
        return identify_run(info)
    except (ValueError, RecursionError):
        return ""


def read_model(path: Path) -> dict[str, Any]:
    """Read a model's entry in a run; a damaged one, which the next run can recreate, raises `RecordError`."""
    entry = _read_or_refuse(path, ModelForm)
    if entry["name"] != path.stem:
        raise RecordError(str(Damage(path, f"is damaged (name: {entry['name']!r} is not that of the file)")))
    return dict(entry)


def read_failures(out: Path) -> list[dict[str, Any]]:
    """Read the failures of a run; a damaged file, which the next run can recreate, raises `RecordError`."""
    path = out / "failures.json"
    return list(_read_or_refuse(path, RootModel[list[FailureForm]])) if path.exists() else []


def read_calibration(out: Path) -> dict[str, dict[str, Any]]:
    """Read the calibration of a part: model -> "weights_sha256" and "rows"; that of a merged run: part -> the same.

    A damaged file, which the next run can recreate, raises `RecordError`.
    """
    path = out / "calibration.json"
    return dict(_read_or_refuse(path, RootModel[dict[str, dict[str, Any]]])) if path.exists() else {}


def _read_or_refuse(path: Path, kind: type[BaseModel]) -> Any:
    """Read a JSON file that the next run can recreate; `RecordError` if it is not a `kind`."""
    try:
        value = read_json(path)
    except RecordError as error:
        fault = str(error).removeprefix(f"{path}: ").removesuffix(f". {RESTORE}")
    else:
        fault = _open(value) or find_fault(kind, value)
    if fault:
        raise RecordError(str(Damage(path, f"is damaged ({fault})")))
    return value


def read_notes(
    out: Path, models: Sequence[str], *, strict: bool
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[Damage]]:
    """Read `models/*.json` and `failures.json`.

    Args:
        out: The run directory.
        models: Names of the run's models; an entry of another one is damaged.
        strict: Whether a damaged file is an error; otherwise it is left out.

    Returns:
        The entry of each model by its name, the failures, and the damaged files.

    Raises:
        RecordError: Naming a damaged file, if `strict`.
    """
    found: dict[str, dict[str, Any]] = {}
    failures: list[dict[str, Any]] = []
    damaged = []
    for path in [*sorted((out / "models").glob("*.json")), out / "failures.json"]:
        try:
            if path.name == "failures.json" and path.parent == out:
                failures = read_failures(out)
            elif path.stem not in models:
                raise RecordError(str(Damage(path, "is of a model that the run does not have")))
            else:
                found[path.stem] = read_model(path)
        except RecordError as error:
            if strict:
                raise
            damaged.append(Damage.of(path, error))
    return found, failures, damaged


def describe(out: Path, info: dict[str, Any]) -> None:
    """Write `run.json`, or check that the existing one describes the same run.

    Title, scoring and resources of a suite do not affect the rows, so new values replace the old ones.

    Raises:
        RecordError: Naming the first difference that would make old and new rows incomparable.
    """
    if not (out / "run.json").exists():
        write_sealed(out / "run.json", info)
        return
    old, new = read_description(out), json.loads(json.dumps(info))
    for key, what in (("suite", "suite"), ("data", "data"), ("binding", "environment")):
        before, after = old.get(key), new[key]
        if key == "suite":
            before, after = _select_binding(before or {}), _select_binding(after)
        if before != after:
            raise RecordError(
                f"{out}: holds a run of another {what}: {first_difference(before, after)}. "
                "Nothing was changed; choose another --out."
            )
    if old["suite"] != new["suite"]:
        write_sealed(out / "run.json", old | {"suite": new["suite"]})


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """Name the first place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if before != after:
                return first_difference(before, after, f"{where}.{i}")
    return f"{where or 'it'} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    """Return a value as JSON in at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
