"""Losses of MONAI and segmentation-models-pytorch, made one value per image."""

from __future__ import annotations

import monai.losses as of_monai
import pytest
import segmentation_models_pytorch.losses as of_smp
import torch
from strategies import KINDS, make_batch, make_task
from torch import nn

from advseg_bench import losses
from advseg_bench.errors import IncompatibleError, SpecError
from advseg_bench.losses import per_image, probe
from advseg_bench.registry.loading import load_loss

SPACES = [(16, 12), (6, 5, 8)]


def cldice(activate):
    """MONAI's Dice and clDice of probabilities; the oldest version pools a batch and leaves out the first channel."""
    both = of_monai.SoftDiceclDiceLoss()
    return lambda logits, target: both(activate(logits), target)


def softmax(logits):
    return logits.softmax(1)


FOREIGN = {
    "cldice-multilabel": ("multilabel", cldice(torch.sigmoid), "onehot"),
    "cldice-multiclass": ("multiclass", cldice(softmax), "onehot"),
    "monai-dice": ("multilabel", of_monai.DiceLoss(sigmoid=True, batch=True), "onehot"),
    "monai-focal": ("multilabel", of_monai.FocalLoss(reduction="none"), "onehot"),
    "smp-dice": ("binary", of_smp.DiceLoss("binary"), "onehot"),
    "smp-mcc": ("binary", lambda logits, target: of_smp.MCCLoss()(logits.sigmoid(), target), "onehot"),
    "smp-tversky": ("multiclass", of_smp.TverskyLoss("multiclass"), "labels"),
    "torch-ce": ("multiclass", nn.CrossEntropyLoss(reduction="none"), "labels"),
}

foreign = pytest.mark.parametrize(("kind", "criterion", "target"), FOREIGN.values(), ids=FOREIGN)


@foreign
def test_the_probe_takes_it(kind, criterion, target):
    probe(per_image(criterion, target), make_task(kind), "foreign")


@foreign
def test_each_value_is_that_of_the_image_alone(kind, criterion, target):
    batch, logits = make_batch(kind, space=(16, 12))
    values = per_image(criterion, target)(logits, batch.y, batch.valid, batch.task)
    labels = batch.y if target == "labels" else losses.one_hot(batch.y, batch.task, logits)
    alone = [criterion(logits[i : i + 1], labels[i : i + 1]).mean() for i in range(3)]
    assert torch.equal(values, torch.stack(alone))


@foreign
def test_void_pixels_change_nothing_and_get_no_gradient(kind, criterion, target):
    batch, logits = make_batch(kind, space=(16, 12), void=0.4)
    loss, void = per_image(criterion, target), ~batch.valid.unsqueeze(1).expand_as(logits)
    y = batch.y.clone()
    y[~batch.valid if kind == "multiclass" else void] = 99 if kind == "multiclass" else True
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, batch.y, batch.valid, batch.task)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert (gradient[void] == 0).all()
    assert (gradient[~void] != 0).any()
    assert torch.equal(loss(torch.where(void, 50.0, logits), y, batch.valid, batch.task), value.detach())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_void_pixels_do_to_a_loss_is_as_documented(kind, space):
    batch, logits = make_batch(kind, space=space, void=0.4)
    given = logits, batch.y, batch.valid, batch.task
    share = batch.valid.flatten(1).double().mean(1).to(logits.dtype)
    if kind == "multiclass":
        mean = per_image(nn.CrossEntropyLoss(), "labels")
        torch.testing.assert_close(mean(*given), losses.ce(*given) * share)
        of_classes = of_monai.DiceLoss(softmax=True, include_background=False, reduction="none")
        others = [i for i in range(logits.shape[1]) if i]
        p, t = logits.softmax(1), losses.one_hot(batch.y, batch.task, logits)
        p, t = (v.where(batch.valid.unsqueeze(1), torch.tensor(0.0))[:, others].flatten(2) for v in (p, t))
        expected = 1 - ((2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)).mean(1)
        torch.testing.assert_close(per_image(of_classes)(*given), expected)
    else:
        torch.testing.assert_close(per_image(nn.BCEWithLogitsLoss())(*given), losses.bce(*given) * share)
        torch.testing.assert_close(per_image(of_monai.DiceLoss(sigmoid=True))(*given), losses.dice(*given))


def test_gradients_equal_finite_differences():
    batch, logits = make_batch("multilabel", space=(5, 4), void=0.2)
    loss = per_image(cldice(torch.sigmoid))
    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: loss(u, batch.y, batch.valid, batch.task), (leaf,))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_labels_are_refused_where_classes_are_decided_one_by_one(kind):
    batch, logits = make_batch(kind)
    match = f"per_image: expected target=\"onehot\" for a {kind} task, got 'labels'"
    with pytest.raises(IncompatibleError, match=match):
        per_image(nn.BCEWithLogitsLoss(), "labels")(logits, batch.y, batch.valid, batch.task)


def test_a_loss_that_wants_probabilities_is_not_blamed_for_something_else():
    match = r"loss mcc: expected finite values on random logits, got \[nan, .*\. Does it expect probabilities"
    with pytest.raises(IncompatibleError, match=match):
        probe(per_image(of_smp.MCCLoss()), make_task("binary"), "mcc")


def test_an_unknown_target_is_refused_with_those_there_are():
    with pytest.raises(SpecError, match=r"per_image: unknown target 'one_hot'.*onehot"):
        per_image(nn.BCEWithLogitsLoss(), "one_hot")


swapped = per_image(lambda logits, target: nn.functional.binary_cross_entropy_with_logits(target, logits))
smp_dice = per_image(of_smp.DiceLoss("binary"))


def test_a_foreign_loss_is_loaded_by_its_path_and_probed():
    assert load_loss("test_loss_foreign:smp_dice", make_task("binary")) is smp_dice
    with pytest.raises(IncompatibleError, match="prediction and target swapped"):
        load_loss("test_loss_foreign:swapped", make_task("binary"))
