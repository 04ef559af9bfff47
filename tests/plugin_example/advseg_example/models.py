"""A network: channels and classes are told to it, the rest are settings."""

from torch import nn


class TwoLayers(nn.Sequential):
    """Two convolutions."""

    def __init__(self, in_channels: int, classes: int, width: int = 8) -> None:
        super().__init__(
            nn.Conv2d(in_channels, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, classes, 5, padding=2)
        )
