"""Whether attack, settings and loss suit a task, and if not, why. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advseg_bench.types import Norm, TaskKind, Traits


@dataclass(frozen=True, slots=True)
class Images:
    """Properties of images that decide whether an attack can run on them.

    Attributes:
        kind: Task type.
        axes: Number of spatial axes, 2 or 3.
        channels: Number of image channels.
        slices: Whether the channels are neighbouring slices of a volume, rather than copies or modalities of one image.
    """

    kind: TaskKind
    axes: int
    channels: int
    slices: bool = False


def why_not(attack: str, traits: Traits, images: Images) -> str | None:
    """Return the reason why an attack cannot run on images, or None."""
    if images.kind not in traits.kinds:
        return f"attack {attack!r} runs on {' and '.join(traits.kinds)} tasks, not on {images.kind}"
    if images.axes not in traits.dims:
        known = " and ".join(f"{axes}-D" for axes in traits.dims)
        return f"attack {attack!r} runs on {known} images, not on {images.axes}-D ones"
    return None


def why_loss_not(loss: str, kinds: tuple[TaskKind, ...], kind: TaskKind) -> str | None:
    """Return the reason why a loss is undefined for a task type, or None."""
    if kind in kinds:
        return None
    return f"loss {loss!r} is defined for {' and '.join(kinds)} tasks, not for {kind}"


def released_ratio(settings: Mapping[str, object]) -> float:
    """Return the maximum budget ratio of a form of the FGSM step of arXiv 2401.11224, in multiples of eps."""
    return 2.0 if settings.get("form") == "blend_released" else 1.0


def why_released_not(
    settings: Mapping[str, object], loss: str, swappable: bool, norm: Norm, images: Images
) -> str | None:
    """Return why the FGSM of the released code of arXiv 2401.11224 is undefined for images, or None.

    Args:
        settings: Settings of `attacks.released.ReleasedFGSM`.
        loss: Name of the attack loss.
        swappable: Whether the loss is defined with mask and output swapped.
        norm: Norm of the budget.
        images: Properties of the images.
    """
    if settings.get("order") == "released":
        if images.kind == "multiclass":
            return "order 'released' needs masks and logits of equal shape, which multiclass tasks do not have"
        if not swappable:
            return f"loss {loss!r} is undefined with its arguments swapped (order 'released')"
    if settings.get("form", "additive") != "additive" and norm != "linf":
        return f"form {settings['form']!r} is defined for L_inf budgets"
    if settings.get("channels") == "tied" and images.channels == 1:
        return "channels 'tied' equals 'independent' on images of one channel"
    if settings.get("channels") == "tied" and images.slices:
        return "channels 'tied' needs copies of one image as channels, not neighbouring slices"
    return None
