"""Which preparation of a model makes its input gradient fastest?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from advseg_bench.instruments import meter
from advseg_bench.models.prepare import Choice, find_agreeing
from advseg_bench.models.reference import softplus_gradient

CANDIDATES: tuple[tuple[str, ...], ...] = (("lean",), ("fold", "lean"), ("fold", "lean", "channels_last"))
"""What is tried beside the model as it is."""


def prepare_fastest(
    model: nn.Module, x: Tensor, candidates: Sequence[Sequence[str]] = CANDIDATES, *, rounds: int = 7
) -> tuple[Choice, dict[str, float]]:
    """Prepare a model in the way that makes its input gradient fastest, among those that agree with it.

    Args:
        model: As `prepare` takes it, frozen and in eval mode.
        x: Images (N, C, *S) on which gradients are compared and timed.
        candidates: Lists of steps to try beside the model as it is.
        rounds: Samples of each, in interleaved order.

    Returns:
        The choice, which depends on the machine and on the moment; and for each way that agrees, its steps joined by
        "+" or "raw", the median time of a gradient in seconds.

    Raises:
        SpecError: As `prepare` does.
    """
    choices, raw = find_agreeing(model, x, [tuple(steps) for steps in candidates])
    named = {"+".join(choice.steps) or "raw": choice for choice in (raw, *choices)}
    works = {name: partial(softplus_gradient, choice.model, x) for name, choice in named.items()}
    samples = meter.measure(works, device=x.device, rounds=rounds)
    seconds = {name: each.median for name, each in samples.items()}
    return named[min(seconds, key=seconds.__getitem__)], seconds
