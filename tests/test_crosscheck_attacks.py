"""Crosscheck of APGD, NI-FGSM, SegPGD and CosPGD: against toolkits, and against planted faults."""

from __future__ import annotations

import pytest
import torch
from strategies import make_generators
from torch import nn

from advseg_bench import losses
from advseg_bench.attacks import APGD, CosPGD, SegPGD
from advseg_bench.attacks.stepping import answer_query
from advseg_bench.batches import Batch
from advseg_bench.crosscheck import Plan, Subject, crosscheck
from advseg_bench.crosscheck.command import DEFAULT_LOSSES, Options, _make_plan
from advseg_bench.crosscheck.plan import OWN_LOSSES
from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.registry.equivalents import find_equivalents
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Budget

EPS = 8 / 255
SOUND = ("identical", "equal up to rounding")


@pytest.fixture(scope="module")
def subject():
    """A network with random weights whose loss is rough enough for steps of 2 eps to fail."""
    draw = torch.Generator().manual_seed(1)
    x = torch.rand((4, 1, 16, 16), generator=draw)
    y = torch.randint(3, (4, 16, 16), generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))
    with torch.no_grad():
        net[0].weight.mul_(12)
        net[2].weight.mul_(4)
    return Subject("rough", net.eval(), Batch.of(x, y, task="multiclass", classes=3), trained=False)


def check(subject, reference, name, loss, settings, **changes):
    """The finding for one implementation."""
    others = {name: {}} if isinstance(name, str) else dict([name])
    plan = {"kinds": ("multiclass",), "losses": (loss,), "eps": (EPS,), "settings": settings, "others": others}
    (pair,) = crosscheck(Plan(reference=reference, **plan | changes), [subject])
    return pair.finding


CASES = [
    ("apgd", "Adaptive", SOUND, ""),
    ("apgd", "AdaptiveLast", "equal under a convention", "returned iterate: the last one, not the best one"),
    ("apgd", "AdaptiveBelow", "equal under a convention", "halved below 75 % of increases, not at 75 %"),
    ("apgd", "AdaptiveOverBest", "equal under a convention", "an increase above the best value"),
    ("apgd", "AdaptiveFirst", "equal under a convention", "neither the last one nor the one with the largest"),
    ("apgd", "AdaptiveLate", ("weaker", "stronger"), "wrong step-size rule: every checkpoint is one step late"),
    ("apgd", "AdaptiveTogether", ("weaker", "stronger"), "wrong step-size rule: the images of a batch are halved"),
    ("apgd", "AdaptiveNever", ("weaker", "stronger"), "wrong step-size rule: the step size is never halved"),
    ("apgd", "AdaptiveFaster", ("weaker", "stronger"), "wrong step 5 in 1 of 4 images: its length or the iterate"),
    ("nifgsm", "AheadByMean", SOUND, ""),
    ("nifgsm", "Ahead", "equal under a convention", "momentum normalisation: gradients are divided by the L1 norm"),
    ("nifgsm", "AheadOfBatch", ("weaker", "stronger"), ""),
    ("segpgd", "TwoPart", SOUND, ""),
    ("segpgd", "TwoPartLate", "equal under a convention", "schedule: steps are counted from 1"),
    ("segpgd", "TwoPartReversed", ("weaker", "stronger"), "wrong schedule: reversed"),
    ("segpgd", "TwoPartFull", ("weaker", "stronger"), "wrong schedule: the share of the wrong decisions ends at 1"),
    ("cospgd", "Cosine", SOUND, ""),
    ("cospgd", "CosineOfSigmoids", "equal under a convention", "normaliser: sigmoids of the logits"),
    ("cospgd", "CosineSquared", ("weaker", "stronger"), "wrong gradient"),
]
LOSSES = {"segpgd": "segpgd", "cospgd": "cosine"}
SETTINGS = {"apgd": {"steps": 12}, "nifgsm": {"steps": 4}}
FROM_IMAGE = {"steps": 4, "random_start": False}


@pytest.mark.parametrize(("reference", "name", "verdict", "reason"), CASES, ids=[case[1] for case in CASES])
def test_each_rule_is_called_by_its_right_name(subject, reference, name, verdict, reason):
    loss = LOSSES.get(reference, "ce")
    settings = {"steps": 20} if name == "AdaptiveBelow" else SETTINGS.get(reference, FROM_IMAGE)
    finding = check(subject, reference, f"implementations_adaptive:{name}", loss, settings)
    assert finding.verdict in verdict, (finding.verdict, finding.reason)
    assert reason in finding.reason


def test_a_look_ahead_that_is_missing_is_named(subject):
    """By the mean, the lookahead is long enough to matter."""
    settings = {"steps": 4, "momentum_norm": "mean"}
    finding = check(subject, "nifgsm", "implementations_adaptive:NotAhead", "ce", settings)
    assert finding.verdict in ("weaker", "stronger"), finding.reason
    assert finding.reason == "no lookahead: gradients at the iterates, as in MI-FGSM"


@pytest.mark.parametrize(
    ("steps", "norm", "eps"),
    [(12, "linf", EPS), (12, "l2", 0.5), pytest.param(20, "linf", EPS, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("toolkit", ["torchattacks", "art"])
def test_apgd_of_toolkits_follows_a_rule_with_a_name(subject, toolkit, steps, norm, eps):
    pytest.importorskip(toolkit)
    ((other, options),) = find_equivalents([toolkit], "apgd", norm, {"steps": steps})[0].items()
    finding = check(subject, "apgd", (other, options), "ce", {"steps": steps}, norm=norm, eps=(eps,))
    assert finding.verdict == "equal under a convention", (finding.verdict, finding.reason)
    assert "random start: inside the budget" in finding.reason
    assert ("checkpoints at the paper's shares" in finding.reason) == (toolkit == "art")


def test_nifgsm_of_torchattacks_is_nifgsm_by_the_mean(subject):
    pytest.importorskip("torchattacks")
    ((other, options),) = find_equivalents(["torchattacks"], "nifgsm", "linf", {"steps": 6})[0].items()
    settings = {"steps": 6, "momentum_norm": "mean"}
    finding = check(subject, "nifgsm", (other, options), "ce", settings)
    assert finding.verdict in SOUND, finding.reason


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.5)])
@pytest.mark.parametrize(("reference", "other"), [("segpgd", "SegPGD"), ("cospgd", "CosPGD")])
def test_the_package_cospgd_follows_the_same_gradients(subject, reference, other, norm, eps, kind):
    pytest.importorskip("cospgd")
    settings = {"steps": 5, "step_size": 0.5, "random_start": False}
    name = f"advseg_adapters.cospgd:{other}", settings
    loss = {"losses": (LOSSES[reference],), "kinds": (kind,), "norm": norm, "eps": (eps,)}
    finding = check(subject, reference, name, "", settings, **loss)
    assert finding.verdict in SOUND, finding.reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the plotting package that adv-lib imports
def test_apgd_of_adv_lib_compares_the_best_value_with_itself(subject):
    pytest.importorskip("adv_lib")
    name = "advseg_adapters.adv_lib:APGD", {"steps": 12}
    finding = check(subject, "apgd", name, "ce", {"steps": 12})
    assert finding.verdict in ("weaker", "stronger")
    assert "the best value is compared with itself" in finding.reason


def test_a_reference_of_pgd_must_keep_its_last_iterate(subject):
    with pytest.raises(IncompatibleError, match="keep 'last', got 'best'"):
        check(subject, "segpgd", "implementations_adaptive:TwoPart", "segpgd", {"steps": 4, "keep": "best"})


@pytest.mark.parametrize("attack", [APGD(loss="ce", steps=12), SegPGD(steps=5), CosPGD(steps=5)])
def test_the_replay_of_a_reference_is_the_reference(subject, attack):
    """Its own queries, answered one by one, are the points that the replay expects, bit for bit."""
    from advseg_bench.crosscheck.judge import look_at
    from advseg_bench.crosscheck.replay import as_stepwise

    model, batch, budget = subject.model, subject.batch, Budget("linf", EPS)
    stepwise, state = as_stepwise(attack), None
    queries = attack.begin(batch, budget=budget, generators=make_generators(4))
    query = next(queries)
    for t in range(stepwise.steps - 1):
        seen = look_at(stepwise, model, batch, query.x, t, size=4)
        state = stepwise.observe(state, query.x, seen, batch, budget)
        query = queries.send(answer_query(model, query, batch))
        assert torch.equal(stepwise.move(state, batch, budget, last=False), query.x)


def test_an_attack_with_a_loss_of_its_own_takes_no_other():
    assert Plan(reference="segpgd", others={"fgsm": {}}).losses == ("segpgd",)
    with pytest.raises(SpecError, match="losses of segpgd: expected segpgd, got 'dice'"):
        Plan(reference="segpgd", others={"fgsm": {}}, losses=("dice",))


def test_the_objective_of_a_scheduled_loss_is_fixed(subject):
    plan = {"kinds": ("multiclass",), "losses": ("segpgd",), "eps": (EPS,), "settings": FROM_IMAGE}
    others = {"implementations_adaptive:TwoPart": {}}
    (pair,) = crosscheck(Plan(reference="segpgd", **plan, others=others), [subject])
    model, batch = subject.model, subject.batch
    x_adv = SegPGD(**FROM_IMAGE)(model, batch, budget=Budget("linf", EPS), generators=make_generators(4))
    with torch.no_grad():
        before, after = (losses.ce(model(x), batch.y, batch.valid, batch.task).mean() for x in (batch.x, x_adv))
    assert pair.finding.ours.gain == pytest.approx(float(after - before), rel=1e-4)


@pytest.mark.parametrize("reference", ["apgd", "nifgsm", "segpgd", "cospgd"])
def test_the_command_needs_no_losses_for_any_reference(reference):
    given = {"reference": reference, "against": ("implementations_adaptive:TwoPart",), "suite": Suite.load("smoke")}
    lists = dict.fromkeys(("models", "untrained", "losses", "eps"), ())
    options = Options(**given, **lists, kinds=("multiclass",), norm="linf", steps=5, images=2)
    plan, _ = _make_plan(options)
    assert plan.losses == OWN_LOSSES.get(reference, DEFAULT_LOSSES)
    assert plan.eps == (1 / 255, 4 / 255)
