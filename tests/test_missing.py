"""Which rows a run lacks: all of them once, in units of images that lack the same cells."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from advseg_bench.running.missing import find_missing
from advseg_bench.suite.cells import Arm, Cell

SKIPPED = "has no meaning here"


def make_cell(model: str, name: str, skip: str | None = None) -> Cell:
    return Cell(f"{model}-{name}", model, Arm(name, "", "{}", "linf"), 0.1, 0, name, skip)


CELLS = [
    make_cell("a", "fgsm"),
    make_cell("a", "pgd"),
    make_cell("a", "odd", SKIPPED),
    make_cell("b", "fgsm"),
    make_cell("b", "pgd"),
    make_cell("c", "odd", SKIPPED),
]
IMAGES = {f"image{i}": 10 * i + 3 for i in range(7)}
KEYS = [(cell.id, image) for cell in CELLS if cell.skip is None for image in IMAGES]


@given(st.sets(st.sampled_from(KEYS)), st.integers(1, 9))
def test_units_hold_each_missing_row_once_and_nothing_else(have, shard):
    found = find_missing(CELLS, IMAGES, have, shard)
    names = {position: image for image, position in IMAGES.items()}
    units = [unit for of_model in found.values() for unit in of_model]
    rows = [(cell.id, names[i]) for unit in units for i in unit.indices for cell in unit.cells]
    assert Counter(rows) == Counter(set(KEYS) - have)
    assert sum(unit.rows for unit in units) == len(rows)
    for model, of_model in found.items():
        assert of_model
        for unit in of_model:
            assert unit.model == model == unit.cells[0].model
            assert 0 < len(unit.indices) <= shard


def test_a_new_run_is_cut_in_the_order_of_models_images_and_cells():
    found = find_missing(CELLS, IMAGES, set(), 5)
    assert list(found) == ["a", "b"]
    assert [unit.indices for unit in found["a"]] == [(3, 13, 23, 33, 43), (53, 63)]
    assert [cell.id for cell in found["b"][0].cells] == ["b-fgsm", "b-pgd"]


def test_images_that_lack_the_same_cells_share_a_unit():
    have = {("a-fgsm", "image1"), ("a-fgsm", "image3"), *((key) for key in KEYS if key[0].startswith("b"))}
    found = find_missing(CELLS, IMAGES, have, 8)
    assert [(unit.indices, len(unit.cells)) for unit in found["a"]] == [((3, 23, 43, 53, 63), 2), ((13, 33), 1)]
    assert list(found) == ["a"]


def test_cells_of_a_battery_that_are_missing_bring_the_others_of_it_along():
    first, second = (replace(make_cell("a", name), battery="standard-1", member=i) for i, name in enumerate("xy"))
    own = make_cell("a", "fgsm")
    images = {"image0": 0, "image1": 1, "image2": 2}
    have = {(first.id, "image1"), (own.id, "image1"), (first.id, "image2"), (second.id, "image2")}
    units = find_missing([own, first, second], images, have, 8)["a"]
    found = {unit.indices: ([c.label for c in unit.cells], [c.label for c in unit.again]) for unit in units}
    assert found == {
        (0,): (["fgsm", "x", "y"], []),
        (1,): (["y"], ["x"]),  # what x left decides what y does
        (2,): (["fgsm"], []),
    }
