"""Predictions of mirrored and rotated images, combined: test-time augmentation, as nnU-Net deploys it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, get_args

from torch import Tensor, nn

from advseg_bench.defences.combining import Combine, combine_logits
from advseg_bench.errors import IncompatibleError, SettingError, expected
from advseg_bench.instruments.modes import set_mode
from advseg_bench.types import Bounds, DefenceTraits, Task


@dataclass(frozen=True, kw_only=True)
class Mirroring:
    """Predicts every combination of mirrored axes, moves the logits back, and combines them.

    Attributes:
        axes: Space axes that are mirrored, counted from 0; None for all.
        rotations: Whether also to rotate by 90, 180 and 270 degrees in the plane of the last two axes, which must have
            equal edges.
        combine: "logits", "probabilities" or "vote", see `combining.combine_logits`.

    Source:
        nnU-Net (Nat. Methods 18, 2021), whose mirroring takes the mean of logits.

    Cost:
        2^(mirrored axes) forwards of the network per image; four times as many with `rotations`.

    Example:
        >>> import torch
        >>> from advseg_bench.defences import Mirroring
        >>> from advseg_bench.types import Bounds, Task
        >>> defended = Mirroring()(torch.nn.Identity(), Task("binary", ("organ",)), Bounds())
        >>> x = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)
        >>> torch.allclose(defended(x), x)
        True
    """

    axes: Sequence[int] | None = None
    rotations: bool = False
    combine: Combine = "logits"
    traits: ClassVar[DefenceTraits] = DefenceTraits(forwards=4)

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.axes is not None:
            object.__setattr__(self, "axes", tuple(self.axes))
            if len(set(self.axes)) < len(self.axes) or not set(self.axes) <= {0, 1, 2}:
                raise SettingError(expected("mirroring: axes", "different axes among 0, 1 and 2", list(self.axes)))
        if self.combine not in get_args(Combine):
            names = " or ".join(map(repr, get_args(Combine)))
            raise SettingError(expected("mirroring: combine", names, self.combine))

    def __call__(self, model: nn.Module, task: Task, bounds: Bounds) -> nn.Module:
        """Return the network that predicts all views, as `Defence`."""
        return _Mirrored(model, task, self)


class _Mirrored(nn.Module):
    """A network whose predictions of mirrored images are combined."""

    def __init__(self, model: nn.Module, task: Task, settings: Mirroring) -> None:
        super().__init__()
        self.model, self.task, self.settings = model, task, settings
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the combined logits of images."""
        return combine_logits(self._predict(x), self.task, self.settings.combine)

    def _predict(self, x: Tensor) -> Iterator[Tensor]:
        """Predict each view, and move its logits back."""
        space = x.dim() - 2
        axes = tuple(range(space)) if self.settings.axes is None else tuple(self.settings.axes)
        if any(axis >= space for axis in axes):
            what = f"axes below {space}, the number of space axes"
            raise IncompatibleError(expected("defence mirroring: axes", what, list(axes)))
        if self.settings.rotations and x.shape[-1] != x.shape[-2]:
            what = "images with as many rows as columns for `rotations`"
            raise IncompatibleError(expected("defence mirroring", what, tuple(x.shape[2:]), "Remove `rotations`."))
        for chosen in product((False, True), repeat=len(axes)):
            mirrored = [axis + 2 for axis, flip in zip(axes, chosen, strict=True) if flip]
            for turns in range(4 if self.settings.rotations else 1):
                view = x.flip(mirrored) if mirrored else x
                logits = self.model(view.rot90(turns, (-2, -1)) if turns else view)
                back = logits.rot90(-turns, (-2, -1)) if turns else logits
                yield back.flip(mirrored) if mirrored else back

    def train(self, mode: bool = True) -> _Mirrored:
        """Set the mode of the network, if it has one."""
        self.training = mode
        set_mode(self.model, mode)
        return self
