"""Doubts: signs that an attack failed although nothing is broken, and how the course of one attack shows them.

A doubt is no fault: rows with one stay in all means. It names a cause that is worth ruling out before a low drop is
taken for robustness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from advseg_bench.batches import Batch

Floats = NDArray[np.float64]

Reason = tuple[str, int]
"""What was observed, as a clause, and the number of images."""

ZERO_SHARE = 0.9
"""Largest share of gradient entries that may be exactly 0, of those whose intensity lies inside the bounds."""

GAIN = 0.05
"""Largest gain in the last steps, as a share of the whole gain, and largest Dice that a kept iterate may give away."""

FEWEST_STEPS = 10
"""Number of steps from which on the gain of the last tenth is judged."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A sign that an attack or a model is not what it seems.

    Attributes:
        cause: What may be behind it.
        threshold: From when on it is raised.
        source: Paper that names the sign.
        remedy: What to do.
    """

    cause: str
    threshold: str
    source: str
    remedy: str


_INDICATORS = "arXiv 2106.09947"
_CHECKLIST = "arXiv 1902.06705"
_OWN = "own"

DOUBTS: dict[str, Doubt] = {
    "zero_gradient": Doubt(
        "the output is saturated or rounded, so that the gradient vanishes",
        "a gradient that is 0 everywhere, or at more than 90 % of the values inside the bounds, on more than 5 % of "
        "the images",
        _INDICATORS,
        "Attack the logits before the rounding, or a differentiable substitute (BPDA), and add `square`",
    ),
    "incomplete": Doubt(
        "the attack was stopped while its objective still increased",
        "the last tenth of at least 10 steps adds more than 5 % of the whole gain, on more than 10 % of the images and "
        "two at least",
        _INDICATORS,
        "Increase `steps`",
    ),
    "silent_success": Doubt(
        "an earlier iterate was more harmful than the one that was returned",
        "by more than 0.05 Dice with `keep` = 'last', on more than 5 % of the images and two at least",
        _INDICATORS,
        "Set `keep` to 'best'",
    ),
    "tie": Doubt(
        "two attacks are the same computation, the loss or a setting of one has no effect, or the model is linear",
        "equal counts on all images at an eps where the mean Dice falls by at least 0.01",
        _OWN,
        "Compare their settings, and drop one of the two",
    ),
    "weaker_than_noise": Doubt(
        "the gradient points nowhere, or the loss does not lower Dice",
        "mean Dice higher than under the most harmful noise by more than 0.01 and two standard errors, paired over "
        "images",
        _CHECKLIST,
        "Check loss, labels and the scale of eps, and add `square`",
    ),
    "weaker_than_one_step": Doubt(
        "the step size does not suit eps, the gradient is misleading away from the image, or the loss is far from the "
        "score",
        "mean Dice of an iterative attack higher than under `fgsm` of the same loss by more than 0.01 and two standard "
        "errors, paired over images",
        _CHECKLIST,
        "Set `step_size` so that the steps cross the ball, and increase `steps`",
    ),
    "weaker_than_prefix": Doubt(
        "additional steps lead away from what fewer steps have found",
        "mean Dice higher than under the same attack with fewer `steps` by more than 0.01 and two standard errors, "
        "paired over images",
        _CHECKLIST,
        "Set `keep` to 'best', or use a step size that shrinks, as in `apgd`",
    ),
    "rising_curve": Doubt(
        "the search at the larger eps failed, since its ball contains the smaller one",
        "mean Dice higher than at a smaller eps, or than without an attack, by more than 0.01 and two standard errors, "
        "paired over images",
        _CHECKLIST,
        "Increase `steps`, or start from the result at the smaller eps",
    ),
    "gradient_masking": Doubt(
        "the model hides its gradient: an attack without it is stronger than every attack with it",
        "Dice lower by more than 0.05 on more than 5 % of the images and two at least",
        f"{_INDICATORS}, {_CHECKLIST}",
        "Use the gradient-free result, and adapt the attacks to the model (BPDA, average over repeats)",
    ),
    "unbounded_attack_fails": Doubt(
        "an attack that may replace the whole image leaves a mask, so its search fails",
        "mean Dice above 0.1 under an iterative L_inf attack whose eps is the width of the intensity range",
        f"{_INDICATORS}, {_CHECKLIST}",
        "Check the sign of the loss, `step_size` and the gradient",
    ),
    "short_steps": Doubt(
        "the steps cannot cross the ball, so a start on one side never reaches the other",
        "step_size x steps below 2 with a random start, or below 1 without one",
        _OWN,
        "Leave `step_size` out, or set it to at least 2.5 / steps",
    ),
    "clean_unlike_log": Doubt(
        "the model that was attacked is not the one that was trained: weights, intensities or classes differ",
        "mean clean Dice of the test images below that of the training log by more than 0.15",
        _OWN,
        "Check weights, `scale`, `mean`, `std` and the order of the classes",
    ),
}
"""Name -> the doubt. The first three are flags of rows too, which the course of an attack shows."""

TRACED = ("zero_gradient", "incomplete", "silent_success")
"""Doubts about one attack on one image; they are flags of its row."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A doubt about one arm on one model, or about a model.

    Attributes:
        doubt: Its name in `DOUBTS`.
        model: Name of the model.
        observed: What was measured, as a clause.
        arm: Attack, loss, settings and norm; empty for a model.
        eps: The radii at which it was found, ascending.
        images: Number of images that show it or that were compared, at the radius with most of them.
    """

    doubt: str
    model: str
    observed: str
    arm: tuple[str, ...] = ()
    eps: tuple[float, ...] = ()
    images: int = 0

    def describe(self) -> str:
        """Return the finding as one sentence with cause, threshold, source and remedy."""
        known = DOUBTS[self.doubt]
        radii = f" at eps {', '.join(f'{eps:.4g}' for eps in self.eps)}" if self.eps else ""
        attack = f", {' '.join(filter(None, self.arm[:2]))}{radii}" if self.arm else ""
        return (
            f"{self.model}{attack}: {self.doubt}: {self.observed} ({self.images} images); perhaps {known.cause} "
            f"(threshold: {known.threshold}; source: {known.source}). {known.remedy}."
        )


@dataclass(slots=True)
class Trace:
    """The course of one attack on N images, which whoever answers its queries fills in.

    Attributes:
        keep: Which iterate is returned.
        path: Sum of the step sizes as a share of eps; None where they adapt. An attack whose path is 1 reaches the
            border of the ball with its last step, so its objective increases until then.
        values: For each gradient step the fixed objective of each iterate, which the attack increases, (N,). With a
            radius schedule only the last stage.
        zero: For each gradient step the share of gradient entries that are exactly 0, (N,), see `measure_zero`.
        success: For each iterate its hard score, lower for a stronger attack, (N,), NaN if not measured; empty if none
            is. With `keep` "best" it only explains zeros.

    Example:
        >>> import torch
        >>> from advseg_bench.checks.doubts import Trace, flag_images
        >>> trace = Trace(zero=[torch.tensor([0.0, 1.0])])
        >>> flag_images(trace)["zero_gradient"]
        {1}
    """

    keep: Literal["last", "best"] = "last"
    path: float | None = None
    values: list[Tensor] = field(default_factory=list)
    zero: list[Tensor] = field(default_factory=list)
    success: list[Tensor] = field(default_factory=list)


def measure_zero(gradient: Tensor, batch: Batch) -> Tensor:
    """Return the share of exactly zero gradient entries of each image.

    Entries of clean intensities at a bound are left out, since the background of many scans is one such value.

    Args:
        gradient: Gradient of the objective, (N, C, *S).
        batch: The clean images and their bounds.

    Returns:
        Shares, float32 (N,): exactly 1 only where the whole gradient is 0.
    """
    zero, x = (gradient == 0).flatten(1), batch.x.flatten(1)
    inside = (x > batch.bounds.lower) & (x < batch.bounds.upper)
    share = (zero & inside).sum(1) / inside.sum(1).clamp(min=1)
    whole = zero.all(1)
    return share.clamp(max=1 - 1e-6).where(~whole, whole.to(share))


def flag_images(trace: Trace) -> dict[str, set[int]]:
    """Return the images of a trace with each doubt of `TRACED`.

    Args:
        trace: The course of an attack.

    Returns:
        Name -> indices of images.
    """
    return {
        "zero_gradient": find_zero_gradients(trace),
        "incomplete": find_incomplete(trace),
        "silent_success": find_silent_successes(trace),
    }


def find_zero_gradients(trace: Trace) -> set[int]:
    """Return the images whose gradient vanished at some step.

    Steps at which the hard score is 0 are left out: a loss of the correct pixels has no gradient once all are wrong.
    """
    masked, score = _stack(trace.zero) > ZERO_SHARE, _stack(trace.success)
    for vanished, reached in zip(masked, score <= 0, strict=False):
        vanished &= ~reached
    return _list(np.asarray(masked.any(0)))


def find_incomplete(trace: Trace) -> set[int]:
    """Return the images whose objective still increases in the last tenth of the steps.

    The objective is made monotone and scaled to [0, 1] by its whole gain.
    """
    values = _stack(trace.values)
    if len(values) < FEWEST_STEPS or (trace.path is not None and trace.path <= 1 + 1e-6):
        return set()
    best = np.fmax.accumulate(values, axis=0)
    with np.errstate(invalid="ignore"):  # infinite losses compare as false
        gain = best[-1] - np.fmin.reduce(best, axis=0)
        late = best[-1] - best[-1 - len(values) // 10]
        return _list((gain > 1e-6 * np.abs(best[-1])) & (late > GAIN * gain))


def find_silent_successes(trace: Trace) -> set[int]:
    """Return the images of which an earlier iterate has a clearly lower hard score than the last one."""
    score = _stack(trace.success)
    if trace.keep != "last" or len(score) < 2:
        return set()
    lowest: Floats = np.fmin.reduce(score, axis=0)
    return _list(np.asarray(lowest < score[-1] - GAIN))


def _stack(steps: Sequence[Tensor]) -> Floats:
    """Return the values of all steps, (steps, N)."""
    n = len(steps[0]) if steps else 0
    return np.array([step.tolist() for step in steps], dtype=np.float64).reshape(len(steps), n)


def _list(mask: NDArray[np.bool_]) -> set[int]:
    """Return the indices of the true entries."""
    return {int(i) for i in np.flatnonzero(mask)}
