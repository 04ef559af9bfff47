"""The interface of every network: images in [0, 1] -> logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.checks.outputs import Outputs
from advseg_bench.errors import SpecError, expected
from advseg_bench.instruments.modes import set_mode
from advseg_bench.models.inference import Windows, slide


class SegmentationModule(nn.Module):
    """A network with its normalisation and padding inside; an attack uses a model only through this interface.

    An attack bounds a perturbation of the *image*. If the normalisation were outside, a budget of 4/255 would have a
    different meaning for every model, and if the padding were outside, an attack could change padded pixels.

    The image is padded at the end of each space axis by repeating its last row, column or slice, and the logits are
    cropped to the size of the image. At multiples of the stride there is no padding, and the logits are bit-identical
    to those of the bare network on the normalised image. Padding is done by concatenation: its gradient is a sum,
    which is deterministic on a GPU, whereas that of `torch.nn.functional.pad(mode="replicate")` is not.

    Args:
        net: Network, (N, C, *S) -> logits (N, K, *S), or outputs that contain them, for every S whose edges are
            multiples of `stride`. It gets a new tensor, so its first layer may work in place.
        mean: Subtracted from the image: one number, or one per channel.
        std: The image is then divided by it: one positive number, or one per channel.
        stride: The network needs a multiple of this number of pixels along every space axis.
        head: Dotted name, inside `net`, of the layer whose output is the logits (up to resizing); None if unknown.
        outputs: How logits are read from what `net` returns; by default as `checks.outputs.Outputs` does.
        windows: Windows through which images are seen, see `models.inference`; by default the network gets whole
            images.

    Attributes:
        net: The bare network; checkpoints contain its state dict.
        mean: float32, shape (1,) or (C,). `mean` and `std` are not in the state dict: they are part of the spec.
        std: float32, shape (1,) or (C,).
        stride: As given.
        head: As given.
        outputs: As given; `outputs.seen` is what was read last.
        windows: As given.
        notes: What the network's own forward changes in it, one clause each; set by `build_model`.

    Raises:
        SpecError: If a std is not positive or the stride is below 1.
    """

    mean: Tensor
    std: Tensor
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        stride: int = 1,
        head: str | None = None,
        outputs: Outputs | None = None,
        windows: Windows | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.windows = windows
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1), persistent=False)
        if not bool((self.std > 0).all()):
            raise SpecError(expected("std", "positive numbers", std, "Correct `std`."))
        if stride < 1:
            raise SpecError(expected("stride", "1 or more pixels", stride, "Correct `stride`."))
        self.stride = stride
        self.head = head
        self.outputs = Outputs() if outputs is None else outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            x: Images, float32, shape (N, C, *S) with any number of space axes.

        Returns:
            Logits, float32, shape (N, K, *S).

        Cost:
            One forward; with `windows` one for each window.
        """
        space = (1,) * (x.dim() - 2)
        z = (x - self.mean.view(-1, *space)) / self.std.view(-1, *space)
        return self._run(z) if self.windows is None else slide(self._run, self, z, self.windows)

    def _run(self, z: Tensor) -> Tensor:
        """Pad normalised images to the stride, run the network, and crop."""
        padded = _pad(z, self.stride)
        return _crop(self.outputs.read(self.net(padded), padded), z.shape[2:])

    def train(self, mode: bool = True) -> SegmentationModule:
        """Set the mode of the network, if it has one: frozen TorchScript has none."""
        self.training = mode
        set_mode(self.net, mode)
        return self

    def describe_outputs(self) -> dict[str, Any]:
        """Return what a record stores about the network's outputs: nothing if it returns plain logits of images."""
        windows = {} if self.windows is None else {"inference": self.windows.as_record()}
        return self.outputs.describe() | windows


def _pad(x: Tensor, stride: int) -> Tensor:
    """Repeat the last slice along each space axis up to the next multiple of `stride`."""
    for axis in range(2, x.dim()):
        missing = -x.shape[axis] % stride
        if missing:
            sizes = [-1] * x.dim()
            sizes[axis] = missing
            x = torch.cat([x, x.narrow(axis, -1, 1).expand(sizes)], dim=axis)
    return x


def _crop(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Remove the padding from the end of each space axis."""
    for axis, length in enumerate(size, start=2):
        if logits.shape[axis] != length:
            logits = logits.narrow(axis, 0, length)
    return logits
