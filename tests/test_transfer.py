"""Transfer attacks: adversarial images that are made for one model and scored on another."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from strategies import make_batch
from torch import nn

import advseg_bench as ab
from advseg_bench.batches import select_images
from advseg_bench.errors import IncompatibleError, SettingError, SpecError
from advseg_bench.instruments.counter import Counter
from advseg_bench.registry import catalogue
from advseg_bench.report import summarise
from advseg_bench.report.transfer import make_transfer_table
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.schedule import Schedule
from advseg_bench.running.supply import Supply
from advseg_bench.running.work import RunUnit, Train, Unit
from advseg_bench.suite.battery import BATTERIES, ENTROPY, OTHERS, Member
from advseg_bench.suite.cells import CLEAN, Arm, make_cell, plan
from advseg_bench.suite.cost import estimate
from advseg_bench.suite.suite import Suite

EPS = 8 / 255
LIKE = {"steps": 10, "keep": "best", "objective": "present_dice", "keep_by": "hard_dice"}


def make_network(seed: int) -> nn.Module:
    """A network that finds something in half of the pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 1)).eval()
    with torch.no_grad():
        net[-1].bias -= net(IMAGES.x).median()
    return net


IMAGES, _ = make_batch("binary", n=3, space=(12, 12))


def make_data():
    """Images whose labels are what the first network finds."""
    return replace(IMAGES, y=make_network(0)(IMAGES.x) > 0)


def test_it_is_apgd_on_the_source_bit_for_bit_and_never_asks_the_attacked_model():
    batch, source, model = make_data(), make_network(0).train(), make_network(1)
    attack = ab.attacks.Transfer(source=source, loss="dice")
    x_adv = attack(model, batch, eps=EPS)
    assert torch.equal(x_adv, ab.attacks.APGD(loss="dice", **LIKE)(source, batch, eps=EPS))
    assert not torch.equal(x_adv, batch.x)
    generators = ab.attacks.image_generators(0, "", batch.images)
    with Counter(source).count(3) as asked, Counter(model).count(3) as attacked:
        attack(model, batch, budget=ab.Budget("linf", EPS), generators=generators)
    assert asked.per_image() == [(11, 10)] * 3
    assert attacked.per_image() == [(0, 0)] * 3


def test_the_source_is_restored():
    source = make_network(0).train()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    ab.attacks.Transfer(source=source, loss="dice")(make_network(1), make_data(), eps=EPS)
    assert all(module.training for module in source.modules())
    assert all(p.requires_grad and p.grad is None for p in source.parameters())
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_the_outputs_of_a_source_are_read_and_checked_like_those_of_a_model():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_network(0)

        def forward(self, x):
            return {"out": self.net(x)}

    batch, plain = make_data(), make_network(0)
    wanted = ab.attacks.Transfer(source=plain, loss="dice")(make_network(1), batch, eps=EPS)
    with pytest.warns(UserWarning, match="source"):
        found = ab.attacks.Transfer(source=Named(), loss="dice")(make_network(1), batch, eps=EPS)
    assert torch.equal(found, wanted)
    squashed = nn.Sequential(plain, nn.Sigmoid())
    with pytest.raises(IncompatibleError, match="attack Transfer, source: "):
        ab.attacks.Transfer(source=squashed, loss="dice")(make_network(1), batch, eps=EPS)


def test_wrong_settings_are_refused():
    for source in ("", 3, nn.Conv2d):
        with pytest.raises(SettingError, match="source: expected another model"):
            ab.attacks.Transfer(source=source, loss="dice")
    with pytest.raises(SettingError, match="steps"):
        ab.attacks.Transfer(source="a", loss="dice", steps=0)
    with pytest.raises(IncompatibleError, match="expected a module as `source`, got 'a'"):
        ab.attacks.Transfer(source="a", loss="dice")(make_network(1), make_data(), eps=EPS)


@pytest.mark.parametrize("settings", [{}, {"steps": 4}, {"keep": "last", "steps": 3}], ids=str)
def test_the_catalogue_states_its_cost(settings):
    traits = ab.attacks.Transfer(source="a", loss="dice", **settings).traits
    steps = settings.get("steps", 10)
    assert (traits.forwards, traits.backwards, traits.random, traits.gradient) == (steps + 1, steps, False, False)
    assert catalogue.ATTACKS["transfer"].traits_of({"source": "a", **settings}) == traits


NETS = [
    {"name": "a", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}},
    {"name": "b", "architecture": "monai.UNet", "settings": {"channels": [4, 8], "strides": [2]}},
]
DATA = {"name": "phantom", "size": 16, "subjects": 4, "slices": 2}
WHOLE = {"name": "transfer", "losses": ["dice"], "eps": ["4/255"], "vary": {"source": ["a", "b"]}}
PLAIN = {"name": "fgsm", "losses": ["dice"], "eps": ["4/255"]}


def make_suite(*attacks, nets=NETS, **more) -> Suite:
    training = {"epochs": 1, "floor": 0} | more.pop("training", {})
    return Suite(name="s", data=DATA, models=nets, training=training, attacks=attacks, **more)


def test_a_plan_counts_the_passes_of_the_source():
    cost = estimate(plan(make_suite(WHOLE)))
    assert (cost.shared_forwards, cost.shared_backwards) == (2 * (1 + 2 * 12), 2 * 2 * 10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ab.run(make_suite(WHOLE, {**PLAIN, "name": "apgd", "settings": LIKE}, PLAIN), tmp_path_factory.mktemp("t"))


def pick(run, model: str, attack: str, source: str = ""):
    rows = run.rows.filter(run.rows["model"] == model, run.rows["attack"] == attack)
    settings = [json.loads(text) for text in rows["settings"].cast(str)]
    return rows.filter([each.get("source", "") == source for each in settings]).sort("image")


def test_a_run_has_a_row_of_every_source_and_model(run):
    assert run.failures == []
    for source in "ab":
        for model in "ab":
            rows = pick(run, model, "transfer", source)
            assert len(rows) == len(run.info["images"])
            assert set(zip(rows["forwards"], rows["backwards"], strict=True)) == {(11.0, 10.0)}
    counts = ["tp", "fp", "fn", "linf", "l2"]
    for model in "ab":
        own, white = pick(run, model, "transfer", model).select(counts), pick(run, model, "apgd").select(counts)
        assert own.equals(white), "made for the attacked model itself, it is the white-box attack"
    moves = [pick(run, model, "transfer", "a").select("linf", "l2", "unmoved") for model in "ab"]
    assert moves[0].equals(moves[1]), "both models get the same images"


def test_the_number_of_workers_does_not_change_a_row(run, tmp_path):
    both = ab.run(ab.Suite.model_validate(run.info["suite"]), tmp_path / "run", workers=2)
    assert both.rows.sort("cell", "image").equals(run.rows.sort("cell", "image"))


def test_a_run_is_resumed_although_no_row_of_the_source_is_missing(run, tmp_path):
    out = tmp_path / "run"
    suite = ab.Suite.model_validate(run.info["suite"])
    ab.run(suite, out)
    whole = ab.run(suite, out).rows.sort("cell", "image")
    for part in (out / "parts").iterdir():
        if ab.Run(out).rows.filter(ab.Run(out).rows["model"] == "b").height and "b" in models_of(part):
            part.unlink()
    assert set(ab.Run(out).rows["model"]) == {"a"}
    assert ab.run(suite, out).rows.sort("cell", "image").equals(whole)


def models_of(part) -> set[str]:
    import polars as pl

    return set(pl.read_parquet(part)["model"].cast(pl.String))


def test_a_source_that_cannot_be_trained_fails_its_cells_alone(tmp_path):
    nets = [{"name": "a", "architecture": "test_transfer:Broken"}, NETS[1]]
    run = ab.run(make_suite({**WHOLE, "vary": {"source": ["a"]}}, PLAIN, nets=nets), tmp_path / "run")
    (lost,) = [cell for cell in plan(run_suite(run)) if cell.model == "b" and cell.arm.attack == "transfer"]
    assert {(f["model"], f["cell"]) for f in run.failures} == {("a", None), ("b", lost.id)}
    (message,) = [f["message"] for f in run.failures if f["model"] == "b"]
    assert message.startswith("attack transfer: expected adversarial images of model 'a'")
    assert set(run.rows["attack"]) == {"none", "fgsm"}
    assert set(run.rows["model"]) == {"b"}


def run_suite(run) -> Suite:
    return ab.Suite.model_validate(run.info["suite"])


class Broken(nn.Module):
    """A network whose training fails."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(1, classes, 1)

    def forward(self, x):
        if self.training:
            raise RuntimeError("cannot be trained")
        return self.net(x)


def make_cells(*settings):
    """Cells that transfer from models by name, at one radius."""
    arms = [Arm("transfer", "dice", json.dumps(each, sort_keys=True), "linf") for each in settings]
    return [make_cell({}, "m", arm, EPS, 0, None) for arm in arms]


class Sampled:
    """A data set of the images above."""

    def __init__(self, batch) -> None:
        self.whole, self.task, self.name = batch, batch.task, "tiny"

    def batch(self, indices):
        return select_images(self.whole, indices)


def attack_rows(cells, source, batch, model, **more):
    supply = Supply({"a": source.eval().requires_grad_(False)})
    conditions = Conditions(0, 2, **more)
    return run_unit(Unit("m", (0, 1, 2), tuple(cells)), model, Sampled(batch), conditions, supply=supply)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_rows_are_the_same_whether_attacks_are_packed_or_not(keep):
    batch, cells = make_data(), make_cells({"source": "a", "keep": keep, "steps": 3}, {"source": "a", "steps": 6})
    packed, failed = attack_rows(cells, make_network(0), batch, make_network(1))
    plain, _ = attack_rows(cells, make_network(0), batch, make_network(1), stochastic=True)
    assert failed == []
    order = [(row["cell"], row["image"]) for row in packed]
    assert packed == sorted(plain, key=lambda row: order.index((row["cell"], row["image"])))
    assert {(row["forwards"], row["backwards"]) for row in packed} == {(4, 3), (7, 6)}
    assert all(row["flags"] in ([], ["unchanged"], ["incomplete"]) for row in packed)


def test_a_limit_of_forwards_counts_those_of_the_source():
    (cell,) = make_cells({"source": "a"})
    limited = replace(cell, max_forwards=10)
    for more in ({}, {"stochastic": True}):
        rows, failures = attack_rows([limited], make_network(0), make_data(), make_network(1), **more)
        assert rows == []
        assert "at most 10 forwards per image" in failures[0].message


def test_a_change_of_the_source_is_put_back_and_flagged():
    class Fickle(nn.Module):
        """Its forward leaves it alone, and a hook on its gradient does not."""

        def __init__(self) -> None:
            super().__init__()
            self.net = make_network(0)

        def forward(self, x):
            out = self.net(x)
            if out.requires_grad:
                out.register_hook(lambda gradient: self.net[-1].bias.data.add_(0.5) and None)
            return out

    source = Fickle()
    before = source.net[-1].bias.clone()
    cells = [*make_cells({"source": "a"}), make_cell({}, "m", CLEAN, 0.0, 0, None)]
    rows, failures = attack_rows(cells, source, make_data(), make_network(1))
    assert failures == []
    assert torch.equal(source.net[-1].bias, before)
    assert [("model_changed" in row["flags"]) for row in rows] == [row["attack"] == "transfer" for row in rows]


def test_a_missing_source_fails_its_cells_in_one_line():
    batch, cells = make_data(), make_cells({"source": "a"}, {"source": "z"})
    rows, failures = attack_rows(cells, make_network(0), batch, make_network(1))
    assert {row["cell"] for row in rows} == {cells[0].id}
    assert {f.cell for f in failures} == {cells[1].id}
    assert failures[0].message.startswith("attack transfer: expected the model 'z' beside the attacked one")


def units_of(names: str, needs: dict[str, str]) -> dict[str, list[Unit]]:
    """Units of models, some of which need the images made for others."""
    found = {}
    for name in names:
        arms = [Arm("transfer", "dice", json.dumps({"source": s}), "linf") for s in needs.get(name, "")]
        cells = [make_cell({}, name, arm, EPS, 0, None) for arm in (CLEAN, *arms)]
        found[name] = [Unit(name, (i,), tuple(cells)) for i in range(2)]
    return found


def test_units_wait_for_the_sources_of_their_cells():
    schedule = Schedule(units_of("ab", {"a": "bc", "b": "b"}))
    assert [schedule.next() for _ in range(4)] == [Train("a"), Train("b"), Train("c"), None]
    schedule.ready("a")
    assert schedule.next("a") is None
    schedule.ready("b")
    assert schedule.next("a") == RunUnit(units_of("b", {"b": "b"})["b"][0]), "a still waits for c"
    schedule.ready("c")
    assert schedule.next("a").model == "a"


def test_a_failed_source_drops_the_cells_that_need_it_and_no_other():
    units = units_of("ab", {"a": "bc"})
    schedule = Schedule(units)
    trained = [schedule.next() for _ in range(3)]
    assert trained == [Train("a"), Train("b"), Train("c")]
    dropped = schedule.failed("c")
    assert [(cell.model, cell.arm.options) for cell in dropped] == [("a", {"source": "c"})]
    assert schedule.failed("b") == (units["a"][0].cells[1],)
    assert schedule.next() is None
    schedule.ready("a")
    jobs = [schedule.next("a") for _ in range(3)]
    assert jobs == [RunUnit(replace(unit, cells=unit.cells[:1])) for unit in units["a"]] + [None]


def test_a_random_source_is_skipped_with_the_reason():
    nets = [{**NETS[0], "stochastic": True, "repeats": 2}, NETS[1]]
    skipped = {cell.skip for cell in plan(make_suite(WHOLE, nets=nets)) if cell.arm.options.get("source") == "a"}
    assert skipped == {"images made for 'a' would be others in each run, since it is random in eval mode"}


def test_models_in_memory_are_sources_by_name():
    batch = make_data()
    nets = {"a": make_network(0).train(), "b": make_network(1)}
    attacks = [ab.attacks.Transfer(source=name, loss="dice") for name in "ab"]
    run = ab.evaluate(nets, [batch], attacks, eps=EPS)
    assert run.failures == []
    assert len(run.rows) == 2 * 3 * (1 + 2)
    made = {name: ab.attacks.APGD(loss="dice", **LIKE)(nets[name], batch, eps=EPS) for name in "ab"}
    for model in "ab":
        for source in "ab":
            l2 = ab.geometry.distance(made[source], batch.x, "l2").tolist()
            assert pick(run, model, "transfer", source)["l2"].to_list() == l2
    assert all(module.training for module in nets["a"].modules())
    given = ab.evaluate({"b": nets["b"]}, [batch], ab.attacks.Transfer(source=nets["a"], loss="dice"), eps=EPS)
    wanted = pick(run, "b", "transfer", "a").select("tp", "fp", "fn", "l2", "forwards", "backwards")
    assert given.rows.filter(given.rows["attack"] == "transfer").sort("image").select(wanted.columns).equals(wanted)
    with pytest.raises(SpecError, match=r"source: unknown model 'c'.*a, b"):
        ab.evaluate(nets, [batch], ab.attacks.Transfer(source="c", loss="dice"), eps=EPS)


def test_the_report_has_a_matrix_with_the_white_box_diagonal(run):
    summary = summarise(run)
    table = make_transfer_table(summary, summary.budgets[0])
    assert [column.label for column in table.columns] == ["Made for", "On a", "On b"]
    assert [row[0] for row in table.rows()] == ["a", "b"]
    made = table.data["made_by"] == "transfer dice"
    drops = run.table("drop", by=("model", "attack", "settings", "eps"), where={"attack": "transfer"})
    wanted = {(json.loads(r["settings"])["source"], r["model"]): r["mean"] for r in drops.iter_rows(named=True)}
    found = {(r["source"], r["model"]): r["mean"] for r in table.data.filter(made).iter_rows(named=True)}
    assert found == {key: mean for key, mean in wanted.items() if mean is not None}, "no mean has unchanged images"
    assert {("b", "a"), ("b", "b")} <= set(found)


def test_the_diagonal_is_apgd_where_no_model_is_its_own_source(tmp_path):
    plain = {**PLAIN, "name": "apgd", "settings": {"steps": 2}}
    nets = [NETS[0], NETS[1]]
    run = ab.run(make_suite({**WHOLE, "vary": {"source": ["b"]}}, plain, PLAIN, nets=nets), tmp_path / "run")
    summary = summarise(run)
    rows = make_transfer_table(summary, summary.budgets[0]).data.sort("source", "model").rows(named=True)
    assert [(r["source"], r["model"]) for r in rows] == [("a", "a"), ("b", "a"), ("b", "b")]
    assert rows[0]["made_by"] in ("apgd dice", "fgsm dice")
    assert make_transfer_table(summarise(ab.run(make_suite(PLAIN), tmp_path / "other")), summary.budgets[0]) is None


SHORT = {
    "full": (
        Member("fgsm", ENTROPY),
        Member("apgd", "present_dice", {"steps": 3, "keep_by": "hard_dice"}, warm=True),
        Member("transfer", "present_dice", {"source": OTHERS}),
    )
}


def test_a_battery_runs_the_transfers_from_each_other_model(tmp_path, monkeypatch):
    monkeypatch.setitem(BATTERIES, "short-1", SHORT)
    suite = make_suite(battery={"name": "short-1", "eps": ["2/255", "8/255"]})
    run = ab.run(suite, tmp_path / "run")
    assert run.failures == []
    assert set(run.rows["cell"]) == {cell.id for cell in plan(suite)}
    moved = {json.loads(text).get("source") for text in run.rows["settings"].cast(str)}
    assert moved == {None, "a", "b"}


def test_a_suite_without_a_source_is_one_clear_line():
    models = [{"name": name, "architecture": "monai.BasicUNet"} for name in "ab"]
    attack = {"name": "transfer", "losses": ["dice"], "eps": [EPS]}
    source = {"schema": 1, "name": "s", "data": {"name": "mni152"}, "models": models, "attacks": [attack]}
    with pytest.raises(SpecError, match=r"transfer, source: missing. Name a model of the suite in settings: a, b\.$"):
        ab.plan(ab.Suite.model_validate(source))
