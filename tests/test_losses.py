from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from strategies import CHANNELS, KINDS, kinds, make_batch, make_task, seeds, spaces

from advseg_bench import losses
from advseg_bench.errors import IncompatibleError, PluginError
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_loss
from advseg_bench.types import Task

few = settings(max_examples=40, deadline=None)
DETACHED = {"cosine", "cosine_sigmoid"}  # their weights are held fixed, so the gradient is not that of the value
PAIRS = [(name, kind) for name, entry in catalogue.LOSSES.items() for kind in entry.kinds]


def find(name, kind):
    """A loss by name; one that needs class counts gets unequal ones."""
    loss = getattr(losses, name)
    if name != "class_balanced_ce":
        return loss
    k = CHANNELS[kind]
    return loss.counted(torch.arange(1, k + 1) if kind == "multiclass" else torch.arange(1, 2 * k + 1).view(k, 2))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_shipped_loss_passes_the_probe(name, kind):
    assert load_loss(name, make_task(kind)) is getattr(losses, name)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_one_value_per_image_whatever_the_neighbours(name, kind):
    batch, logits = make_batch(kind, void=0.3)
    loss = find(name, kind)
    together = loss(logits, batch.y, batch.valid, batch.task)
    for i in range(3):
        alone = loss(logits[i : i + 1], batch.y[i : i + 1], batch.valid[i : i + 1], batch.task)
        torch.testing.assert_close(alone[0], together[i])


@few
@given(seeds, spaces, kinds)
def test_void_pixels_change_nothing_and_get_no_gradient(seed, space, kind):
    batch, logits = make_batch(kind, seed, space=space, void=0.4)
    void = ~batch.valid.unsqueeze(1).expand_as(logits)
    for name in (n for n, k in PAIRS if k == kind):
        loss = find(name, kind)
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, batch.y, batch.valid, batch.task)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert (gradient[void] == 0).all()
        other = torch.where(void, torch.full_like(logits, 50.0), logits)
        assert torch.equal(loss(other, batch.y, batch.valid, batch.task), value.detach())
        assert value.isfinite().all()


@pytest.mark.parametrize("space", [(16, 12), (4, 5, 6)])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_void_pixels_are_as_if_cut_out(name, kind, space):
    batch, logits = make_batch(kind, space=space, void=0.4)
    loss = find(name, kind)
    value = loss(logits, batch.y, batch.valid, batch.task)
    for i, kept in enumerate(batch.valid):
        y = batch.y[i : i + 1, ..., kept]
        cut = loss(logits[i : i + 1, :, kept], y, torch.ones((1, int(kept.sum())), dtype=torch.bool), batch.task)
        torch.testing.assert_close(cut[0], value[i])


@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_masks_that_are_empty_or_full_give_finite_values_and_gradients(name, kind, fill):
    batch, logits = make_batch(kind, void=0.3)
    leaf = logits.clone().requires_grad_()
    valid = batch.valid & torch.tensor([True, True, False]).view(-1, 1, 1)  # the last image has no valid pixel
    value = find(name, kind)(leaf, torch.full_like(batch.y, fill), valid, batch.task)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert value[2] == 0


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[0] not in DETACHED])
def test_gradients_equal_finite_differences(name, kind):
    batch, logits = make_batch(kind, space=(3, 2), void=0.2)
    loss = find(name, kind)

    def of(u):
        return loss(u, batch.y, batch.valid, batch.task)

    assert torch.autograd.gradcheck(of, (logits.double().requires_grad_(),))


@pytest.mark.parametrize("value", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_extreme_logits_give_finite_values_and_gradients(name, kind, value):
    batch, logits = make_batch(kind)
    leaf = torch.full_like(logits, value).requires_grad_()
    result = find(name, kind)(leaf, batch.y, batch.valid, batch.task)
    (gradient,) = torch.autograd.grad(result.sum(), leaf)
    assert result.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [2, 8, 60])
@pytest.mark.parametrize("name", [name for name, kind in PAIRS if kind == "multiclass"])
def test_the_probe_takes_shipped_losses_of_few_and_many_classes(name, classes):
    losses.probe(getattr(losses, name), Task("multiclass", tuple(f"class{i}" for i in range(classes))), name)


def swapped(logits, y, valid, task):
    return losses.dice(y.to(logits) * 2 - 1, logits, valid, task)


def swapped_bce(logits, y, valid, task):
    """What BCEWithLogitsLoss()(mask, output) computes, as in the released code of arXiv 2401.11224."""
    value = torch.nn.functional.binary_cross_entropy_with_logits(y.to(logits), logits, reduction="none")
    return torch.where(valid.unsqueeze(1), value, 0).flatten(1).mean(1)


def counts_void(logits, y, valid, task):
    return losses.bce(logits, y, torch.ones_like(valid), task)


def pooled(logits, y, valid, task):
    value = torch.nn.functional.softplus(-logits * (2.0 * y - 1))
    return (value * valid.unsqueeze(1)).mean().expand(len(logits))


def negative(logits, y, valid, task):
    return -losses.bce(logits, y, valid, task)


def scalar(logits, y, valid, task):
    return losses.bce(logits, y, valid, task).mean()


def constant(logits, y, valid, task):
    return logits.flatten(1).sum(1) * 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swapped, "prediction and target swapped"),
        (swapped_bce, "pixels with label 0, got [0-9]%"),
        (counts_void, "expected no gradient at invalid pixels, got one at [1-9]"),
        (pooled, "independent of the other images"),
        (negative, "gradient away from the label .*, got 0%"),
        (scalar, r"expected one value per image, shape \(3,\), got \(\)"),
        (constant, "gradient away from the label .*, got 0%"),
    ],
)
def test_the_probe_refuses_what_is_no_attack_loss(fault, message):
    with pytest.raises(IncompatibleError, match=message):
        losses.probe(fault, make_task("multilabel"), "mine")


def test_a_loss_by_path_is_probed_too():
    with pytest.raises(IncompatibleError, match="swapped"):
        load_loss("test_losses:swapped", make_task("multilabel"))
    with pytest.raises(PluginError, match="loss test_losses:nothing: unknown object of test_losses 'nothing'"):
        load_loss("test_losses:nothing", make_task("multilabel"))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
@pytest.mark.parametrize("name", [name for name, entry in catalogue.LOSSES.items() if entry.swappable])
def test_the_probe_refuses_every_loss_with_mask_and_output_swapped(name, kind):
    def fault(logits, y, valid, task):
        return getattr(losses, name)(y.to(logits.dtype), logits, valid, task)

    with pytest.raises(IncompatibleError, match=r"loss mine: .* Are prediction and target swapped\?"):
        losses.probe(fault, make_task(kind), "mine")


def test_every_kind_has_a_loss():
    assert {kind for _, kind in PAIRS} == set(KINDS)
