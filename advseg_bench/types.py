"""The nouns of the project: frozen, slotted, without behaviour. Importing this module loads no library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TaskKind = Literal["binary", "multilabel", "multiclass"]
Norm = Literal["linf", "l2"]
EmptyRule = Literal["skip", "one", "zero"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a segmenter decides at each pixel.

    Attributes:
        kind: "binary" (one sigmoid channel), "multilabel" (a sigmoid a channel, classes may overlap) or
            "multiclass" (softmax, exactly one class a pixel).
        classes: One name per logit channel. In a multiclass task the first is the background: it is attacked
            like any other class, its counts are kept, and the mean scores leave it out.
    """

    kind: TaskKind
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The smallest and largest intensity an image may have, in input units."""

    lower: float = 0.0
    upper: float = 1.0


@dataclass(frozen=True, slots=True)
class Budget:
    """How far an attack may move an image: a norm and its radius, in input units (4/255, not 4)."""

    norm: Norm
    eps: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with their labels and everything an attack or a metric must know about them.

    Attributes:
        x: Images, float32, shape (N, C, *S), inside `bounds`.
        y: Labels; bool (N, K, *S) for binary (K = 1) and multilabel, int64 (N, *S) for multiclass.
        valid: bool (N, *S); a pixel that is False counts in no loss and in no score.
        task: What the labels mean.
        bounds: Intensities an adversarial image must stay inside.
        images: N identifiers, unique in the data set.
        subjects: N identifiers of the person (or phantom case) each image shows: the unit of statistics.
        blocks: N identifiers of the run of neighbouring images (day, scan, slab) each image belongs to.
        spacing: N tuples, the edge lengths of a pixel in mm, in the order of the space axes; NaN if unknown.
    """

    x: Tensor
    y: Tensor
    valid: Tensor
    task: Task
    bounds: Bounds
    images: tuple[str, ...]
    subjects: tuple[str, ...]
    blocks: tuple[str, ...]
    spacing: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What an attack says of itself, as its attribute `claims`. `advseg_bench.testing` holds it to that.

    An attack without the attribute claims the default of each field.

    Attributes:
        norms: Norms of a budget it can be given.
        kinds: Kinds of task it can be given.
        dims: Numbers of space axes it can be given.
        gradient: Whether it differentiates the model; False for a search that only looks at logits.
        control: Whether it is there to be compared with, such as noise. It costs nothing unless it says so.
        minimal_norm: Whether it seeks the smallest perturbation that breaks a segmentation, so that it may leave a
            part of the budget unused.
        random: Whether its result depends on the generators; None if it says neither.
        share: What part of the exact optimum it reaches on segmenters where that is known; None for the usual part.
        forwards: Model evaluations per image; None if it does not say.
        backwards: Gradient evaluations per image; None if it does not say.
    """

    norms: tuple[Norm, ...] = ("linf", "l2")
    kinds: tuple[TaskKind, ...] = ("binary", "multilabel", "multiclass")
    dims: tuple[int, ...] = (2, 3)
    gradient: bool = True
    control: bool = False
    minimal_norm: bool = False
    random: bool | None = None
    share: float | None = None
    forwards: float | None = None
    backwards: float | None = None


Model = Callable[["Tensor"], "Tensor"]
"""Images (N, C, *S) inside the bounds -> logits (N, K, *S). Normalisation and padding are inside."""


class Attack(Protocol):
    """Any callable of this shape is an attack; a frozen dataclass with keyword-only settings is the house style.

    An attack whose definition moves an image by more than eps may say how many times as far in an attribute
    `overshoot`; the harness holds it to that, and flags every image that it moved beyond eps.

    An attack that stops at success may have a method `reached(logits, clean, batch) -> bool (N,) or None`, which tells
    from the logits of the scored and of the clean images where it succeeded; the harness flags the others.
    """

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images: shape, dtype and device of `batch.x`, inside bounds and budget.

        Args:
            model: Images -> logits.
            batch: Images and labels; must not be changed.
            budget: Norm and radius.
            generators: One source of randomness per image, so that no image's result depends on its neighbours.
        """
        ...
