"""Finds the preparation of a model with the fastest input gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from advseg_bench.instruments import meter
from advseg_bench.models.prepare import Choice, find_agreeing
from advseg_bench.models.reference import softplus_gradient

CANDIDATES: tuple[tuple[str, ...], ...] = (("lean",), ("fold", "lean"), ("fold", "lean", "channels_last"))
"""Preparations to try, in addition to the unprepared model."""


def prepare_fastest(
    model: nn.Module, x: Tensor, candidates: Sequence[Sequence[str]] = CANDIDATES, *, rounds: int = 7
) -> tuple[Choice, dict[str, float]]:
    """Prepare a model such that its input gradient is fastest, among the preparations that agree with the model.

    Args:
        model: A model as for `prepare`, frozen and in eval mode.
        x: Images (N, C, *S) on which gradients are compared and timed.
        candidates: Lists of steps to try, in addition to the unprepared model.
        rounds: Number of samples of each, in interleaved order.

    Returns:
        The choice, which depends on timing and so may vary; and the median time of a gradient in seconds for each
        preparation that agrees, by its steps joined by "+", or "raw".

    Raises:
        SpecError: As for `prepare`.
    """
    choices, raw = find_agreeing(model, x, [tuple(steps) for steps in candidates])
    named = {"+".join(choice.steps) or "raw": choice for choice in (raw, *choices)}
    works = {name: partial(softplus_gradient, choice.model, x) for name, choice in named.items()}
    samples = meter.measure(works, device=x.device, rounds=rounds)
    seconds = {name: each.median for name, each in samples.items()}
    return named[min(seconds, key=seconds.__getitem__)], seconds
