"""Networks to be prepared, and their gradients."""

from collections.abc import Callable

import monai.networks.nets as nets
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NETWORKS = {
    "monai-prelu": lambda: nets.UNet(2, 3, 2, (8, 16, 32), (2, 2), num_res_units=2, norm="batch"),
    "monai-instance": lambda: nets.UNet(2, 3, 2, (8, 16, 32), (2, 2), num_res_units=2),
    "monai-3d": lambda: nets.UNet(3, 3, 2, (8, 16), (2,), num_res_units=1, norm="batch", act="relu"),
    "attention": lambda: nets.AttentionUnet(2, 3, 2, (8, 16, 32), (2, 2)),
    "resnet18": lambda: smp.Unet("resnet18", encoder_weights=None, classes=2),
    "timm": lambda: smp.Unet("tu-resnet10t", encoder_weights=None, classes=2),
    "timm-act": lambda: smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None, classes=2),
    "mobilenet": lambda: smp.Unet("mobilenet_v2", encoder_weights=None, classes=2),
}


def draw(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    """A network whose batch norms have seen something."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        net = NETWORKS[name]().eval().requires_grad_(False)
        for norm in list_norms(net):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_(0, 0.2)
    return net


def make(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without moving the global generator."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        return build()


def list_norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def images(name: str) -> Tensor:
    return draw(2, 3, 16, 16, 16) if name == "monai-3d" else draw(2, 3, 64, 64)


def differentiate(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    (gradient,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)), leaf)
    return logits.detach(), gradient
