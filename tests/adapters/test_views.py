"""The views: what a classifier's cross-entropy and decision say of a segmentation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import KINDS, make_batch
from torch import nn

from advseg_adapters.views import BlindView, LossView, MarginView
from advseg_bench import losses
from advseg_bench.batches import Batch, select_images
from advseg_bench.errors import IncompatibleError

LOSSES = {
    "binary": (losses.bce, losses.dice, losses.focal),
    "multilabel": (losses.bce, losses.dice, losses.dice_focal),
    "multiclass": (losses.ce, losses.dice, losses.focal),
}


def mean_intensity(logits, y, valid, task):
    """A loss whose value is whatever the image is filled with."""
    return logits.flatten(1).mean(1)


def make_filled(*values: float, dtype=torch.float64) -> Batch:
    batch, _ = make_batch("binary", n=len(values), space=(2, 2))
    x = torch.tensor(values, dtype=dtype).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return replace(batch, x=x)


def entropy(view: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(view(x), torch.zeros(len(x), dtype=torch.int64), reduction="none")


def make_network(kind: str, channels: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = {"binary": 1, "multilabel": 3, "multiclass": 4}[kind]
        return nn.Sequential(nn.Conv2d(channels, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, outputs, 1)).double()


@given(st.floats(0, 1e4))
def test_cross_entropy_is_one_plus_the_loss_and_has_its_gradient(value):
    batch = make_filled(value)
    x = batch.x.clone().requires_grad_()
    found = entropy(LossView(lambda x: x, batch, mean_intensity), x)
    assert found.item() == pytest.approx(1 + value, rel=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.allclose(gradient, torch.full_like(gradient, 0.25), rtol=1e-9, atol=0)


@given(st.floats(-1e3, 0, exclude_max=True), st.floats(1e-6, 1))
def test_a_negative_loss_keeps_order_and_direction(value, more):
    batch = make_filled(value)
    view = LossView(lambda x: x, batch, mean_intensity)
    x = batch.x.clone().requires_grad_()
    found = entropy(view, x)
    assert found.item() == pytest.approx(1 / (1 - value), rel=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient > 0).all()
    assert entropy(view, batch.x + more) > found


@pytest.mark.parametrize("value", [0.0, 1e-30, 88.0, 89.0, 200.0, 1e6, -1e-30, -89.0, -1e6])
def test_no_size_of_loss_breaks_float32(value):
    batch = make_filled(value, dtype=torch.float32)
    x = batch.x.clone().requires_grad_()
    found = entropy(LossView(lambda x: x, batch, mean_intensity), x)
    wanted, slope = (1 + value, 1) if value >= 0 else (1 / (1 - value), 1 / (1 - value) ** 2)
    assert found.item() == pytest.approx(wanted, rel=1e-6, abs=1.2e-7)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.sum().item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_loss(kind):
    batch, _ = make_batch(kind, n=3, void=0.2)
    batch = replace(batch, x=batch.x.double())
    network = make_network(kind)
    for loss in LOSSES[kind]:
        x = batch.x.clone().requires_grad_()
        value = loss(network(x), batch.y, batch.valid, batch.task)
        (wanted,) = torch.autograd.grad(value.sum(), x)
        found = entropy(LossView(network, batch, loss), x)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert torch.allclose(found, 1 + value, rtol=1e-12)
        assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_the_margin_climbs_the_loss_too(kind):
    batch, _ = make_batch(kind, n=3)
    batch = replace(batch, x=batch.x.double())
    network, loss = make_network(kind), losses.dice
    x = batch.x.clone().requires_grad_()
    value = loss(network(x), batch.y, batch.valid, batch.task)
    (wanted,) = torch.autograd.grad(value.sum(), x)
    view = MarginView(network, batch, loss, threshold=value.detach() * 1.1, scale=value.detach() * 0.1)
    (gradient,) = torch.autograd.grad(entropy(view, x).sum(), x)
    ratio = (gradient / wanted).flatten(1)
    assert (ratio > 0).all()
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6)


def test_the_decision_flips_exactly_past_the_threshold():
    threshold = torch.tensor([0.3], dtype=torch.float64)
    batch = make_filled(0.3)
    view = MarginView(lambda x: x, batch, mean_intensity, threshold=threshold, scale=torch.ones(1))
    above = torch.full_like(batch.x, torch.nextafter(threshold, torch.ones(1, dtype=torch.float64)).item())
    below = torch.full_like(batch.x, 0.2)
    assert view(torch.cat([below, batch.x, above])).argmax(1).tolist() == [0, 0, 1]


def test_neither_logit_of_a_margin_is_constant():
    batch = make_filled(0.3)
    x = batch.x.clone().requires_grad_()
    logits = MarginView(lambda x: x, batch, mean_intensity, threshold=torch.ones(1), scale=torch.ones(1))(x)
    gradients = [torch.autograd.grad(logits[0, k], x, retain_graph=True)[0].sum().item() for k in (0, 1)]
    assert gradients == pytest.approx([-0.5, 0.5])


def test_one_mask_serves_any_number_of_rows():
    batch, _ = make_batch("multilabel", n=1)
    batch = replace(batch, x=batch.x.double())
    network = make_network("multilabel")
    view = LossView(network, batch, losses.bce)
    rows = torch.rand((70, *batch.x.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(view(rows), torch.cat([view(row) for row in rows.split(1)]))


def test_several_masks_belong_to_their_images():
    batch, _ = make_batch("multilabel", n=3)
    batch = replace(batch, x=batch.x.double())
    network = make_network("multilabel")
    with torch.no_grad():
        together = LossView(network, batch, losses.bce)(batch.x)
        alone = [LossView(network, select_images(batch, [i]), losses.bce)(batch.x[i : i + 1]) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone))


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_rows_without_a_mask_are_refused(rows):
    batch, _ = make_batch("binary", n=3)
    view = LossView(make_network("binary").float(), batch, losses.bce)
    with pytest.raises(IncompatibleError, match=rf"expected the 3 images it was made for, got {rows} rows"):
        view(batch.x[:1].expand(rows, -1, -1, -1))


def test_rows_of_another_size_are_refused():
    batch, _ = make_batch("binary", n=1)
    view = LossView(make_network("binary").float(), batch, losses.bce)
    with pytest.raises(IncompatibleError, match="keeps the shape of images"):
        view(batch.x[..., :-1])


def test_rows_of_another_type_are_cast_and_get_a_gradient():
    batch, _ = make_batch("binary", n=1)
    x = batch.x.double().requires_grad_()
    logits = LossView(make_network("binary").float(), batch, losses.bce)(x)
    assert logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.dtype == torch.float64
    assert (gradient != 0).any()


def test_the_model_is_no_part_of_the_view():
    batch, _ = make_batch("binary", n=1)
    network = make_network("binary").float().eval()
    for view in (
        LossView(network, batch, losses.bce),
        MarginView(network, batch, losses.bce, threshold=torch.zeros(1), scale=torch.ones(1)),
    ):
        assert not view.training
        assert [p.numel() for p in view.parameters()] == [1]
        assert not any(p.requires_grad for p in view.parameters())
        view.train()
        view.double()
        assert not network.training
        assert next(network.parameters()).dtype == torch.float32
        assert list(view.state_dict()) == ["device"]


def test_a_blind_view_always_says_the_same():
    batch, _ = make_batch("binary", n=2)
    assert torch.equal(BlindView(batch)(batch.x), torch.zeros(2, 2))
