"""The closed forms against brute force and against optimisers that know nothing of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from strategies import CHANNELS, KINDS, kinds, make_batch, make_generators, norms, seeds

from advseg_bench import losses
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.testing.optima import largest_rise, shortest_move
from advseg_bench.testing.segmenters import LinearSegmenter, margins
from advseg_bench.types import Budget

EPS = 0.3
few = settings(max_examples=30, deadline=None)


def make_segmenter(kind, seed=0, channels=2):
    g = torch.Generator().manual_seed(seed)
    weight = 3 * torch.randn((CHANNELS[kind], channels), generator=g)
    return LinearSegmenter(weight, -weight.sum(1) / 2 + 0.3 * torch.randn(CHANNELS[kind], generator=g))


def make_small(kind, seed=0, space=(1, 3), n=2):
    batch, _ = make_batch(kind, seed, n=n, space=space)
    return batch, make_segmenter(kind, seed)


def margins_at(model, x, batch):
    return margins(model(x.double()), batch.y, batch.task)


def sample_ball(batch, budget, draws, generator):
    """Points of the ball and the box: inside, on the border of the ball, and in corners of the box."""
    for _ in range(draws):
        delta = torch.randn(batch.x.shape, generator=generator, dtype=torch.float64)
        if budget.norm == "linf":
            delta = budget.eps * delta.sign() * (torch.rand((), generator=generator) < 0.7).double() + (
                budget.eps * delta.clamp(-1, 1) * 0.3
            )
            delta = delta.clamp(-budget.eps, budget.eps)
        else:
            sparse = delta * (torch.rand(batch.x.shape, generator=generator) < torch.rand((), generator=generator))
            lengths = sparse.flatten(1).norm(dim=1).clamp(min=1e-9).view(-1, *[1] * (delta.dim() - 1))
            delta = budget.eps * sparse / lengths
        yield (batch.x.double() + delta).clamp(batch.bounds.lower, batch.bounds.upper)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_the_linear_function(kind):
    batch, model = make_small(kind, space=(3, 4, 2))
    expected = torch.einsum("kc,nc...->nk...", model.weight, batch.x) + model.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(model(batch.x), expected)
    assert model(batch.x).dtype == torch.float32
    assert model(batch.x.double()).dtype == torch.float64


def test_one_weight_per_channel_is_a_binary_segmenter():
    batch, _ = make_batch("binary")
    model = LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    assert model(batch.x).shape == (3, 1, 7, 5)
    torch.testing.assert_close(model(batch.x)[:, 0], 2 * batch.x[:, 0] - 3 * batch.x[:, 1] + 0.4)


def test_margins_say_which_decisions_are_right():
    for kind in KINDS:
        batch, logits = make_batch(kind)
        right = margins(logits, batch.y, batch.task) > 0
        if kind == "multiclass":
            assert torch.equal(right[:, 0], logits.argmax(1) == batch.y)
        else:
            assert torch.equal(right, (logits > 0) == batch.y)


@pytest.mark.parametrize("kind", KINDS)
def test_worst_margin_is_the_least_over_all_corners(kind):
    """A linear function is least in a corner of ball and box; a least of linear functions too."""
    batch, model = make_small(kind, space=(2, 3))
    x = batch.x.double()
    low, high = (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)
    corners = []
    for signs in product((False, True), repeat=x.shape[1]):
        pick = torch.tensor(signs).view(1, -1, 1, 1)
        corners.append(margins_at(model, torch.where(pick, high, low), batch))
    torch.testing.assert_close(model.worst_margin(batch, EPS), torch.stack(corners).amin(0))


@few
@given(kinds, norms, seeds)
def test_no_point_of_the_ball_does_more_harm_than_the_closed_forms_say(kind, norm, seed):
    seed %= 10_000
    batch, model = make_small(kind, seed, space=(2, 3))
    batch = replace(batch, valid=torch.rand(batch.valid.shape, generator=make_generators(1, seed)[0]) < 0.8)
    batch.valid[:, 0, 0] = True
    budget = Budget(norm, 0.1 if norm == "linf" else 0.3)
    least, most = model.robust_accuracy(batch, budget), model.largest_fall(batch, budget)
    slope = model.slope(batch)
    for x in sample_ball(batch, budget, 40, make_generators(1, seed)[0]):
        assert (model.accuracy(x, batch) >= least - 1e-12).all()
        assert (-(slope * (x - batch.x.double())).flatten(1).sum(1) <= most + 1e-9).all()
        if norm == "linf":
            assert (margins_at(model, x, batch) >= model.worst_margin(batch, budget.eps) - 1e-9).all()


def shortest_by_optimiser(slope, room, rise):
    """SLSQP, from the point where every value has used up its room."""
    done = minimize(
        lambda d: (d @ d, 2 * d),
        room,
        jac=True,
        bounds=[(0, r) for r in room],
        constraints={"type": "ineq", "fun": lambda d: slope @ d - rise, "jac": lambda d: slope},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert done.success, done.message
    return np.sqrt(done.fun)


@few
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.05, 0.95))
def test_shortest_move_and_largest_rise_are_what_an_optimiser_finds(seed, size, share):
    draw = np.random.default_rng(seed)
    slope, room = draw.uniform(0.2, 3, size), draw.uniform(0.05, 1, size)
    slope[draw.random(size) < 0.2] = 0
    if not slope.any():
        slope[0] = 1
    room[draw.random(size) < 0.1] = 0
    rise = share * float(slope @ room)
    rows = [torch.from_numpy(a).unsqueeze(0) for a in (slope, room)]
    found = float(shortest_move(*rows, torch.tensor([rise], dtype=torch.float64)))
    assert found == pytest.approx(shortest_by_optimiser(slope, room, rise), abs=2e-5)
    # the two problems are each other's converse
    assert float(largest_rise(*rows, found)) == pytest.approx(rise, abs=1e-9)


def test_shortest_move_at_the_limits():
    slope, room = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[0.5, 0.1]], dtype=torch.float64)

    def to(rise):
        return float(shortest_move(slope, room, torch.tensor([rise], dtype=torch.float64)))

    assert to(-1.0) == 0
    assert to(0.0) == 0
    assert to(0.7) == pytest.approx(0.26**0.5)  # all room is used up
    assert to(0.71) == float("inf")
    assert to(float("inf")) == float("inf")
    # before anything is stopped it is the distance from a plane
    assert to(0.1) == pytest.approx(0.1 / 5**0.5)
    assert float(largest_rise(slope, room, 9.0)) == pytest.approx(0.7)
    assert float(largest_rise(slope, room, 0.0)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_flip_cost_is_the_least_an_optimiser_needs_for_any_wrong_decision(kind):
    batch, model = make_small(kind, 3, space=(1, 4), n=1)
    weight, x = model.weight.double().numpy(), batch.x[0, :, 0].double().numpy()
    logits, cost = model(batch.x.double())[0, :, 0].detach().numpy(), model.flip_cost(batch)[0, 0]
    for i in range(4):
        if kind == "multiclass":
            y = int(batch.y[0, 0, i])
            pairs = [(weight[y] - weight[j], logits[y, i] - logits[j, i]) for j in range(len(weight)) if j != y]
        else:
            sides = [1 if on else -1 for on in batch.y[0, :, 0, i]]
            pairs = [(s * w, s * u) for s, w, u in zip(sides, weight, logits[:, i], strict=True)]
        costs = []
        for slope, margin in pairs:
            room = np.where(slope > 0, x[:, i], 1 - x[:, i])
            if margin <= 0:
                costs.append(0.0)
            elif margin < 0.999 * float(np.abs(slope) @ room):
                costs.append(shortest_by_optimiser(np.abs(slope), room, margin))
        expected = min(costs, default=float("inf"))
        assert float(cost[i]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_l2_robust_accuracy_is_the_best_of_all_sets_of_pixels(kind):
    batch, model = make_small(kind, 5, space=(2, 3))
    batch.valid[0, 0, 0] = False
    cost = model.flip_cost(batch)
    for eps in (0.0, 0.1, 0.3, 0.6):
        found = model.robust_accuracy(batch, Budget("l2", eps))
        for image in range(2):
            valid = [float(c) for c in cost[image][batch.valid[image]]]
            most = max(
                sum(chosen)
                for chosen in product((0, 1), repeat=len(valid))
                if sum(c**2 for c, used in zip(valid, chosen, strict=True) if used) <= eps**2
            )
            assert float(found[image]) == pytest.approx(1 - most / len(valid))


def test_l2_robust_accuracy_is_reached():
    """Every pixel of the cheapest set is moved by its shortest move: it is wrong, and the budget is kept."""
    batch, _ = make_batch("binary", 2, n=1, space=(3, 4))
    model = LinearSegmenter(torch.tensor([2.0, 0.0]), -1.0)  # one channel matters: the move is along it
    budget = Budget("l2", 0.4)
    cost = model.flip_cost(batch).flatten()
    order = cost.argsort()
    broken = order[(cost[order] ** 2).cumsum(0) <= budget.eps**2]
    x = batch.x.double().clone()
    side = torch.where(batch.y[0, 0].flatten(), -1, 1)
    for i in broken:
        x[0, 0].view(-1)[i] += side[i] * cost[i] * (1 + 1e-9)
    assert (x - batch.x.double()).norm() <= budget.eps * (1 + 1e-6)
    assert float(model.accuracy(x, batch)) == pytest.approx(float(model.robust_accuracy(batch, budget)))
    assert float(model.accuracy(x, batch)) < float(model.accuracy(batch.x, batch))


@few
@given(kinds, st.integers(0, 10_000), st.floats(0, 0.4))
def test_one_signed_step_reaches_the_linf_optimum_where_logits_share_no_channel(kind, seed, eps):
    batch, _ = make_batch(kind, seed)
    classes = CHANNELS[kind]
    g = torch.Generator().manual_seed(seed)
    batch = replace(batch, x=torch.rand((3, classes, 7, 5), generator=g))
    model = LinearSegmenter(torch.tensor([2.0, -3.0, 1.5, -1.0])[:classes].diag(), 0.2)
    budget = Budget("linf", eps)
    fgsm = FGSM(loss=losses.ce if kind == "multiclass" else losses.bce)
    x_adv = fgsm(model, batch, budget=budget, generators=make_generators(3))
    found = margins_at(model, x_adv, batch)
    torch.testing.assert_close(found, model.worst_margin(batch, eps), rtol=0, atol=2e-6)
    safe = model.worst_margin(batch, eps).abs() > 1e-5
    if safe.all():
        torch.testing.assert_close(model.accuracy(x_adv, batch), model.robust_accuracy(batch, budget))


def test_pixels_that_are_not_valid_count_nowhere():
    for kind in KINDS:
        batch, _ = make_batch(kind, void=0.4)
        model = make_segmenter(kind)
        other = ~batch.y if kind != "multiclass" else (batch.y + 1) % CHANNELS[kind]
        void = ~batch.valid if kind == "multiclass" else ~batch.valid.unsqueeze(1)
        changed = replace(batch, y=torch.where(void, other, batch.y))
        for budget in (Budget("linf", 0.1), Budget("l2", 0.5)):
            for name in ("robust_accuracy", "largest_fall"):
                assert torch.equal(getattr(model, name)(changed, budget), getattr(model, name)(batch, budget))
        assert torch.equal(model.accuracy(batch.x, changed), model.accuracy(batch.x, batch))


def test_bits_of_a_pixel_depend_on_no_other():
    batch, _ = make_batch("multilabel", n=4, space=(9, 7))
    model = make_segmenter("multilabel")
    whole = model(batch.x)
    for i in range(4):
        assert torch.equal(model(batch.x[i : i + 1])[0], whole[i])
    assert torch.equal(model(batch.x[:, :, 2:3, 4:5])[..., 0, 0], whole[..., 2, 4])
