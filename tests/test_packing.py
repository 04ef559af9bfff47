"""Stepped attacks run together: the same bits as one after the other, whatever runs beside them and whatever fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import advseg_bench as ab
from advseg_bench.attacks.stepping import SteppedAttack, is_stepped
from advseg_bench.checks.results import traits_of
from advseg_bench.data import load_dataset
from advseg_bench.models.training import build_given
from advseg_bench.registry.loading import load_attack
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.work import Unit
from advseg_bench.suite.suite import parse_suite

KEPT = Path(__file__).parent / "kept_rows"

ATTACKS = """
[[attacks]]
name = "bim"
losses = ["dice"]
eps = ["2/255", "4/255"]
settings = { steps = 2 }
[[attacks]]
name = "pgd"
losses = ["bce"]
eps = ["4/255"]
settings = { steps = 4 }
[[attacks]]
name = "pgd"
losses = ["dice"]
norm = "l2"
eps = [0.5]
settings = { steps = 3, keep = "best", restarts = 2 }
[[attacks]]
name = "mifgsm"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 4 }
[[attacks]]
name = "mifgsm"
losses = ["dice"]
norm = "l2"
eps = [0.5]
settings = { steps = 4 }
[[attacks]]
name = "nifgsm"
losses = ["lovasz"]
eps = ["4/255"]
settings = { steps = 3 }
[[attacks]]
name = "segpgd"
eps = ["4/255"]
settings = { steps = 4 }
[[attacks]]
name = "cospgd"
eps = ["4/255"]
settings = { steps = 4, restarts = 2, keep = "best" }
[[attacks]]
name = "cospgd"
norm = "l2"
eps = [0.5]
settings = { steps = 4 }
[[attacks]]
name = "tsallis_pgd"
eps = ["4/255"]
settings = { steps = 7, radius_schedule = "shrinking" }
[[attacks]]
name = "apgd"
losses = ["present_dice", "balanced_ce"]
eps = ["4/255"]
settings = { steps = 5, keep_by = "hard_dice", objective = "present_dice" }
[[attacks]]
name = "apgd"
losses = ["balanced_ce"]
norm = "l2"
eps = [0.5]
settings = { steps = 3, restarts = 2 }
[[attacks]]
name = "padam"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 3 }
[[attacks]]
name = "padam"
losses = ["dice"]
norm = "l2"
eps = [0.5]
settings = { steps = 4, keep = "best" }
[[attacks]]
name = "square"
eps = ["4/255"]
settings = { queries = 8 }
[[attacks]]
name = "square"
norm = "l2"
eps = [0.5]
settings = { queries = 6 }
"""
OF_THE_COURSE = {"zero_gradient", "incomplete", "silent_success"}
"""Flags that need the course of an attack, which only attacks run together show."""


@pytest.fixture(scope="module")
def setting():
    """A small trained network, its data, and a cell of every stepped attack under both norms."""
    head = (KEPT / "suite.toml").read_text().split("[[attacks]]")[0]
    head = head.replace("size = 48", "size = 32")
    suite = parse_suite(head + ATTACKS, "packing.toml")
    data = load_dataset(suite.data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(KEPT)
        built = build_given(suite.models[0], data, 0, None)
    cells = [cell for cell in ab.plan(suite) if cell.arm.attack != "none"]
    attacks = {cell.id: load_attack(cell.arm.attack, cell.arm.options, cell.arm.loss, data.task) for cell in cells}
    assert all(cell.skip is None for cell in cells)
    return getattr(built, "model", built), data, cells, attacks


@dataclass(frozen=True)
class Plain:
    """The same attack as a mere callable, which the harness runs alone, a batch at a time."""

    attack: SteppedAttack

    @property
    def traits(self):
        return traits_of(self.attack)

    def __call__(self, model, batch, *, budget, generators):
        return self.attack.perturb(model, batch, budget=budget, generators=generators)


def run(setting, positions, *, attacks=None, cells=None, fill=None, batch=8):
    model, data, all_cells, all_attacks = setting
    cells, attacks = cells or all_cells, attacks or all_attacks
    indices = tuple(data.split("test")[i] for i in positions)
    unit = Unit("net", indices, tuple(cells))
    return run_unit(unit, model, data, Conditions(seed=0, batch=batch), attacks=attacks, fill=fill)


def by_key(rows, *, course=True):
    found = {}
    for row in rows:
        flags = set(row["flags"]) - (set() if course else OF_THE_COURSE)
        found[row["cell"], row["image"]] = row | {"flags": sorted(flags)}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def packed(setting):
    """Rows of twelve images, with attacks run together on one thread."""
    torch.set_num_threads(1)
    rows, failures = run(setting, range(12))
    assert failures == []
    return by_key(rows)


def test_every_stepped_attack_under_both_norms_is_here(setting):
    _, _, cells, attacks = setting
    from advseg_bench.registry import catalogue

    expected = {name for name, entry in catalogue.ATTACKS.items() if not (entry.shared or entry.traits.control)}
    assert all(is_stepped(attack) for attack in attacks.values())
    assert not any(is_stepped(Plain(attack)) for attack in attacks.values())
    assert {cell.arm.attack for cell in cells} == expected - {"transfer"}
    l2 = {cell.arm.attack for cell in cells if cell.arm.norm == "l2"}
    assert l2 >= {"pgd", "mifgsm", "cospgd", "apgd", "padam", "square"}


def compare(setting, positions):
    """Rows of attacks run together, after a comparison with those of the plain loop."""
    _, _, _, attacks = setting
    together, failures = run(setting, positions)
    alone, failed = run(setting, positions, attacks={name: Plain(attack) for name, attack in attacks.items()})
    assert failures == failed == []
    assert len(together) == len(positions) * len(attacks)
    assert by_key(together, course=False) == by_key(alone, course=False)
    return by_key(together)


def test_attacks_run_together_have_the_bits_of_the_plain_loop(setting):
    compare(setting, (3, 14, 15, 9, 26))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_equal_in_two_batches_and_with_two_threads(setting, packed, threads):
    torch.set_num_threads(threads)
    found = compare(setting, range(12) if threads == 1 else range(5))
    assert threads == 2 or found == packed


@pytest.mark.slow
@pytest.mark.parametrize("positions", [(11, 3, 7, 0, 5, 9, 1, 10, 2), (4,), (9, 2, 11)], ids=str)
def test_the_bits_of_an_image_depend_on_neither_order_nor_company(setting, packed, positions):
    rows, failures = run(setting, positions)
    assert failures == []
    assert len(rows) == len(positions) * len(setting[2])
    assert by_key(rows) == {key: packed[key] for key in by_key(rows)}


@pytest.mark.slow
def test_the_bits_of_a_cell_depend_on_no_other_cell(setting, packed):
    _, _, cells, _ = setting
    for some in (cells[::-1], cells[3::4], cells[5:6]):
        rows, failures = run(setting, range(9), cells=some)
        assert failures == []
        assert by_key(rows) == {key: packed[key] for key in by_key(rows)}
