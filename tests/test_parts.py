"""The division of a run into parts: disjoint, complete, balanced, and the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import advseg_bench as ab
from advseg_bench.errors import SpecError
from advseg_bench.running.parts import Load, divide, find_array_part, name_part, parse_part, weigh

NAMES = [f"m{i}" for i in range(9)]


@st.composite
def draw_loads(draw):
    """Costs of up to nine models, some with transfer attacks from others, some with given weights."""
    count = draw(st.integers(1, 9))
    training = {name: draw(st.sampled_from([0, 0, 500, 20_000])) for name in NAMES}
    loads = []
    for name in NAMES[:count]:
        sources = draw(st.sets(st.sampled_from(NAMES), max_size=2))
        trainings = {other: training[other] for other in sorted({name, *sources})}
        loads.append(Load(name, draw(st.integers(1, 3000)), trainings))
    return loads


@given(draw_loads(), st.integers(1, 90), st.integers(1, 9), st.integers(1, 20))
@settings(deadline=None, max_examples=150)
def test_parts_are_disjoint_complete_and_balanced(loads, images, batch, n):
    held = divide(loads, images, batch, n)
    assert len(held) == n
    for load in loads:
        ranges = [mine[load.model] for mine in held if load.model in mine]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == images
        assert all(start % batch == 0 and start < stop for start, stop in ranges)
        assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
    costs = [cost_of(mine, loads) for mine in held]
    padded = -(-images // batch) * batch
    share = (sum(load.image * padded for load in loads) + sum(max_training([load]) for load in loads)) / n
    assert max(costs) <= 1.1 * (share + 2 * max_training(loads) + max(load.image for load in loads) * batch)


def max_training(loads):
    return max(sum(load.trainings.values()) for load in loads)


def cost_of(mine, loads):
    """Passes of a part."""
    known = {load.model: load for load in loads}
    trained = {name: passes for model in mine for name, passes in known[model].trainings.items()}
    return sum(known[model].image * (stop - start) for model, (start, stop) in mine.items()) + sum(trained.values())


def test_small_models_stay_whole_and_a_large_one_is_divided():
    loads = [Load("big", 100, {"big": 0}), *(Load(f"s{i}", 10, {}) for i in range(6))]
    held = divide(loads, 64, 8, 4)
    assert sum("big" in mine for mine in held) > 1
    assert all(mine[name] == (0, 64) for mine in held for name in mine if name != "big")


def test_a_target_of_transfer_goes_where_its_source_is_trained():
    loads = [Load(name, 10, {name: 5000}) for name in ("a", "b")] + [Load("c", 10, {"b": 5000, "c": 0})]
    held = divide(loads, 40, 8, 2)
    assert [sorted(mine) for mine in held] == [["b", "c"], ["a"]] or [sorted(m) for m in held] == [["a"], ["b", "c"]]


def test_the_division_is_the_same_in_another_process():
    code = (
        "import json, sys, advseg_bench as ab\nfrom advseg_bench.running.parts import divide, weigh\n"
        "suite = ab.Suite.load('smoke')\n"
        "print(json.dumps(divide(weigh(suite, ab.plan(suite), 91), 36, 8, 5)))"
    )
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        found.add(done.stdout)
    suite = ab.Suite.load("smoke")
    here = divide(weigh(suite, ab.plan(suite), 91), 36, 8, 5)
    assert [json.loads(text) for text in found] == [json.loads(json.dumps(here))]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "3-16", "3/16/2", "", "a/b", "1/99999", "-1/4", "1/9999999999"])
def test_a_wrong_part_is_one_line(text):
    with pytest.raises(SpecError, match=r"^part: expected .*, got '.*'\. .+\.$"):
        parse_part(text)


def test_parts_are_named_so_that_they_sort():
    assert parse_part(" 3/16 ") == (3, 16)
    assert name_part((3, 16)) == "part-03-of-16"
    assert name_part((1, 4)) == "part-1-of-4"


def array(task, low, high, count, step=1):
    names = ("TASK_ID", "TASK_MIN", "TASK_MAX", "TASK_COUNT", "TASK_STEP")
    values = zip(names, (task, low, high, count, step), strict=True)
    return {f"SLURM_ARRAY_{name}": str(value) for name, value in values}


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        (array(1, 1, 16, 16), (1, 16)),
        (array(0, 0, 15, 16), (1, 16)),
        (array(14, 10, 16, 4, 2), (3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (3, 4)),
    ],
)
def test_a_slurm_array_names_its_part(environ, part):
    assert find_array_part(environ) == part


@pytest.mark.parametrize("environ", [array(7, 3, 7, 2), array(1, 1, 1, 1) | {"SLURM_ARRAY_TASK_ID": "one"}])
def test_an_array_with_holes_is_refused(environ):
    with pytest.raises(SpecError, match="SLURM_ARRAY_TASK_ID"):
        find_array_part(environ)
