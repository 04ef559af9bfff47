"""The nouns of the project: frozen, slotted, without behaviour. Importing this module loads no library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an attack can do and costs, as its attribute `traits`. `advseg_bench.testing` holds it to that.

    An attack without the attribute has the default of each field.

    Attributes:
        norms: Norms of a budget it can be given.
        kinds: Kinds of task it can be given.
        dims: Numbers of space axes it can be given.
        gradient: Whether it differentiates the model; False for a search that only looks at logits.
        control: Whether it is a noise baseline, there to be compared with. It costs nothing unless it says so.
        minimal_norm: Whether it seeks the smallest perturbation that breaks a segmentation, so that it may leave a
            part of the budget unused.
        random: Whether its result depends on the generators; None if it says neither.
        share: What part of the exact optimum it reaches on segmenters where that is known; None for the usual part.
        max_budget_ratio: How many times eps its definition may move an image. The harness holds it to that, and
            flags every image that it moved beyond eps.
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
    max_budget_ratio: float = 1.0
    forwards: float | None = None
    backwards: float | None = None
