"""The support tables: measured by the command, held to the adapters, and told by the pages."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toolkit_checks import scenes

from advseg_adapters import measure_support, support_page
from advseg_adapters import torchattacks as adapter
from advseg_adapters.foreign import Route
from advseg_adapters.loading import SUPPORT
from advseg_bench.suite.suite import parse_suite

DOCS = Path(__file__).parent.parent.parent / "docs"
TABLES = {path.stem: json.loads(path.read_text()) for path in sorted(SUPPORT.glob("*.json"))}
ROWS = [(toolkit, row) for toolkit, table in TABLES.items() for row in table["rows"]]
LEAST = {"torchattacks": 25, "foolbox": 15, "art": 20}
BASE = """
schema = 1
name = "page"
[data]
name = "mni152"
size = 32
[[models]]
name = "a"
architecture = "monai.BasicUNet"
"""


def test_the_tables_are_there():
    assert {"torchattacks", "foolbox"} <= set(TABLES)


@pytest.mark.parametrize("toolkit", TABLES)
def test_every_route_has_a_row_that_says_the_same(toolkit):
    routes = import_module(f"advseg_adapters.{toolkit}").ROUTES
    rows = {row["name"].partition(".")[2]: row for row in TABLES[toolkit]["rows"]}
    assert set(rows) == set(routes)
    for name, route in routes.items():
        row = rows[name]
        assert (row["status"] == "cannot") == bool(route.reason), row
        assert row["reason"] == route.reason
        assert row["note"] == route.note
        if not route.reason:
            declared = (route.view, route.objective, list(route.norms), list(route.dims), route.random)
            view, objective = row["view"] or "none", row["objective"] or "none"
            assert (view, objective, row["norms"], row["dims"], row["random"]) == declared, name
            assert row["settings"] == json.loads(json.dumps(dict(route.settings))), name


@pytest.mark.parametrize("toolkit", TABLES)
def test_enough_classes_raise_the_loss_on_binary_and_multilabel_masks(toolkit):
    strong = [
        row["name"]
        for row in TABLES[toolkit]["rows"]
        if row["status"] == "runs"
        and all(entry["raises"] for entry in row["evidence"] if entry["kind"] in ("binary", "multilabel"))
    ]
    assert len(strong) >= LEAST[toolkit], strong


@pytest.mark.parametrize(("toolkit", "row"), ROWS, ids=[row["name"] for _, row in ROWS])
def test_a_row_is_whole(toolkit, row):
    assert set(row) >= {"name", "status", "reason", "view", "objective", "norms", "kinds", "batching", "random"}
    if row["status"] == "cannot":
        assert row["reason"]
        assert row["attempt"]
        return
    assert row["reason"] == ""
    assert row["kinds"] == ["binary", "multilabel", "multiclass"]
    assert {(e["kind"], e["norm"]) for e in row["evidence"]} == {(k, n) for k in row["kinds"] for n in row["norms"]}
    assert row["batching"] in ("batch-preserving", "one image")
    assert row["raises"] == all(entry["raises"] for entry in row["evidence"])
    for entry in row["evidence"]:
        assert entry["forwards"] > 0 or row["view"] == ""
        assert (entry["reached"] is not None) == (row["view"] == "margin")
        loss = entry["loss"]
        above = loss["attacked"] >= max(loss["clean"], loss["random_sign"])
        assert entry["raises"] <= (above or bool(entry["reached"]))


@pytest.mark.parametrize("toolkit", ["torchattacks", "foolbox"])
def test_what_is_said_of_gradients_was_seen(toolkit):
    routes = import_module(f"advseg_adapters.{toolkit}").ROUTES
    for row in TABLES[toolkit]["rows"]:
        if row["status"] == "runs":
            seen = any(entry["backwards"] > 0 for entry in row["evidence"])
            assert routes[row["name"].partition(".")[2]].gradient == seen, row["name"]


@pytest.mark.parametrize("toolkit", ["torchattacks", "foolbox"])
def test_weak_rows_say_why(toolkit):
    """A class that runs and does not harm has a note, unless it is a control, which no one expects to."""
    weak = [row for row in TABLES[toolkit]["rows"] if row["status"] == "runs" and not row["raises"]]
    assert [row["name"] for row in weak if row["view"] and not row["note"]] == []


def test_the_page_is_made_of_the_tables():
    assert (DOCS / "support.md").read_text() == support_page.render(support_page.read_tables(SUPPORT))


@pytest.mark.parametrize("toolkit", ["torchattacks", "foolbox"])
def test_the_pages_count_right_and_their_links_lead_somewhere(toolkit):
    text = (DOCS / f"{toolkit}.md").read_text()
    table = TABLES[toolkit]
    runs = sum(row["status"] == "runs" for row in table["rows"])
    assert f"{runs} of its {len(table['rows'])} attack" in text
    anchor = f"{toolkit}-{table['version']}".replace(".", "")
    assert f"support.md#{anchor}" in text
    assert f"## {toolkit} {table['version']}\n" in (DOCS / "support.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("toolkit", ["torchattacks", "foolbox"])
def test_the_suites_of_the_pages_are_right(toolkit):
    (block,) = re.findall(r"^```toml\n(.*?)^```$", (DOCS / f"{toolkit}.md").read_text(), re.MULTILINE | re.DOTALL)
    suite = parse_suite(BASE + block, f"{toolkit}.md")
    assert len(suite.attacks) == 2
    for attack in suite.attacks:
        module, name = import_module(f"advseg_adapters.{toolkit}"), attack.name.partition(".")[2]
        module.load(name, dict(attack.settings), lambda *_: torch.zeros(1), scenes()["binary"].batch.task)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The command on the small network, with two classes, into a folder of its own."""
    both = scenes()
    monkeypatch.setattr(measure_support, "make_scenes", lambda **_: both)
    monkeypatch.setattr(measure_support, "SUPPORT", tmp_path)
    routes = {name: adapter.ROUTES[name] for name in ("FGSM", "FAB", "GN", "VANILA", "APGDT")}
    monkeypatch.setattr(adapter, "ROUTES", routes)
    return tmp_path


@pytest.mark.slow
def test_the_command_measures_and_writes(small, capsys):
    measure_support.main(["torchattacks", "--page", str(small / "page.md")])
    table = json.loads((small / "torchattacks.json").read_text())
    rows = {row["name"].partition(".")[2]: row for row in table["rows"]}
    assert rows["FGSM"]["batching"] == "batch-preserving"
    assert rows["FGSM"]["raises"]
    assert [entry["forwards"] for entry in rows["FGSM"]["evidence"]] == [1.0] * 3
    assert [entry["backwards"] for entry in rows["FGSM"]["evidence"]] == [1.0] * 3
    assert [entry["reached"] in (0, 1, 2) for entry in rows["FAB"]["evidence"]] == [True] * 6
    assert rows["GN"]["view"] == ""
    assert rows["GN"]["batching"] == "one image"
    assert rows["VANILA"]["attempt"] == "returned the clean images"
    assert rows["APGDT"]["attempt"].startswith("IndexError")
    assert "`FGSM`" in (small / "page.md").read_text()
    before = rows["FGSM"]["evidence"][0]["seconds"]
    measure_support.main(["torchattacks", "--only", "GN"])
    again = {row["name"]: row for row in json.loads((small / "torchattacks.json").read_text())["rows"]}
    assert again["torchattacks.FGSM"]["evidence"][0]["seconds"] == before
    assert capsys.readouterr().out.count("torchattacks.GN") == 2


class Faulty:
    """A stand-in for an adapter whose one class does what the test wants."""

    def __init__(self, change, route=adapter.ROUTES["FGSM"]):
        self.ROUTES = {"Toy": route}
        self.change = change

    def load(self, name, settings, loss, task):
        outer = self

        class Changed(adapter.TorchattacksAttack):
            def attack(self, target, batch, budget):
                return outer.change(super().attack(target, batch, budget), batch, budget)

        return Changed(name="torchattacks.FGSM", route=self.ROUTES["Toy"], loss=loss, settings=settings)


def measure(change) -> dict:
    both = scenes()
    return measure_support.measure_class(Faulty(change), "toy", "Toy", both, both)


def test_a_sound_class_passes():
    row = measure(lambda found, batch, budget: found)
    assert (row["status"], row["batching"], row["raises"]) == ("runs", "batch-preserving", True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found, batch, budget: batch.x + 1.5 * (found - batch.x), "over budget"),
        (lambda found, batch, budget: found - 0.02, "out of bounds"),
        (lambda found, batch, budget: found / 0, "not finite"),
        (lambda found, batch, budget: found[:, :, :-1], "The size of tensor|must match"),
    ],
)
def test_a_class_that_breaks_a_rule_cannot(change, reason):
    row = measure(change)
    assert row["status"] == "cannot"
    assert re.search(reason, row["reason"])


def test_images_that_influence_each_other_are_seen():
    row = measure(lambda found, batch, budget: batch.x + (found - batch.x) / len(batch.x))
    assert row["batching"] == "one image"


def test_a_wrong_direction_is_seen():
    row = measure(lambda found, batch, budget: (2 * batch.x - found).clamp(0, 1))
    assert row["status"] == "runs"
    assert not row["raises"]
    assert all(entry["loss"]["attacked"] < entry["loss"]["clean"] for entry in row["evidence"])


def test_an_unchanged_image_is_counted():
    row = measure(lambda found, batch, budget: batch.x)
    assert [entry["unchanged"] for entry in row["evidence"]] == [2, 2, 2]
    assert not row["raises"]


def test_a_margin_route_needs_no_view_of_the_loss():
    """What a row says of its view is what the class got."""
    seen = []
    route = replace(adapter.ROUTES["FGSM"], view="margin", objective="success-gated")
    module = Faulty(lambda found, batch, budget: (seen.append(1), found)[1], route)
    row = measure_support.measure_class(module, "toy", "Toy", scenes(), scenes())
    assert seen
    assert all(entry["reached"] is not None for entry in row["evidence"])


def test_a_class_that_cannot_is_tried_all_the_same():
    module = SimpleNamespace(ROUTES={"FGSM": Route(reason="it is said")}, load=None)
    module.load = lambda name, settings, loss, task: adapter.TorchattacksAttack(
        name="torchattacks.FGSM", route=module.ROUTES["FGSM"], loss=loss, settings=settings
    )
    row = measure_support.measure_class(module, "toy", "FGSM", scenes(), scenes())
    assert row["status"] == "cannot"
    assert row["attempt"].startswith("ran; loss ")
