"""Damaged inputs with a fixed seed; CONTRIBUTING.md has the command for longer runs."""

from __future__ import annotations

import pytest
from run import check


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("suites", 2_000), ("data", 500), ("checkpoints", 500), ("runs", 500)])
def test_damaged_inputs_are_read_or_refused_in_one_line(kind: str, count: int) -> None:
    assert check(kind, count, seed=29) == []


@pytest.mark.parametrize("kind", ["suites", "data", "checkpoints", "runs"])
def test_the_fuzzers_run(kind: str) -> None:
    assert check(kind, 12, seed=1) == []
