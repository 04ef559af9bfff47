"""Square on masks: its boxes, its moves against loops written out here, and its strength against the closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import kinds, make_batch, make_generators, norms, seeds
from torch import nn

from advseg_bench import losses
from advseg_bench.attacks.boxes import box_share, box_sides, bumps, inside_boxes, place_boxes, tile_counts, tiles
from advseg_bench.attacks.square import Square, move_energy
from advseg_bench.attacks.stepping import Answer
from advseg_bench.batches import select_images
from advseg_bench.errors import SettingError
from advseg_bench.geometry import distance, random_sign
from advseg_bench.instruments.counter import Counter
from advseg_bench.registry import catalogue
from advseg_bench.testing.scenes import Scene, make_linear
from advseg_bench.testing.scenes import make_batch as make_scene
from advseg_bench.types import Budget

PUBLISHED = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 200: 4, 500: 8, 501: 16, 1000: 16, 2000: 32, 4000: 64, 6000: 128,
             8000: 256, 8001: 512, 9999: 512}  # fmt: skip


class Alone(nn.Module):
    """Processes images one by one, so that the bits of their logits do not depend on the batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.net(one) for one in x.split(1)])


def make_network(batch, classes):
    convolution = nn.Conv2d if batch.x.dim() == 4 else nn.Conv3d
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = convolution(batch.x.shape[1], 6, 3, padding=1), nn.ReLU(), convolution(6, classes, 1)
    return nn.Sequential(*layers).requires_grad_(False)


def test_the_schedule_is_the_published_one_and_scales_with_the_queries():
    for move, part in PUBLISHED.items():
        assert box_share(move, 10_000, 0.8) == 0.8 / part
    for move in range(1000):
        assert box_share(move, 1000, 0.5) == box_share(10 * move, 10_000, 0.5)


edges = st.floats(0.2, 8.0)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), edges), min_size=2, max_size=3),
    share=st.floats(1e-5, 1.0),
)
def test_boxes_are_never_empty_fit_and_have_equal_edges_in_mm(sizes, share):
    space, spacing = zip(*sizes, strict=True)
    sides = box_sides(space, spacing, share)
    assert all(1 <= side <= size for side, size in zip(sides, space, strict=True))
    free = [(side, edge) for side, size, edge in zip(sides, space, spacing, strict=True) if 1 < side < size]
    lengths = [(side - 0.5) * edge for side, edge in free], [(side + 0.5) * edge for side, edge in free]
    if free:  # one length rounds to all sides that are neither cut nor a single pixel
        assert max(lengths[0]) <= min(lengths[1]) + 1e-6
    large = [size for size in space if share ** (1 / len(space)) * size >= 25]
    if len(set(spacing)) == 1 and len(set(space)) == 1 and large:
        assert math.prod(sides) / math.prod(space) == pytest.approx(share, rel=0.13)


def test_the_other_edges_grow_where_a_thin_volume_cuts_one():
    assert box_sides((256, 256, 4), (1.0, 1.0, 5.0), 0.25) == (128, 128, 4)
    assert box_sides((256, 256, 1), (1.0, 1.0, 5.0), 0.8 / 512) == (10, 10, 1)
    assert box_sides((40, 40, 10), (1.0, 1.0, 4.0), 0.125) == (20, 20, 5)
    assert box_sides((40, 40, 40), (math.nan,) * 3, 0.125) == (20, 20, 20)
    assert box_sides((40, 40, 40), (1.0, 1.0, math.nan), 0.125) == (20, 20, 20)


def test_every_position_is_equally_likely_the_last_one_too():
    uniform = (torch.arange(60).double() + 0.5) / 60
    for side, size in ((1, 6), (3, 8), (8, 8), (7, 8), (1, 1)):
        first = place_boxes(torch.full((60, 1), side), (size,), uniform.view(60, 1)).flatten()
        positions = size - side + 1
        counts = first.bincount(minlength=positions)
        assert len(counts) == positions
        assert counts.max() - counts.min() <= 1
    almost_one = torch.full((1,), 1 - 2**-24)
    assert place_boxes(torch.tensor([1]), (2**24,), almost_one).item() == 2**24 - 1


def search(attack, model, batch, eps, generators):
    """The L_inf search of one image after the other, with loops; the random numbers are the attack's."""
    found = []
    moves = attack.draw_moves(batch, Budget("linf", eps), generators)
    for i in range(len(batch.x)):
        x, one = batch.x[i], select_images(batch, [i])

        def value(x, one=one):
            return losses.margin(model(x[None]).double(), one.y, one.valid, one.task).item()

        def confine(z, x=x):
            return torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)

        best = confine(x + eps * moves.start[i])
        most = value(best)
        for t in range(attack.queries - 1):
            window = [slice(a, a + s) for a, s in zip(moves.first[i, t, 0], moves.sides[i, t], strict=True)]
            tried = best.clone()
            for sign in (1, -1):
                for c in range(x.shape[0]):
                    place = (c, *window)
                    tried[place] = confine(x + sign * eps * moves.signs[i, t, c])[place]
                    long = confine(best + sign * 2 * eps * moves.signs[i, t, c])[place]
                    assert (long - tried[place]).abs().max() <= 2**-23, "a move of 2 eps ends at the same vertex"
                if not torch.equal(tried, best):
                    break
            if (now := value(tried)) > most:
                best, most = tried, now
        found.append(best)
    return torch.stack(found)


@pytest.mark.parametrize(("kind", "space"), [("multilabel", (7, 5)), ("multiclass", (5, 4, 3))])
def test_square_is_the_search_written_out(kind, space):
    batch, logits = make_batch(kind, n=3, space=space, void=0.2)
    batch = replace(batch, spacing=((1.0,) * (len(space) - 1) + (3.0,), (math.nan,) * len(space), (2.0,) * len(space)))
    net, attack = Alone(make_network(batch, logits.shape[1])), Square(queries=80)
    found = attack(net, batch, budget=Budget("linf", 0.1), generators=make_generators(3))
    wanted = search(attack, net, batch, 0.1, make_generators(3))
    assert torch.equal(found, wanted)
    vertices = torch.stack([(batch.x + 0.1).clamp(0, 1), (batch.x - 0.1).clamp(0, 1)])
    assert (found - vertices).abs().amin(0).max() <= 2**-23


@settings(max_examples=30, deadline=None)
@example(kind="multiclass", norm="linf", seed=21, space=(1, 5, 2))
@given(kind=kinds, norm=norms, seed=seeds, space=st.sampled_from([(1, 1), (1, 9), (6, 7), (1, 5, 2), (6, 6, 1)]))
def test_results_stay_in_the_budget_and_the_bounds_and_the_loss_never_falls(kind, norm, seed, space):
    batch, logits = make_batch(kind, seed=seed % 1000, n=2, space=space)
    net, budget = make_network(batch, logits.shape[1]), Budget(norm, 0.3 if norm == "l2" else 0.05)
    values = []
    for queries in (1, 30):
        found = Square(queries=queries)(net, batch, budget=budget, generators=make_generators(2, seed))
        assert found.amin() >= 0
        assert found.amax() <= 1
        assert (distance(found, batch.x, norm) <= budget.eps + 1e-6).all()
        assert (found != batch.x).any()
        attack = Square(queries=queries)
        value, won = attack.read(attack.judge(net(found), batch))
        values.append(value)
    assert ((values[1] >= values[0] - 1e-9) | won).all(), "an image without a right pixel is kept, whatever its loss"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("space", [(9, 8), (5, 4, 3)])
def test_the_bits_of_an_image_depend_on_its_own_generator_alone(norm, space):
    batch = make_scene(Scene(kind="multilabel", space=space, n=4))
    batch = replace(batch, spacing=tuple((1.0,) * (len(space) - 1) + (float(i + 1),) for i in range(4)))
    model, attack, budget = make_linear(batch), Square(queries=60), Budget(norm, 0.1)
    whole = attack(model, batch, budget=budget, generators=make_generators(4))
    for rows in ([2], [3, 0], [1, 3, 2, 0]):
        generators = [make_generators(4)[i] for i in rows]
        part = attack(model, select_images(batch, rows), budget=budget, generators=generators)
        assert torch.equal(part, whole[rows])
    assert not torch.equal(attack(model, batch, budget=budget, generators=make_generators(4, seed=9)), whole)


@pytest.mark.parametrize("space", [(11, 8), (5, 4, 3)])
@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("eps", [0.1 / 6, 0.1])
def test_square_reaches_four_fifths_of_the_exact_optimum(kind, space, eps):
    """In broken pixels or in lost margin, whichever is larger, as the contract measures it."""
    batch = make_scene(Scene(kind=kind, space=space, n=6))
    model, budget = make_linear(batch), Budget("linf", eps)
    clean, worst = model.accuracy(batch.x, batch).mean(), model.robust_accuracy(batch, budget).mean()
    most = model.largest_fall(batch, budget).mean()

    def lost(x):
        return float(-(model.slope(batch) * (x.double() - batch.x)).flatten(1).sum(1).mean() / most)

    found = Square()(model, batch, budget=budget, generators=make_generators(6))
    broken = float((clean - model.accuracy(found, batch).mean()) / (clean - worst))
    assert max(broken, lost(found)) >= 0.8
    assert min(broken, lost(found)) >= 0.7
    stripes = Square(queries=1)(model, batch, budget=budget, generators=make_generators(6))
    noise = (batch.x + eps * random_sign(batch.x, make_generators(6))).clamp(0, 1)
    assert max(lost(stripes), lost(noise)) < 0.3


def test_square_gains_margin_in_l2_where_noise_of_the_same_norm_does_not():
    batch = make_scene(Scene(kind="binary", space=(11, 8)))
    model, budget = make_linear(batch), Budget("l2", 0.5)
    best = model.largest_fall(batch, budget)

    def share(x):
        return (-(model.slope(batch) * (x.double() - batch.x)).flatten(1).sum(1) / best).mean()

    found = Square()(model, batch, budget=budget, generators=make_generators(3))
    assert (distance(found, batch.x, "l2") > 0.95 * budget.eps).all()
    assert share(found) > 0.4
    assert abs(share(Square(queries=1)(model, batch, budget=budget, generators=make_generators(3)))) < 0.25


def answer(values):
    """The answer of a model whose images have these losses, and are wrong everywhere where the second number is 1."""
    return Answer(torch.empty(0), value=torch.tensor(values, dtype=torch.float64))


def test_an_image_without_a_right_decision_does_not_change_and_the_others_do():
    batch, _ = make_batch("binary", n=2)
    attack = Square(queries=4)
    steps = attack.begin(batch, budget=Budget("linf", 0.1), generators=make_generators(2))
    asked = [next(steps).x]
    for value in ([[1, 0], [1, 0]], [[0, 1], [2, 0]], [[5, 0], [1, 0]]):
        asked.append(steps.send(answer(value)).x)
    with pytest.raises(StopIteration) as end:
        steps.send(answer([[6, 1], [1, 0]]))
    assert torch.equal(end.value.value[0], asked[1][0]), "all wrong at the second query, at whatever loss"
    assert torch.equal(end.value.value[1], asked[1][1]), "the largest loss at the second"


def test_the_judge_reports_the_margin_in_float64_and_whether_a_decision_is_right():
    for kind in ("binary", "multilabel", "multiclass"):
        batch, logits = make_batch(kind, n=4, void=0.3)
        wrong = -logits.abs() * (batch.y.float() * 2 - 1) if kind != "multiclass" else logits.clone()
        if kind == "multiclass":
            wrong.scatter_(1, batch.y.unsqueeze(1), -99.0)
        wrong[1:2] = torch.where(batch.valid[1:2].unsqueeze(1), wrong[1:2], -wrong[1:2])
        right = wrong.clone()
        pixel = tuple(batch.valid[2].nonzero()[0].tolist())
        label = batch.y[2][pixel] if kind == "multiclass" else 0
        right[2, label][pixel] = 9.0 if kind == "multiclass" or batch.y[2, 0][pixel] else -9.0
        none = replace(batch, valid=torch.zeros_like(batch.valid))
        assert Square().judge(wrong, batch)[:, 1].tolist() == [1, 1, 1, 1]
        assert Square().judge(right, batch)[:, 1].tolist() == [1, 1, 0, 1]
        assert Square().judge(right, none)[:, 1].tolist() == [1, 1, 1, 1]
        value = losses.margin(right.double(), batch.y, batch.valid, batch.task)
        assert torch.equal(Square().judge(right, batch)[:, 0], value)


def test_a_loss_of_nan_is_left_at_the_first_number():
    batch, _ = make_batch("binary", n=1)
    steps = Square(queries=3).begin(batch, budget=Budget("linf", 0.1), generators=make_generators(1))
    asked = [next(steps).x]
    for value in (math.nan, -3.0):
        asked.append(steps.send(answer([[value, 0.0]])).x)
    with pytest.raises(StopIteration) as end:
        steps.send(answer([[math.nan, 0.0]]))
    assert torch.equal(end.value.value, asked[1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_cost_is_the_declared_one(norm):
    batch, logits = make_batch("multilabel", n=3)
    net, attack = make_network(batch, logits.shape[1]), Square(queries=17)
    with Counter(net).count(3) as tally:
        attack(net, batch, budget=Budget(norm, 0.1), generators=make_generators(3))
    assert tally.per_image() == [(17, 0)] * 3
    assert (attack.traits.forwards, attack.traits.backwards, attack.traits.gradient) == (17, 0, False)
    assert Square().traits == catalogue.ATTACKS["square"].traits
    assert Square().traits.forwards == 1000


def published_bump(rows: int, columns: int) -> torch.Tensor:
    """Squares of growing size around the centre, each adding 1 / size^2, cut to the rectangle."""
    bump, row, column = torch.zeros(rows, columns, dtype=torch.float64), rows // 2, columns // 2
    for k in range(max(rows, columns) // 2 + 1):
        bump[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return bump / bump.norm()


@pytest.mark.parametrize("side", [3, 5, 6, 11])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_pattern_in_l2_is_the_published_pair_of_bumps(side, axis):
    wanted = torch.cat([published_bump(side // 2, side), -published_bump(side - side // 2, side)])
    wanted = wanted / wanted.norm()
    first, sides = torch.tensor([[2, 1]]), torch.tensor([[side, side]])
    found = bumps(first, sides, torch.tensor([axis]), torch.ones(1, 2), torch.zeros(1, 1, 15, 14))
    assert found[0, 0, 2 : 2 + side, 1 : 1 + side].sub(wanted if axis == 0 else wanted.T).abs().max() < 1e-6
    assert found.norm() == pytest.approx(1)


def test_a_pattern_of_one_pixel_has_one_sign_and_no_nan():
    one = torch.ones(1, 3, dtype=torch.int64)
    found = bumps(0 * one, one, one[:, 0], one.float(), torch.zeros(1, 1, 2, 2, 2))
    assert found.flatten().tolist() == [-1.0] + [0.0] * 7


def test_an_l2_move_carries_the_energy_of_two_boxes_into_the_first():
    batch, _ = make_batch("binary", n=2, space=(12, 11))
    batch = replace(batch, x=0.4 + 0.2 * batch.x)
    budget, attack = Budget("l2", 0.5), Square(queries=20)
    moves = attack.draw_moves(batch, budget, make_generators(2))
    best = batch.x + budget.eps * moves.start
    assert distance(best, batch.x, "l2").tolist() == pytest.approx([0.5, 0.5])
    for t in range(19):
        after = move_energy(best, moves, t, batch, budget)
        into, out = (inside_boxes(moves.first[:, t, k], moves.sides[:, t], best) for k in (0, 1))
        assert ((after == batch.x) | into | ~out).all()
        elsewhere = ~(into | out).expand_as(best)
        assert (after - best).abs()[elsewhere].amax() < 1e-6 if elsewhere.any() else True
        assert distance(after, batch.x, "l2").tolist() == pytest.approx([0.5, 0.5])


def test_the_first_perturbation_in_l2_is_a_grid_of_bumps():
    for space in ((15, 10), (4, 16), (7, 6, 1)):
        counts = tile_counts(space)
        assert all(count >= min(5, size) for count, size in zip(counts, space, strict=True))
        found = tiles(torch.ones(2, *counts), space)
        assert found.shape == (2, *space)
        assert (found > 0).all()
        assert found.norm() == pytest.approx(1)


@pytest.mark.parametrize(("key", "value"), [("queries", 0), ("queries", True), ("p_init", 0.0), ("p_init", 1.5)])
def test_settings_without_a_meaning_are_refused(key, value):
    with pytest.raises(SettingError, match=key):
        Square(**{key: value})
