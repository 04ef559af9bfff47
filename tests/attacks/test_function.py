"""A plain function as an attack: what it is given, what it may not ask for, and that it travels to workers."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from strategies import make_batch, make_generators

import advseg_bench as ab
from advseg_bench import losses
from advseg_bench.attacks.function import GIVEN, FunctionAttack
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.batches import select_images
from advseg_bench.errors import IncompatibleError, PluginError, SpecError
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Budget, Traits

BUDGET = Budget("linf", 0.1)


@ab.attack
def one_step(model, x, y, eps, loss, valid, task, bounds, scale=1.0):
    """The shortest FGSM: it writes to what it was given, and calls backward."""
    x.requires_grad_()
    loss(model(x), y, valid, task).sum().backward()
    return (x + scale * eps * x.grad.sign()).clamp(bounds.lower, bounds.upper)


@ab.attack(per_image=True)
def coin_toss(x, eps, generator):
    return x + eps * (torch.randint(2, x.shape, generator=generator) * 2 - 1)


def undecorated(model, x, y, eps, shift=1):
    return x + shift * eps


wrapped = ab.attack(norm=("linf", "l2"), gradient=False)(lambda model, x, y, eps, norm: x + eps * (norm == "l2"))
renamed = ab.attack(undecorated)


def linear() -> LinearSegmenter:
    return LinearSegmenter(torch.tensor([1.0, -2.0]), 0.3)


def run(attack, n=3, budget=BUDGET, model=None):
    batch, _ = make_batch("binary", n=n, void=0.2)
    return batch, attack(model or linear(), batch, budget=budget, generators=make_generators(n))


def test_the_shortest_fgsm_is_the_reference_bit_for_bit_and_leaves_nothing_behind():
    batch, _ = make_batch("binary", void=0.2)
    x, y = batch.x.clone(), batch.y.clone()
    with torch.random.fork_rng():
        model = torch.nn.Conv2d(2, 1, 3, padding=1)
    with torch.no_grad():
        found = one_step.configure(losses.bce)(model, batch, budget=BUDGET, generators=make_generators(3))
    reference = FGSM(loss=losses.bce)(model, batch, budget=BUDGET, generators=make_generators(3))
    assert torch.equal(found, reference)
    assert not found.requires_grad
    assert torch.equal(batch.x, x)
    assert not batch.x.requires_grad
    assert torch.equal(batch.y, y)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_settings_become_keywords():
    _, half = run(one_step.configure(losses.dice, scale=0.5))
    _, whole = run(FGSM(loss=losses.dice), budget=Budget("linf", 0.05))
    assert torch.equal(half, whole)
    attack = one_step.configure(losses.dice, scale=0.5).configure(scale=0.25)
    assert attack.settings == {"scale": 0.25}
    assert attack.loss is losses.dice
    assert one_step.settings == {}


def test_everything_that_can_be_asked_for_is_given():
    seen = {}

    def ask(model, x, y, eps, norm, valid, task, bounds, loss, generators, generator):
        seen.update(locals())
        return x

    attack = ab.attack(per_image=True)(ask).configure(losses.bce)
    generators = make_generators(3)
    batch, _ = make_batch("binary")
    model = linear()
    attack(model, batch, budget=BUDGET, generators=generators)
    assert set(GIVEN) == seen.keys() - {"seen"}
    last = {"x": batch.x[2:], "y": batch.y[2:], "valid": batch.valid[2:]}
    assert all(torch.equal(seen[key], value) for key, value in last.items())
    assert (seen["eps"], seen["norm"], seen["task"], seen["bounds"]) == (0.1, "linf", batch.task, batch.bounds)
    assert (seen["model"], seen["loss"], seen["generator"]) == (model, losses.bce, generators[2])


def test_an_image_does_not_depend_on_its_neighbours():
    batch, together = run(coin_toss)
    generators = make_generators(3)
    for i in range(3):
        alone = coin_toss(linear(), select_images(batch, [i]), budget=BUDGET, generators=[generators[i]])
        assert torch.equal(alone[0], together[i])


def test_an_optional_loss_may_be_left_out():
    def climb(model, x, y, eps, loss=None):
        return x + eps * (loss is not None)

    attack = ab.attack(climb)
    assert not attack.needs_loss
    batch, x_adv = run(attack)
    assert torch.equal(x_adv, batch.x)
    assert torch.equal(run(attack.configure(losses.bce))[1], batch.x + 0.1)


def test_claims_follow_from_the_parameters_and_the_options():
    assert one_step.traits == Traits(norms=("linf",), random=False)
    assert coin_toss.traits == Traits(norms=("linf",), random=True, control=True)
    assert wrapped.traits == Traits(norms=("linf", "l2"), random=False, gradient=False)
    assert (one_step.name, one_step.__name__) == ("one_step", "one_step")
    assert "shortest FGSM" in one_step.__doc__
    assert one_step.function.__name__ == "one_step"


def test_a_norm_is_known_or_refused_in_one_line():
    with pytest.raises(IncompatibleError, match=r"^attack one_step: expected a budget in linf, got 'l2'. Change it.$"):
        run(one_step.configure(losses.bce), budget=Budget("l2", 1.0))
    batch, x_adv = run(wrapped, budget=Budget("l2", 0.5))
    assert torch.equal(x_adv, batch.x + 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: one_step.configure(losses.bce, skale=2),
            "attack one_step: unknown setting 'skale'. Did you mean",
        ),
        (lambda: one_step.configure(losses.bce, eps=2), "attack one_step: unknown setting 'eps'"),
        (lambda: one_step.configure(), "attack one_step: needs a loss"),
        (lambda: run(one_step), "attack one_step: needs a loss"),
        (lambda: coin_toss.configure("bce"), "attack coin_toss: expected no loss, got 'bce'"),
        (lambda: coin_toss.configure(steps=1), r"attack coin_toss: unknown setting 'steps'. Known: \(none\)"),
    ],
)
def test_wrong_settings_are_one_line(call, message):
    with pytest.raises(SpecError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda model, x, y, epsilon: x, {}, "unknown parameter 'epsilon'. Did you mean 'eps'.* needs a default"),
        (lambda images, labels: images, {}, "unknown parameter 'images'"),
        (lambda model, x, y: x, {}, "expected a parameter 'eps', got"),
        (lambda model, y, eps: y, {}, "expected a parameter 'x', got"),
        (lambda model, x, y, eps, **settings: x, {}, "expected parameters with names, got '\\*\\*settings'"),
        (lambda *args: args[1], {}, "expected parameters with names, got '\\*args'"),
        (lambda model, x, y, eps, /: x, {}, "expected parameters with names, got 'model'"),
        (lambda x, eps, generator: x, {}, r"expected `generators`, .* got `generator`"),
        (lambda x, eps: x, {"norm": "l1"}, "unknown norm 'l1'. Did you mean 'l2'"),
        (
            lambda x, eps: x,
            {"norm": ("l2", "linf")},
            r"expected one norm, .*got \('l2', 'linf'\)",
        ),
        (lambda x, eps: x, {"gradients": False}, "unknown option 'gradients'. Did you mean 'gradient'"),
        (lambda x, eps: x, {"norms": ("l2",)}, "unknown option 'norms'. Did you mean 'norm'"),
        (FGSM, {}, "expected a function f\\(model, x, y, eps\\), got 'ABCMeta'"),
    ],
)
def test_a_function_that_nobody_could_call_is_refused_where_it_is_decorated(function, options, message):
    with pytest.raises(PluginError, match=f"^attack .*: {message}") as error:
        ab.attack(**options)(function)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda model, x, y, eps: None, "'NoneType'"),
        (lambda model, x, y, eps: x[:1], r"\(1, 2, 7, 5\)"),
        (lambda model, x, y, eps: x.numpy(), "'ndarray'"),
    ],
)
def test_what_is_returned_must_be_images(function, found):
    with pytest.raises(PluginError, match=rf"expected images of shape \(3, 2, 7, 5\), got {found}. Return the advers"):
        run(ab.attack(function))


def test_parameters_are_free_again_after_an_error():
    def fail(model, x, y, eps):
        assert not any(p.requires_grad for p in model.parameters())
        raise RuntimeError("boom")

    with torch.random.fork_rng():
        model = torch.nn.Conv2d(2, 1, 3)
    model.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="boom"):
        run(ab.attack(fail), model=model)
    assert [p.requires_grad for p in model.parameters()] == [True, False]


@pytest.mark.parametrize("attack", [one_step.configure(losses.bce, scale=0.5), coin_toss, renamed.configure(shift=-1)])
def test_an_attack_survives_pickling(attack):
    again = pickle.loads(pickle.dumps(attack))
    assert isinstance(again, FunctionAttack)
    assert again == attack
    assert torch.equal(run(again)[1], run(attack)[1])


def test_a_function_without_a_place_of_its_own_is_no_traveller():
    with pytest.raises(pickle.PicklingError, match="attack <lambda>: expected a module-level function, got <lambda>"):
        pickle.dumps(wrapped)


@pytest.mark.slow
def test_an_attack_runs_in_a_worker_that_was_spawned():
    attack = one_step.configure(losses.bce)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        _, x_adv = pool.submit(run, attack).result()
    assert torch.equal(x_adv, run(attack)[1])
