"""Losses against other people's: MONAI's, PyTorch's and segmentation-models-pytorch's, image by image."""

from __future__ import annotations

import monai.losses as of_monai
import pytest
import torch
from segmentation_models_pytorch.losses import JaccardLoss, LovaszLoss
from strategies import make_batch
from test_loss_formulas import FORMULAS
from torch import nn

from advseg_bench import losses
from advseg_bench.registry import catalogue

SIGMOID = ("binary", "multilabel")
SPACES = [(16, 12), (4, 5, 6)]
WEIGHTS = {"alpha": 0.3, "beta": 0.7}


def focal_tversky(**given):
    index = of_monai.TverskyLoss(**WEIGHTS, reduction="none", **given)
    return lambda u, t: (index(u, t) ** 0.75).mean()


def total(*parts):
    return lambda u, t: sum(part(u, t) for part in parts)


def hinge_of_channels(u, t):
    return torch.stack([LovaszLoss("binary")(u[:, k], t[:, k]) for k in range(u.shape[1])]).mean()


def soft(**given):
    """Losses of one image that take logits and channels of labels; `given` says how probabilities are made."""
    return {
        "dice": of_monai.DiceLoss(**given),
        "jaccard": of_monai.DiceLoss(jaccard=True, **given),
        "tversky": of_monai.TverskyLoss(**WEIGHTS, **given),
        "focal_tversky": focal_tversky(**given),
        "generalized_dice": of_monai.GeneralizedDiceLoss(**given),
        "dice_focal": of_monai.DiceFocalLoss(**given),
    }


OF_SIGMOID = soft(sigmoid=True) | {
    "bce": nn.BCEWithLogitsLoss(),
    "focal": of_monai.FocalLoss(),
    "dice_ce": total(of_monai.DiceLoss(sigmoid=True), nn.BCEWithLogitsLoss()),
    "lovasz": hinge_of_channels,
    "margin": lambda u, t: torch.where(t == 1, -u, u).mean(),
}
OF_SOFTMAX = soft(softmax=True, to_onehot_y=True) | {
    "ce": lambda u, y: nn.CrossEntropyLoss()(u, y[:, 0]),
    "focal": of_monai.FocalLoss(use_softmax=True, to_onehot_y=True),
    "dice_ce": of_monai.DiceCELoss(softmax=True, to_onehot_y=True),
    "lovasz": lambda u, y: LovaszLoss("multiclass", per_image=True)(u, y[:, 0]),
    "margin": lambda u, y: margin_of_pixels(u[0].flatten(1).T, y.flatten()),
}
SWAPPABLE = [name for name, entry in catalogue.LOSSES.items() if entry.swappable]


def margin_of_pixels(scores, labels):
    gaps = [max(float(s) for j, s in enumerate(u) if j != y) - float(u[y]) for u, y in zip(scores, labels, strict=True)]
    return torch.tensor(gaps).mean()


def differentiate(loss, leaf):
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", SIGMOID)
@pytest.mark.parametrize("name", OF_SIGMOID)
def test_sigmoid_losses_equal_the_reference(name, kind, space):
    batch, logits = make_batch(kind, space=space)
    ours = getattr(losses, name)(logits, batch.y, batch.valid, batch.task)
    theirs = [OF_SIGMOID[name](logits[i : i + 1], batch.y[i : i + 1].float()) for i in range(3)]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", OF_SOFTMAX)
def test_softmax_losses_equal_the_reference(name, space):
    batch, logits = make_batch("multiclass", space=space)
    ours = getattr(losses, name)(logits, batch.y, batch.valid, batch.task)
    theirs = [OF_SOFTMAX[name](logits[i : i + 1], batch.y[i : i + 1].unsqueeze(1)) for i in range(3)]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-5, atol=1e-6)


def test_every_shipped_loss_has_a_reference():
    others = {name for name, entry in catalogue.LOSSES.items() if name not in FORMULAS}
    wanted = {(name, kind == "multiclass") for name in others for kind in catalogue.LOSSES[name].kinds}
    assert wanted == {(name, False) for name in OF_SIGMOID} | {(name, True) for name in OF_SOFTMAX}


def test_dice_ce_of_one_channel_equals_monai():
    batch, logits = make_batch("binary", n=1)
    theirs = of_monai.DiceCELoss(sigmoid=True)(logits, batch.y.float())
    torch.testing.assert_close(losses.dice_ce(logits, batch.y, batch.valid, batch.task)[0], theirs)


def test_generalized_dice_weighs_empty_channels_as_monai_does():
    batch, logits = make_batch("multilabel")
    y, leaf = batch.y.clone(), logits.requires_grad_()
    y[0, 1], y[1, :2], y[2] = False, False, False
    reference = OF_SIGMOID["generalized_dice"]
    ours = differentiate(lambda u: losses.generalized_dice(u, y, batch.valid, batch.task), leaf)
    theirs = differentiate(
        lambda u: torch.stack([reference(u[i : i + 1], y[i : i + 1].float()) for i in range(3)]), leaf
    )
    torch.testing.assert_close(ours, theirs)
    assert ours[0][2] == 0


def test_jaccard_equals_that_of_smp():
    batch, logits = make_batch("multilabel")
    reference = JaccardLoss("multilabel", smooth=losses.SMOOTH / 2)
    theirs = [reference(logits[i : i + 1], batch.y[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(losses.jaccard(logits, batch.y, batch.valid, batch.task), torch.stack(theirs))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_lovasz_leaves_out_what_smp_ignores(kind):
    batch, logits = make_batch(kind, void=0.4)
    y = batch.y if kind == "multiclass" else batch.y[:, 0].long()
    y, leaf = torch.where(batch.valid, y, 255), logits.requires_grad_()
    reference = LovaszLoss(kind, per_image=True, ignore_index=255)
    theirs = differentiate(lambda u: torch.stack([reference(u[i : i + 1], y[i : i + 1]) for i in range(3)]), leaf)
    ours = differentiate(lambda u: losses.lovasz(u, batch.y, batch.valid, batch.task), leaf)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_lovasz_of_wrong_pixels_at_the_margin_is_twice_the_jaccard_loss():
    batch, logits = make_batch("multilabel", void=0.3)
    predicted = logits > 0
    value = losses.lovasz(predicted.float() * 2 - 1, batch.y, batch.valid, batch.task)  # errors of 0 and of 2
    seen = batch.valid.unsqueeze(1)
    both = (batch.y & predicted & seen).flatten(2).sum(2)
    either = ((batch.y | predicted) & seen).flatten(2).sum(2)
    torch.testing.assert_close(value, (2 * (1 - both / either)).mean(1))


def test_the_gradient_of_the_margin_is_the_same_however_sure_the_model_is():
    batch, logits = make_batch("binary", void=0.3)
    away = torch.where(batch.y, -1.0, 1.0) * batch.valid.unsqueeze(1)
    expected = away / batch.valid.flatten(1).sum(1).view(-1, 1, 1, 1)
    for scale in (1e-4, 1.0, 1e4):
        leaf = (logits * scale).requires_grad_()
        _, gradient = differentiate(lambda u: losses.margin(u, batch.y, batch.valid, batch.task), leaf)
        torch.testing.assert_close(gradient, expected)


def test_tversky_is_not_dice():
    batch, logits = make_batch("binary")
    given = logits, batch.y, batch.valid, batch.task
    assert (losses.tversky(*given) - losses.dice(*given)).abs().min() > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", SIGMOID)
@pytest.mark.parametrize("name", SWAPPABLE)
def test_swapped_losses_equal_the_reference_called_swapped(name, kind, seed):
    batch, logits = make_batch(kind, seed, space=(16, 12))
    mask, leaf = batch.y.double(), logits.double().requires_grad_()
    reference = OF_SIGMOID[name]
    ours = differentiate(lambda u: getattr(losses, name)(mask, u, batch.valid, batch.task), leaf)
    theirs = differentiate(lambda u: torch.stack([reference(mask[i : i + 1], u[i : i + 1]) for i in range(3)]), leaf)
    torch.testing.assert_close(ours[0], theirs[0].double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-8)


def test_losses_without_a_meaning_when_swapped_are_not_said_to_have_one():
    # A power of a negative number; a weight that MONAI cannot differentiate; decisions about labels that are none.
    assert set(OF_SIGMOID) - set(SWAPPABLE) == {"focal_tversky", "generalized_dice", "lovasz", "margin"}


@pytest.mark.parametrize("kind", SIGMOID)
def test_the_gradient_of_swapped_bce_is_minus_the_mask_over_its_size(kind):
    batch, logits = make_batch(kind)
    leaf = logits.requires_grad_()
    _, gradient = differentiate(lambda u: losses.bce(batch.y.float(), u, batch.valid, batch.task), leaf)
    assert torch.equal(gradient == 0, ~batch.y)
    torch.testing.assert_close(gradient, -batch.y.float() / batch.y[0].numel())


@pytest.mark.parametrize("kind", SIGMOID)
@pytest.mark.parametrize("name", SWAPPABLE)
def test_void_pixels_are_as_if_cut_out_of_swapped_losses_too(name, kind):
    batch, logits = make_batch(kind, n=1, space=(16, 12), void=0.4)
    loss, mask, leaf = getattr(losses, name), batch.y.double(), logits.double().requires_grad_()
    value, gradient = differentiate(lambda u: loss(mask, u, batch.valid, batch.task), leaf)
    kept = batch.valid[0]
    assert (gradient[..., ~kept] == 0).all()
    cut = loss(mask[..., kept], leaf[..., kept], torch.ones((1, int(kept.sum())), dtype=torch.bool), batch.task)
    torch.testing.assert_close(cut.detach(), value)


def test_focal_of_plain_labels_is_bit_identical_to_the_choice_of_a_sign():
    batch, logits = make_batch("multilabel", space=(16, 12))
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, batch.y.float(), reduction="none")
    miss = torch.where(batch.y, -logits, logits).sigmoid()
    by_hand = (miss**2 * entropy).mean(1).flatten(1).sum(1) / 192
    assert torch.equal(losses.focal(logits, batch.y, batch.valid, batch.task), by_hand)
