"""What all toolkits share: one mask a call, contained randomness, bounds, thresholds, and errors before any run."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from strategies import make_batch, make_generators
from torch import nn

from advseg_adapters.foreign import ForeignAttack, Route
from advseg_adapters.loading import check_settings, find_route, is_batched
from advseg_bench import losses
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.errors import IncompatibleError, PluginError, SpecError
from advseg_bench.geometry import distance
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Bounds, Budget

BUDGET = Budget("linf", 0.1)
PLAIN = Route()


@dataclass(frozen=True, kw_only=True)
class Step(ForeignAttack):
    """One step up the cross-entropy, with noise from every global source; it remembers what it was given."""

    name: str = "toy.Step"
    route: Route = PLAIN
    loss: object = losses.bce
    noise: float = 0.0
    seen: list = field(default_factory=list)

    def attack(self, target, batch, budget):
        self.seen.append((batch, budget, target))
        x = batch.x.clone().requires_grad_()
        value = F.cross_entropy(target(x), torch.zeros(len(x), dtype=torch.int64), reduction="sum")
        (gradient,) = torch.autograd.grad(value, x)
        drawn = torch.rand(()).item() + np.random.rand() + random.random()  # noqa: NPY002
        moved = batch.x + budget.eps * gradient.sign() * (1 - self.noise * drawn / 3)
        return moved.clamp(batch.bounds.lower, batch.bounds.upper)


class UnitStep(Step):
    unit: ClassVar[bool] = True


def make_model() -> LinearSegmenter:
    return LinearSegmenter(torch.tensor([1.0, -2.0]), 0.25)


def run(attack, batch, budget=BUDGET, seed=0):
    return attack(make_model(), batch, budget=budget, generators=make_generators(len(batch.x), seed))


def test_it_attacks_image_by_image_unless_batches_are_safe():
    batch, _ = make_batch("binary", n=3)
    one, many = Step(), Step(batched=True)
    alone, together = run(one, batch), run(many, batch)
    assert [len(b.x) for b, *_ in one.seen] == [1, 1, 1]
    assert [len(b.x) for b, *_ in many.seen] == [3]
    assert torch.equal(alone, together)
    assert [b.images for b, *_ in one.seen] == [("image0",), ("image1",), ("image2",)]


def test_a_class_that_draws_never_shares_a_call():
    batch, _ = make_batch("binary", n=3)
    attack = Step(batched=True, route=Route(random=True))
    run(attack, batch)
    assert len(attack.seen) == 3


def test_a_class_that_draws_by_a_setting_shares_calls_without_it():
    batch, _ = make_batch("binary", n=3)
    route = Route(random=True, random_by=("start",))
    for settings, calls in (({}, 1), ({"start": False}, 1), ({"start": True}, 3)):
        attack = Step(batched=True, route=route, settings=settings)
        run(attack, batch)
        assert len(attack.seen) == calls


def test_a_class_whose_images_can_meet_never_shares_a_call():
    assert Step(batched=True, route=Route(single=True)).together(3) == 1
    assert Step(batched=True).together(3) == 3


def test_it_equals_fgsm_through_the_view():
    batch, _ = make_batch("binary", n=3)
    wanted = FGSM(loss=losses.bce)(make_model(), batch, budget=BUDGET, generators=make_generators(3))
    assert torch.equal(run(Step(), batch), wanted)


def test_randomness_is_the_images_own_and_leaves_no_trace():
    batch, _ = make_batch("binary", n=3)
    attack = Step(noise=1.0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, again, other = (run(attack, batch, seed=seed) for seed in (0, 0, 7))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    reversed_ = replace(batch, x=batch.x.flip(0), y=batch.y.flip(0), valid=batch.valid.flip(0))
    generators = make_generators(3)[::-1]
    turned = attack(make_model(), reversed_, budget=BUDGET, generators=generators)
    assert torch.equal(turned.flip(0), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


def test_randomness_and_flags_come_back_after_an_error():
    class Broken(Step):
        def attack(self, target, batch, budget):
            torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
            raise RuntimeError("broken")

    batch, _ = make_batch("binary")
    with torch.random.fork_rng():
        model = nn.Conv2d(2, 1, 1)
    states = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pytest.raises(RuntimeError, match="broken"):
        Broken()(model, batch, budget=BUDGET, generators=make_generators(3))
    assert (np.random.get_state()[1] == states[0]).all()  # noqa: NPY002
    assert random.getstate() == states[1]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_parameters_are_frozen_meanwhile_and_as_before_afterwards():
    class Looks(Step):
        def attack(self, target, batch, budget):
            flags.append([p.requires_grad for p in model.parameters()])
            return super().attack(target, batch, budget)

    batch, _ = make_batch("binary", n=1)
    flags: list[list[bool]] = []
    with torch.random.fork_rng():
        model = nn.Conv2d(2, 1, 1)
    model.bias.requires_grad_(False)
    Looks()(model, batch, budget=BUDGET, generators=make_generators(1))
    assert flags == [[False, False]]
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert model.weight.grad is None


def test_no_budget_is_no_attack():
    batch, _ = make_batch("binary")
    attack = Step()
    assert torch.equal(run(attack, batch, Budget("linf", 0.0)), batch.x)
    assert attack.seen == []


@pytest.mark.parametrize("bounds", [Bounds(-1000.0, 1000.0), Bounds(-1.0, 3.0)])
def test_other_bounds_reach_a_unit_toolkit_as_zero_to_one(bounds):
    batch, _ = make_batch("binary")
    width = bounds.upper - bounds.lower
    batch = replace(batch, x=batch.x * width + bounds.lower, bounds=bounds)
    budget = Budget("linf", 0.05 * width)
    attack = UnitStep()
    found = run(attack, batch, budget)
    seen, given, _ = attack.seen[0]
    assert given.eps == pytest.approx(0.05)
    assert seen.bounds == Bounds()
    assert 0 <= seen.x.amin() <= seen.x.amax() <= 1
    wanted = FGSM(loss=losses.bce)(make_model(), batch, budget=budget, generators=make_generators(3))
    assert torch.allclose(found, wanted, atol=1e-6 * width, rtol=0)
    assert (distance(found, batch.x, "linf") <= budget.eps * (1 + 1e-6)).all()
    assert found.amin() >= bounds.lower
    assert found.amax() <= bounds.upper


def test_pixels_that_do_not_move_keep_their_bits_in_other_bounds():
    class Still(UnitStep):
        def attack(self, target, batch, budget):
            return batch.x

    batch, _ = make_batch("binary")
    batch = replace(batch, x=batch.x * 3000 - 1000.3, bounds=Bounds(-1000.3, 1999.7))
    assert torch.equal(run(Still(), batch, Budget("linf", 5.0)), batch.x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_knows_no_radius_is_projected(norm):
    class Far(Step):
        def attack(self, target, batch, budget):
            return 1 - batch.x

    batch, _ = make_batch("binary")
    attack = Far(route=Route(eps=None, norms=("linf", "l2")))
    found = run(attack, batch, Budget(norm, 0.1))
    assert distance(found, batch.x, norm).tolist() == pytest.approx([0.1] * 3, rel=1e-5)


def test_a_norm_it_does_not_know_is_told():
    batch, _ = make_batch("binary")
    with pytest.raises(IncompatibleError, match=r"toy\.Step: expected a supported norm, got 'l2'\. Use linf\."):
        run(Step(), batch, Budget("l2", 1.0))


def test_axes_it_does_not_know_are_told():
    batch, _ = make_batch("binary", space=(4, 3, 2))
    with pytest.raises(IncompatibleError, match="expected images with 2 spatial axes, got 3"):
        run(Step(route=Route(dims=(2,))), batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.5, "rise": 0.1}, "`threshold` or `rise`, got both"),
        ({"threshold": "high"}, "a number as 'threshold'"),
        ({"rise": -0.1}, "a number as 'rise'"),
        ({"rise": True}, "a number as 'rise'"),
    ],
)
def test_thresholds_make_sense(settings, message):
    with pytest.raises(SpecError, match=message):
        Step(route=Route(view="margin"), settings=settings)


def test_a_threshold_needs_a_class_that_knows_success():
    with pytest.raises(SpecError, match="does not support 'rise'"):
        Step(settings={"rise": 0.1})


def test_a_missing_loss_is_told():
    with pytest.raises(SpecError, match=r"expected a loss, got None\. Add `losses"):
        Step(loss=None)
    Step(loss=None, route=Route(view="none"))


def test_a_class_that_cannot_says_why():
    with pytest.raises(IncompatibleError, match=r"toy\.Step: cannot attack a segmenter: it has no teeth\."):
        Step(route=Route(reason="it has no teeth"))


def test_success_is_judged_by_the_recorded_threshold():
    batch, _ = make_batch("binary")
    model = make_model()
    clean = model(batch.x)
    worse = clean - 4 * (batch.y.float() * 2 - 1)
    value = losses.bce(clean, batch.y, batch.valid, batch.task)
    attack = Step(route=Route(view="margin"))
    assert attack.reached(worse, clean, batch).tolist() == [True] * 3
    assert attack.reached(clean, clean, batch).tolist() == [False] * 3
    fixed = replace(attack, settings={"threshold": value[1].item()})
    assert fixed.reached(clean, clean, batch).tolist() == (value > value[1]).tolist()
    assert Step().reached(worse, clean, batch) is None
    run(attack, batch)
    view = attack.seen[0][2]
    assert view(batch.x[:1])[0].argmax() == 0
    margin = view(batch.x[:1])[0].diff().item()
    assert margin == pytest.approx(-1, rel=1e-4)


def test_shares_of_the_radius_are_worked_out():
    attack = Step(route=Route(settings={"alpha": "0.25*eps", "steps": 3}), settings={"beta": " 1/4 * eps"})
    assert attack.parameters(BUDGET) == {"alpha": 0.025, "steps": 3, "beta": 0.025, "eps": 0.1}
    assert replace(attack, settings={"alpha": 0.5}).parameters(BUDGET)["alpha"] == 0.5
    assert replace(attack, settings={"alpha": "1e-2*eps"}).parameters(BUDGET)["alpha"] == pytest.approx(0.001)
    with pytest.raises(SpecError, match="a share of the radius: expected no division by 0, got '1/0\\*eps'"):
        replace(attack, settings={"alpha": "1/0*eps"}).parameters(BUDGET)
    with pytest.raises(SpecError, match="is set by the key `eps`"):
        replace(attack, settings={"eps": 0.5}).parameters(BUDGET)


def test_claims_follow_the_route():
    traits = Step(route=Route(view="margin", norms=("l2",), eps=None, objective="success-gated", dims=(2,))).traits
    assert (traits.norms, traits.dims, traits.minimal_norm, traits.control) == (("l2",), (2,), True, False)
    assert not traits.gradient
    assert Step().traits.gradient
    assert Step(loss=None, route=Route(view="none", objective="none")).traits.control


class Toy:
    def __init__(self, model, eps=0.1, steps=10, start=True, kind="a", size=(2, 3), *, extra=None):
        pass


def check(**settings):
    check_settings("attack toy.Toy", Toy, settings, fixed={"model": "given by the harness", "eps": "the key `eps`"})


def test_settings_are_held_to_the_signature():
    check(steps=3, start=False, kind="b", size=[1, 2], extra={"any": "thing"}, rise=0.2)
    check(steps="2*eps")


def test_settings_of_ours_are_offered_only_where_they_work():
    with pytest.raises(SpecError, match=r"Known: extra, kind, size, start, steps\."):
        check_settings("attack toy.Toy", Toy, {"stops": 1}, fixed={"model": "", "eps": ""}, gated=False)
    with pytest.raises(SpecError, match="rise, size, start, steps, threshold"):
        check_settings("attack toy.Toy", Toy, {"stops": 1}, fixed={"model": "", "eps": ""})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, r"attack toy\.Toy: unknown setting 'step'\. Did you mean 'steps'\?"),
        ({"model": 3}, "the setting 'model' is given by the harness. Remove it"),
        ({"eps": 0.2}, "the setting 'eps' is the key `eps`. Remove it"),
        ({"steps": "many"}, "setting 'steps': expected a number"),
        ({"steps": True}, "setting 'steps': expected a number"),
        ({"start": 1}, "setting 'start': expected true or false, got 1"),
        ({"kind": 4}, "setting 'kind': expected a text such as 'a'"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(SpecError, match=message) as caught:
        check(**settings)
    assert "\n" not in str(caught.value)


def test_unknown_and_new_classes_are_told_apart():
    with pytest.raises(PluginError, match=r"unknown attack 'toy\.Stp'\. Did you mean 'toy\.Step'\?"):
        find_route("toy", "Stp", {"Step": Route()}, ["Step"])
    with pytest.raises(PluginError, match="not in the support table yet"):
        find_route("toy", "Leap", {"Step": Route()}, ["Step", "Leap"])


def test_without_a_table_images_do_not_share_a_call():
    assert not is_batched("nowhere", "Step")
    assert not is_batched("torchattacks", "Nothing")
