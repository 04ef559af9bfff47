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


def make_suite(text: str):
    return parse_suite(PATIENT + text, "tiny")


def name_bad(kinds: list[str]) -> str:
    return "".join(
        f'[[attacks]]\nname = "unruly:Change"\neps = ["4/255"]\nsettings = {{ change = {json.dumps(kind)} }}\n'
        for kind in kinds
    )


KINDS = [*FLAGGED]
SUITE = make_suite(name_bad(KINDS[:-3]) + GOOD + name_bad(KINDS[-3:]))
"""The last ones hide what others changed in the model, since the model is restored after them."""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return ab.run(make_suite(GOOD), tmp_path_factory.mktemp("good") / "run", shard=1)


def test_the_tables_have_at_least_sixty_kinds():
    assert len(FLAGGED) + len(DEAD) + len(RAISING) + len(HARMLESS) >= 60


@pytest.mark.parametrize("workers", [1, 2])
def test_each_misbehaviour_is_flagged_and_touches_no_other_row(good, tmp_path, workers):
    run = ab.run(SUITE, tmp_path / "run", shard=1, workers=workers)
    assert rows_of(run, good.rows["cell"]).equals(rows_of(good, good.rows["cell"])), "no other row has another bit"
    kinds = {cell.id: cell.arm.options["change"] for cell in run.about.cells if "unruly" in cell.arm.attack}
    flags: dict[str, set[str]] = {}
    for row in run.rows.iter_rows(named=True):
        if row["cell"] in kinds:
            flags.setdefault(kinds[row["cell"]], set()).update(row["flags"])
    assert flags == {name: expected for name, (_, expected) in FLAGGED.items()}
    assert run.failures == []
