"""Splits by subject, so that no subject is in two of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from advseg_bench.data.dataset import Split
from advseg_bench.data.header import Header
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import SplitData

Name = TypeVar("Name", str, int)


def split_subjects(subjects: Iterable[str], spec: SplitData) -> dict[str, Split]:
    """Assign subjects to the splits at random.

    Args:
        subjects: Subject of each file; repetitions count once, and the order does not matter.
        spec: The shares `validation` and `test`, each rounded to at least one subject, and the seed.

    Returns:
        Subject -> split; all for test if that is the share `test`.

    Raises:
        DataError: If no subject is left for training.
    """
    names = sorted(set(subjects))
    if spec.test == 1:
        return dict.fromkeys(names, "test")
    validation, test = (max(1, round(share * len(names))) for share in (spec.validation, spec.test))
    if len(names) <= validation + test:
        what = "subjects for each of training, validation and test"
        found = f"{len(names)} subjects, {validation} for validation and {test} for test"
        remedy = "Add subjects, or lower the shares `validation` and `test`; set test = 1 if every model has weights."
        raise DataError(expected(spec.path, what, found, remedy))
    order = np.random.default_rng(spec.seed).permutation(len(names))
    splits: dict[str, Split] = {}
    for rank, position in enumerate(order):
        splits[names[position]] = "validation" if rank < validation else "test" if rank < validation + test else "train"
    return splits


def split_rest(rest: Collection[Name], share: float, seed: int, where: Path) -> dict[Name, Split]:
    """Choose the validation subjects, which select the checkpoint, among those that are not held out for test.

    Args:
        rest: Subjects that are not in the test split.
        share: Share of them to choose, rounded to at least one subject.
        seed: Seed of the choice.
        where: The data set, for messages.

    Returns:
        Subject -> "train" or "validation".

    Raises:
        DataError: If no subject is left for training.
    """
    names = sorted(rest)
    validation = max(1, round(share * len(names)))
    if len(names) <= validation:
        found = f"{len(names)} subjects, {validation} for validation"
        remedy = "Add subjects, or lower the share `validation`."
        raise DataError(expected(where, "subjects for training beside the test fold", found, remedy))
    splits: dict[Name, Split] = dict.fromkeys(names, "train")
    for place in np.random.default_rng(seed).permutation(len(names))[:validation]:
        splits[names[place]] = "validation"
    return splits


def counts_images(pattern: str | None, headers: Iterable[Header]) -> bool:
    """Whether images count by themselves: they are 2-D files, and no pattern names their subjects."""
    return pattern is None and all(header.slices is None for header in headers)


def describe_unknown(by_image: bool, what: str) -> str:
    """Describe what counts as a subject where no pattern names the subjects: a "file" or a "case"."""
    if by_image:
        return "Each image counts by itself, because `subject` was not set."
    return f"Each {what} counts as a separate subject, because `subject` was not set."
