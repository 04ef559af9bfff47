"""The basic data types: frozen, slotted, without behaviour. Importing this module loads no library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["binary", "multilabel", "multiclass"]
Norm = Literal["linf", "l2"]
EmptyRule = Literal["skip", "one", "zero"]


@dataclass(frozen=True, slots=True)
class Task:
    """A segmentation task: what the model decides at each pixel.

    Attributes:
        kind: Task type: "binary" (one sigmoid channel), "multilabel" (one sigmoid per channel, classes may overlap) or
            "multiclass" (softmax, exactly one class per pixel).
        classes: One name per logit channel. In a multiclass task the first is the background: it is attacked and
            counted like any other class, but mean scores exclude it.

    Example:
        >>> import advseg_bench as ab
        >>> task = ab.Task("multilabel", ("liver", "tumour"))
        >>> len(task.classes)
        2
    """

    kind: TaskKind
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The valid intensity range of images.

    Attributes:
        lower: Smallest intensity, in input units.
        upper: Largest intensity, in input units.

    Example:
        >>> import advseg_bench as ab
        >>> ab.Bounds()
        Bounds(lower=0.0, upper=1.0)
    """

    lower: float = 0.0
    upper: float = 1.0


@dataclass(frozen=True, slots=True)
class Budget:
    """The perturbation budget: how far an attack may move an image.

    Attributes:
        norm: "linf" or "l2", over all values of an image.
        eps: Radius of the ball around the clean image, in input units: 4/255, not 4.

    Example:
        >>> import advseg_bench as ab
        >>> ab.Budget("linf", eps=8 / 256)
        Budget(norm='linf', eps=0.03125)
    """

    norm: Norm
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an attack supports and costs, declared in its attribute `traits`.

    An attack without this attribute has the default of each field. `advseg_bench.testing` verifies the declaration.

    Attributes:
        norms: Supported norms of the budget.
        kinds: Supported task types.
        dims: Supported numbers of spatial axes.
        gradient: Whether the attack differentiates the model; False for attacks that use logits only.
        control: Whether it is a noise baseline. Its declared cost is zero unless `forwards` and `backwards` are set.
        minimal_norm: Whether it minimises the perturbation's norm, so that it may use only a part of the budget.
        random: Whether the result depends on the generators; None if not declared.
        share: Fraction of the exact optimum that it reaches on segmenters with a known optimum; None for the default
            of the contract.
        max_budget_ratio: Maximum budget ratio: how many times eps the attack's definition may move an image. The
            harness enforces it, and flags every image that moved beyond eps.
        forwards: Forward passes per image; None if not declared.
        backwards: Backward passes per image; None if not declared.

    Example:
        >>> import advseg_bench as ab
        >>> traits = ab.attacks.PGD(loss="dice", steps=20).traits
        >>> traits.forwards, traits.backwards, traits.random
        (20, 20, True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenceTraits:
    """What a defence supports and costs, declared in its attribute `traits`.

    Attributes:
        kinds: Supported task types.
        dims: Supported numbers of spatial axes.
        differentiable: Whether the gradient of the defended model is that of its forward pass; otherwise its backward
            pass is an approximation (BPDA).
        random: Whether logits depend on random numbers.
        forwards: Forward passes of the network per image, with default settings on 2-D images.

    Example:
        >>> from advseg_bench.defences import BitDepth
        >>> BitDepth.traits.differentiable, BitDepth.traits.random
        (False, False)
    """

    kinds: tuple[TaskKind, ...] = ("binary", "multilabel", "multiclass")
    dims: tuple[int, ...] = (2, 3)
    differentiable: bool = True
    random: bool = False
    forwards: float = 1
