"""Finds the parts of a run whose rows can be trusted, and states for each other one what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from advseg_bench.errors import RecordError, expected
from advseg_bench.results.numbering import find_distinct
from advseg_bench.results.parts import (
    ROW_SCHEMA,
    UNREADABLE,
    Damage,
    Part,
    count_rows,
    find_parts,
    first_line,
    read_columns,
    scan_parts,
)
from advseg_bench.results.rules import GROUPS, KEYS, NAMES, Broken, Codes, Rules, describe_broken

MOST_RESULTS = 2**32
"""Most (cell, image) pairs of a run."""

BYTES_AT_ONCE = 2**24
"""Bytes of parts that are read together."""

TWICE, DOUBTFUL = "twice", "doubtful"
"""Faults of a part that only a comparison with others can settle: rows that are there already; other subjects."""

SUBJECT = ("image", "subject", "block")
"""Columns of which the first decides the others."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an inspection of the parts of a run has found.

    Attributes:
        parts: The parts with trustworthy rows, sorted by name.
        damaged: The other ones.
        twice: Whether some rows are in two of the parts; they are equal.
    """

    parts: tuple[Part, ...]
    damaged: tuple[Damage, ...]
    twice: bool


class Seen:
    """What rows have shown so far, to find rows that contradict others.

    Args:
        rules: The rules of the run.
        subjects: Codes of the subject and of the scan of each image, -1 where unknown.

    Raises:
        RecordError: The run has more results than `MOST_RESULTS`.
    """

    def __init__(self, rules: Rules, subjects: Sequence[Codes] = ()) -> None:
        results = len(rules.cells) * rules.images
        if results > MOST_RESULTS:
            raise RecordError(expected("run.json", f"at most {MOST_RESULTS} results", results, "Split the suite."))
        self._there = np.zeros(results, dtype=bool)
        self._rows = 0
        self._images = rules.images
        self._known = [*subjects] or [np.full(rules.images, -1), np.full(rules.images, -1)]

    def add(self, cells: Codes, images: Codes) -> bool:
        """Note rows as seen, and return True; if any of them is there already, return False and note nothing."""
        numbers = cells * self._images + images
        if self._there[numbers].any():
            return False
        self._there[numbers] = True
        if int(np.count_nonzero(self._there)) != self._rows + len(numbers):
            self._there[numbers] = False
            return False
        self._rows += len(numbers)
        return True

    def check_subjects(self, frame: pl.DataFrame, images: Codes) -> list[Broken]:
        """Compare subject and scan of each row with those of the other rows of its image that were seen."""
        found, then = [], []
        for name, before in zip(SUBJECT[1:], self._known, strict=True):
            codes = frame[name].to_physical().to_numpy().astype(np.int64)
            known = before.copy()
            known[images[::-1]] = codes[::-1]
            known = np.where(before < 0, known, before)
            found.append(Broken(codes != known[images], f"another {name} than others of their image"))
            then.append(known)
        if not any(each.rows.any() for each in found):
            self._known = then
            return []
        return [each for each in found if each.rows.any()]


def inspect_parts(out: Path, rules: Rules, run: str = "") -> Inspection:
    """Inspect every part of a run: its bytes, its label, and each of its rows.

    Args:
        out: The run directory.
        rules: The rules of the run.
        run: Id of the run, see `parts.find_parts`.

    Returns:
        The whole parts and the damaged ones.

    Cost:
        All columns are read once, some parts at a time; memory does not grow with the number of rows, apart from one
        byte for each.
    """
    found, damaged = find_parts(out, run)
    first = _Pass(rules)
    first.inspect_all(found)
    if first.doubtful:  # of the subjects of an image, that of most rows is taken
        second = _Pass(rules, _find_subjects([*first.whole, *first.doubtful], rules))
        second.inspect_all(sorted([*first.whole, *first.doubtful], key=lambda part: part.path))
        second.damaged += first.damaged
        first = second
    damaged += first.damaged
    differing = _compare(first.whole, first.overlapping)
    whole = tuple(part for part in first.whole if part not in differing)
    damaged += [Damage(part.path, "contradicts another part, which holds some of the same rows") for part in differing]
    damaged.sort(key=lambda each: each.path)
    return Inspection(whole, tuple(damaged), bool(first.overlapping))


class _Pass:
    """One reading of all parts, some at a time; where something is wrong, in ever smaller groups."""

    def __init__(self, rules: Rules, subjects: Sequence[Codes] = ()) -> None:
        self.whole: list[Part] = []
        self.damaged: list[Damage] = []
        self.doubtful: list[Part] = []
        self.overlapping: list[Part] = []
        self._rules, self._seen = rules, Seen(rules, subjects)
        self._may_doubt = not subjects

    def inspect_all(self, found: Sequence[Part]) -> None:
        """Inspect parts in groups of about `BYTES_AT_ONCE`."""
        for group in _split(found):
            self._inspect(group)

    def _inspect(self, group: Sequence[Part]) -> None:
        """Inspect some parts together, and at halves of them if anything is wrong."""
        try:
            fault = self._find_fault(group)
        except UNREADABLE as error:
            fault = f"is damaged ({first_line(error)})"
        if fault is None:
            self.whole += group
        elif len(group) > 1:
            self._inspect(group[: len(group) // 2])
            self._inspect(group[len(group) // 2 :])
        elif fault == TWICE:
            self.whole += group
            self.overlapping += group
        elif fault == DOUBTFUL:
            self.doubtful += group
        else:
            self.damaged.append(Damage(group[0].path, fault))

    def _find_fault(self, group: Sequence[Part]) -> str | None:
        """Return what is wrong with some parts, or None."""
        rows = count_rows(group)
        if rows > len(self._rules.cells) * self._rules.images * len(group):
            return f"is damaged ({rows:,} rows, more than the run has)"
        keys = read_columns(group, KEYS)
        cells, images, broken = self._rules.place(keys)
        if broken:
            return describe_broken(broken)
        if len(group) == 1 and find_distinct(keys, KEYS)[1].size < len(keys):
            return "is damaged (some rows are there twice)"
        doubtful: list[Broken] = []
        for names in GROUPS:
            frame = read_columns(group, names)
            broken += self._rules.check(frame, cells)
            if names is NAMES and not broken:
                doubtful = self._seen.check_subjects(frame, images)
        if broken or (doubtful and not self._may_doubt):
            return describe_broken([*broken, *doubtful])
        if doubtful:
            return DOUBTFUL
        return None if self._seen.add(cells, images) else TWICE


def _split(found: Sequence[Part]) -> Iterator[list[Part]]:
    """Split parts into groups of about `BYTES_AT_ONCE`."""
    group: list[Part] = []
    size = 0
    for part in found:
        group.append(part)
        size += part.path.stat().st_size
        if size >= BYTES_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _find_subjects(found: Sequence[Part], rules: Rules) -> list[Codes]:
    """Return the codes of the subject and scan that most rows of each image have."""
    counts = scan_parts(found).select(SUBJECT).group_by(SUBJECT).len().sort("len").collect()
    images = rules.place_images(counts["image"])
    known = []
    for name in SUBJECT[1:]:
        codes = np.full(rules.images, -1)
        codes[images] = counts[name].to_physical().to_numpy()  # of equal indices, the last one counts
        known.append(codes)
    return known


def _compare(whole: Sequence[Part], overlapping: Sequence[Part]) -> list[Part]:
    """Return the parts that hold a row of an overlapping part with other values."""
    if not overlapping:
        return []
    again = [(part, collect_part(part)) for part in overlapping]
    differing: dict[Part, None] = {}
    for part in whole:
        rows = collect_part(part)
        for other, theirs in again:
            if other != part and _differ(rows, theirs):
                differing |= {part: None, other: None}
    return list(differing)


def _differ(rows: pl.DataFrame, others: pl.DataFrame) -> bool:
    """Return whether two frames have a row of the same cell and image with different values."""
    both = rows.join(others, on=KEYS, how="inner", suffix="_other")
    names = [name for name in ROW_SCHEMA if name not in KEYS]
    return any(not both[name].equals(both[f"{name}_other"]) for name in names)


def collect_part(part: Part) -> pl.DataFrame:
    """Read all columns of one part as strings and numbers."""
    return read_columns([part], list(ROW_SCHEMA))
