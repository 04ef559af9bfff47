"""White-box attacks against exact optima on the linear segmenter: L_inf, and two objectives under L2."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from strategies import KINDS, make_generators

from advseg_bench import losses
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.testing.scenes import Scene, make_batch, make_linear
from advseg_bench.types import Budget

SPACES = ((11, 8), (5, 4, 3))
RADII = {"linf": (0.1 / 6, 0.1), "l2": (0.5 / 6, 0.5)}
WHITE = tuple(
    name
    for name, entry in catalogue.ATTACKS.items()
    if entry.traits.gradient and not entry.traits.control and name != "transfer"
)

LINEAR = dict.fromkeys(WHITE, 0.97) | {"padam": 0.91}
"""Share of the largest decrease of all margins under L2 that attacks reach which follow exactly this sum.

PAdam divides each value of the gradient by its own size, so it moves all values alike, whatever their slopes.
"""

ENTROPY = {
    "fgsm": 0.81,
    "bim": 0.82,
    "mifgsm": 0.82,
    "nifgsm": 0.82,
    "pgd": 0.91,
    "apgd": 0.995,
    "segpgd": 0.88,
    "cospgd": 0.78,
    "tsallis_pgd": 0.85,
    "padam": 0.74,
}
"""Share of the largest increase of the entropy under L2 with default settings; the documentation explains each."""

LONGER = {"bim": 0.99, "mifgsm": 0.99, "nifgsm": 0.97, "pgd": 0.94, "apgd": 0.999}
"""The same for 40 steps, of 2.5 eps together."""


def summed_pairs(logits, y, valid, task):
    """The linear function whose exact optimum `largest_fall` is: minus the margins of all pairs, summed."""
    if task.kind == "multiclass":
        value = (logits - logits.gather(1, y.unsqueeze(1))).sum(1)
    else:
        value = torch.where(y, -logits, logits).sum(1)
    return (value * valid).flatten(1).sum(1)


def usual_loss(kind):
    return losses.ce if kind == "multiclass" else losses.bce


def make(name, kind, loss="", **settings):
    entry = catalogue.ATTACKS[name]
    used = (loss or ("ce" if kind == "multiclass" else "bce")) if entry.needs_loss else ""
    return load_attack(name, settings, used, make_batch(Scene(kind=kind)).task)


def scenes(norm):
    for space in SPACES:
        for eps in RADII[norm]:
            yield space, Budget(norm, eps)


def attacked(attack, kind, space, budget):
    batch = make_batch(Scene(kind=kind, space=space, n=2))
    model = make_linear(batch)
    return model, batch, attack(model, batch, budget=budget, generators=make_generators(2))


def share_lost(model, batch, x_adv, budget):
    fall = -(model.slope(batch) * (x_adv.double() - batch.x)).flatten(1).sum(1)
    return float((fall / model.largest_fall(batch, budget)).min())


def share_broken(model, batch, x_adv, budget):
    clean = model.accuracy(batch.x, batch)
    return float((clean - model.accuracy(x_adv, batch)).sum() / (clean - model.robust_accuracy(batch, budget)).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WHITE)
def test_white_box_attacks_break_what_can_be_broken_in_l_inf(name, kind):
    for space, budget in scenes("linf"):
        for loss in ("", "dice", "present_dice", "lovasz") if catalogue.ATTACKS[name].needs_loss else ("",):
            model, batch, x_adv = attacked(make(name, kind, loss), kind, space, budget)
            assert share_broken(model, batch, x_adv, budget) >= 0.99, (space, budget, loss)
            if loss in ("", "dice"):
                assert share_lost(model, batch, x_adv, budget) >= 0.99, (space, budget, loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in WHITE if catalogue.ATTACKS[name].needs_loss])
def test_white_box_attacks_reach_the_optimum_of_a_linear_objective_in_l2(name, kind):
    attack = replace(make(name, kind), loss=summed_pairs)
    if not isinstance(attack, FGSM):
        attack = replace(attack, objective=summed_pairs, keep_by=summed_pairs)
    for space, budget in scenes("l2"):
        model, batch, x_adv = attacked(attack, kind, space, budget)
        assert share_lost(model, batch, x_adv, budget) >= LINEAR[name], (space, budget)


def entropy(model, x, batch):
    """The summed cross-entropy of each image, (N,): the mean of the loss times the number of its terms."""
    loss = usual_loss(batch.task.kind)(model(x).double(), batch.y, batch.valid, batch.task)
    terms = batch.valid.flatten(1).sum(1) * (1 if batch.task.kind == "multiclass" else len(batch.task.classes))
    return loss * terms


@cache
def largest_entropy(kind, space, eps):
    """The exact maximum of the entropy inside ball and box, (N,).

    The entropy of a pixel is convex in its values, with second derivatives of at most `curvature`. So entropy minus
    multiplier * ||move||^2 is concave if twice the multiplier is larger, and has one maximum in the box: the limit of
    move = clip(gradient / (2 * multiplier)), a contraction. If its length is eps, it is the maximum in the ball too,
    for any move in the ball has an entropy of at most that Lagrangian.
    """
    batch = make_batch(Scene(kind=kind, space=space, n=2))
    model, x = make_linear(batch), batch.x.double()
    curvature = float(model.weight.double().square().max()) * (0.5 if kind == "multiclass" else 0.25)
    low, high = batch.bounds.lower - x, batch.bounds.upper - x

    def solve(multiplier):
        move = torch.zeros_like(x)
        for _ in range(200):
            leaf = (x + move).requires_grad_()
            (gradient,) = torch.autograd.grad(entropy(model, leaf, batch).sum(), leaf)
            new = (gradient / (2 * multiplier)).clamp(low, high)
            if (new - move).abs().max() < 1e-10:
                return new
            move = new
        raise AssertionError("expected a contraction")

    least = torch.full((len(x), *[1] * (x.dim() - 1)), curvature, dtype=torch.float64)
    most = 1e4 * least
    assert (solve(least).flatten(1).norm(dim=1) > eps).all(), "the ball is small enough for a concave Lagrangian"
    for _ in range(40):
        middle = (least * most).sqrt()
        far = solve(middle).flatten(1).norm(dim=1).view_as(middle) > eps
        least, most = torch.where(far, middle, least), torch.where(far, most, middle)
    move = solve(most)
    assert move.flatten(1).norm(dim=1).tolist() == pytest.approx([eps] * len(x))
    return entropy(model, x + move, batch)


def share_entropy(attack, kind, space, budget):
    model, batch, x_adv = attacked(attack, kind, space, budget)
    clean, most = entropy(model, batch.x, batch), largest_entropy(kind, space, budget.eps)
    reached = (entropy(model, x_adv, batch) - clean) / (most - clean)
    assert (reached <= 1 + 1e-6).all()
    return float(reached.min())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WHITE)
def test_white_box_attacks_reach_their_share_of_the_largest_entropy_in_l2(name, kind):
    for space, budget in scenes("l2"):
        assert share_entropy(make(name, kind), kind, space, budget) >= ENTROPY[name], (space, budget)
        if name in LONGER:
            rule = {} if name == "apgd" else {"step_size": 2.5 / 40}
            longer = make(name, kind, steps=40, **rule)
            assert share_entropy(longer, kind, space, budget) >= LONGER[name], (space, budget)


def test_every_white_box_attack_has_its_share():
    assert set(LINEAR) == set(ENTROPY) == set(WHITE)
    assert len(WHITE) == 10
