"""A model is a function of its image, or is declared stochastic; what it does to itself is no attack's fault."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advseg_bench as ab
from advseg_adapters.art import as_estimator
from advseg_adapters.monai import AdversarialAttackd, GridNetwork
from advseg_bench.checks.model import check_calls, check_function, watch
from advseg_bench.data import load_dataset
from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.models.build import build_model
from advseg_bench.models.training import build_given, obtain_model
from advseg_bench.models.weights import save_weights
from advseg_bench.report import write_report
from advseg_bench.suite.cells import CLEAN, plan
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.suite.suite import parse_suite
from advseg_bench.types import Task

BINARY = Task("binary", ("disc",))


class Base(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(in_channels, 8, 3, padding=1), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x).relu()))

    def between(self, z: Tensor) -> Tensor:
        return z


class Dropped(Base):
    def between(self, z: Tensor) -> Tensor:
        return F.dropout(z, 0.5)


class DroppedChannels(Base):
    def between(self, z: Tensor) -> Tensor:
        return F.dropout2d(z, 0.3)


class NoisyInput(Base):
    """A randomised-smoothing defence."""

    def forward(self, x: Tensor) -> Tensor:
        return Base.forward(self, x + 0.05 * torch.randn_like(x))


class ShiftedAtRandom(Base):
    """One random number for the whole batch."""

    def between(self, z: Tensor) -> Tensor:
        return z * (0.5 + torch.rand(()))


class NoisyByNumpy(Base):
    def between(self, z: Tensor) -> Tensor:
        return z + torch.from_numpy(np.random.normal(0, 0.1, z.shape)).to(z)  # noqa: NPY002


class NoisyByPython(Base):
    def between(self, z: Tensor) -> Tensor:
        return z * random.uniform(0.5, 1.5)


class RarelyDropped(Base):
    def between(self, z: Tensor) -> Tensor:
        return F.dropout2d(z, 0.02)


class FaintlyNoisy(Base):
    def forward(self, x: Tensor) -> Tensor:
        return Base.forward(self, x + 1e-4 * torch.randn_like(x))


class DroppedWithGradients(Base):
    def between(self, z: Tensor) -> Tensor:
        return F.dropout(z, 0.3) if torch.is_grad_enabled() else z


class OtherWithGradients(Base):
    def between(self, z: Tensor) -> Tensor:
        return 2 * z if torch.is_grad_enabled() else z


class OwnGenerator(Base):
    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__(in_channels, classes)
        self.generator = torch.Generator().manual_seed(0)

    def between(self, z: Tensor) -> Tensor:
        return z + 0.1 * torch.randn(z.shape, generator=self.generator)


class BatchStatistics(Base):
    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__(in_channels, classes)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def between(self, z: Tensor) -> Tensor:
        return self.norm(z)


class MinusBatchMean(Base):
    def between(self, z: Tensor) -> Tensor:
        return z - z.mean(0, keepdim=True) if len(z) > 1 else z


class ScaledByPlace(Base):
    def between(self, z: Tensor) -> Tensor:
        return z * torch.linspace(1, 2, len(z)).view(-1, 1, 1, 1)


class Remembers(Base):
    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__(in_channels, classes)
        self.register_buffer("memory", torch.zeros(()))

    def between(self, z: Tensor) -> Tensor:
        self.memory = 0.9 * self.memory + z.detach().mean()
        return z - self.memory


class TunedByFirstImages(Base):
    def between(self, z: Tensor) -> Tensor:
        scale = 1 / z.detach().std()
        return z * (scale if not hasattr(self, "scale") else self.scale) + self.keep(z)

    def keep(self, z: Tensor) -> float:
        first = not hasattr(self, "scale")
        self.scale = getattr(self, "scale", 3.0)
        return 0.0 if first else 1.0


FAULTY = {
    Dropped: "random numbers",
    DroppedChannels: "random numbers",
    NoisyInput: "random numbers",
    ShiftedAtRandom: "random numbers",
    NoisyByNumpy: "random numbers",
    NoisyByPython: "random numbers",
    RarelyDropped: "random numbers",
    FaintlyNoisy: "random numbers",
    DroppedWithGradients: "random numbers",
    OtherWithGradients: "while gradients are computed",
    OwnGenerator: "earlier calls",
    BatchStatistics: "other images of the batch",
    MinusBatchMean: "other images of the batch",
    ScaledByPlace: "place of the image",
    Remembers: "earlier calls",
    TunedByFirstImages: "earlier calls",
}


class Counting(Base):
    """Counts its calls in a buffer."""

    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__(in_channels, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("constant", torch.ones(()))

    def between(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z * self.constant


class HooksItself(Base):
    """Registers a hook in its first forward and relies on it."""

    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__(in_channels, classes)
        self.ready, self.found = False, None

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.a.register_forward_hook(self.keep)
            self.ready = True
        self.a(x)
        found, self.found = self.found, None
        return self.b(found.relu())

    def keep(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.found = out


class HooksEachTime(Base):
    """Replaces a hook of its own in each forward."""

    handle = None

    def forward(self, x: Tensor) -> Tensor:
        if self.handle is not None:
            self.handle.remove()
        self.handle = self.a.register_forward_hook(lambda module, args, out: None)
        return Base.forward(self, x)


def make(net: type[Base]) -> Base:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return net()


def images(n: int = 2) -> Tensor:
    return torch.rand((n, 1, 16, 16), generator=torch.Generator().manual_seed(1))


def batch(n: int = 2, upper: float = 1) -> ab.Batch:
    return ab.Batch.of(images(n), images(n) > 0.5, task="binary", bounds=(0, upper))


def build(net: type[Base], **keys: Any) -> Any:
    spec = ModelSpec(name="net", architecture=f"test_model_check:{net.__name__}", **keys)
    return build_model(spec, channels=1, task=BINARY, size=16)


@pytest.fixture
def _python_random():
    """Models of these tests draw from the global generators."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=()):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


@pytest.mark.usefixtures("_python_random")
@pytest.mark.parametrize("net", FAULTY, ids=lambda net: net.__name__)
def test_a_model_that_is_no_function_of_its_image_is_refused_with_what_was_seen(net):
    with pytest.raises(IncompatibleError, match=f"^model .net.: .*image alone, got .*{FAULTY[net]}.*stochastic"):
        build(net)


@pytest.mark.parametrize("x", [images(1), images(1).expand(2, -1, -1, -1), torch.full((2, 1, 16, 16), 0.5)])
@pytest.mark.parametrize("net", [BatchStatistics, MinusBatchMean])
def test_batch_statistics_are_found_with_one_image_and_with_equal_ones(net, x):
    given = ab.Batch.of(x, x > 0.25, task="binary")
    with pytest.raises(IncompatibleError, match="other images of the batch"):
        ab.evaluate(make(net), [given], ab.attacks.FGSM(loss="bce"))


@pytest.mark.usefixtures("_python_random")
@pytest.mark.parametrize("net", [net for net in FAULTY if FAULTY[net] == "random numbers"], ids=lambda n: n.__name__)
def test_a_random_model_can_be_declared(net):
    assert build(net, stochastic=True).stride == 1


def test_the_head_of_a_declared_model_is_found():
    assert build(Dropped, stochastic=True).head == "b"


FRONT_DOORS = {
    "evaluate": lambda model, **more: ab.evaluate(model, [batch()], ab.attacks.FGSM(loss="bce"), **more),
    "one line": lambda model, **more: ab.attacks.FGSM(loss="bce")(model, batch(), eps=4 / 255, **more),
    "MONAI": lambda model, **more: AdversarialAttackd(
        "image", "label", model, 4 / 255, task="binary", loss="bce", **more
    )({"image": images(1)[0], "label": (images(1)[0] > 0.5).float()}),
    "ART": lambda model, **more: as_estimator(model, task="binary", loss="bce", input_shape=(1, 16, 16), **more),
}


@pytest.mark.usefixtures("_python_random")
@pytest.mark.parametrize("door", FRONT_DOORS)
def test_every_front_door_refuses_a_random_model_and_takes_a_declared_one(door):
    with pytest.raises(IncompatibleError, match=r"random numbers in eval mode.* stochastic = true"):
        FRONT_DOORS[door](make(Dropped))
    FRONT_DOORS[door](make(Dropped), stochastic=True)


@pytest.mark.parametrize("door", ["evaluate", "one line", "ART"])
def test_a_model_of_batch_statistics_is_refused_outside_suites_too(door):
    with pytest.raises(IncompatibleError, match="depend on the other images of the batch"):
        FRONT_DOORS[door](make(BatchStatistics))


@pytest.mark.usefixtures("_python_random")
def test_a_network_of_monai_can_be_declared():
    name = "test_model_check:Dropped"
    with pytest.raises(IncompatibleError, match="random numbers"):
        GridNetwork(2, 1, 1, name)
    assert GridNetwork(2, 1, 1, name, stochastic=True)(images()).shape == (2, 1, 16, 16)


SOUND = [
    nn.BatchNorm2d(8),
    nn.InstanceNorm2d(8),
    nn.GroupNorm(2, 8),
    nn.Dropout(0.5),
    nn.Sequential(nn.Flatten(2), nn.Softmax(2), nn.Unflatten(2, (16, 16))),
]


@pytest.mark.parametrize("layer", SOUND, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_sound_layers_raise_no_alarm(layer, n):
    model = make(Base)
    model.between = layer  # type: ignore[method-assign]
    model.eval()
    with torch.no_grad():
        check_function("model", model, images(n), model(images(n)))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
def test_rounding_is_no_alarm_and_small_noise_is_one(scale, offset):
    x = images(2)

    def rounded(x: Tensor) -> Tensor:  # the last bits depend on the place in the batch
        return scale * (offset + x * (1 + 1e-7 * torch.arange(len(x)).view(-1, 1, 1, 1)))

    check_function("model", rounded, x, rounded(x))
    noise = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        return scale * (offset + x + 1e-2 * torch.randn(x.shape, generator=noise))

    with pytest.raises(IncompatibleError, match="earlier calls"):
        check_function("model", noisy, x, noisy(x))


def test_nan_and_constant_logits_are_equal_to_themselves():
    for value in (float("nan"), float("inf"), 0.0, 3.0):
        check_function("model", lambda x, value=value: x * 0 + value, images(), images() * 0 + value)


@pytest.mark.usefixtures("_python_random")
def test_alone_and_in_company_are_compared():
    x = images(3)
    for net, cause in ((BatchStatistics, "other images"), (Dropped, "random"), (Remembers, "earlier calls")):
        model = make(net).eval()
        with torch.no_grad():
            alone, company = model(x[:1]), model(x)
        with pytest.raises(IncompatibleError, match=cause):
            check_calls("model", model, x, alone, company)
    model = make(Base).eval()
    check_calls("model", model, x, model(x[:1]), model(x))


class Tallied(Base):
    """Lists the number of images of each forward."""

    calls: list[int] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return Base.forward(self, x)


def tally(function: Any) -> list[int]:
    Tallied.calls.clear()
    function()
    return list(Tallied.calls)


def test_the_check_costs_one_forward_of_two_images():
    assert tally(lambda: build(Tallied)) == [2, 2, 2]
    model = make(Tallied)
    for door in ("evaluate", "one line"):
        declared = tally(lambda door=door: FRONT_DOORS[door](model, stochastic=True))
        checked = tally(lambda door=door: FRONT_DOORS[door](model))
        assert checked[:3] == [2, 2, 2]
        assert declared[:2] == [2, 2]
    assert tally(lambda: FRONT_DOORS["one line"](model)) == [2, 2, 2, 2]
    assert tally(lambda: FRONT_DOORS["MONAI"](model)) == [1, 2, 1, 1]
    assert sum(tally(lambda: FRONT_DOORS["ART"](model))) == sum([1, 1, 1]) + 2


SUITE = """
schema = 1
name = "case"
[data]
name = "mni152"
size = 32
[training]
epochs = 1
floor = 0.0
head_bias = "none"
[compute]
batch = 4
[[models]]
name = "net"
architecture = "test_model_check:NET"
KEYS
[[attacks]]
name = "fgsm"
losses = ["dice"]
eps = ["2/255", "8/255"]
[[attacks]]
name = "random_sign"
eps = ["8/255"]
draws = 2
"""


def suite_of(net: type[Base], keys: str = "") -> Any:
    return parse_suite(SUITE.replace("NET", net.__name__).replace("KEYS", keys), "case")


def test_a_suite_pays_for_one_more_forward_of_two_images_and_checks_the_weights_by_those_it_makes_anyway(tmp_path):
    suite = suite_of(Tallied)
    data = load_dataset(suite.data)
    given = build_given(suite.models[0], data, 0)
    save_weights(tmp_path / "net.safetensors", given)
    spec = suite.models[0].model_copy(update={"weights": tmp_path / "net.safetensors"})
    assert tally(lambda: build_given(spec, data, 0)) == [2, 2, 2]
    calls = tally(lambda: obtain_model(spec, suite.training, data, 0))
    assert calls[:2] == [2, 2]
    assert calls[-2:] == [1, 4]
    validated = len(data.split("validation"))
    assert sum(calls[2:-2]) == validated


class RandomOnceTrained(Base):
    """Random by its weights."""

    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__(in_channels, classes)
        self.noise = nn.Parameter(torch.zeros(()))

    def between(self, z: Tensor) -> Tensor:
        return z + self.noise * torch.randn_like(z) if self.noise else z


@pytest.mark.usefixtures("_python_random")
def test_a_model_is_checked_again_with_its_weights(tmp_path):
    suite = suite_of(RandomOnceTrained)
    data = load_dataset(suite.data)
    model = build_given(suite.models[0], data, 0)
    with torch.no_grad():
        model.net.noise.fill_(0.5)
    save_weights(tmp_path / "net.safetensors", model)
    spec = suite.models[0].model_copy(update={"weights": tmp_path / "net.safetensors"})
    with pytest.raises(IncompatibleError, match=r"model 'net': .* random numbers in eval mode"):
        obtain_model(spec, suite.training, data, 0)


def test_a_suite_refuses_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(IncompatibleError, match="other images of the batch"):
        ab.run(suite_of(MinusBatchMean), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


# Stochastic models.


def test_ids_of_other_models_do_not_know_the_keys():
    plain = plan(suite_of(Base))
    assert [cell.draw for cell in plain if cell.arm == CLEAN] == [0]
    declared = plan(suite_of(Base, "stochastic = true\nrepeats = 3"))
    assert {cell.id for cell in plain}.isdisjoint({cell.id for cell in declared})
    more = plan(suite_of(Base, "stochastic = true\nrepeats = 4"))
    assert {cell.id for cell in declared} < {cell.id for cell in more}
    assert "stochastic" not in suite_of(Base).as_json()["models"][0]


def test_repeats_without_a_stochastic_model_are_refused():
    with pytest.raises(SpecError, match=r"repeats: is for models with stochastic = true"):
        suite_of(Base, "repeats = 3")
    with pytest.raises(SpecError, match="repeats"):
        suite_of(Base, "stochastic = true\nrepeats = 1")


@pytest.mark.usefixtures("_python_random")
def test_every_cell_of_a_stochastic_model_is_repeated_and_the_spread_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    run = ab.run(suite_of(Dropped, "stochastic = true\nrepeats = 3"), tmp_path / "run")
    assert not run.failures
    assert not run.missing
    counts = dict(run.rows.group_by("attack").agg(pl.col("draw").n_unique()).iter_rows())
    assert counts == {"none": 3, "fgsm": 3, "random_sign": 3}
    assert run.models["net"]["stochastic"] == {"repeats": 3, "bit_identical": False}
    assert run.models["net"]["prepared"]["steps"] == []
    keys = ["tp", "fp", "fn"]
    clean = run.rows.filter(pl.col("attack") == "none").sort("image", "draw")
    assert clean.group_by("image").agg(pl.struct(keys).n_unique())[keys[0]].max() > 1
    write_report(run, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Repeats of stochastic models" in page
    assert "declared stochastic" in page


def test_dice_drop_of_a_stochastic_model_is_that_of_the_mean_clean_dice():
    run = ab.evaluate(make(Dropped), [batch(3)], ab.attacks.FGSM(loss="bce"), eps=8 / 255, stochastic=True)
    rows = run.scores().with_columns(pl.col("image").cast(pl.String))
    clean = rows.filter(pl.col("attack") == "none")
    assert clean["draw"].n_unique() == 5
    wanted = dict(clean.group_by("image").agg(pl.col("dice").mean()).iter_rows())
    attacked = rows.filter(pl.col("attack") == "fgsm")
    assert len(attacked) == 3 * 5
    for row in attacked.to_dicts():
        assert row["dice_clean"] == pytest.approx(wanted[row["image"]], abs=1e-12)
        assert row["drop"] == pytest.approx(wanted[row["image"]] - row["dice"], abs=1e-12)
    mean = run.table("dice", by="model", where={"attack": "none"})["mean"].item()
    assert mean == pytest.approx(np.mean(list(wanted.values())), abs=1e-12)
    named = ab.evaluate({"a": make(Base), "b": make(Dropped)}, [batch()], ab.attacks.RandomSign(), stochastic=["b"])
    assert dict(named.rows.group_by("model").agg(pl.col("draw").n_unique()).iter_rows()) == {"a": 1, "b": 5}


@pytest.mark.parametrize("wrong", ["a", ["a", "x"]])
def test_unknown_names_of_stochastic_models_are_refused(wrong):
    with pytest.raises(SpecError, match="evaluate: expected True or names among a, b as `stochastic`, got"):
        ab.evaluate({"a": make(Base), "b": make(Base)}, [batch()], ab.attacks.RandomSign(), stochastic=wrong)


def test_repeats_draw_other_numbers_and_leave_the_callers_alone():
    state = torch.random.get_rng_state()
    one, two = (
        ab.evaluate(make(Dropped), [batch(3)], ab.attacks.FGSM(loss="bce"), stochastic=True, draws=2) for _ in range(2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.rows["draw"].n_unique() == 2
    assert one.rows.filter(pl.col("attack") == "none")["flipped_pixels"].sum() == 0
    assert one.rows.drop("cell").equals(two.rows.drop("cell"))


# What a model does to itself.


@pytest.mark.parametrize("net", [Counting, HooksItself, HooksEachTime], ids=lambda net: net.__name__)
@pytest.mark.parametrize("door", FRONT_DOORS)
def test_a_model_that_changes_itself_is_attacked_without_a_word_and_still_runs(net, door):
    model = make(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            found = FRONT_DOORS[door](model)
    if door == "ART":
        found.loss_gradient(images(1).numpy(), (images(1) > 0.5).numpy())
    if door == "evaluate":
        assert not found.failures
        assert {flag for flags in found.rows["flags"].to_list() for flag in flags} <= {"unchanged"}
    assert model(images()).shape == (2, 1, 16, 16)


def test_a_count_goes_on():
    model = make(Counting)
    FRONT_DOORS["one line"](model)
    assert int(model.calls) >= 4


@pytest.mark.parametrize(
    ("net", "note"),
    [
        (Counting, "writes to buffers calls in eval mode"),
        (HooksItself, "registers hooks on a in eval mode"),
        (HooksEachTime, "registers hooks on a in eval mode"),
    ],
)
def test_it_is_noted_once_in_the_record_and_on_the_page(net, note, tmp_path):
    model = make(net)
    run = ab.evaluate(model, [batch()], ab.attacks.FGSM(loss="bce"))
    (entry,) = run.models.values()
    assert entry["notes"] == [note]
    write_report(run, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count(note) == 1
    assert build(net).notes == (note,)
    assert build(Base).notes == ()


class Grows(Base):
    """Makes a layer in its first forward."""

    def between(self, z: Tensor) -> Tensor:
        if not hasattr(self, "extra"):
            self.extra = nn.Identity()
        return self.extra(z)


def test_modules_of_a_first_forward_are_noted():
    with watch(model := make(Grows)) as notes:
        model(images())
    assert notes == ["adds or replaces modules extra in eval mode"]
    with watch(model) as notes:
        model(images())
    assert notes == []


def spoils(what: str) -> Any:
    """An attack that changes a model in one way, after a forward."""

    def attack(model, batch, *, budget, generators):
        model(batch.x)
        net = next(module for module in model.modules() if isinstance(module, Base))
        if what == "buffer":
            net.constant.add_(1)
        elif what == "weight":
            net.a.weight.data.add_(1)
        elif what == "hook":
            net.b.register_forward_hook(lambda module, args, out: None)
        elif what == "mode":
            net.train()
        return batch.x + 0.001

    return attack


@pytest.mark.parametrize("what", ["buffer", "weight", "hook", "mode"])
def test_what_an_attack_changes_is_still_found_in_a_model_that_changes_itself(what):
    model = make(Counting)
    run = ab.evaluate(model, [batch(upper=2)], {"bad": spoils(what), "good": spoils("")})
    flags = {
        name: {flag for row in rows for flag in row}
        for name, rows in run.rows.group_by("attack").agg("flags").iter_rows()
    }
    assert flags == {"none": set(), "bad": {"model_changed"}, "good": set()}
    assert float(model.constant) == 1
    assert not model.b._forward_hooks
    assert torch.equal(model.a.weight, make(Counting).a.weight)


def test_hooks_of_both_are_told_apart():
    model = make(HooksEachTime).eval().requires_grad_(False)
    model(images())
    guard = ModelGuard(model, images())
    model(images())
    assert not guard.restore()
    model.b.register_forward_hook(lambda module, args, out: None)
    model(images())
    assert guard.restore()
    assert not model.b._forward_hooks
    assert len(model.a._forward_hooks) == 1
    assert not guard.restore()
