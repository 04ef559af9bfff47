"""BIM, PGD and MI-FGSM: against loops written out here, against the closed form, and their conventions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from strategies import kinds, make_batch, make_generators, norms, seeds
from torch import nn

from advseg_bench import losses
from advseg_bench.attacks import APGD, BIM, MIFGSM, PGD, PAdam
from advseg_bench.attacks.ascent import better
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.batches import select_images
from advseg_bench.errors import PluginError
from advseg_bench.geometry import distance
from advseg_bench.instruments.counter import Counter
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Budget


class Net(nn.Module):
    """Two layers with a smooth kink, for any task."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.register_buffer("a", torch.randn((5, 2, 3, 3), generator=g))
        self.register_buffer("b", torch.randn((classes, 5, 1, 1), generator=g))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.conv2d(x, self.a, padding=1).tanh()
        return nn.functional.conv2d(hidden, self.b)


def gradient_of(net, x, batch, loss):
    leaf = x.clone().requires_grad_()
    loss(net(leaf), batch.y, batch.valid, batch.task).sum().backward()
    return leaf.grad


def test_bim_is_the_loop_written_out():
    batch, logits = make_batch("multilabel", n=3)
    net, eps, steps = Net(logits.shape[1]), 0.05, 7
    x = batch.x
    for _ in range(steps):
        step = x + eps * (1 / steps) * gradient_of(net, x, batch, losses.dice).sign()
        x = (batch.x + (step - batch.x).clamp(-eps, eps)).clamp(0, 1)
    attack = BIM(loss=losses.dice, steps=steps)
    assert torch.equal(attack(net, batch, budget=Budget("linf", eps), generators=make_generators(3)), x)


def test_mifgsm_is_the_loop_written_out_in_l2():
    batch, logits = make_batch("binary", n=2)
    net, eps, steps = Net(logits.shape[1]), 0.7, 5

    def length(t):
        return t.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    x, memory = batch.x.double(), torch.zeros_like(batch.x, dtype=torch.float64)
    net = net.double()
    for _ in range(steps):
        g = gradient_of(net, x, batch, losses.bce)
        memory = 0.9 * memory + g / g.abs().sum((1, 2, 3), keepdim=True)
        delta = x + eps / steps * memory / length(memory) - batch.x
        delta = delta * (eps / length(delta)).clamp(max=1)
        x = (batch.x + delta).clamp(0, 1)
    attack = MIFGSM(loss=losses.bce, steps=steps, decay=0.9)
    found = attack(net.float(), batch, budget=Budget("l2", eps), generators=make_generators(2))
    assert (found - x).abs().max() < 1e-5


def test_one_step_from_the_image_is_fgsm():
    batch, logits = make_batch("multiclass", n=3, void=0.2)
    net = Net(logits.shape[1])
    budget = Budget("linf", 0.1)
    one = FGSM(loss=losses.ce)(net, batch, budget=budget, generators=make_generators(3))
    for attack in (BIM(loss=losses.ce, steps=1), MIFGSM(loss=losses.ce, steps=1)):
        found = attack(net, batch, budget=budget, generators=make_generators(3))
        assert (found - one).abs().max() <= 2**-24


@settings(max_examples=40, deadline=None)
@given(kind=kinds, norm=norms, seed=seeds)
def test_results_stay_in_the_budget_and_the_bounds(kind, norm, seed):
    batch, logits = make_batch(kind, seed=seed % 1000, n=2)
    eps = 0.3 if norm == "l2" else 0.05
    for attack in (BIM, PGD, MIFGSM):
        found = attack(loss=losses.dice, steps=3)(
            Net(logits.shape[1]), batch, budget=Budget(norm, eps), generators=make_generators(2, seed)
        )
        assert found.amin() >= 0
        assert found.amax() <= 1
        assert (distance(found, batch.x, norm) <= eps + 1e-6).all()
        assert (found != batch.x).any()


def test_ascent_reaches_the_optimum_of_a_linear_segmenter_from_any_start():
    batch, _ = make_batch("binary", n=4)
    model = LinearSegmenter(torch.tensor([0.7, -1.3]), 0.1)
    eps = 0.04
    side = batch.y.double() * 2 - 1
    best = model.worst_margin(batch, eps)
    for attack in (BIM(loss=losses.bce), PGD(loss=losses.bce), MIFGSM(loss=losses.bce)):
        found = attack(model, batch, budget=Budget("linf", eps), generators=make_generators(4))
        assert (side * model(found.double()) - best).abs().max() < 1e-5


def test_pgd_starts_inside_and_depends_on_its_own_generator_only():
    batch, logits = make_batch("binary", n=3)
    net = Net(logits.shape[1])
    for norm, eps in (("linf", 0.1), ("l2", 0.5)):
        attack, budget = PGD(loss=losses.bce, steps=2), Budget(norm, eps)
        start = attack.start(batch, budget, make_generators(3))
        assert (distance(start, batch.x, norm) <= eps + 1e-6).all()
        assert (distance(start, batch.x, norm) > eps / 2).all()
        whole = attack(net, batch, budget=budget, generators=make_generators(3))
        again = attack(net, batch, budget=budget, generators=make_generators(3))
        other = attack(net, batch, budget=budget, generators=make_generators(3, seed=9))
        assert torch.equal(whole, again)
        assert not torch.equal(whole, other)


def test_targeted_and_empty_label_go_down_towards_no_mask():
    batch, logits = make_batch("multilabel", n=2)
    net = Net(logits.shape[1])
    attack = BIM(loss=losses.bce, label="empty", targeted=True)
    found = attack(net, batch, budget=Budget("linf", 0.1), generators=make_generators(2))
    assert (net(found).mean((1, 2, 3)) < net(batch.x).mean((1, 2, 3))).all()


@pytest.mark.parametrize(
    "attack",
    [
        PGD(loss=losses.dice, steps=6, step_size=1.5, keep="best"),
        MIFGSM(loss=losses.bce, steps=5, step_size=0.9, keep="best"),
        BIM(loss=losses.bce, steps=4, targeted=True, keep="best"),
    ],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_best_iterate_is_the_first_of_the_largest_loss_and_costs_no_forward(attack, norm):
    batch, logits = make_batch("multilabel", n=5)
    net, budget = Net(logits.shape[1]), Budget(norm, 0.3)
    path, values, memory = [attack.start(batch, budget, make_generators(5))], [], None
    for _ in range(attack.steps - 1):
        leaf = path[-1].clone().requires_grad_()
        values.append(attack.climb(net(leaf), batch))
        values[-1].sum().backward()
        memory = attack.accumulate(memory, leaf.grad)
        path.append(attack.move(path[-1], memory, batch, budget))
    values.append(attack.climb(net(path[-1]), batch))
    best = torch.stack(values).argmax(0)
    with Counter(net).count(5) as tally:
        found = attack(net, batch, budget=budget, generators=make_generators(5))
    assert torch.equal(found, torch.stack([path[t][i] for i, t in enumerate(best.tolist())]))
    assert tally.per_image() == [(attack.steps, attack.steps - 1)] * 5
    last = replace(attack, keep="last", steps=attack.steps - 1)
    last = replace(last, step_size=attack.step_size or 1 / attack.moves)
    assert torch.equal(path[-1], last(net, batch, budget=budget, generators=make_generators(5)))


def test_steps_that_are_too_long_overshoot_and_the_best_iterate_is_not_the_last():
    batch, logits = make_batch("multilabel", n=5)
    net, attack = Net(logits.shape[1]), PGD(loss=losses.dice, steps=6, step_size=2.0, keep="best")
    found = attack(net, batch, budget=Budget("linf", 0.3), generators=make_generators(5))
    last = replace(attack, keep="last", steps=5)(net, batch, budget=Budget("linf", 0.3), generators=make_generators(5))
    gain = attack.climb(net(found), batch) - attack.climb(net(last), batch)
    assert (gain >= 0).all()
    assert (gain > 1e-4).any()


@pytest.mark.parametrize("at_first", [True, False])
def test_a_loss_of_nan_never_is_or_stays_the_best(at_first):
    batch, logits = make_batch("binary", n=2)
    net = Net(logits.shape[1])
    clean = net(batch.x).flatten(1).mean(1)

    def loss(logits, y, valid, task):
        value = logits.flatten(1).mean(1)
        return value + torch.where((value.detach() == clean) == at_first, torch.nan, 0.0)

    attack = BIM(loss=loss, steps=3, keep="best")
    found = attack(net, batch, budget=Budget("linf", 0.1), generators=make_generators(2))
    moved = (found != batch.x).flatten(1).any(1)
    assert (moved == at_first).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [("keep", "first"), ("steps", 0), ("steps", True), ("step_size", 0.0), ("label", "t"), ("momentum_norm", "l3")],
)
def test_settings_without_a_meaning_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        MIFGSM(loss=losses.bce, **{key: value})


def test_of_one_iterate_none_is_the_best():
    with pytest.raises(ValueError, match="steps: expected at least 2 for keep 'best', got 1"):
        BIM(loss=losses.bce, steps=1, keep="best")


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("schedule", [None, "shrinking"])
@pytest.mark.parametrize("attack", [APGD, PAdam, PGD])
def test_restarts_cost_what_the_traits_state(attack, schedule, keep):
    attack = attack(loss=losses.bce, steps=7, restarts=3, radius_schedule=schedule, keep=keep)
    batch, _ = make_batch("binary")
    counter = Counter(Net(1))
    with counter.count(len(batch.x)) as tally:
        attack(counter.model, batch, budget=Budget("linf", 0.1), generators=make_generators(len(batch.x)))
    assert set(tally.per_image()) == {(attack.traits.forwards, attack.traits.backwards)}


@pytest.mark.parametrize("setting", ["objective", "keep_by"])
def test_an_unknown_objective_names_the_nearest(setting):
    with pytest.raises(PluginError, match=r"unknown objective 'hard_dise'.*Did you mean 'hard_dice'"):
        PGD(loss="dice", **{setting: "hard_dise"})


def test_the_first_of_equal_iterates_is_kept():
    one, other, value = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.tensor([1.0, 1.0])
    kept, values = better((one, value), other, torch.tensor([1.0, 2.0]))
    assert kept[:, 0, 0, 0].tolist() == [0, 1]
    assert values.tolist() == [1, 2]


@pytest.mark.parametrize("steps", [12, 30])
def test_apgd_is_the_loop_written_out_for_each_image(steps):
    """Checkpoints, halving and restarts of arXiv 2003.01690 for one image at a time, on a wavy objective."""
    batch, logits = make_batch("multilabel", n=6)
    net, eps = Net(logits.shape[1]), 0.3
    found = APGD(loss=losses.bce, steps=steps, keep="last")(
        net, batch, budget=Budget("linf", eps), generators=make_generators(6)
    )
    halved = 0
    for i in range(6):
        one = select_images(batch, [i])

        def clip(x, clean=one.x):
            return (clean + (x - clean).clamp(-eps, eps)).clamp(0, 1)

        def look(x, one=one):
            with torch.no_grad():
                value = losses.bce(net(x), one.y, one.valid, one.task)
            return value, gradient_of(net, x, one, losses.bce)

        x = before = best = one.x
        (value, gradient), eta = look(x), 2 * eps
        top, top_gradient, top_then, reduced = value, gradient, value, True
        rises, interval, since = 0, max(int(0.22 * steps), 1), 0
        for k in range(steps):
            ahead, share = clip(x + eta * gradient.sign()), 1.0 if k == 0 else 0.75
            x, before = clip(x + share * (ahead - x) + (1 - share) * (x - before)), x
            new, gradient = look(x)
            rises, value, since = rises + int(new > value), new, since + 1
            if new > top:
                best, top, top_gradient = x, new, gradient
            if since == interval and k + 1 < steps:
                reduced = rises <= 0.75 * interval or (not reduced and bool(top_then >= top))
                if reduced:
                    eta, x, gradient, halved = eta / 2, best, top_gradient, halved + 1
                top_then, rises, since = top, 0, 0
                interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        assert (found[i] - x[0]).abs().mean() < 1e-3
    assert halved > 6
