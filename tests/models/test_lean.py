"""Lean forward passes: less memory, the same bits, and which calls stay as they are."""

from contextlib import nullcontext

import pytest
import torch
import torch.utils.checkpoint
from prepared_networks import NETWORKS, build, differentiate, draw, images, make
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError
from advseg_bench.instruments import meter
from advseg_bench.models import lean
from advseg_bench.models.lean import Lean
from advseg_bench.models.prepare import prepare

WORTH_IT = lean.SMALL


@pytest.fixture(autouse=True)
def every_call_is_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "SMALL", 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_lean_keeps_every_bit_and_less_memory(name: str) -> None:
    net, x = build(name), images(name)
    prepared = prepare(net, x, ["lean"])
    assert prepared.exact
    for ours, theirs in zip(differentiate(prepared, x), differentiate(net, x), strict=True):
        assert torch.equal(ours, theirs)
    peaks = [meter.peak_bytes(lambda each=each: differentiate(each, x), "cpu") for each in (prepared, net)]
    assert peaks[0] < 0.85 * peaks[1]


@pytest.mark.parametrize("steps", [["lean"], ["fold", "lean"]])
def test_the_peak_of_one_gradient_at_224_pixels(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model as it is takes what torchattacks' FGSM takes, see benchmarks/targets.py."""
    monkeypatch.setattr(lean, "SMALL", WORTH_IT)
    net, x = build("resnet18"), draw(4, 3, 224, 224)
    prepared = prepare(net, x[:1], steps)
    ours, raw = (meter.peak_bytes(lambda each=each: differentiate(each, x), "cpu") for each in (prepared, net))
    assert ours <= 0.45 * raw


def name_nodes(out: Tensor) -> list[str]:
    """The nodes of a graph that is a chain, without those that only pick up a leaf."""
    node, names = out.grad_fn, []
    while node is not None and node.name() != "torch::autograd::AccumulateGrad":
        names.append(node.name())
        node = next((child for child, _ in node.next_functions if child is not None), None)
    return names


def test_calls_on_few_values_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value under the bound and right on it; the rest of a network goes on as it did."""
    monkeypatch.setattr(lean, "SMALL", 2 * 4 * 8 * 8)
    net = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3), nn.ReLU()))
    x = draw(2, 3, 8, 8)
    prepared = prepare(net, x, ["lean"])
    assert name_nodes(prepared(x.requires_grad_())) == [
        "ReluBackward0",  # 2 x 1 x 6 x 6
        "_LeanLayerBackward",  # its input is 2 x 4 x 8 x 8
        "_LeanLayerBackward",
        "ConvolutionBackward0",  # 2 x 3 x 8 x 8
    ]
    for ours, theirs in zip(differentiate(prepared, x.detach()), differentiate(net, x.detach()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "worth_it"), [(8, False), (9, True)])
def test_a_batch_of_few_pixels_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, n: int, worth_it: bool, channels: int
) -> None:
    """Calls on it could be lean here; each function that a network calls would go through Python to find out."""
    monkeypatch.setattr(lean, "SMALL", WORTH_IT)
    net = make(lambda: nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU()))
    x = draw(n, channels, 64, 64).requires_grad_()
    assert name_nodes(prepare(net, x, ["lean"])(x))[0] == ("_LeanLayerBackward" if worth_it else "ReluBackward0")


def test_a_call_that_stays_as_it_is_costs_no_mask() -> None:
    """MONAI's instance norms return views, which are not written into here."""
    net = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(0.1, inplace=True)))
    x = draw(2, 3, 8, 8)
    prepared = prepare(net, x, ["lean"])
    with torch.profiler.profile() as profile:
        differentiate(prepared, x)
    assert "aten::gt" not in {event.key for event in profile.key_averages()}


class Checkpointed(nn.Module):
    """A convolution whose input has its weight's shape, so that nothing but order tells what was saved."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda v: self.conv(v).relu(), x, use_reentrant=False)


def test_checkpointed_parts_stay_as_they_are():
    model, x = make(Checkpointed).eval().requires_grad_(False), draw(8, 8, 3, 3)
    found = []
    for net in (model, prepare(model, x, ["lean"])):
        leaf = x.clone().requires_grad_()
        found.append(torch.autograd.grad(net(leaf).square().sum(), leaf)[0])
    assert torch.equal(*found)


def test_weights_that_are_not_frozen_get_their_gradient() -> None:
    net, x = build("resnet18"), images("resnet18").requires_grad_()
    prepared = prepare(net, x, ["lean"])
    prepared.net.requires_grad_(True)
    net.requires_grad_(True)
    for each in (net, prepared.net):
        with Lean():
            each(x).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), prepared.net.parameters(), strict=True))


def test_two_losses_of_one_forward() -> None:
    net, x = build("resnet18"), images("resnet18")
    found = []
    for each in (net, prepare(net, x, ["lean"])):
        leaf = x.clone().requires_grad_()
        logits = each(leaf)
        first = torch.autograd.grad(logits.sum(), leaf, retain_graph=True)[0]
        found.append((first, torch.autograd.grad(logits.square().sum(), leaf)[0]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_second_derivative_is_refused() -> None:
    net, x = prepare(build("resnet18"), images("resnet18"), ["lean"]), images("resnet18").requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(IncompatibleError, match="expected to be differentiated once, got a second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("small", [512, 10**9])
def test_second_derivatives_are_right_or_refused(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """Where some calls are lean and others not, none may be lost; where none is lean there is nothing to refuse."""
    monkeypatch.setattr(lean, "SMALL", small)
    net = make(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3), nn.Softplus()))
    x = draw(2, 3, 8, 8)
    found = []
    for each in (net.requires_grad_(False), prepare(net, x, ["lean"])):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(each(leaf).square().sum(), leaf, create_graph=True)
        with pytest.raises(IncompatibleError) if small == 512 and each is not net else nullcontext():
            found.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    assert len(found) == (1 if small == 512 else 2)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_gradient_penalty_is_refused_where_the_raw_path_would_be_pruned():
    x = draw(2, 3, 32, 32)
    prepared = prepare(build("resnet18"), x, ["lean"])
    leaf = x.clone().requires_grad_()
    loss = prepared(leaf).square().mean()
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(IncompatibleError, match="differentiated once"):
        torch.autograd.grad(loss + gradient.square().sum(), leaf)
