"""Test data of the contract: small batches with known optima, a linear segmenter, and a small network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch
from advseg_bench.metrics import predict
from advseg_bench.testing.segmenters import LinearSegmenter
from advseg_bench.types import Bounds, Task, TaskKind

CHANNELS: dict[TaskKind, int] = {"binary": 1, "multilabel": 3, "multiclass": 3}
"""Channels of images and logits: logit k depends only on channel k, so that one image is worst for all logits."""

WEIGHTS = (4.0, -3.0, 3.5)
UNIT = Bounds()
WRONG = 0.1
"""Fraction of pixels that the segmenter predicts wrongly on the clean images."""

DIM_STRIDE = 11
"""Every so many pixels of a dim image, one is invalid."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A reproducible description of a batch.

    Attributes:
        kind: Task type.
        space: Sizes of the spatial axes.
        n: Number of images.
        bounds: Intensity range; each image reaches both ends.
        void: Fraction of invalid pixels.
        hard: Whether the first images are degenerate: no valid pixel, an empty mask, constant intensity.
    """

    kind: TaskKind = "binary"
    space: tuple[int, ...] = (11, 8)
    n: int = 3
    bounds: Bounds = UNIT
    void: float = 0.0
    hard: bool = False

    def __str__(self) -> str:
        """Return the description for messages."""
        images = "1 image" if self.n == 1 else f"{self.n} images"
        size = " x ".join(map(str, self.space))
        what = f"{self.kind}, {images} of {CHANNELS[self.kind]} x {size}"
        what += f", bounds [{self.bounds.lower:g}, {self.bounds.upper:g}]"
        if self.void:
            what += f", {self.void:.0%} of the pixels invalid"
        return what + (", degenerate images" if self.hard else "")


@lru_cache(maxsize=64)
def make_batch(scene: Scene, device: str = "cpu") -> Batch:
    """Return the batch of a scene; it is cached and must not be modified. Image i does not depend on `n`.

    Brightness differs between images, so that the sizes of masks differ. Labels are the prediction of the linear
    segmenter, except for a fraction `WRONG` of the pixels.
    """
    task = Task(scene.kind, tuple(f"class{k}" for k in range(CHANNELS[scene.kind])))
    bounds, names = scene.bounds, tuple(f"image{i}" for i in range(scene.n))
    parts = [_draw_image(scene, i) for i in range(scene.n)]
    x, noise, void = (torch.stack(part) for part in zip(*parts, strict=True))
    batch = Batch(
        x=x,
        y=_label(x, noise, task, bounds),
        valid=void >= scene.void,
        task=task,
        bounds=bounds,
        images=names,
        subjects=names,
        blocks=names,
        spacing=((1.0,) * len(scene.space),) * scene.n,
    )
    if scene.hard:
        batch = _degrade(batch)
    return replace(batch, x=batch.x.to(device), y=batch.y.to(device), valid=batch.valid.to(device))


def make_linear(batch: Batch) -> LinearSegmenter:
    """Return the segmenter that defines the labels of a scene: logit k is a multiple of channel k minus mid-range."""
    bounds, classes = batch.bounds, len(batch.task.classes)
    weight = torch.tensor(WEIGHTS[:classes]) / (bounds.upper - bounds.lower)
    bias = -weight * (bounds.lower + bounds.upper) / 2
    return LinearSegmenter(weight.diag(), bias).to(batch.x.device).eval()


class CoupledSegmenter(nn.Module):
    """Two convolutions with batch normalisation and dropout between them: logits depend on neighbouring pixels.

    Images are processed one by one, so that the bits of their logits do not depend on the batch.

    Args:
        dims: Number of spatial axes.
        channels: Channels of images and logits.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        convolution, normalisation = _CONVOLUTIONS[dims - 1], _NORMALISATIONS[dims - 1]
        with torch.random.fork_rng():
            self.body = nn.Sequential(
                convolution(channels, 6, 3, padding=1),
                normalisation(6),
                nn.Tanh(),
                nn.Dropout(0.5),
                convolution(6, channels, 3, padding=1),
            )
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for tensor in (*self.body[0].parameters(), *self.body[4].parameters()):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel() ** 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *S) -> logits (N, C, *S)."""
        return torch.cat([self.body(one) for one in torch.split(x, 1)])


def make_coupled(batch: Batch) -> CoupledSegmenter:
    """Return a small network for a batch, in eval mode; only the first convolution requires gradients.

    One parameter already has a gradient, which an attack must not change.
    """
    model = CoupledSegmenter(batch.x.dim() - 2, batch.x.shape[1]).to(batch.x.device).eval().requires_grad_(False)
    for parameter in model.body[0].parameters():
        parameter.requires_grad_(True)
    first = next(model.parameters())
    first.grad = torch.full_like(first, 0.25)
    return model


def _draw_image(scene: Scene, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return intensities (C, *S), and random numbers in [0, 1) for wrong labels (C, *S) and invalid pixels (*S)."""
    generator = torch.Generator().manual_seed(100 + index)
    shape = (CHANNELS[scene.kind], *scene.space)
    share = torch.rand(shape, generator=generator) ** (0.4, 1.0, 2.5)[index % 3]
    share.view(-1)[:2] = torch.tensor([0.0, 1.0])
    x = scene.bounds.lower + (scene.bounds.upper - scene.bounds.lower) * share
    noise, void = torch.rand(shape, generator=generator), torch.rand(scene.space, generator=generator)
    return x.clamp(scene.bounds.lower, scene.bounds.upper), noise, void


def _label(x: Tensor, noise: Tensor, task: Task, bounds: Bounds) -> Tensor:
    """Return the prediction of the linear segmenter, with some wrong labels."""
    empty = Batch(x, x, x, task, bounds, (), (), (), ())
    y = predict(make_linear(empty)(x), task)
    if task.kind == "multiclass":
        wrong = noise[:, 0] < WRONG
        return torch.where(wrong, (y + 1) % len(task.classes), y)
    return y ^ (noise < WRONG)


def _degrade(batch: Batch) -> Batch:
    """Make degenerate images: image 0 has no valid pixel, image 1 has an empty mask, image 2 is constant."""
    x, y, valid = batch.x.clone(), batch.y.clone(), batch.valid.clone()
    valid[:1] = False
    y[1:2] = 0
    x[2:3] = (batch.bounds.lower + batch.bounds.upper) / 2
    return replace(batch, x=x, y=y, valid=valid)


def dim(batch: Batch, *, ends: bool) -> Batch:
    """Return a batch of dim images: all intensities lie between 0.25 and 0.3 of the range, far from both bounds.

    Args:
        batch: Images that reach both bounds.
        ends: Whether the invalid pixels of each image are set to the bounds, in turn to the upper and the lower one.

    Returns:
        The batch with the same labels; each image has some invalid pixels.
    """
    low, size = batch.bounds.lower, batch.bounds.upper - batch.bounds.lower
    x, valid = low + 0.25 * size + 0.05 * (batch.x - low), batch.valid.clone()
    valid.flatten(1)[:, ::DIM_STRIDE] = False
    if ends:
        values = x.flatten(2)
        values[..., :: 2 * DIM_STRIDE] = batch.bounds.upper
        values[..., DIM_STRIDE :: 2 * DIM_STRIDE] = batch.bounds.lower
    return replace(batch, x=x, valid=valid)


def relabel_void(batch: Batch) -> Batch:
    """Return the batch with other labels at invalid pixels."""
    void = ~batch.valid
    if batch.task.kind == "multiclass":
        return replace(batch, y=torch.where(void, (batch.y + 1) % len(batch.task.classes), batch.y))
    return replace(batch, y=batch.y ^ void.unsqueeze(1))
