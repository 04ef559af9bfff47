import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advseg_bench.errors import SpecError
from advseg_bench.models.module import SegmentationModule

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Spy(nn.Module):
    """A convolution that keeps what it was given and what it returned."""

    def __init__(self, axes: int, channels: int = 2, classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            self.layer = CONVOLUTIONS[axes](channels, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        self.returned = self.layer(x)
        return self.returned


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def refer(net: Spy, x: Tensor, stride: int) -> Tensor:
    """The same by torch's own padding."""
    missing = [-length % stride for length in x.shape[2:]]
    widths = [width for length in reversed(missing) for width in (0, length)]
    logits = net.layer(F.pad(x, widths, mode="replicate"))
    return logits[(..., *(slice(length) for length in x.shape[2:]))]


@settings(max_examples=40, deadline=None)
@given(size=st.lists(st.integers(1, 11), min_size=1, max_size=3), stride=st.integers(1, 6), seed=st.integers(0, 99))
def test_padding_and_cropping_equal_torchs_replicate_padding(size: list[int], stride: int, seed: int) -> None:
    net = Spy(len(size))
    x = draw(2, 2, *size, seed=seed).requires_grad_()
    weight = draw(2, 3, *size, seed=seed + 1)
    logits = SegmentationModule(net, stride=stride)(x)
    reference = refer(net, x, stride)
    assert all(length % stride == 0 and length < n + stride for length, n in zip(net.seen.shape[2:], size, strict=True))
    assert torch.equal(logits, reference)
    (gradient,) = torch.autograd.grad((logits * weight).sum(), x)
    (wanted,) = torch.autograd.grad((reference * weight).sum(), x)
    torch.testing.assert_close(gradient, wanted)


def test_at_multiples_of_the_stride_nothing_is_padded_or_cropped() -> None:
    net = Spy(2)
    logits = SegmentationModule(net, stride=4)(draw(1, 2, 8, 12).requires_grad_())
    assert logits is net.returned
    assert net.seen.grad_fn.name() == "DivBackward0"


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), ((0.5, 0.1), (0.25, 2.0))])
def test_image_is_normalised_inside(axes: int, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> None:
    net = Spy(axes)
    x = draw(3, 2, *[4] * axes)
    SegmentationModule(net, mean=mean, std=std)(x)
    for channel, (m, s) in enumerate([(0.5, 0.25)] * 2 if isinstance(mean, float) else [(0.5, 0.25), (0.1, 2.0)]):
        torch.testing.assert_close(net.seen[:, channel], (x[:, channel] - m) / s)


def test_without_normalisation_the_network_sees_the_image_bit_for_bit() -> None:
    net = Spy(2)
    x = draw(1, 2, 5, 5)
    SegmentationModule(net)(x)
    assert torch.equal(net.seen, x)


def test_module_follows_a_change_of_type_and_can_be_copied() -> None:
    module = copy.deepcopy(SegmentationModule(Spy(2), mean=0.5, stride=4, head="layer")).double()
    assert module(draw(1, 2, 5, 5).double()).dtype == torch.float64
    assert (module.stride, module.head) == (4, "layer")


def test_state_dict_holds_the_network_alone() -> None:
    assert set(SegmentationModule(Spy(2)).state_dict()) == {"net.layer.weight", "net.layer.bias"}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SpecError, match=r"std: expected positive numbers, got \(1\.0, 0\.0\)"):
        SegmentationModule(Spy(2), std=(1.0, 0.0))
    with pytest.raises(SpecError, match="stride: expected 1 or more pixels, got 0"):
        SegmentationModule(Spy(2), stride=0)
