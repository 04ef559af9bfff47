"""Why an attack, its settings and its loss do not fit a task: what `plan` skips and an attack refuses. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advseg_bench.types import Norm, TaskKind, Traits


@dataclass(frozen=True, slots=True)
class Images:
    """What a fit depends on beside the attack.

    Attributes:
        kind: The kind of task.
        axes: Number of space axes.
        channels: Image channels.
        slices: Whether the channels are neighbouring slices of a volume, rather than copies or kinds of one image.
    """

    kind: TaskKind
    axes: int
    channels: int
    slices: bool = False


def why_not(attack: str, traits: Traits, images: Images) -> str | None:
    """Return the reason why an attack cannot be given some images, or None."""
    if images.kind not in traits.kinds:
        return f"attack {attack!r} runs on {' and '.join(traits.kinds)} tasks, not on {images.kind}"
    if images.axes not in traits.dims:
        known = " and ".join(f"{axes}-D" for axes in traits.dims)
        return f"attack {attack!r} runs on {known} images, not on {images.axes}-D ones"
    return None


def why_loss_not(loss: str, kinds: tuple[TaskKind, ...], kind: TaskKind) -> str | None:
    """Return the reason why a loss that is defined for some kinds of task does not serve another one, or None."""
    if kind in kinds:
        return None
    return f"loss {loss!r} is defined for {' and '.join(kinds)} tasks, not for {kind}"


def released_ratio(settings: Mapping[str, object]) -> float:
    """Return how many times eps a form of the FGSM step of arXiv 2401.11224 may move an image."""
    return 2.0 if settings.get("form") == "blend_released" else 1.0


def why_released_not(
    settings: Mapping[str, object], loss: str, swappable: bool, norm: Norm, images: Images
) -> str | None:
    """Return why what the released code of arXiv 2401.11224 computes has no meaning for some images, or None.

    Args:
        settings: Of `attacks.released.ReleasedFGSM`.
        loss: The loss's name.
        swappable: Whether it can be called with mask and output swapped.
        norm: Norm of the budget.
        images: What is attacked.
    """
    if settings.get("order") == "released":
        if images.kind == "multiclass":
            return "order 'released' swaps masks with logits of their shape, which a multiclass task lacks"
        if not swappable:
            return f"loss {loss!r} has no meaning with its arguments swapped (order 'released')"
    if settings.get("form", "additive") != "additive" and norm != "linf":
        return f"form {settings['form']!r} is defined for L_inf budgets"
    if settings.get("channels") == "tied" and images.channels == 1:
        return "images of one channel have nothing to tie: channels 'tied' equals 'independent'"
    if settings.get("channels") == "tied" and images.slices:
        return "the channels are three slices and no copies of one: channels 'tied' has no meaning"
    return None
