"""What the study's released code computes, beside what its text says: argument order, step form, tied channels."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceFocalLoss
from strategies import make_batch, make_generators, seeds
from torch import nn

from advseg_bench import geometry, losses
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.attacks.noise import ShuffledSign
from advseg_bench.attacks.released import ReleasedFGSM
from advseg_bench.errors import IncompatibleError
from advseg_bench.registry import catalogue
from advseg_bench.testing import LinearSegmenter
from advseg_bench.types import Bounds, Budget

few = settings(max_examples=60, deadline=None)
EPS = 4 / 255


def make_network(channels: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, channels, 1))


def attack(one, model, batch, eps=EPS, norm="linf", seed=0):
    return one(model, batch, budget=Budget(norm, eps), generators=make_generators(len(batch.x), seed))


def transcribe(model, image, mask, criterion, eps):
    """The released formula for one image: mask and output swapped in the loss, and the image blended into the signs."""
    x = image.clone().requires_grad_(True)
    criterion(mask, model(x)).backward()
    return torch.clamp((1 - eps) * image + eps * x.grad.sign(), 0, 1)


@pytest.mark.parametrize("eps", [0.007, 0.009, 16 / 255])
@pytest.mark.parametrize(
    ("loss", "criterion"),
    [(losses.bce, nn.BCEWithLogitsLoss()), (losses.dice_focal, DiceFocalLoss(sigmoid=True))],
    ids=["bce", "dice_focal"],
)
def test_the_released_arm_equals_a_transcription_of_the_released_formula(loss, criterion, eps):
    batch, _ = make_batch("multilabel", n=4, space=(12, 9))
    model = make_network()
    ours = attack(ReleasedFGSM(loss=loss, order="released", form="blend_released"), model, batch, eps)
    for i in range(4):
        theirs = transcribe(model, batch.x[i : i + 1], batch.y[i : i + 1].float(), criterion, eps)
        assert (ours[i : i + 1] - theirs).abs().max() <= 1e-6
    assert not torch.equal(ours, attack(ReleasedFGSM(loss=loss, form="blend_released"), model, batch, eps)), (
        "order has no say"
    )
    assert not torch.equal(ours, attack(ReleasedFGSM(loss=loss, order="released"), model, batch, eps)), (
        "form has no say"
    )


def test_the_logit_gradient_of_swapped_bce_is_minus_the_mask_over_n():
    batch, logits = make_batch("multilabel", space=(6, 5))
    logits.requires_grad_()
    value = ReleasedFGSM(loss=losses.bce, order="released").objective(logits, batch)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient, -batch.y.float() / batch.y[0].numel(), rtol=1e-6, atol=0)
    assert (gradient[~batch.y] == 0).all()


def test_swapped_dice_focal_points_mostly_the_wrong_way():
    """Measured for the study: 26 to 28 % of the logits' signs agree with the true direction, against 100 %."""
    batch, logits = make_batch("multilabel", n=8, space=(40, 40))
    away = torch.where(batch.y, -1.0, 1.0)
    shares = {}
    for order in ("defined", "released"):
        logits.requires_grad_()
        value = ReleasedFGSM(loss=losses.dice_focal, order=order).objective(logits, batch)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        shares[order] = float((gradient.sign() == away).double().mean())
    assert shares["defined"] > 0.99
    assert shares["released"] < 0.5


def test_order_released_needs_masks_of_the_logits_shape():
    batch, _ = make_batch("multiclass")
    with pytest.raises(IncompatibleError, match="expected a binary or multilabel task for order 'released'"):
        attack(ReleasedFGSM(loss=losses.dice, order="released"), make_network(4), batch)


@few
@given(seeds, st.floats(1 / 255, 0.5), st.sampled_from(["plain", "dark", "bright", "black"]))
def test_the_scaled_blend_has_the_largest_change_of_the_additive_step(seed, eps, tone):
    batch, _ = make_batch("multilabel", seed, space=(5, 4))
    x = {"plain": batch.x, "dark": batch.x * 0.02, "bright": 1 - batch.x * 0.02, "black": torch.zeros_like(batch.x)}
    batch = replace(batch, x=x[tone])
    model = make_network()
    additive, blend = (
        geometry.distance(attack(ReleasedFGSM(loss=losses.bce, form=form), model, batch, eps), batch.x, "linf")
        for form in ("additive", "blend")
    )
    torch.testing.assert_close(blend, additive, rtol=0, atol=1e-7)
    assert (blend <= eps + 1e-6).all()


def test_the_scaled_blend_is_the_released_one_at_another_eps():
    """It moves along the same path: only the length differs, image by image."""
    batch, _ = make_batch("multilabel", space=(9, 8))
    model = make_network()
    scaled = attack(ReleasedFGSM(loss=losses.bce, form="blend"), model, batch)
    released = attack(ReleasedFGSM(loss=losses.bce, form="blend_released"), model, batch, 0.01)
    inner = (scaled[0] > 0) & (released[0] > 0) & ((released - batch.x)[0].abs() > 1e-3)
    ratio = ((scaled - batch.x) / (released - batch.x))[0][inner]
    assert ratio.std() / ratio.mean() < 1e-3
    assert ratio.mean() < EPS / 0.01, "with bright pixels the blend at eps goes further than eps"


def test_the_released_blend_moves_by_up_to_twice_eps_and_says_so():
    batch, _ = make_batch("multilabel", n=4, space=(24, 24))
    blend = ReleasedFGSM(loss=losses.bce, form="blend_released")
    moved = geometry.distance(attack(blend, make_network(), batch), batch.x, "linf")
    assert (moved > 1.9 * EPS).all()
    assert (moved <= blend.traits.max_budget_ratio * EPS + 1e-6).all()
    assert ReleasedFGSM(loss=losses.bce, form="blend").traits.max_budget_ratio == 1


@pytest.mark.parametrize("form", ["blend", "blend_released"])
def test_a_blend_needs_linf_and_images_from_zero_to_one(form):
    batch, _ = make_batch("multilabel")
    with pytest.raises(IncompatibleError, match=f"expected an L_inf budget .* for form '{form}', got l2"):
        attack(ReleasedFGSM(loss=losses.bce, form=form), make_network(), batch, norm="l2")
    with pytest.raises(IncompatibleError, match=r"got linf and \[-1, 1\]"):
        attack(ReleasedFGSM(loss=losses.bce, form=form), make_network(), replace(batch, bounds=Bounds(-1, 1)))


def test_tied_channels_are_the_steepest_step_of_a_grey_image():
    """The gradient by the one grey image, taken by autograd, against the sum of the channels' gradients."""
    batch, _ = make_batch("multilabel", space=(9, 8))
    grey = batch.x[:, :1]
    batch = replace(batch, x=grey.expand(-1, 2, -1, -1).contiguous())
    model = make_network()
    leaf = grey.clone().requires_grad_()
    losses.bce(model(leaf.expand(-1, 2, -1, -1)), batch.y, batch.valid, batch.task).sum().backward()
    expected = (grey + EPS * leaf.grad.sign()).clamp(0, 1).expand(-1, 2, -1, -1)
    tied = attack(ReleasedFGSM(loss=losses.bce, channels="tied"), model, batch)
    assert (tied == expected).double().mean() > 0.99, "but for signs of sums that round to another side of 0"
    assert torch.equal(tied[:, 0], tied[:, 1])
    free = attack(FGSM(loss=losses.bce), model, batch)
    assert not torch.equal(free[:, 0], free[:, 1])


def test_form_and_channels_share_a_gradient_and_nothing_else_does():
    one = ReleasedFGSM(loss=losses.bce)
    same = [replace(one, form="blend"), replace(one, channels="tied"), ShuffledSign(loss=losses.bce)]
    same += [FGSM(loss=losses.bce)]
    other = [
        replace(one, loss=losses.dice),
        replace(one, label="predicted"),
        replace(one, order="released"),
        replace(one, targeted=True),
    ]
    assert {each.gradient_key() for each in same} == {one.gradient_key()}
    assert len({each.gradient_key() for each in [one, *other]}) == 5


class Reversed(FGSM):
    """An attack of a user that follows another objective."""

    def objective(self, logits, batch):
        return -FGSM.objective(self, logits, batch)


def test_a_subclass_with_an_objective_of_its_own_never_shares_the_gradient_of_fgsm():
    one, other = Reversed(loss=losses.bce), Reversed(loss=losses.bce)
    assert len({one.gradient_key(), other.gradient_key(), FGSM(loss=losses.bce).gradient_key()}) == 3


def test_the_catalogue_tells_the_defaults_of_fgsm():
    given = {field.name: field.default for field in fields(ReleasedFGSM) if field.name != "loss"}
    assert given == catalogue.ATTACKS["fgsm"].defaults
    assert set(catalogue.ATTACKS["fgsm"].step_settings) < set(given)


@pytest.mark.parametrize("setting", ["label", "order", "form", "channels"])
def test_a_setting_that_does_not_exist_is_refused(setting):
    with pytest.raises(ValueError, match=f"fgsm: expected {setting} to be one of '.*', got 'guess'"):
        ReleasedFGSM(loss=losses.bce, **{setting: "guess"})


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_shuffled_signs_are_fgsms_at_other_pixels(norm):
    batch, _ = make_batch("multilabel", space=(16, 15))
    batch = replace(batch, bounds=Bounds(-9, 9))
    model = make_network()
    both = (ShuffledSign(loss=losses.bce), FGSM(loss=losses.bce))
    ours, fgsm = (attack(one, model, batch, 0.1, norm) - batch.x for one in both)
    pixels, others = ((d[:, 0] + np.pi * d[:, 1]).flatten(1).sort(dim=1).values for d in (ours, fgsm))
    torch.testing.assert_close(pixels, others, rtol=0, atol=1e-5)
    assert not torch.equal(ours, fgsm)
    alone = replace(batch, x=batch.x[2:], y=batch.y[2:], valid=batch.valid[2:])
    again = ShuffledSign(loss=losses.bce)(model, alone, budget=Budget(norm, 0.1), generators=make_generators(3)[2:])
    torch.testing.assert_close(again[0] - batch.x[2], ours[2], rtol=0, atol=1e-6)


def test_shuffled_signs_do_less_harm_than_fgsm():
    batch, _ = make_batch("binary", space=(20, 20))
    model = LinearSegmenter(torch.tensor([2.0, -3.0]), 0.4)
    lost = {}
    for name, one in (("fgsm", FGSM(loss=losses.bce)), ("shuffled", ShuffledSign(loss=losses.bce))):
        value = losses.bce(model(attack(one, model, batch)), batch.y, batch.valid, batch.task)
        lost[name] = float((value - losses.bce(model(batch.x), batch.y, batch.valid, batch.task)).mean())
    assert lost["fgsm"] > 5 * abs(lost["shuffled"])


def test_a_loss_that_cannot_be_hashed_shares_its_gradient_all_the_same():
    class Listed:
        __hash__ = None

        def __call__(self, logits, y, valid, task):
            return losses.bce(logits, y, valid, task)

    loss = Listed()
    keys = {ReleasedFGSM(loss=loss, form=form).gradient_key() for form in ("additive", "blend")}
    assert len(keys | {ShuffledSign(loss=loss).gradient_key()}) == 1
    assert FGSM(loss=Listed()).gradient_key() not in keys
