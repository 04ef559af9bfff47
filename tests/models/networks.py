"""Networks such as users bring, good and bad."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """A convolution, and what a test puts behind it."""

    def __init__(
        self, in_channels: int, classes: int, finish: str = "nothing", *, bias: bool = True, level: float | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(4, classes, 1, bias=bias)
        self.finish = FINISHES[finish]
        if level is not None:
            nn.init.zeros_(self.last.weight)
            nn.init.constant_(self.last.bias, level)

    def forward(self, x: Tensor) -> Any:
        return self.finish(self.last(self.drop(self.norm(self.first(x)).relu())))


FINISHES: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda z: z,
    "relu": lambda z: z.relu(),
    "bent": lambda z: 2 * z,
    "noisy": lambda z: z + 1e-6 * torch.rand_like(z),
    "sigmoid": torch.sigmoid,
    "module": nn.Sequential(nn.Identity(), nn.Sigmoid(), nn.Identity()),
    "formula": lambda z: 1 / (1 + (-z).exp()),
    "softmax": lambda z: z.softmax(dim=1),
    "clamp": lambda z: z.clamp(0, 1),
    "resized": lambda z: nn.functional.interpolate(z.sigmoid()[..., ::2, ::2], scale_factor=2.0),
    "dict": lambda z: {"mask": z},
    "labels": lambda z: z > 0,
    "small": lambda z: z[..., ::3, ::3],
    "flat": lambda z: z.flatten(1),
    "nan": lambda z: z / 0 - z / 0,
    "many": lambda z: torch.cat([z, z], dim=1),
}


class Torchvision(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class Formula(nn.Module):
    """No layers at all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class PixelLinear(nn.Module):
    """A head that is a linear layer over channels-last pixels."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


def make_anything(**arguments: Any) -> nn.Module:
    return Plain(**arguments)


def make_nothing() -> None:
    return None


def make_trouble() -> nn.Module:
    raise RuntimeError("two\nlines")


network = Formula()


def make_with_frozen_norm(in_channels: int, classes: int) -> nn.Module:
    net = Plain(in_channels, classes)
    net.norm.eval()
    return net
