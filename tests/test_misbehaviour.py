"""Every kind of misbehaviour that leaves the process alive, through whole runs with one and with two workers.

`test_isolation` has those that end the process, raise or never end.
"""

from __future__ import annotations

import json

import pytest
from test_isolation import DEAD, GOOD, HARMLESS, HEAD, RAISING, rows_of
from unruly import FLAGGED

import advseg_bench as ab
from advseg_bench.suite.suite import parse_suite

pytestmark = pytest.mark.slow

PATIENT = HEAD.replace("max_seconds = 0.5", "max_seconds = 20")
BAD = "".join(
    f'[[attacks]]\nname = "unruly:Change"\neps = ["4/255"]\nsettings = {{ change = {json.dumps(name)} }}\n'
    for name in FLAGGED
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return ab.run(parse_suite(PATIENT + GOOD, "good"), tmp_path_factory.mktemp("good") / "run", shard=1)


def test_the_tables_have_at_least_sixty_kinds():
    assert len(FLAGGED) + len(DEAD) + len(RAISING) + len(HARMLESS) >= 60


@pytest.mark.parametrize("workers", [1, 2])
def test_each_misbehaviour_is_flagged_and_touches_no_other_row(good, tmp_path, workers):
    run = ab.run(parse_suite(PATIENT + BAD + GOOD, "bad"), tmp_path / "run", shard=1, workers=workers)
    assert rows_of(run, good.rows["cell"]).equals(rows_of(good, good.rows["cell"])), "no other row has another bit"
    kinds = {cell.id: cell.arm.options["change"] for cell in run.about.cells if "unruly" in cell.arm.attack}
    flags: dict[str, set[str]] = {}
    for row in run.rows.iter_rows(named=True):
        if row["cell"] in kinds:
            flags.setdefault(kinds[row["cell"]], set()).update(row["flags"])
    failed = {kinds[failure["cell"]] for failure in run.failures}
    assert {*flags} | failed == {*FLAGGED}
    for name, (_, states) in FLAGGED.items():
        named = {f"process_changed:{state}" for state in states} | ({"process_changed"} if states else set())
        assert name in failed or named <= flags[name], name
    assert failed == {"NaN"} or not failed, run.failures
