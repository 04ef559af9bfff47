"""Run with segmentation-models-pytorch 0.3.0: python old_release.py ARCHITECTURE ENCODER CHECKPOINT ANSWER.

Writes the state dict of a network of that release, and what it makes of an image in float32 and float64.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")  # of a release that was written for another PyTorch

import segmentation_models_pytorch as smp  # noqa: E402


def build(architecture: str, encoder: str, images: torch.Tensor) -> nn.Module:
    """A network that is nowhere at its initial values: scattered scales and shifts, statistics of some images."""
    make = getattr(smp, architecture)
    net = make(encoder_name=encoder, encoder_weights=None, in_channels=3, classes=3, activation=None)
    with torch.no_grad():
        for norm in (module for module in net.eval().modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.mul_(torch.rand_like(norm.weight) * 0.4 + 0.8)
            norm.bias.add_(torch.randn_like(norm.bias) * 0.1)
            norm.train().momentum = None  # the statistics of all images seen; nothing else is random or moves
        net(images)
    return net.eval()


architecture, encoder, checkpoint, answer = sys.argv[1:]
assert smp.__version__ == "0.3.0", smp.__file__
torch.manual_seed(0)
images = nn.functional.interpolate(torch.rand(4, 3, 8, 8), scale_factor=8, mode="bilinear")
net = build(architecture, encoder, images)
with torch.no_grad():
    torch.save(net.state_dict(), checkpoint)
    single = net(images[:1])
    torch.save({"image": images[:1], "single": single, "double": net.double()(images[:1].double())}, answer)
