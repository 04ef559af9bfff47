from __future__ import annotations

import pytest
import torch
from torch import nn

from advseg_bench.models.properties import count_flops, measure_receptive_field


@pytest.fixture(autouse=True)
def _apart():
    with torch.random.fork_rng():
        yield


def make_layers(*sizes: int) -> nn.Sequential:
    """Convolutions whose weights are all 1, so that the gradient of a pixel is known."""
    layers = nn.Sequential(*(nn.Conv2d(1, 1, size, padding=size // 2, bias=False) for size in sizes))
    for layer in layers:
        nn.init.ones_(layer.weight)
    return layers


def test_the_operations_of_a_convolution_are_two_for_each_product():
    net = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    assert count_flops(net, torch.zeros(4, 3, 7, 6)) == 2 * 3 * 5 * 9 * 7 * 6


@pytest.mark.parametrize(("sizes", "edge"), [((1,), 1), ((3,), 3), ((5,), 5), ((3, 3), 5), ((9, 1), 9)])
def test_the_receptive_field_of_equal_weights_is_the_kernel(sizes, edge):
    """3x3 twice gives 81 in all, of which the inner 3x3 holds 49: less than 95 %."""
    assert measure_receptive_field(make_layers(*sizes), torch.zeros(2, 1, 21, 20)) == edge


def test_a_weight_that_hardly_counts_is_outside_the_effective_field():
    net = make_layers(5)
    with torch.no_grad():
        net[0].weight[..., [0, -1], :] = net[0].weight[..., :, [0, -1]] = 1e-3
    assert measure_receptive_field(net, torch.zeros(2, 1, 21, 20)) == 3


def test_gradients_of_either_sign_count_alike():
    net = make_layers(3)
    with torch.no_grad():
        net[0].weight[0, 0] = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])
    assert measure_receptive_field(net, torch.zeros(2, 1, 21, 20)) == 3


def test_no_gradient_is_no_field():
    assert measure_receptive_field(lambda x: x * 0, torch.zeros(2, 1, 9, 9)) == 0


def test_three_axes():
    net = nn.Conv3d(1, 2, 3, padding=1, bias=False)
    nn.init.ones_(net.weight)
    assert measure_receptive_field(net, torch.zeros(1, 1, 9, 8, 7)) == 3
