"""Counts against attacks whose cost is known image by image."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from strategies import make_batch, make_generators
from torch import nn

from advseg_bench import losses
from advseg_bench.attacks import PGD
from advseg_bench.attacks.function import attack
from advseg_bench.errors import QueryLimitError
from advseg_bench.instruments.counter import Counter, rows_of
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.models.build import build_model
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Budget

BUDGET = Budget("linf", 0.05)


def linear() -> LinearSegmenter:
    return LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)


def images(n: int = 3) -> torch.Tensor:
    return make_batch("binary", n=n)[0].x


@pytest.mark.parametrize("steps", [1, 4])
def test_an_attack_of_k_steps_costs_each_image_k_forwards_and_k_backwards(steps):
    model, (batch, _) = linear(), make_batch("binary")
    with Counter(model).count(3) as tally:
        PGD(loss=losses.dice, steps=steps)(model, batch, budget=BUDGET, generators=make_generators(3))
    assert tally.per_image() == [(steps, steps)] * 3
    assert (tally.all_forwards, tally.all_backwards) == (3 * steps, 3 * steps)


@attack(per_image=True)
def search(model, x, y, eps, generator):
    """Asks the more often the smaller the image's mask."""
    for _ in range(1 + int((~y).sum()) % 4):
        model(x.repeat(3, 1, 1, 1))
    return x


def test_an_attack_of_single_images_is_counted_image_by_image():
    model, (batch, _) = linear(), make_batch("binary", n=4)
    wanted = [3 * (1 + int((~y).sum()) % 4) for y in batch.y]
    assert len(set(wanted)) > 1
    with Counter(model).count(4) as tally:
        search(model, batch, budget=BUDGET, generators=make_generators(4))
    assert tally.per_image() == [(forwards, 0) for forwards in wanted]


def test_images_that_leave_the_batch_cost_nothing_any_more():
    model, x = linear(), images(4)
    with Counter(model).count(4) as tally:
        model(x)
        with rows_of([1, 3]):
            model(x[[1, 3]].requires_grad_()).sum().backward()
            with rows_of([1]):  # of these two: image 3
                model(x[[3, 3]])
    assert tally.per_image() == [(1, 0), (2, 1), (1, 0), (4, 1)]


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_rows_of_nobody_leave_the_counts_of_images_unknown(rows):
    model, x = linear(), images(3)
    with Counter(model).count(3) as tally:
        model(x)
        model(x[[0] * rows])
    assert tally.per_image() is None
    assert tally.all_forwards == 3 + rows


def test_every_row_is_the_single_image_of_a_batch_of_one():
    model, x = linear(), images(1)
    with Counter(model).count(1) as tally:
        model(x.expand(7, -1, -1, -1))
        model(x)
    assert tally.per_image() == [(8, 0)]


def test_each_gradient_that_flows_into_the_logits_is_a_backward():
    model, x = linear(), images().requires_grad_()
    with Counter(model).count(3) as tally:
        logits = model(x)
        torch.autograd.grad(logits[:1].sum(), x, retain_graph=True)
        torch.autograd.grad(logits.square().sum(), x)
        with torch.no_grad():
            model(x)
        model(x).detach().sum()
        torch.func.grad(lambda z: model(z).sum())(x.detach())
    assert tally.per_image() == [(4, 3)] * 3


def test_neither_values_nor_gradients_nor_what_the_guard_sees_change():
    model, x = nn.Sequential(linear(), nn.Tanh()), images().requires_grad_()
    guard, logits = ModelGuard(model), model(x)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    before = dict(vars(model))
    with Counter(model).count(3) as tally:
        counted = model(x)
        assert torch.equal(counted, logits)
        assert torch.equal(torch.autograd.grad(counted.square().sum(), x)[0], gradient)
        assert guard.find_changes() == []
        assert not guard.restore()
    assert tally.per_image() == [(1, 1)] * 3
    assert vars(model) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model(x),
        lambda model, x: model(input=x),
        lambda model, x: model.forward(x),
        lambda model, x: copy.deepcopy(model)(x),
        lambda model, x: torch.func.functional_call(model, dict(model.named_parameters()), (x,)),
        lambda model, x: torch.compile(model, backend="eager")(x),
    ],
    ids=["call", "keyword", "forward", "copy", "functional", "compiled"],
)
def test_no_way_to_the_model_goes_uncounted(call):
    model, x = nn.Sequential(nn.utils.skip_init(nn.Conv2d, 2, 1, 1)), images()
    with Counter(model).count(3) as tally:
        call(model, x)
    assert tally.per_image() == [(1, 0)] * 3


def test_a_copy_of_the_model_is_a_copy():
    model, x = linear(), images()
    with Counter(model).count(3):
        other = copy.deepcopy(model)
        other.weight.data.neg_()
        other.bias.data.neg_()
        assert torch.equal(other(x), -model(x))
    assert torch.equal(other(x), -model(x)), "and works after the count"


def test_a_pickled_model_is_the_model_without_its_gate():
    model, x = nn.Sequential(linear()), images()
    with Counter(model).count(3) as tally:
        assert inspect.signature(model.forward) == inspect.signature(nn.Sequential().forward)
        other = pickle.loads(pickle.dumps(model))
        assert torch.equal(other(x), other[0](x))
        assert tally.all_forwards == 0
        assert torch.equal(model(x), other(x))
    assert tally.all_forwards == 3


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(name="m", architecture="smp.Unet", encoder="resnet18"),
        ModelSpec(name="m", architecture="monai.BasicUNet", settings={"features": [8] * 6}),
    ],
    ids=lambda spec: spec.architecture,
)
def test_a_real_network_is_counted_without_a_change_of_bits(spec):
    batch, _ = make_batch("binary", n=2, space=(32, 32))
    model = build_model(spec, channels=2, task=batch.task, size=32, seed=0).eval().requires_grad_(False)
    guard, pgd = ModelGuard(model), PGD(loss=losses.dice, steps=3)
    wanted = pgd(model, batch, budget=BUDGET, generators=make_generators(2))
    with Counter(model).count(2) as tally:
        assert torch.equal(pgd(model, batch, budget=BUDGET, generators=make_generators(2)), wanted)
        assert torch.equal(copy.deepcopy(model)(batch.x), pickle.loads(pickle.dumps(model))(batch.x))
        assert not guard.find_changes()
    assert tally.per_image() == [(4, 3)] * 2
    assert not guard.restore()


def test_counters_nest_for_the_model_and_its_copies():
    model, x = linear(), images()
    with Counter(model).count(3) as outer:
        model(x)
        with Counter(model).count(3) as inner:
            other = copy.deepcopy(model)
            other.weight.data.neg_()
            other.bias.data.neg_()
            assert torch.equal(other(x), -model(x))
        model(x)
    assert (outer.per_image(), inner.per_image()) == ([(4, 0)] * 3, [(2, 0)] * 3)
    assert "forward" not in vars(model)


def test_a_model_that_is_compiled_is_put_back():
    compiled, x = torch.compile(linear(), backend="eager"), images()
    own = vars(compiled)["forward"]
    with Counter(compiled).count(3) as tally:
        assert torch.equal(compiled(x), linear()(x))
    assert tally.per_image() == [(1, 0)] * 3
    assert vars(compiled)["forward"] is own


def test_a_function_is_counted_through_its_wrapper():
    counter = Counter(lambda x: 2 * x)
    x = images().requires_grad_()
    with counter.count(3) as tally:
        counter.model(x).sum().backward()
    counter.model(x)
    assert tally.per_image() == [(1, 1)] * 3


def test_an_attack_that_raises_or_meddles_leaves_no_gate_behind():
    model, x = linear(), images()
    with pytest.raises(ZeroDivisionError), Counter(model).count(3), rows_of([0]):
        raise ZeroDivisionError
    with Counter(model).count(3):
        model.forward = lambda x: x
    with Counter(model).count(3):
        del model.forward
    assert "forward" not in vars(model)
    with Counter(model).count(3) as tally:
        model(x)
    assert tally.per_image() == [(1, 0)] * 3, "and no owner of rows"


def test_one_too_many_is_refused_before_it_is_run():
    model, (batch, _) = linear(), make_batch("binary")
    attack = PGD(loss=losses.dice, steps=4)
    with Counter(model).count(3, max_forwards=4) as tally:
        attack(model, batch, budget=BUDGET, generators=make_generators(3))
    assert tally.per_image() == [(4, 4)] * 3
    message = r"attack: expected at most 3 forwards per image, got 4\. .*`max_forwards`"
    with Counter(model).count(3, max_forwards=3) as tally, pytest.raises(QueryLimitError, match=message) as caught:
        attack(model, batch, budget=BUDGET, generators=make_generators(3))
    assert "\n" not in str(caught.value)
    assert tally.per_image() == [(3, 3)] * 3


def test_a_limit_holds_for_each_image_and_for_rows_of_nobody():
    model, x = linear(), images(2)
    with Counter(model).count(2, max_forwards=4) as tally:
        with rows_of([1]):
            model(x[[1, 1, 1]])
            with pytest.raises(QueryLimitError, match="got 5"):
                model(x[[1, 1]])
        model(x)
        with pytest.raises(QueryLimitError, match="at most 4"):
            model(x)
        model(x[[0, 0, 0]])  # eight rows are what two images may have
        with pytest.raises(QueryLimitError, match="at most 4"):
            model(x[:1])
    assert tally.all_forwards == 8
