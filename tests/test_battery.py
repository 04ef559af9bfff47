"""Batteries: what they mean, which cells they add to a suite, and what a plan prints about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import product

import pytest

import advseg_bench as ab
from advseg_bench.cache import content_hash
from advseg_bench.errors import SpecError
from advseg_bench.registry import catalogue
from advseg_bench.results.info import read_info
from advseg_bench.suite.battery import ALIASES, BATTERIES, ENTROPY, OTHERS, Member
from advseg_bench.suite.cells import Cell, plan
from advseg_bench.suite.cost import estimate
from advseg_bench.suite.specs import AttackSpec, BatterySpec
from advseg_bench.suite.suite import Suite, parse_suite

NET = '[[models]]\nname = "{}"\narchitecture = "monai.UNet"\nsettings = {{ channels = [4, 8], strides = [2] }}\n'
DATA = '[data]\nname = "mni152"\nsize = 32\n'
HEAD = 'schema = 1\nname = "s"\n'
OWN = '[[attacks]]\nname = "fgsm"\nlosses = ["dice"]\neps = ["1/255"]\n'
FAST = '[battery]\nname = "standard"\nprofile = "fast"\n'


def read(battery: str = 'battery = "standard"\n', rest: str = "", models: str = "ab", data: str = DATA) -> Suite:
    """A suite of small networks."""
    return parse_suite(HEAD + battery + data + "".join(map(NET.format, models)) + rest, "s.toml")


def members(suite: Suite, model: str = "a") -> list[Cell]:
    """The cells of the battery on one model."""
    return [cell for cell in plan(suite) if cell.model == model and cell.member is not None]


def ids(cells: list[Cell]) -> list[str]:
    return [cell.id for cell in cells]


@pytest.mark.parametrize(
    ("eps", "message"),
    [('"4/255"', "a list of radii"), ("[]", "a list of radii"), ('["0"]', "radii above 0"), ("[true]", "a number or")],
)
def test_radii_that_are_none_are_one_line(eps, message):
    with pytest.raises(SpecError, match=rf"battery\.eps.*{message}") as found:
        read(f'[battery]\nname = "standard"\neps = {eps}\n')
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("name", "digest"), [("standard-1", "1eba4975b555ffcf")])
def test_a_name_never_changes_its_meaning(name, digest):
    assert content_hash({p: [asdict(m) for m in listed] for p, listed in BATTERIES[name].items()}) == digest


def test_every_battery_is_pinned_and_has_both_profiles():
    assert set(BATTERIES) == {"standard-1"}
    assert all(set(profiles) == {"full", "fast"} for profiles in BATTERIES.values())
    assert {"standard": list(BATTERIES)[-1]} == ALIASES


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("profile", ["full", "fast"])
def test_every_member_is_an_attack_with_a_loss_of_the_catalogue(profile, task):
    for member in BATTERIES["standard-1"][profile]:
        loss = {"": (), ENTROPY: ("ce" if task == "multiclass" else "bce",)}.get(member.loss, (member.loss,))
        spec = AttackSpec(name=member.attack, losses=loss, eps=("4/255",), settings=dict(member.settings))
        assert spec.name in catalogue.ATTACKS
        assert all(task in catalogue.LOSSES[name].kinds for name in loss)
        assert member.gated != catalogue.ATTACKS[member.attack].traits.control


def test_a_name_is_a_table_with_defaults_and_is_recorded_in_full():
    suite = read()
    assert suite.battery == BatterySpec(name="standard-1", profile="full", eps=("2/255", "4/255"))
    assert suite.battery == read('[battery]\nname = "standard-1"\n').battery
    record = suite.as_json()
    assert record["battery"] == {
        "name": "standard-1",
        "profile": "full",
        "eps": [2 / 255, 4 / 255],
        "norm": "linf",
        "skip": True,
        "warm_start": True,
    }
    again = Suite.model_validate_json(json.dumps(record))
    assert again == suite
    assert plan(again) == plan(suite)


def test_the_schema_of_suites_accepts_a_name_or_a_table():
    schema = Suite.model_json_schema()
    accepted = schema["properties"]["battery"]["anyOf"]
    assert accepted == [{"type": "string"}, {"$ref": "#/$defs/BatterySpec"}, {"type": "null"}]
    assert schema["$defs"]["BatterySpec"]["properties"]["profile"]["enum"] == list(BATTERIES["standard-1"])
    assert "attacks" not in schema["required"]


def test_a_suite_can_leave_out_the_battery_of_the_one_that_it_extends(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "standard"\nname = "mine"\nbattery = "none"\n{OWN}')
    suite = Suite.load(path)
    assert suite.battery is None
    assert {cell.arm.attack for cell in plan(suite)} == {"none", "fgsm"}
    path.write_text('extends = "standard"\nname = "mine"\n[battery]\nprofile = "fast"\n')
    assert Suite.load(path).battery == BatterySpec(name="standard-1", profile="fast", eps=("2/255", "4/255"))


def test_a_suite_without_a_battery_has_the_same_record_and_cells():
    suite = read("", OWN)
    assert "battery" not in suite.as_json()
    for cell in plan(suite):
        assert (cell.battery, cell.member, cell.skip_finished, cell.warm_start, cell.alone) == (
            "",
            None,
            False,
            False,
            "",
        )
        assert set(cell.as_record()) == {
            *("id", "model", "attack", "loss", "settings", "norm", "eps", "draw", "label", "skip", "max_forwards")
        }


def test_a_battery_stands_beside_the_attacks_of_the_suite_whose_cells_stay():
    plain, both = plan(read("", OWN)), plan(read(rest=OWN))
    assert [cell for cell in both if cell.member is None] == list(plain)
    assert all(cell.label.endswith(" standard-1") for cell in both if cell.member is not None)
    assert len({cell.id for cell in both}) == len(both)
    alone = plan(read())
    assert [cell.arm.attack for cell in alone if cell.member is None] == ["none", "none"]


def test_the_members_attack_by_radius_and_then_in_their_order():
    cells = members(read('[battery]\nname = "standard"\neps = ["4/255", "1/255"]\n', models="abc"))
    order = [(cell.eps, cell.member) for cell in cells]
    assert order == sorted(order)
    first = [(cell.arm.attack, cell.arm.loss) for cell in cells if cell.eps == 1 / 255]
    assert first == [
        ("random_sign", ""),
        ("uniform_noise", ""),
        ("fgsm", "dice"),
        ("fgsm", "bce"),
        ("apgd", "present_dice"),
        ("apgd", "balanced_ce"),
        ("apgd", "margin"),
        ("apgd", "segpgd"),
        ("mifgsm", "present_dice"),
        ("square", ""),
        ("transfer", "present_dice"),
        ("transfer", "present_dice"),
    ]
    assert cells[4].arm.options == {"steps": 50, "keep": "best", "keep_by": "hard_dice", "objective": "present_dice"}


def test_images_come_from_each_other_model_and_from_none_in_a_suite_of_one():
    def sources(models: str) -> dict[str, list[str]]:
        cells = [cell for cell in plan(read(models=models)) if cell.arm.attack == "transfer" and cell.eps == 4 / 255]
        return {m: [c.arm.options["source"] for c in cells if c.model == m] for m in models}

    assert sources("abc") == {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}
    assert sources("a") == {"a": []}
    assert not any(OTHERS in cell.arm.settings for cell in plan(read()))


def test_the_id_of_a_transfer_depends_on_the_model_that_the_images_are_of():
    bigger = NET.format("b").replace("[4, 8]", "[4, 16]")
    one, other = read(), parse_suite(HEAD + 'battery = "standard"\n' + DATA + NET.format("a") + bigger, "s.toml")
    same = {cell.arm.attack for cell in members(one) if cell.id in ids(members(other))}
    assert same == {"random_sign", "uniform_noise", "fgsm", "apgd", "mifgsm", "square"}
    own = '[[attacks]]\nname = "transfer"\nlosses = ["dice"]\neps = ["1/255"]\nsettings = { source = "b" }\n'
    (here,) = [cell for cell in plan(read("", own)) if cell.model == "a" and cell.arm.attack == "transfer"]
    assert here.id not in {cell.id for cell in plan(parse_suite(HEAD + DATA + NET.format("a") + bigger + own, "s"))}
    with pytest.raises(SpecError, match=r"transfer, source: unknown model 'bb'\. Did you mean 'b'\?"):
        plan(read("", own.replace('"b"', '"bb"')))


SHARED = (
    '[[attacks]]\nname = "fgsm"\nlosses = ["present_dice", "dice"]\neps = ["4/255", "8/255"]\nmax_forwards = 9\n'
    '[[attacks]]\nname = "random_sign"\neps = ["2/255"]\ndraws = 3\n'
)


def test_a_cell_of_both_is_run_once_and_is_the_one_of_the_suite():
    plain, both = plan(read("", SHARED)), plan(read(rest=SHARED))
    assert len(both) == len(plain) + len(plan(read())) - 2 - 2 * 2, "two clean cells, two cells of each model"
    kept = {cell.id: cell for cell in both}
    for cell in plain:
        found = kept[cell.id]
        assert replace(found, battery="", member=None) == cell
        assert (found.skip_finished, found.warm_start, found.alone) == (False, False, "")
        arm, eps = cell.arm, cell.eps
        shared = {("fgsm", "dice", 4 / 255): 2, ("random_sign", "", 2 / 255): 0}.get((arm.attack, arm.loss, eps))
        assert found.member == (shared if cell.draw == 0 else None)
        assert found.battery == ("" if found.member is None else "standard-1")


def test_an_own_attack_of_another_norm_is_no_member():
    own = '[[attacks]]\nname = "fgsm"\nlosses = ["present_dice"]\nnorm = "l2"\neps = ["4/255"]\n'
    both = plan(read(rest=own))
    assert sum(cell.arm.norm == "l2" for cell in both) == 2
    assert all(cell.member is None for cell in both if cell.arm.norm == "l2")


def by_key(cells: list[Cell]) -> dict[object, Cell]:
    return {(cell.arm, cell.eps, cell.draw): cell for cell in cells}


def test_skipping_and_warm_starts_are_part_of_the_ids_that_they_affect():
    rule = '[battery]\nname = "standard"\nskip = {}\nwarm_start = {}\n'
    suites = {
        (skip, warm): by_key(members(read(rule.format(str(skip).lower(), str(warm).lower()))))
        for skip, warm in product((False, True), repeat=2)
    }
    plain, both = suites[False, False], suites[True, True]
    assert {cell.alone for cell in plain.values()} == {""}
    for key, cell in both.items():
        noise = catalogue.ATTACKS[cell.arm.attack].traits.control
        assert cell.seed_id == plain[key].id, "an image meets the same random numbers whether others are skipped"
        assert cell.skip_finished == (not noise)
        assert cell.warm_start == (cell.arm.attack in ("apgd", "mifgsm") and cell.eps == 4 / 255)
        assert (cell.id == plain[key].id) == noise
        assert (suites[False, True][key].id == plain[key].id) == (not cell.warm_start)
        later = cell.eps == 4 / 255 and cell.arm.attack in ("apgd", "mifgsm", "square", "transfer")
        assert (suites[True, False][key].id == cell.id) == (not later), "it starts from others, or skips after them"


def test_an_id_depends_on_what_a_member_skips_or_starts_from_and_on_nothing_later():
    rule = '[battery]\nname = "standard"\neps = [{}]\n'
    one, two, other = (members(read(rule.format(eps))) for eps in ('"4/255"', '"2/255", "4/255"', '"3/255", "4/255"'))
    larger = [cell for cell in two if cell.eps == 4 / 255]
    assert [cell.arm.attack for cell in larger if cell.id in ids(one)] == [
        "random_sign",
        "uniform_noise",
        "fgsm",
        "fgsm",
    ]
    assert {cell.id for cell in two if cell.warm_start}.isdisjoint(ids(one) + ids(other))
    more = members(read(rule.format('"2/255", "4/255", "8/255"')))
    assert set(ids(two)) < set(ids(more))
    own = '[[attacks]]\nname = "apgd"\nlosses = ["present_dice"]\neps = ["2/255"]\n'
    own += 'settings = { steps = 50, keep = "best", keep_by = "hard_dice", objective = "present_dice" }\n'
    changed = by_key(members(read(rest=own)))
    same = [key[0].attack for key, cell in by_key(two).items() if changed[key].id == cell.id and cell.skip_finished]
    assert same == ["fgsm"] * 4, "the members before it at each radius"


def test_a_random_model_repeats_each_member_and_skips_nothing():
    """Its attacks are run one by one, since its random numbers would depend on what runs beside it."""
    text = NET.format("a") + "stochastic = true\nrepeats = 3\n"
    suite = parse_suite(HEAD + FAST + DATA + text, "s.toml")
    cells = members(suite)
    assert {sum(c.member == m and c.eps == 2 / 255 for c in cells) for m in range(6)} == {3}
    assert len({cell.id for cell in plan(suite)}) == len(plan(suite))
    assert not any(cell.skip_finished or cell.warm_start or cell.alone for cell in cells)


@pytest.mark.parametrize(
    ("battery", "message"),
    [
        ('battery = "standrad"', r"battery\.name: unknown battery 'standrad'\. Did you mean 'standard'\?"),
        (
            '[battery]\nname = "standard-2"',
            r"battery\.name: unknown battery 'standard-2'\. Did you mean 'standard-1'\?",
        ),
        (FAST.replace("fast", "fats"), r"battery\.profile: unknown profile 'fats'\. Did you mean 'fast'\?"),
        (FAST + "warm = false", r"battery: unknown key 'warm'\. Did you mean 'warm_start'\?"),
        ('[battery]\nprofile = "fast"', r"battery\.name: missing\. Add this key"),
        ("battery = true", r'battery: expected a name such as "standard", or a table \[battery\]'),
        ("battery = 3", r'battery: expected a name such as "standard", or a table \[battery\], got 3'),
        (FAST + 'eps = ["4/255", "4/255"]', r"battery\.eps: a radius is listed twice"),
        (FAST + "eps = []", r"battery\.eps: "),
        (FAST + "eps = [4]", r'battery\.eps: expected L_inf radii below 1.* got 4.* write "4/255"'),
        (FAST + 'eps = ["x"]', r"battery\.eps\.0: expected a number or a fraction"),
        (FAST + 'norm = "l2"', r"battery\.eps: missing, .* Add radii in image units"),
        (FAST + 'norm = "l1"', r"battery\.norm: Input should be 'linf' or 'l2'"),
        ("", r"attacks: missing\. Add a table \[\[attacks\]\], or the key battery"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_remedy(battery, message):
    with pytest.raises(SpecError, match=rf"^s\.toml: {message}") as error:
        read(battery + "\n")
    assert "\n" not in str(error.value)


def test_images_of_another_range_have_no_default_radii(tmp_path):
    data = f'[data]\nname = "folder"\npath = "{tmp_path}"\nclasses = ["a"]\nsize = 32\nbounds = [-1000, 1000]\n'
    with pytest.raises(SpecError, match=r"battery\.eps: missing"):
        read(data=data)
    suite = read(FAST + "eps = [8, 4]\n", data=data)
    assert [cell.eps for cell in members(suite)] == [4.0] * 6 + [8.0] * 6


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("size", [32, [16, 24, 32]], ids=["2-D", "3-D"])
def test_every_task_type_and_volumes_have_all_members(task, size, tmp_path):
    classes = {"binary": ["a"]}.get(task, ["a", "b"])
    data = f'[data]\nname = "folder"\npath = "{tmp_path}"\nsize = {size}\ntask = "{task}"\n'
    data += f"classes = {json.dumps(classes)}\n"
    cells = plan(read(data=data))
    assert [cell.skip for cell in cells] == [None] * len(cells)
    losses = {cell.arm.loss for cell in cells if cell.arm.attack == "fgsm"}
    assert losses == {"dice", "ce" if task == "multiclass" else "bce"}


def test_a_norm_that_a_member_lacks_leaves_it_out_with_the_reason(monkeypatch):
    entry = catalogue.ATTACKS["square"]
    only = replace(entry, traits=replace(entry.traits, norms=("linf",)))
    monkeypatch.setitem(catalogue.ATTACKS, "square", only)
    cells = members(read(FAST + 'norm = "l2"\neps = [1, 2]\n'))
    assert {(cell.arm.attack, cell.skip) for cell in cells if cell.skip} == {
        ("square", "attack 'square' supports linf budgets, not l2")
    }
    assert all(cell.arm.norm == "l2" for cell in cells)


@pytest.mark.parametrize("models", ["a", "abcde"])
def test_the_fast_profile_has_about_a_tenth_of_the_cost(models):
    def passes(profile: str, *radii: str) -> int:
        rule = f'[battery]\nname = "standard"\nprofile = "{profile}"\neps = {json.dumps(radii)}\n'
        cost = estimate(tuple(cell for cell in plan(read(rule, models=models)) if cell.member is not None))
        return cost.shared_forwards + 2 * cost.shared_backwards

    assert 0.05 < passes("fast", "4/255") / passes("full", "4/255") < 0.15
    assert passes("full", "4/255") < passes("full", "2/255", "4/255") <= 2 * passes("full", "4/255")


def test_the_description_of_a_run_keeps_the_cells_of_a_battery():
    suite = read(rest=SHARED)
    cells = plan(suite)
    data = {"name": "mni152", "kind": "multilabel", "classes": ["a"], "splits": {"train": 1, "test": 1}}
    info = {"suite": suite.as_json(), "data": data, "cells": [cell.as_record() for cell in cells]}
    assert read_info(json.loads(json.dumps(info)), "run.json").cells == cells
    records = {record["id"]: record for record in info["cells"]}
    for cell in cells:
        assert ("member" in records[cell.id]) == (cell.member is not None)


def test_the_shipped_suite_is_the_full_battery_on_the_models_of_quick():
    standard, quick = Suite.load("standard"), Suite.load("quick")
    assert (standard.models, standard.data, standard.training) == (quick.models, quick.data, quick.training)
    assert standard.attacks == ()
    assert standard.battery == BatterySpec(name="standard-1", profile="full", eps=("2/255", "4/255"))


def test_a_plan_lists_the_members_with_their_passes_and_the_highest_cost(tmp_path):
    path = tmp_path / "s.toml"

    def show(battery: str, rest: str = "") -> str:
        path.write_text(HEAD + battery + DATA + NET.format("a") + NET.format("b") + rest)
        command = [sys.executable, "-m", "advseg_bench", "plan", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = show('battery = "standard"\n')
    assert "battery: standard-1, profile full, finished images are skipped" in shown
    rows = {tuple(line.split()[:2]): line.split() for line in shown.splitlines() if " linf 2 4 /255 " in line}
    assert [name for name, _ in rows] == [
        *(
            "random_sign",
            "uniform_noise",
            "fgsm",
            "fgsm",
            "apgd",
            "apgd",
            "apgd",
            "apgd",
            "mifgsm",
            "square",
            "transfer",
        )
    ]
    assert rows["square", "-"][-4:] == ["1001", "0", "4", "0"]
    assert rows["fgsm", "bce"][-4:] == ["2", "1", "4", "0"]
    assert "source: each other model" in shown
    assert "on 2 models: at most " in shown
    cost = estimate(plan(Suite.load(path)))
    assert f"Cost for 36 test images: at most {36 * cost.shared_forwards} forwards" in shown
    free = show(FAST + "skip = false\nwarm_start = false\n", OWN)
    assert "no image is skipped, each radius has its own results" in free
    assert "at most" not in free
    assert "battery" not in show("", OWN)


TINY = {
    "full": (
        Member("random_sign", gated=False),
        Member("fgsm", ENTROPY),
        Member("bim", "dice", {"steps": 3}, warm=True),
    )
}


def test_a_suite_with_a_battery_runs_and_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setitem(BATTERIES, "tiny-1", TINY)
    data = {"name": "phantom", "size": 16, "subjects": 3, "slices": 1}
    net = {"name": "net", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}}
    suite = Suite(name="s", data=data, models=[net], training={"epochs": 1, "floor": 0}, battery="tiny-1")
    run = ab.run(suite, tmp_path / "run")
    assert run.failures == []
    assert read_info(run.info, "run.json").cells == plan(suite)
    assert set(run.rows["cell"]) == {cell.id for cell in plan(suite)}
    again = ab.run(suite, tmp_path / "run")
    assert again.rows.equals(run.rows)
