"""What attacks are tried on: small batches with known answers, a linear segmenter, a network that couples pixels."""

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
"""Channels of the images and of the logits: logit k reads channel k alone, so that one point is worst for all."""

WEIGHTS = (4.0, -3.0, 3.5)
UNIT = Bounds()
WRONG = 0.1
"""Share of pixels that the segmenter has wrong on the clean images."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A batch that can be made again at any time.

    Attributes:
        kind: Of the task.
        space: Sizes of the space axes.
        n: Images.
        bounds: Of the intensities; each image reaches both.
        void: Share of pixels that are not valid.
        hard: Whether images are degenerate: without a valid pixel, with an empty mask, constant, and usual.
    """

    kind: TaskKind = "binary"
    space: tuple[int, ...] = (11, 8)
    n: int = 3
    bounds: Bounds = UNIT
    void: float = 0.0
    hard: bool = False

    def __str__(self) -> str:
        """Return what a message says about the scene."""
        images = "1 image" if self.n == 1 else f"{self.n} images"
        size = " x ".join(map(str, self.space))
        what = f"{self.kind}, {images} of {CHANNELS[self.kind]} x {size}"
        what += f", bounds [{self.bounds.lower:g}, {self.bounds.upper:g}]"
        if self.void:
            what += f", {self.void:.0%} of the pixels not valid"
        return what + (", degenerate images" if self.hard else "")


@lru_cache(maxsize=64)
def make_batch(scene: Scene, device: str = "cpu") -> Batch:
    """Return the batch of a scene: the one there is, not to be written to. Image i is the same whatever `n` is.

    Brightness differs from image to image, so that masks are of very different sizes. Labels are the linear
    segmenter's own prediction but for a share `WRONG` of the pixels.
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
    """Return the segmenter that the labels of a scene follow: logit k is a multiple of channel k less its middle."""
    bounds, classes = batch.bounds, len(batch.task.classes)
    weight = torch.tensor(WEIGHTS[:classes]) / (bounds.upper - bounds.lower)
    bias = -weight * (bounds.lower + bounds.upper) / 2
    return LinearSegmenter(weight.diag(), bias).to(batch.x.device).eval()


class CoupledSegmenter(nn.Module):
    """Two convolutions with batch normalisation and dropout between: one pixel moves the logits of its neighbours.

    Images are put through one by one, so that their logits have the same bits in any batch.

    Args:
        dims: Number of space axes.
        channels: Of images and of logits.
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
    """Return a coupled network for a batch: in eval mode, gradients wanted for the first convolution alone.

    One parameter holds a gradient of its own, which is not the attack's to touch.
    """
    model = CoupledSegmenter(batch.x.dim() - 2, batch.x.shape[1]).to(batch.x.device).eval().requires_grad_(False)
    for parameter in model.body[0].parameters():
        parameter.requires_grad_(True)
    first = next(model.parameters())
    first.grad = torch.full_like(first, 0.25)
    return model


def _draw_image(scene: Scene, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Intensities (C, *S), and numbers in [0, 1) that decide about wrong labels (C, *S) and void (*S)."""
    generator = torch.Generator().manual_seed(100 + index)
    shape = (CHANNELS[scene.kind], *scene.space)
    share = torch.rand(shape, generator=generator) ** (0.4, 1.0, 2.5)[index % 3]
    share.view(-1)[:2] = torch.tensor([0.0, 1.0])
    x = scene.bounds.lower + (scene.bounds.upper - scene.bounds.lower) * share
    noise, void = torch.rand(shape, generator=generator), torch.rand(scene.space, generator=generator)
    return x.clamp(scene.bounds.lower, scene.bounds.upper), noise, void


def _label(x: Tensor, noise: Tensor, task: Task, bounds: Bounds) -> Tensor:
    """What the linear segmenter says, but for a few."""
    empty = Batch(x, x, x, task, bounds, (), (), (), ())
    y = predict(make_linear(empty)(x), task)
    if task.kind == "multiclass":
        wrong = noise[:, 0] < WRONG
        return torch.where(wrong, (y + 1) % len(task.classes), y)
    return y ^ (noise < WRONG)


def _degrade(batch: Batch) -> Batch:
    """Image 0 has no valid pixel, image 1 an empty mask, image 2 is constant."""
    x, y, valid = batch.x.clone(), batch.y.clone(), batch.valid.clone()
    valid[:1] = False
    y[1:2] = 0
    x[2:3] = (batch.bounds.lower + batch.bounds.upper) / 2
    return replace(batch, x=x, y=y, valid=valid)


def relabel_void(batch: Batch) -> Batch:
    """Return the batch with other labels where pixels are not valid."""
    void = ~batch.valid
    if batch.task.kind == "multiclass":
        return replace(batch, y=torch.where(void, (batch.y + 1) % len(batch.task.classes), batch.y))
    return replace(batch, y=batch.y ^ void.unsqueeze(1))
