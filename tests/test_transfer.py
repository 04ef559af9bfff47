"""Transfer attacks: adversarial images that are made for one model and scored on another."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from strategies import make_batch
from torch import nn

import advseg_bench as ab
from advseg_bench.errors import IncompatibleError, SettingError
from advseg_bench.instruments.counter import Counter
from advseg_bench.registry import catalogue
from advseg_bench.suite.cells import plan
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
