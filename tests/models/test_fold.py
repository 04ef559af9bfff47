"""Batch normalisation folded into the convolution before it."""

import pytest
import torch
import torch.nn.functional as F
from prepared_networks import NETWORKS, build, draw, images, list_norms, make
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError
from advseg_bench.models import lean
from advseg_bench.models.fold import fold_batch_norms
from advseg_bench.models.prepare import prepare
from advseg_bench.models.reference import gradient_error, reference_gradient

BATCH_NORMS = {"monai-instance": 0}  # all others have some, all of which can be folded


@pytest.fixture(autouse=True)
def every_call_is_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "SMALL", 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_gradients_by_rounding_alone(name: str) -> None:
    """In float64: in float32 the raw gradient, too, is off by 1e-3 where rounding moves a ReLU over 0."""
    net, x = build(name).double(), images(name).double()
    folded = prepare(net, x, ["fold", "lean"])
    wanted = BATCH_NORMS.get(name, len(list_norms(net)))
    assert len(list_norms(net)) - len(list_norms(folded)) == wanted
    reference = reference_gradient(net, x)
    assert gradient_error(folded, x, reference) < 1e-10
    assert (folded(x) - net(x)).abs().max() < 1e-12 * net(x).abs().max()
    net, x = net.float(), x.float()
    folded = prepare(net, x, ["fold", "lean"])
    assert gradient_error(folded, x, reference) <= max(1.5 * gradient_error(net, x, reference), 5e-3)
    assert (folded(x) - net(x)).abs().max() < 1e-4 * net(x).abs().max()


def test_folding_is_the_closed_form() -> None:
    net = make(lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))).eval()
    with torch.no_grad():
        net[0].weight.fill_(3)
        net[0].bias.fill_(1)
        net[1].running_mean.fill_(0.5)
        net[1].running_var.fill_(4 - net[1].eps)
        net[1].weight.fill_(6)
        net[1].bias.fill_(-1)
    assert fold_batch_norms(net, draw(1, 1, 4, 4)) == 1
    assert net[0].weight.item() == pytest.approx(9)  # 3 * 6 / 2
    assert net[0].bias.item() == pytest.approx(0.5)  # (1 - 0.5) * 6 / 2 - 1
    assert isinstance(net[1], nn.Identity)


class Twice(nn.Module):
    """A convolution whose output, or whose layers, serve twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        if self.how == "skip":
            return z + self.norm(z)
        if self.how == "conv":
            return self.norm(z) + self.conv(x)
        if self.how == "norm":
            return self.norm(z) + self.norm(2 * z)
        if self.how == "weight":
            return self.norm(F.conv2d(x, 2 * self.conv.weight))
        return self.norm(z)


@pytest.mark.parametrize(("how", "folds"), [("skip", 0), ("conv", 0), ("norm", 0), ("weight", 0), ("once", 1)])
def test_only_what_feeds_the_norm_alone_is_folded(how: str, folds: int) -> None:
    assert fold_batch_norms(Twice(how).eval(), draw(1, 1, 8, 8)) == folds


def test_calls_that_depend_on_values_are_refused() -> None:
    class Fickle(Twice):
        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            return self.norm(z) if isinstance(self.norm, nn.BatchNorm2d) else 5 + z

    with pytest.raises(IncompatibleError, match=r'prepare "fold": expected logits that change by at most 0\.001'):
        prepare(Fickle("once").eval(), draw(1, 1, 8, 8), ["fold"])


class Branches(nn.Module):
    """Uses its convolution a second time where an image is bright."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(0.3)

    def forward(self, x):
        out = self.norm(self.conv(x))
        return out + self.conv(x) if x.mean() > 0.5 else out


def test_calls_that_depend_on_values_are_not_folded():
    model, x = make(Branches).eval().requires_grad_(False), 0.4 * draw(2, 3, 8, 8)
    with pytest.raises(IncompatibleError, match="logits that change"):
        prepare(model, x, ["fold"])
