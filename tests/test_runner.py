"""The harness: what it shares, what it checks, what its bits depend on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from strategies import make_batch

from advseg_bench import attack as ab_attack
from advseg_bench import geometry, losses, metrics
from advseg_bench.attacks.base import image_generators
from advseg_bench.attacks.gradient import FGSM, is_shared
from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.instruments.counter import Counter, rows_of
from advseg_bench.models import lean as lean_calls
from advseg_bench.models.build import build_model
from advseg_bench.models.prepare import prepare
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.running import runner
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import Arm, Cell, plan
from advseg_bench.suite.specs import Mni152Data, ModelSpec
from advseg_bench.suite.suite import Suite
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Budget, Task, Traits

EPS = 4 / 255
SETTING = Conditions(seed=0, batch=4)


def tiny_data(n: int = 6, side: int = 16) -> Dataset:
    batch, _ = make_batch("binary", n=n, space=(side, side))
    cases = [Case(f"i{i}", f"s{i}", "b", (1.0, 1.0), "test") for i in range(n)]

    def read(i: int) -> Sample:
        return Sample(batch.x[i].numpy(), batch.y[i].numpy(), batch.valid[i].numpy())

    return Dataset(name="tiny", task=Task("binary", ("c",)), cases=cases, read=read, fingerprint="f")


def cell(
    attack: str, loss: str = "", eps: float = EPS, draw: int = 0, settings: str = "{}", norm: str = "linf"
) -> Cell:
    return Cell(f"{attack}-{loss}-{eps}-{draw}", "m", Arm(attack, loss, settings, norm), eps, draw, "", None)


CLEAN = replace(cell("none"), eps=0.0, id="clean")


class CountedSegmenter(torch.nn.Module):
    """A linear segmenter that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
        self.forwards = self.backwards = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        out = self.net(x)
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, gradient: torch.Tensor) -> None:
        self.backwards += 1


def test_a_sweep_costs_one_forward_a_backward_per_loss_and_a_forward_per_result():
    model = CountedSegmenter()
    sweep = [cell("fgsm", loss, eps) for loss in ("bce", "dice", "focal") for eps in (1 / 255, EPS, 8 / 255)]
    rows, failures = runner.run_unit(Unit("m", tuple(range(4)), (CLEAN, *sweep)), model, tiny_data(), SETTING)
    assert not failures
    assert (model.forwards, model.backwards) == (1 + 9, 3)
    assert len(rows) == 4 * 10
    assert {(row["forwards"], row["backwards"]) for row in rows if row["attack"] == "fgsm"} == {(1, 1)}


def sweep(losses: int, radii: int) -> list[Cell]:
    names = ("bce", "dice", "focal", "tversky", "jaccard")[:losses]
    return [cell("fgsm", loss, (1 + i) / 255) for loss in names for i in range(radii)]


@pytest.mark.parametrize(
    ("cells", "forwards", "backwards"),
    [
        pytest.param(sweep(1, 1), 1 + 1, 1, id="fgsm"),
        pytest.param(sweep(2, 8), 1 + 2 * 8, 2, id="sweep 2 x 8"),
        pytest.param(sweep(5, 3), 1 + 5 * 3, 5, id="sweep 5 x 3"),
        pytest.param(
            [*sweep(1, 2), cell("fgsm", "bce", settings='{"form": "blend"}'), cell("shuffled_sign", "bce")],
            1 + 4,
            1,
            id="one gradient, several steps",
        ),
        pytest.param([cell("pgd", "bce", settings='{"steps": 7}')], 1 + 7 + 1, 7, id="pgd-7"),
        pytest.param([cell("mifgsm", "bce"), *sweep(2, 2)], 1 + (10 + 1) + 4, 10 + 2, id="mifgsm-10 and sweep 2 x 2"),
        pytest.param([cell("random_sign"), cell("uniform_noise")], 1 + 2, 0, id="controls"),
    ],
)
@pytest.mark.parametrize("clean", [[], [CLEAN]], ids=["", "clean"])
def test_a_batch_costs_what_the_mathematics_ask_for_and_nothing_more(cells, forwards, backwards, clean):
    spec = ModelSpec(name="m", architecture="monai.BasicUNet", settings={"features": [8] * 6})
    data = tiny_data(4, side=32)
    model = build_model(spec, channels=2, task=data.task, size=32, seed=0)
    with Counter(model).count(4) as tally:
        rows, failures = runner.run_unit(Unit("m", (0, 1, 2, 3), (*clean, *cells)), model, data, SETTING)
    assert not failures
    assert len(rows) == 4 * len([*clean, *cells])
    assert tally.per_image() == [(forwards, backwards)] * 4


def test_rows_equal_what_the_attack_and_the_metrics_give_alone():
    data, model = tiny_data(4), LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    rows, _ = runner.run_unit(Unit("m", (0, 1, 2, 3), (CLEAN, cell("fgsm", "bce"))), model, data, SETTING)
    batch = data.batch([0, 1, 2, 3])
    x_adv = FGSM(loss=losses.bce)(model, batch, budget=Budget("linf", EPS), generators=image_generators(0, "", "abcd"))
    clean, attacked = (metrics.predict(model(x), batch.task) for x in (batch.x, x_adv))
    for row, i in zip(rows[4:], range(4), strict=True):
        counts = metrics.count(attacked, clean, batch)
        assert row["image"] == f"i{i}"
        assert (row["tp"], row["fp"], row["fn"]) == (
            counts.tp[i].tolist(),
            counts.fp[i].tolist(),
            counts.fn[i].tolist(),
        )
        assert row["flipped_pixels"] == counts.flipped[i]
        assert row["linf"] == geometry.distance(x_adv, batch.x, "linf")[i]
        assert row["linf"] == pytest.approx(EPS, abs=1e-7)
        assert row["flags"] == []
    assert [row["flipped_pixels"] for row in rows[:4]] == [0] * 4
    assert all(row["wrong_pixels"] >= clean_row["wrong_pixels"] for row, clean_row in zip(rows[4:], rows, strict=False))


def too_far(model, batch, *, budget, generators):
    return batch.x + 2 * budget.eps


def outside(model, batch, *, budget, generators):
    return torch.where(batch.x > 0.5, 1 + budget.eps / 2, batch.x)


def nothing(model, batch, *, budget, generators):
    return batch.x


def not_finite(model, batch, *, budget, generators):
    bad = batch.x + budget.eps / 2
    bad[0, 0, 0, 0] = torch.nan
    return bad.clamp(0, 1)


def trains(model, batch, *, budget, generators):
    model.train()
    return (batch.x + budget.eps / 2).clamp(0, 1)


def writes_weights(model, batch, *, budget, generators):
    model.net.weight.data.mul_(-1.0)
    return (batch.x + budget.eps / 2).clamp(0, 1)


def leaves_a_hook(model, batch, *, budget, generators):
    model.register_forward_hook(lambda module, args, out: -out)
    return (batch.x + budget.eps / 2).clamp(0, 1)


def writes_labels(model, batch, *, budget, generators):
    batch.y.logical_not_()
    return (batch.x + budget.eps / 2).clamp(0, 1)


def corrupts_and_raises(model, batch, *, budget, generators):
    model.net.weight.data.mul_(-1.0)
    raise RuntimeError("boom")


def no_tensor(model, batch, *, budget, generators):
    return batch.x.numpy()


class Iterative(FGSM):
    """An attack of its own that happens to have the parts of a shared one."""

    def __call__(self, model, batch, *, budget, generators):
        return batch.x


class BreaksAtOnce:
    def __init__(self):
        raise RuntimeError("boom")


def breaks_on_small_images(logits, y, valid, task):
    if logits.shape[-1] == 16:
        raise RuntimeError("too small")
    return losses.bce(logits, y, valid, task)


def asks_more_of_later_images(model, batch, *, budget, generators):
    for i in range(len(batch.x)):
        with rows_of([i]):
            for _ in range(int(batch.images[i].removeprefix("i"))):
                model.forward(batch.x[[i]].requires_grad_()).sum().backward()
    return (batch.x + budget.eps / 2).clamp(0, 1)


def asks_about_a_part(model, batch, *, budget, generators):
    model(batch.x[:1])
    return (batch.x + budget.eps / 2).clamp(0, 1)


class SaysLess:
    """Needs two forwards and says one."""

    traits = Traits(forwards=1, backwards=0)

    def __call__(self, model, batch, *, budget, generators):
        model(model(batch.x).expand_as(batch.x))
        return (batch.x + budget.eps / 2).clamp(0, 1)


@pytest.mark.parametrize(
    ("name", "settings", "cost"),
    [
        ("pgd", '{"steps": 3}', [(3, 3)] * 6),
        ("mifgsm", "{}", [(10, 10)] * 6),
        ("bim", '{"keep": "best"}', [(10, 9)] * 6),
        ("random_sign", "{}", [(0, 0)] * 6),
        ("fgsm", "{}", [(1, 1)] * 6),
        ("test_runner:asks_more_of_later_images", "{}", [(i, i) for i in range(6)]),
        ("test_runner:asks_about_a_part", "{}", [(None, None)] * 6),
        ("test_runner:SaysLess", "{}", [(2, 0)] * 6),
    ],
)
def test_a_row_tells_what_its_image_cost_and_padding_costs_nobody(name, settings, cost):
    unit = Unit("m", tuple(range(6)), (CLEAN, cell(name, "bce" if name[0] in "bpmf" else "", settings=settings)))
    model = LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    rows, failures = runner.run_unit(unit, model, tiny_data(), SETTING)
    assert not failures
    found = [row for row in rows if row["attack"] == name]
    assert [(row["forwards"], row["backwards"]) for row in found] == cost
    flags = ["over_cost"] if name.endswith("SaysLess") else []
    assert [row["flags"] for row in found] == [flags] * 6
    assert [(row["forwards"], row["backwards"]) for row in rows if row["attack"] == "none"] == [(0, 0)] * 6


def test_an_attack_is_stopped_at_its_limit_and_costs_no_other_cell_its_result():
    cells = [cell("pgd", "bce", settings='{"steps": 4}'), cell("fgsm", "bce"), cell("test_runner:asks_about_a_part")]
    stopped = replace(cell("pgd", "bce", settings='{"steps": 5}'), id="stopped")
    unit = Unit("m", tuple(range(6)), (*(replace(c, max_forwards=4) for c in (*cells, stopped)), CLEAN))
    model = CountedSegmenter()
    rows, failures = runner.run_unit(unit, model, tiny_data(), SETTING)
    assert [row["cell"] for row in rows].count("stopped") == 0
    assert len(rows) == 6 * (len(cells) + 1)
    assert [failure.cell for failure in failures] == ["stopped"] * 2, "in each batch"
    assert failures[0].message.startswith("attack: expected at most 4 forwards per image, got 5. ")
    shared, part, scored = 1, 1, 2
    four_images, two_images = 4 + 5, 5  # "stopped" and "pgd" with its score: one after the other, and together
    assert model.forwards == 2 * (shared + part + scored) + four_images + two_images, "the forward too many was not run"


def writes_input(model, batch, *, budget, generators):
    return batch.x.add_(budget.eps / 2).clamp_(0, 1).clone()


def raises(model, batch, *, budget, generators):
    raise RuntimeError("boom")


def wrong_shape(model, batch, *, budget, generators):
    return batch.x[:, :1]


class Overshooting:
    """Goes three times as far as eps and says that it may go twice as far."""

    traits = Traits(max_budget_ratio=2.0)

    def __call__(self, model, batch, *, budget, generators):
        return batch.x + 3 * budget.eps * torch.where(batch.x < 0.5, 1.0, -1.0)


@ab_attack
def leaves_training_mode(model, x, y, eps):
    model.train()
    return (x + eps).clamp(0, 1)


def test_a_function_that_leaves_a_mode_behind_is_flagged():
    with torch.random.fork_rng():
        model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.Dropout())
    rows, failures = runner.run_unit(
        Unit("m", (0, 1), (CLEAN, cell("test_runner:leaves_training_mode"))), model, tiny_data(), SETTING
    )
    assert not failures
    assert [row["flags"] for row in rows] == [[], [], ["model_changed"], ["model_changed"]]
    assert not any(module.training for module in model.modules())


def test_what_may_go_beyond_eps_is_held_to_what_it_says():
    far, blend = cell("test_runner:Overshooting"), cell("fgsm", "bce", settings='{"form": "blend_released"}')
    unit = Unit("m", (0, 1, 2, 3), (CLEAN, far, blend))
    rows, failures = runner.run_unit(unit, CountedSegmenter(), tiny_data(4), SETTING)
    assert not failures
    assert [row["flags"] for row in rows[4:8]] == [["over_budget"]] * 4
    assert [row["linf"] for row in rows[4:8]] == pytest.approx([2 * EPS] * 4, abs=1e-6)
    assert [row["flags"] for row in rows[8:]] == [["beyond_eps"]] * 4
    assert all(EPS < row["linf"] <= 2 * EPS + 1e-6 for row in rows[8:])


def half(model, batch, *, budget, generators):
    return batch.x.half()


@pytest.mark.parametrize(
    ("attack", "flags"),
    [
        ("too_far", {"over_budget", "out_of_bounds"}),
        ("outside", {"out_of_bounds", "over_budget"}),
        ("nothing", {"unchanged"}),
        ("not_finite", {"non_finite"}),
        ("trains", {"model_changed"}),
        ("writes_weights", {"model_changed"}),
        ("leaves_a_hook", {"model_changed"}),
        ("writes_labels", {"input_changed"}),
        ("writes_input", {"input_changed"}),
    ],
)
def test_a_broken_attack_is_flagged_and_only_its_projection_is_scored(attack, flags):
    data, model = tiny_data(4), CountedSegmenter()
    broken = cell(f"test_runner:{attack}")
    before = data.batch([0]).x.clone()
    after = (cell("fgsm", "bce"), cell("random_sign"))
    rows, failures = runner.run_unit(Unit("m", (0, 1, 2, 3), (CLEAN, broken, *after)), model, data, SETTING)
    assert not failures
    found = [row for row in rows if row["attack"] == broken.arm.attack]
    assert flags >= {flag for row in found for flag in row["flags"]}
    assert flags & set(found[0]["flags"]), found[0]["flags"]
    assert all(row["linf"] <= EPS + 1e-6 for row in found)
    assert all((row["forwards"], row["backwards"]) == (0, 0) for row in found)
    assert not model.training
    assert torch.equal(data.batch([0]).x, before)
    assert [row["flags"] for row in rows if row["attack"] == "fgsm"] == [[]] * 4
    reference, _ = runner.run_unit(Unit("m", (0, 1, 2, 3), (CLEAN, *after)), CountedSegmenter(), tiny_data(4), SETTING)
    assert [row for row in rows if row["attack"] != broken.arm.attack] == reference
    again, _ = runner.run_unit(Unit("m", (0, 1, 2, 3), (CLEAN, *after)), model, data, SETTING)
    assert again == reference


def test_values_are_compared_once_a_batch_unless_one_was_changed(monkeypatch):
    checks = []
    restore = runner.ModelGuard.restore

    def note(guard, *, thorough=True):
        checks.append(thorough)
        return restore(guard, thorough=thorough)

    monkeypatch.setattr(runner.ModelGuard, "restore", note)
    cells = (CLEAN, cell("random_sign"), cell("uniform_noise"), cell("fgsm", "bce"))
    runner.run_unit(Unit("m", (0, 1, 2, 3), cells), CountedSegmenter(), tiny_data(4), SETTING)
    assert checks == [False, False, False, True]
    checks.clear()
    cells = (CLEAN, cell("test_runner:writes_weights"), cell("random_sign"))
    runner.run_unit(Unit("m", (0, 1, 2, 3), cells), CountedSegmenter(), tiny_data(4), SETTING)
    assert checks == [False, False, True, True, True]


def test_a_change_before_a_cell_that_raises_is_laid_to_its_own_cell():
    first, last = cell("test_runner:writes_weights"), cell("test_runner:raises")
    between = cell("random_sign")
    rows, failures = runner.run_unit(
        Unit("m", (0, 1), (CLEAN, first, between, last)), CountedSegmenter(), tiny_data(4), SETTING
    )
    assert [failure.cell for failure in failures] == [last.id]
    assert all("model_changed" in row["flags"] for row in rows if row["cell"] == first.id)
    reference, _ = runner.run_unit(Unit("m", (0, 1), (CLEAN, between)), CountedSegmenter(), tiny_data(4), SETTING)
    assert [row for row in rows if row["cell"] != first.id] == reference


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("raises", "RuntimeError: boom"),
        ("wrong_shape", r"expected torch.float32 \(4, 2, 16, 16\), got torch.float32 \(4, 1, 16, 16\)"),
        ("half", "got torch.float16"),
        ("no_tensor", r"expected torch.float32 \(4, 2, 16, 16\), got ndarray\. Return the adversarial images"),
        ("corrupts_and_raises", "RuntimeError: boom"),
        ("BreaksAtOnce", "RuntimeError: boom"),
        ("absent", "attack test_runner:absent: unknown object of test_runner 'absent'"),
    ],
)
def test_a_failing_attack_is_a_failure_and_no_number(attack, message):
    broken = cell(f"test_runner:{attack}")
    model = CountedSegmenter()
    rows, failures = runner.run_unit(Unit("m", (0, 1, 2, 3), (CLEAN, broken)), model, tiny_data(), SETTING)
    assert {row["attack"] for row in rows} == {"none"}
    assert rows == runner.run_unit(Unit("m", (0, 1, 2, 3), (CLEAN,)), model, tiny_data(), SETTING)[0]
    (failure,) = failures
    assert (failure.cell, failure.model, failure.stage) == (broken.id, "m", "attack")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failure.message)


class StopsAtSuccess:
    """Says that an image is broken where its logits fell by 0.01 in the mean."""

    def __call__(self, model, batch, *, budget, generators):
        far = torch.arange(len(batch.x)) % 2 == 0
        sign = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
        return torch.where(far.view(-1, 1, 1, 1), batch.x + budget.eps * sign, batch.x).clamp(0, 1)

    def reached(self, logits, clean, batch):
        return (clean - logits).flatten(1).mean(1) > 0.01


def test_an_attack_that_knows_success_is_flagged_where_it_had_none():
    data, model = tiny_data(4), LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    rows, failures = runner.run_unit(
        Unit("m", (0, 1, 2, 3), (cell("test_runner:StopsAtSuccess"),)), model, data, SETTING
    )
    assert not failures
    assert [row["flags"] for row in rows] == [[], ["not_reached", "unchanged"]] * 2


def test_a_loss_that_raises_costs_the_others_nothing():
    broken, sound = cell("fgsm", "test_runner:breaks_on_small_images"), cell("fgsm", "bce")
    rows, (failure,) = runner.run_unit(
        Unit("m", (0, 1), (CLEAN, broken, sound)), CountedSegmenter(), tiny_data(), SETTING
    )
    assert failure.cell == broken.id
    assert failure.message == "RuntimeError: too small"
    assert rows == runner.run_unit(Unit("m", (0, 1), (CLEAN, sound)), CountedSegmenter(), tiny_data(), SETTING)[0]


def test_only_an_attack_without_a_call_of_its_own_is_shared():
    rows, _ = runner.run_unit(
        Unit("m", (0, 1), (cell("test_runner:Iterative", "bce"),)), CountedSegmenter(), tiny_data(), SETTING
    )
    assert [row["flags"] for row in rows] == [["unchanged"], ["unchanged"]]
    for name, entry in catalogue.ATTACKS.items():
        if name == "transfer":
            continue  # needs a model
        built = load_attack(name, {}, "bce" if entry.needs_loss else "", Task("binary", ("c",)))
        assert is_shared(built) == entry.shared, name


def test_settings_that_an_attack_does_not_take_are_a_failure():
    wrong = cell("fgsm", "bce", settings=json.dumps({"steps": 3}))
    _, (failure,) = runner.run_unit(Unit("m", (0,), (wrong,)), CountedSegmenter(), tiny_data(), SETTING)
    assert failure.message.startswith("attack fgsm: does not take these settings")
    assert "steps" in failure.message


def test_random_numbers_belong_to_suite_cell_and_image():
    draws = {
        (seed, name, image): torch.rand(1, generator=image_generators(seed, name, [image])[0]).item()
        for seed in (0, 1)
        for name in ("a", "b")
        for image in ("i", "j")
    }
    assert len(set(draws.values())) == 8


NETWORKS = [
    ModelSpec(name="a", architecture="monai.BasicUNet", settings={"features": [8, 8, 16, 16, 32, 8]}),
    ModelSpec(name="b", architecture="monai.AttentionUnet", settings={"channels": [8, 16, 32], "strides": [2, 2]}),
    ModelSpec(name="c", architecture="smp.Unet", encoder="resnet18"),
    ModelSpec(name="d", architecture="smp.UnetPlusPlus", encoder="mobilenet_v2"),
    ModelSpec(name="e", architecture="smp.Unet", encoder="efficientnet-b0"),
]


@pytest.mark.parametrize(
    "spec",
    [*NETWORKS[:2], *(pytest.param(spec, marks=pytest.mark.slow) for spec in NETWORKS[2:])],
    ids=lambda spec: f"{spec.architecture}-{spec.encoder}",
)
def test_bits_depend_on_compute_batch_and_threads_alone(spec):
    data = load_dataset(Mni152Data(name="mni152"))
    model = build_model(spec, channels=1, task=data.task, size=64, seed=0)
    cells = (CLEAN, cell("fgsm", "dice_focal"), cell("fgsm", "bce"), cell("random_sign"))
    test = data.split("test")[:6]
    setting = Conditions(seed=0, batch=4)

    def rows(shard: int, cells: tuple[Cell, ...] = cells) -> list[dict[str, object]]:
        units = [Unit("m", test[i : i + shard], cells) for i in range(0, len(test), shard)]
        found = [row for unit in units for row in runner.run_unit(unit, model, data, setting)[0]]
        return sorted(found, key=lambda row: (row["cell"], row["image"]))

    reference = rows(6)
    assert reference == rows(1) == rows(3) == rows(4, cells[::-1])

    def adversarial(batch: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        torch.set_num_threads(threads)
        out = runner.attack_one(cells[1:2], test[3], model, data, Conditions(seed=0, batch=batch))
        return out["x_adv"], out["attacked"]

    x_adv, prediction = adversarial(4, 1)
    for batch, threads in ((1, 1), (8, 1), (4, 2)):
        other_x, other_prediction = adversarial(batch, threads)
        assert (x_adv != other_x).mean() <= 1e-3
        assert (prediction != other_prediction).mean() <= 1e-3


@pytest.mark.parametrize(("attack", "loss", "cost"), [("fgsm", "bce", (1 + 3, 1)), ("random_sign", "", (1 + 3, 0))])
def test_attack_one_gives_the_images_behind_the_rows_of_a_sweep(attack, loss, cost):
    data, model = tiny_data(4), CountedSegmenter()
    sweep = [cell(attack, loss, eps) for eps in (1 / 255, EPS, 16 / 255)]
    rows, _ = runner.run_unit(Unit("m", (0, 1, 2, 3), (CLEAN, *sweep)), model, data, SETTING)
    model.forwards = model.backwards = 0
    arrays = runner.attack_one(sweep, 2, model, data, SETTING)
    assert (model.forwards, model.backwards) == cost, "one clean forward, one gradient, one forward per eps"
    assert arrays["x_adv"].shape == (3, *arrays["x"].shape)
    assert arrays["attacked"].shape == (3, *arrays["truth"].shape)
    found = [row for row in rows if row["image"] == "i2" and row["attack"] == attack]
    for row, x_adv, attacked in zip(found, arrays["x_adv"], arrays["attacked"], strict=True):
        assert np.abs(x_adv.astype(float) - arrays["x"]).max() == row["linf"]
        assert np.linalg.norm(x_adv.astype(float) - arrays["x"]) == pytest.approx(row["l2"], rel=1e-12)
        assert (attacked & arrays["truth"]).sum() == row["tp"][0]
        assert (attacked & ~arrays["truth"]).sum() == row["fp"][0]
        assert (attacked != arrays["clean"]).sum() == row["flipped_pixels"]
    alone = runner.attack_one(sweep[1:2], 2, model, data, SETTING)
    assert np.array_equal(alone["x_adv"][0], arrays["x_adv"][1])


def test_every_suite_cell_can_be_built():
    suite = Suite.load("quick")
    for planned in plan(suite):
        if planned.arm.attack != "none":
            arm = planned.arm
            load_attack(arm.attack, arm.options, arm.loss, Task("multilabel", ("a", "b", "c")))


def small_unet() -> torch.nn.Module:
    spec = ModelSpec(name="m", architecture="monai.UNet", settings={"channels": (8, 16), "norm": "batch"})
    channels = tiny_data().batch([0]).x.shape[1]
    return build_model(spec, channels=channels, task=tiny_data().task, size=16).eval().requires_grad_(False)


def test_a_lean_copy_gives_the_rows_of_the_model_itself_bit_for_bit(monkeypatch):
    monkeypatch.setattr(lean_calls, "SMALL", 0)
    data, model = tiny_data(), small_unet()
    unit = Unit("m", (0, 1, 2), (CLEAN, cell("fgsm", "bce"), cell("pgd", "dice", settings='{"steps": 2}')))
    lean = prepare(model, data.batch([0, 1]).x, ["lean"])
    rows = [run_unit(unit, model, data, Conditions(seed=0, batch=2), attacked) for attacked in (None, lean)]
    assert rows[0] == rows[1]
    assert rows[0][1] == []


def test_scores_are_those_of_the_model_and_not_of_what_is_attacked():
    data, model = tiny_data(), small_unet()
    other = prepare(model, data.batch([0, 1]).x, ["fold", "lean"])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.neg_()  # a copy that predicts something else altogether
    unit = Unit("m", (0, 1), (CLEAN, cell("fgsm", "bce", eps=0.0)))
    setting = Conditions(seed=0, batch=2)
    (rows, failures), (wanted, _) = (run_unit(unit, model, data, setting, each) for each in (other, None))
    assert failures == []
    for name in ("tp", "fp", "fn", "flipped_pixels"):
        assert [row[name] for row in rows] == [row[name] for row in wanted]


def test_what_an_attack_does_to_the_prepared_copy_is_seen_and_put_back(monkeypatch):
    data, model = tiny_data(), small_unet()
    lean = prepare(model, data.batch([0, 1]).x, ["lean"])

    def vandal(attacked, batch, *, budget, generators):
        assert attacked is lean
        with torch.no_grad():
            next(attacked.parameters()).add_(1)
        return batch.x

    monkeypatch.setattr(runner, "load_attack", lambda *arguments: vandal)
    before = {name: tensor.clone() for name, tensor in lean.state_dict().items()}
    rows, _ = run_unit(Unit("m", (0, 1), (cell("vandal"),)), model, data, Conditions(seed=0, batch=2), lean)
    assert all("model_changed" in row["flags"] for row in rows)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lean.state_dict().items())
