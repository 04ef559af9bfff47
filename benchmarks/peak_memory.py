"""Peak live bytes of one FGSM gradient: prepared models against torchattacks' FGSM on the model as it is.

Run: python benchmarks/peak_memory.py [model ...]. Needs the extra torchattacks.
"""

from __future__ import annotations

import sys
import warnings

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advseg_bench import meter
from advseg_bench.models.prepare import prepare

MODELS = {
    "unet-resnet18": (smp.Unet, "resnet18"),
    "unet-resnext101": (smp.Unet, "resnext101_32x8d"),
    "unet-vgg13": (smp.Unet, "vgg13"),
    "unet-vgg16": (smp.Unet, "vgg16"),
    "unet-efficientnet-b7": (smp.Unet, "efficientnet-b7"),
    "unetplusplus-efficientnet-b7": (smp.UnetPlusPlus, "efficientnet-b7"),
}
STEPS = ("lean", "fold+lean")


class TwoClasses(nn.Module):
    """A segmenter as a classifier of images: the cross-entropy of class 0 is the binary cross-entropy of the masks.

    Args:
        net: Images -> logits; hidden from the attack, as the harness hides it.
        y: Masks in {0, 1}, of the logits' shape.
    """

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.hidden, self.y = [net], y

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits (N, 2)."""
        loss = F.binary_cross_entropy_with_logits(self.hidden[0](x), self.y, reduction="none").flatten(1).mean(1)
        return torch.stack([torch.zeros_like(loss), loss + torch.log(-torch.expm1(-loss))], 1)


def measure(net: nn.Module, size: int = 224) -> dict[str, int]:
    """Return the peak bytes of one gradient at batch 4: of torchattacks, of the model as it is, and prepared."""
    import torchattacks

    generator = torch.Generator().manual_seed(0)
    net.eval().requires_grad_(False)
    x = torch.rand((4, 3, size, size), generator=generator)
    with torch.no_grad():
        y = (torch.rand(net(x).shape, generator=generator) > 0.5).float()

    def gradient(model: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_()
        value = F.binary_cross_entropy_with_logits(model(leaf), y, reduction="none").flatten(1).mean(1).sum()
        return torch.autograd.grad(value, leaf)[0]

    fgsm = torchattacks.FGSM(TwoClasses(net, y).eval(), eps=4 / 255)
    fgsm.set_device("cpu")
    labels = torch.zeros(4, dtype=torch.long)
    peaks = {"torchattacks": meter.peak_bytes(lambda: fgsm(x, labels), "cpu")}
    peaks["raw"] = meter.peak_bytes(lambda: gradient(net), "cpu")
    for steps in STEPS:
        prepared = prepare(net, x, steps.split("+"))
        peaks[steps] = meter.peak_bytes(lambda prepared=prepared: gradient(prepared), "cpu")
    return {name: value or 0 for name, value in peaks.items()}


def main() -> None:
    """Print a line per model."""
    warnings.filterwarnings("ignore")
    for name in sys.argv[1:] or MODELS:
        make, encoder = MODELS[name]
        torch.manual_seed(0)
        peaks = measure(make(encoder, encoder_weights=None, classes=3))
        ours = [f"{steps} {peaks[steps] / 1e6:.0f} MB = {peaks[steps] / peaks['torchattacks']:.2f}" for steps in STEPS]
        print(f"{name}: torchattacks {peaks['torchattacks'] / 1e6:.0f} MB, {', '.join(ours)}", flush=True)


if __name__ == "__main__":
    main()
