from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import KINDS, make_batch, make_generators, seeds, spaces
from torch import nn

from advseg_bench import geometry, losses
from advseg_bench.attacks.gradient import FGSM, OneGradientAttack, input_gradients
from advseg_bench.attacks.noise import RandomSign, UniformNoise
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Bounds, Budget

few = settings(max_examples=40, deadline=None)
EPS = 4 / 255


class TwoLayers(nn.Module):
    """conv 3x3 -> ReLU -> conv 1x1, small enough to differentiate by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(2, 5, 3, padding=1)
            self.second = nn.Conv2d(5, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def attack(fgsm: OneGradientAttack, model, batch, eps=EPS, norm="linf"):
    return fgsm(model, batch, budget=Budget(norm, eps), generators=make_generators(len(batch.x)))


def test_equals_the_formula_bit_for_bit_with_the_gradient_taken_by_hand():
    batch, _ = make_batch("multilabel", space=(9, 8))
    model = TwoLayers(3)
    hidden = model.first(batch.x)
    logits = model.second(torch.relu(hidden)).detach()
    by_logits = (logits.sigmoid() - batch.y.float()) / (3 * 9 * 8)
    by_hidden = torch.einsum("nkhw,kc->nchw", by_logits, model.second.weight.detach()[:, :, 0, 0]) * (hidden > 0)
    by_x = nn.functional.conv_transpose2d(by_hidden, model.first.weight.detach(), padding=1)
    expected = (batch.x + EPS * by_x.sign()).clamp(0, 1).detach()
    result = attack(FGSM(loss=losses.bce), model, batch)
    assert torch.equal(result, expected)
    assert not torch.equal(result, batch.x)


@few
@given(seeds, spaces, st.floats(0, 0.4))
def test_reaches_the_exact_optimum_of_a_linear_segmenter(seed, space, eps):
    batch, _ = make_batch("binary", seed, space=space)
    model = LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    adversarial = attack(FGSM(loss=losses.bce), model, batch, eps)
    side = batch.y.double() * 2 - 1
    margin = side * model(adversarial.double())
    torch.testing.assert_close(margin, model.worst_margin(batch, eps), rtol=0, atol=2e-6)


def test_the_optimum_of_the_linear_segmenter_is_one():
    batch, _ = make_batch("binary", space=(6, 6))
    model = LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    worst = model.worst_margin(batch, 0.1)
    side = batch.y.double() * 2 - 1
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        noise = torch.rand(batch.x.shape, generator=generator, dtype=torch.float64) * 0.2 - 0.1
        assert (side * model((batch.x.double() + noise).clamp(0, 1)) >= worst - 1e-12).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_stays_inside_budget_and_bounds_and_raises_the_loss(kind, norm):
    batch, logits = make_batch(kind, space=(12, 10))
    model = TwoLayers(logits.shape[1])
    for loss in (losses.ce if kind == "multiclass" else losses.bce, losses.dice, losses.dice_focal):
        eps = EPS if norm == "linf" else 0.3
        result = attack(FGSM(loss=loss), model, batch, eps, norm)
        assert (geometry.distance(result, batch.x, norm) <= eps + 1e-6).all()
        assert result.amin() >= 0
        assert result.amax() <= 1
        before, after = (loss(model(x), batch.y, batch.valid, batch.task) for x in (batch.x, result))
        assert (after > before).all()


def test_an_image_does_not_depend_on_its_neighbours():
    batch, _ = make_batch("multilabel", n=4)
    model = TwoLayers(3)
    together = attack(FGSM(loss=losses.dice), model, batch)
    for i in range(4):
        one = replace(batch, x=batch.x[i : i + 1], y=batch.y[i : i + 1], valid=batch.valid[i : i + 1])
        assert (attack(FGSM(loss=losses.dice), model, one)[0] == together[i]).all()


def test_a_value_without_gradient_does_not_move():
    batch, _ = make_batch("binary")
    model = LinearSegmenter(torch.tensor([1.0, 1e-3]), 0.0)
    result = attack(FGSM(loss=losses.bce), lambda x: model(x[:, :2] * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)), batch)
    assert torch.equal(result[:, 1], batch.x[:, 1])
    assert (result[:, 0] != batch.x[:, 0]).all()


def test_void_pixels_are_not_attacked():
    batch, _ = make_batch("binary", void=0.5)
    result = attack(FGSM(loss=losses.bce), LinearSegmenter(torch.tensor([1.0, -1.0]), 0.0), batch)
    moved = (result != batch.x).any(1)
    assert torch.equal(moved, batch.valid)


def test_targeted_is_the_opposite_step_and_predicted_labels_use_no_truth():
    batch, _ = make_batch("multilabel")
    batch = replace(batch, bounds=Bounds(-10, 10))
    model = TwoLayers(3)
    away = attack(FGSM(loss=losses.bce), model, batch) - batch.x
    towards = attack(FGSM(loss=losses.bce, targeted=True), model, batch) - batch.x
    torch.testing.assert_close(away, -towards)
    predicted = attack(FGSM(loss=losses.bce, label="predicted"), model, batch)
    assert torch.equal(predicted, attack(FGSM(loss=losses.bce, label="predicted"), model, replace(batch, y=~batch.y)))
    empty = attack(FGSM(loss=losses.bce, label="empty", targeted=True), model, batch)
    assert (model(empty).mean() < model(batch.x).mean()).item()


@pytest.mark.parametrize("eps", [0.0, EPS])
def test_leaves_model_and_batch_alone(eps):
    batch, _ = make_batch("multilabel")
    model = TwoLayers(3)
    x, weights = batch.x.clone(), {name: p.clone() for name, p in model.state_dict().items()}
    result = attack(FGSM(loss=losses.bce), model, batch, eps)
    assert torch.equal(batch.x, x)
    assert not batch.x.requires_grad
    assert not result.requires_grad
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    if eps == 0:
        assert torch.equal(result, x)


def test_shared_gradients_equal_separate_ones_bit_for_bit():
    batch, _ = make_batch("multilabel", space=(16, 16))
    model = TwoLayers(3)
    attacks = [FGSM(loss=loss) for loss in (losses.bce, losses.dice, losses.dice_focal)]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    objectives = [lambda out, a=a: a.objective(out, batch) for a in attacks]
    logits, gradients = input_gradients(model, batch.x, objectives)
    assert len(calls) == 1
    assert torch.equal(logits, model(batch.x).detach())
    for fgsm, gradient in zip(attacks, gradients, strict=True):
        for eps in (1 / 255, EPS):
            assert torch.equal(fgsm.step(batch, gradient, Budget("linf", eps)), attack(fgsm, model, batch, eps))


def test_an_objective_without_the_image_in_it_gives_a_zero_gradient():
    batch, _ = make_batch("binary")
    model = LinearSegmenter(torch.tensor([1.0, 1.0]), 0.0)
    _, (gradient,) = input_gradients(model, batch.x, [lambda logits: (logits * 0).sum((1, 2, 3))])
    assert gradient.shape == batch.x.shape
    assert not gradient.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("control", [RandomSign(), UniformNoise()])
def test_controls_use_the_budget_and_belong_to_the_image(control, norm):
    batch, _ = make_batch("binary", space=(20, 20))
    batch = replace(batch, bounds=Bounds(-1, 2))
    budget = Budget(norm, 0.05)
    result = control(None, batch, budget=budget, generators=make_generators(3))
    size = geometry.distance(result, batch.x, norm)
    assert (size <= 0.05 + 1e-6).all()
    assert (size > 0.0499).all()
    again = control(None, replace(batch, x=batch.x[2:]), budget=budget, generators=make_generators(3)[2:])
    assert torch.equal(again[0], result[2])
