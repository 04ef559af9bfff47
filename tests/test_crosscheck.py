"""Crosscheck: sound implementations pass on trained models, and each fault is called by its right name."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from strategies import make_batch, make_generators
from torch import nn

from advseg_bench import losses
from advseg_bench.attacks import BIM, MIFGSM
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.crosscheck import (
    Case,
    Plan,
    Subject,
    certify,
    compare,
    count_verdicts,
    crosscheck,
    is_sound,
    judge,
    load_example,
    measure_effect,
    run_traced,
    save_example,
)
from advseg_bench.crosscheck.judge import usual_noise
from advseg_bench.crosscheck.subjects import load_subjects
from advseg_bench.errors import DataError, IncompatibleError, PluginError, SpecError
from advseg_bench.registry import catalogue
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Budget, Task

FEW = {"kinds": ("multilabel",), "losses": ("dice",), "eps": (4 / 255,)}


@pytest.fixture(scope="module")
def trained() -> list[Subject]:
    """The two networks of the smoke suite, trained, with four images each."""
    return load_subjects(Suite.load("smoke"), images=4)


def check(trained, name, **changes):
    """The one pair of an implementation on the first network."""
    plan = Plan(**FEW | {"others": {f"implementations:{name}": {}}} | changes)
    (pair,) = crosscheck(plan, trained[:1])
    return pair, plan


@pytest.mark.slow
def test_sound_implementations_pass_on_every_task_loss_and_network(trained):
    plan = Plan(others={"implementations:Signed": {}, "implementations:OneByOne": {}}, eps=(1 / 255, 8 / 255))
    pairs = crosscheck(plan, trained)
    objectives = sum(len(entry.kinds) for entry in catalogue.LOSSES.values() if not entry.objective)
    assert len(pairs) == 2 * 2 * 2 * objectives  # implementations x radii x networks x objectives
    assert is_sound(pairs), [(p.place, p.finding.reason) for p in pairs]
    assert count_verdicts(pairs)["implementations:Signed"] == {"identical": 4 * objectives}
    certificate = json.loads(json.dumps(certify(plan, trained, pairs)))
    assert certificate["verdicts"]["implementations:Signed"] == {"identical": 4 * objectives}
    assert all(finding["step_wise"] is None or finding["step_wise"]["real"] == 0 for finding in certificate["findings"])
    assert certificate["environment"]["torch"] == torch.__version__.partition("+")[0] or "+" in torch.__version__
    assert certificate["subjects"][0]["trained"] is True
    for subject in certificate["subjects"]:
        prepared = subject["prepared"]
        assert prepared["steps"] == ["lean"]
        assert 0 < prepared["gradient_error"] == prepared["raw_gradient_error"] < 1e-4


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("Percent", "weaker", r"wrong gradient on (0\.[89]|1\.[012])\d% of the values, scattered"),
        ("Band", "weaker", r"wrong gradient on 6\.\d+% of the values, in one connected band \(pixels 10-11 x"),
        ("Reversed", "weaker", "wrong sign: moves against the gradient on 100% of the values"),
        ("GreyLevels", "weaker", r"wrong step size: 0\.0039\d* times"),
        ("HalfModel", "stronger", r"wrong gradient on [1-9].* where it is small, as in lower precision"),
        ("Nothing", "weaker", "returned the clean image"),
        ("TooFar", "violates", r"exceeded eps by 0\.000157 \(1\.0%\)"),
        ("Outside", "violates", "left the bounds by 0.0157"),
        ("Trains", "violates", "changed the model it attacked"),
        ("Raises", "fails", "RuntimeError: no kernel"),
        ("Predicted", "equal under a convention", "label: the model's own prediction"),
    ],
)
def test_one_step_is_called_by_its_right_name(trained, name, verdict, reason):
    pair, _ = check(trained, name)
    assert pair.finding.verdict == verdict, pair.finding.reason
    assert re.search(reason, pair.finding.reason), pair.finding.reason


FOUR = {"reference": "bim", "settings": {"steps": 4}}


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("Loop", "identical", ""),
        ("LoopFromBounds", "equal up to rounding", "every step within 4 ulp"),
        ("EachFromBounds", "equal up to rounding", ""),
        ("OneByOneEachStep", "equal up to rounding", ""),
        ("EarlyBand", "weaker", r"wrong gradient .* one connected band \(pixels 10-11 x"),
        ("FiveSteps", "equal under a convention", "step rule: 5 steps instead of 4"),
        ("SmallSteps", "equal under a convention", r"step rule: steps of eps / 5 instead of 0\.25 \* eps"),
        pytest.param("LateSchedule", "weaker", r"wrong step size: 0\.\d+ times", marks=pytest.mark.slow),
        ("Stale", "weaker", "every gradient at the same point"),
        ("EverySecondStep", "weaker", "the first two gradients at the same point"),
        pytest.param("LateStale", "weaker", "the first two gradients at the same point", marks=pytest.mark.slow),
        (
            "ThreeSteps",
            "weaker",
            r"a step is lost, .* 0\.00\d+ .* step rule: 3 steps instead of 4",
        ),
        ("LastEvaluated", "equal under a convention", "returned iterate: the last evaluated one, without its step"),
        ("OneMore", "identical", ""),
        ("Restarts", "weaker", "returns the best of 2 restarts for each image"),
        ("WorstRestart", "weaker", "returns the worst of 2 restarts for each image"),
        ("HalfClip", "weaker", "moves in the same direction, but not as far or farther"),
        ("RandomStart", "equal under a convention", "random start: inside the budget"),
    ],
)
def test_many_steps_are_judged_one_by_one(trained, name, verdict, reason):
    pair, _ = check(trained, name, **FOUR)
    assert pair.finding.verdict == verdict, pair.finding.reason
    assert re.search(reason, pair.finding.reason), pair.finding.reason


@pytest.mark.parametrize(("name", "verdict"), [("Restarts", "stronger"), ("WorstRestart", "weaker")])
def test_the_worst_of_several_restarts_is_weaker_whatever_the_random_start_of_the_reference(trained, name, verdict):
    pair, _ = check(trained, name, reference="pgd", settings={"steps": 4, "step_size": 0.25})
    assert pair.finding.theirs.gain > pair.finding.ours.gain, "its random numbers are luckier"
    assert pair.finding.verdict == verdict, pair.finding.reason


class Summed(nn.Module):
    """The sum of the channels is the logit."""

    def forward(self, x):
        return x.sum(1, keepdim=True)


def test_a_lost_step_that_costs_no_loss_is_a_convention():
    """Steps of eps reach the border at once, where the others change nothing."""
    from implementations import ThreeSteps

    batch, _ = make_batch("binary", n=2, space=(8, 8))
    reference = BIM(loss=losses.bce, steps=4, step_size=1.0)
    model = Summed()
    with torch.no_grad():
        case = Case(reference, model, batch, CUBE, model(batch.x))
    attack = ThreeSteps(losses.bce)
    attack.size = 1.0
    theirs = run_traced(attack, model, batch, CUBE, make_generators(2))
    ours = reference(model, batch, budget=CUBE, generators=make_generators(2))
    far = replace(theirs, x_adv=theirs.x_adv)
    ours = torch.nextafter(ours, torch.ones_like(ours))  # not bit for bit, so that steps are compared
    finding = judge(case, ours, far, measure_effect(case, ours))
    assert finding.verdict == "equal under a convention", finding.reason
    assert "step rule: 3 steps instead of 4" in finding.reason


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("Momentum", ("identical", "equal up to rounding"), ""),
        ("PlainMomentum", ("equal under a convention",), "momentum normalisation: gradients are not normalised"),
        ("SignMomentum", ("equal under a convention",), "signs of gradients are accumulated"),
        ("ForgetfulMomentum", ("weaker", "stronger"), "wrong gradient"),
        ("Loop", ("equal under a convention",), "no momentum"),
    ],
)
def test_momentum_has_its_conventions(trained, name, verdict, reason):
    pair, _ = check(trained, name, **FOUR | {"reference": "mifgsm"})
    assert pair.finding.verdict in verdict, pair.finding.reason
    assert reason in pair.finding.reason


@pytest.mark.slow
def test_a_disagreement_becomes_a_small_script_that_still_disagrees(trained, tmp_path):
    pair, plan = check(trained, "Band")
    script = save_example(pair, plan, trained[0], tmp_path / "case")
    example = load_example(script.parent)
    assert example.batch.x.shape[0] == 1
    assert example.batch.x.shape[2:].numel() <= 32 * 32 / 2
    assert example.judge().verdict == "weaker"
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env={"PYTHONPATH": tests})
    assert done.stdout.startswith("weaker: wrong gradient"), done.stderr


@pytest.mark.slow
def test_a_cropped_disagreement_keeps_its_verdict(tmp_path):
    """Where nothing of the mask is left, Dice cannot be lost, and neither gains anything."""
    subjects = load_subjects(Suite.load("smoke"), models=["basicunet-xs"], images=2)
    pair, plan = check(subjects, "EverySecond", kinds=("binary",), eps=(1 / 255,))
    assert pair.finding.verdict == "weaker"
    assert load_example(save_example(pair, plan, subjects[0], tmp_path).parent).judge().verdict == "weaker"


def test_an_example_of_a_network_without_a_spec_asks_for_it(tmp_path):
    batch, _ = make_batch("multilabel", n=2, space=(16, 16))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject = Subject("mine", nn.Conv2d(batch.x.shape[1], len(batch.task.classes), 3, padding=1), batch)
    pair, plan = check([subject], "Band")
    script = save_example(pair, plan, subject, tmp_path)
    with pytest.raises(SpecError, match="Give `model`"):
        load_example(script.parent)
    assert load_example(script.parent, subject.model).judge().real.any()


def test_the_noise_of_a_large_volume_can_be_told():
    values = torch.rand((2, 1, 9, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(usual_noise(values), values.flatten(1).quantile(0.99, dim=1, interpolation="higher"))
    assert usual_noise(torch.arange(2**24 + 2).view(1, 2, -1)) == math.ceil(0.99 * (2**24 + 1))


class Dying(nn.Module):
    """Half of the image has no gradient at all; the other half has one of 1e-30."""

    def forward(self, x):
        width = x.shape[-1] // 2
        return torch.cat([x[..., :width].detach() * 0 + 0.1, x[..., width:] * 1e-30], -1)[:, :1]


def test_moving_values_without_a_gradient_is_no_rounding():
    from implementations import Dead, Signed

    batch, _ = make_batch("binary", n=2, space=(6, 8))
    model = Dying()
    reference = FGSM(loss=losses.bce)
    budget = Budget("linf", 0.1)
    with torch.no_grad():
        case = Case(reference, model, batch, budget, model(batch.x))
    ours = reference(model, batch, budget=budget, generators=make_generators(2))
    for attack, verdict in ((Signed(losses.bce), "identical"), (Dead(losses.bce), None)):
        theirs = run_traced(attack, model, batch, budget, make_generators(2))
        finding = judge(case, ours, theirs, measure_effect(case, ours))
        assert finding.verdict == (verdict or finding.verdict)
        if verdict is None:
            assert finding.real is not None
            assert finding.real[..., :4].all()
            assert not finding.real[:, 0, :, 4:].any()


class Noisy(nn.Module):
    """The left half's logits are 1 for any image, by two functions whose gradients cancel up to rounding."""

    def forward(self, x):
        width = x.shape[-1] // 2
        left = x[..., :width].tanh() ** 2 + 1 / x[..., :width].cosh() ** 2
        return torch.cat([left, x[..., width:]], -1).sum(1, keepdim=True)


class Kinked(nn.Module):
    """Each image's first pixel lies on a kink: an ulp decides between a gradient of 1000 and one of 1."""

    def __init__(self, x):
        super().__init__()
        self.register_buffer("at", x[:, :, 0, 0].clone())

    def forward(self, x):
        rows = (x[:, None, :, 0, 0] - self.at).abs().sum(-1).argmin(1)  # whose image it is, in any part of the batch
        steep = torch.zeros_like(x)
        steep[:, :, 0, 0] = 1000 * (x[:, :, 0, 0] - self.at[rows]).relu()
        return (x + steep).sum(1, keepdim=True)


CUBE = Budget("linf", 0.1)


def judge_on(model, batch, attack, budget=CUBE):
    reference = FGSM(loss=losses.bce)
    with torch.no_grad():
        case = Case(reference, model, batch, budget, model(batch.x))
    ours = reference(model, batch, budget=budget, generators=make_generators(len(batch.x)))
    theirs = run_traced(attack, model, batch, budget, make_generators(len(batch.x)))
    return judge(case, ours, theirs, measure_effect(case, ours))


def test_a_gradient_that_is_all_rounding_may_have_any_sign_and_a_fault_beside_it_is_real():
    from implementations import LeftFlipped, RightFlipped

    batch, _ = make_batch("binary", n=3, space=(24, 24))
    free = judge_on(Noisy(), batch, LeftFlipped(losses.bce))
    assert free.verdict == "equal up to rounding", free.reason
    assert free.steps.disagree == free.steps.explained > 100
    fault = judge_on(Noisy(), batch, RightFlipped(losses.bce))
    assert fault.verdict == "weaker"
    assert fault.real[..., 12:].all()
    assert not fault.real[..., :12].any()


def test_one_kink_excuses_itself_and_nothing_else():
    from implementations import Percent

    batch, _ = make_batch("binary", n=3, space=(24, 24))
    finding = judge_on(Kinked(batch.x), batch, Percent(losses.bce))
    assert finding.verdict == "weaker", finding.reason
    assert finding.steps.disagree - finding.steps.explained >= 20


class Cornered(nn.Module):
    """The gradient of the left half is NaN."""

    def forward(self, x):
        width = x.shape[-1] // 2
        return torch.cat([(x[..., :width] * 0).sqrt(), x[..., width:]], -1).sum(1, keepdim=True)


def test_nan_to_zero_is_a_convention_with_a_name():
    from implementations import NanToZero, Signed

    batch, _ = make_batch("binary", n=2, space=(6, 8))
    ball = Budget("l2", 0.5)
    finding = judge_on(Cornered(), batch, NanToZero(losses.bce), ball)
    assert finding.verdict == "equal under a convention", finding.reason
    assert "NaN to 0" in finding.reason
    assert judge_on(Cornered(), batch, Signed(losses.bce)).verdict == "identical"  # the sign of NaN is 0
    assert judge_on(Cornered(), batch, FGSM(loss=losses.bce), ball).verdict == "violates"


@pytest.mark.slow
def test_the_projection_order_is_a_convention_with_a_name(trained):
    ball = {"norm": "l2", "eps": (2.0,)}
    pair, _ = check(trained, "BoundsFirst", **FOUR | ball | {"settings": {"steps": 4, "step_size": 0.5}})
    assert pair.finding.verdict == "equal under a convention", pair.finding.reason
    assert pair.finding.reason == "projection order: bounds first, budget second"


def test_compare_counts_float32_numbers():
    a = torch.tensor([[[[1.0, 0.0, -0.0, 1e-45]]]])
    b = torch.tensor([[[[1.0 + 2**-23, -1e-45, 0.0, 1e-45]]]])
    difference = compare(a, b)
    assert difference.max_ulp == 1
    assert difference.max_abs == pytest.approx(2**-23)
    assert difference.identical == 0.5


def test_a_trace_counts_and_orders_what_an_attack_asks_for(trained):
    from implementations import Loop, OneByOne

    model, batch = trained[0].model, trained[0].batch
    budget = Budget("linf", 0.02)
    whole = run_traced(Loop(losses.dice), model, batch, budget, make_generators(4))
    assert (whole.forwards, whole.backwards, whole.alone, len(whole.points)) == (4, 4, False, 4)
    assert torch.equal(whole.points[0], batch.x)
    single = run_traced(OneByOne(losses.dice), model, batch, budget, make_generators(4))
    assert (single.forwards, single.backwards, single.alone, len(single.points)) == (1, 1, True, 1)
    assert torch.equal(single.points[0], batch.x)


def test_an_attack_that_raises_leaves_model_and_batch_to_the_next(trained):
    subject, budget = trained[0], Budget("linf", 0.05)
    before = subject.batch.x.clone()

    def spoil(model, batch, *, budget, generators):
        model.train()
        batch.x.zero_()
        raise RuntimeError("boom")

    subject.model.eval()
    with pytest.raises(RuntimeError, match="boom"):
        run_traced(spoil, subject.model, subject.batch, budget, [])
    assert not subject.model.training
    assert torch.equal(subject.batch.x, before)


def test_the_replay_of_the_reference_is_the_reference(trained):
    for attack in (BIM(loss=losses.dice, steps=3), MIFGSM(loss=losses.dice, steps=3)):
        model, batch, budget = trained[1].model, trained[1].batch, Budget("l2", 0.5)
        with torch.no_grad():
            case = Case(attack, model, batch, budget, model(batch.x))
        theirs = run_traced(attack, model, batch, budget, make_generators(4))
        assert judge(case, theirs.x_adv, theirs, measure_effect(case, theirs.x_adv)).verdict == "identical"
        moved = replace(theirs, x_adv=theirs.x_adv.clone())
        moved.x_adv[0, 0, 3, 3] += 1e-4 if moved.x_adv[0, 0, 3, 3] < 0.5 else -1e-4
        assert judge(case, theirs.x_adv, moved, measure_effect(case, theirs.x_adv)).verdict in ("weaker", "stronger")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reference": "fgms"}, SpecError, "Did you mean 'fgsm'"),
        ({"others": {}}, SpecError, "others: expected an implementation"),
        ({"losses": ("dise",)}, SpecError, "Did you mean 'dice'"),
        ({"eps": (0.0,)}, SpecError, "radii above 0"),
        ({"eps": ("4/255",)}, SpecError, "radii above 0, got '4/255'"),
        ({"eps": ()}, SpecError, "and a radius"),
        ({"kinds": ("binry",)}, SpecError, "unknown task 'binry'. Did you mean 'binary'"),
        ({"norm": "l1"}, SpecError, "unknown norm 'l1'"),
        ({"losses": ("ce",)}, SpecError, "a loss that is defined for one of the tasks"),
        ({"others": {"implementations:Sined": {}}}, PluginError, "crosscheck: attack implementations:Sined"),
        ({"others": {"implementations:Signed": {"eps": 1}}}, SpecError, "crosscheck: attack implementations:Signed"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_computed(trained, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        crosscheck(Plan(**FEW | {"others": {"implementations:Signed": {}}} | changes), trained)
    assert "\n" not in str(caught.value)


def test_nothing_to_attack_is_not_sound():
    with pytest.raises(SpecError, match="a network to attack"):
        crosscheck(Plan(**FEW | {"others": {"implementations:Signed": {}}}), [])


def change(batch, kind):
    """A user's mistake in a multilabel batch."""
    x, y = batch.x, batch.y
    return {
        "normalised": replace(batch, x=(x - 0.5) / 0.25),
        "grey masks": replace(batch, y=y.float() * 255),
        "one class too few": replace(batch, y=y[:, :2]),
        "double": replace(batch, x=x.double()),
        "void": replace(batch, valid=batch.valid.float()),
        "255": replace(batch, y=torch.where(y[:, 0], 255, 0), task=Task("multiclass", ("a", "b", "c"))),
    }[kind]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("normalised", r"intensities from 0 to 1, got -2 to"),
        ("grey masks", r"y: expected torch.bool .* multilabel task, got 'torch.float32"),
        ("one class too few", r"y: expected torch.bool \(4, 3, 32, 32\)"),
        ("double", "x: expected float32 images"),
        ("void", "valid: expected torch.bool"),
        ("255", r"labels from 0 to 2, got \[255\]"),
    ],
)
def test_mistakes_in_a_batch_are_one_line(trained, mistake, message):
    plan = Plan(**FEW | {"others": {"implementations:Signed": {}}})
    subject = Subject("mine", trained[0].model, change(trained[0].batch, mistake))
    with pytest.raises(DataError, match=message) as caught:
        crosscheck(plan, [subject])
    assert "\n" not in str(caught.value)


def test_the_best_iterate_is_no_step_to_compare(trained):
    others = {"implementations:Signed": {}}
    plan = Plan(**FEW | {"reference": "bim", "settings": {"keep": "best"}, "others": others})
    with pytest.raises(IncompatibleError, match=r"crosscheck: bim: expected keep 'last', got 'best'\."):
        crosscheck(plan, trained[:1])


@pytest.mark.parametrize(
    ("last", "message"), [(nn.Sigmoid(), "expected raw logits"), (nn.Softmax(1), "expected raw logits")]
)
def test_a_network_of_probabilities_is_one_line(trained, last, message):
    plan = Plan(**FEW | {"others": {"implementations:Signed": {}}})
    with torch.random.fork_rng():
        three, two = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 2, 1)
    subject = Subject("mine", nn.Sequential(three, last), trained[0].batch)
    with pytest.raises(IncompatibleError, match=message):
        crosscheck(plan, [subject])
    few = Subject("mine", two, trained[0].batch)
    with pytest.raises(IncompatibleError, match="crosscheck: mine"):
        crosscheck(plan, [few])
