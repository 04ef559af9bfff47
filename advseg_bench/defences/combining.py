"""Combines the logits of several predictions into one: their mean, the mean of probabilities, or a vote."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from advseg_bench.defences.base import pass_through
from advseg_bench.types import Task

Combine = Literal["logits", "probabilities", "vote"]

LEAST = 1e-6
"""Smallest probability, so that logits of a mean of probabilities are finite."""


def combine_logits(predictions: Iterable[Tensor], task: Task, how: Combine) -> Tensor:
    """Return the logits of a combined prediction.

    Args:
        predictions: Logits (N, K, *S), at least one tensor.
        task: Their task.
        how: "logits" is the mean of logits; "probabilities" the logits of the mean of probabilities; "vote" the logits
            of the share of predictions with each class, whose gradient is that of "probabilities" (BPDA).

    Returns:
        Logits (N, K, *S).

    Cost:
        None beyond that of the predictions.

    Example:
        >>> import torch
        >>> from advseg_bench.defences.combining import combine_logits
        >>> from advseg_bench.types import Task
        >>> logits = [torch.full((1, 1, 2, 2), value) for value in (-1.0, 3.0)]
        >>> float(combine_logits(logits, Task("binary", ("organ",)), "logits").mean())
        1.0
    """
    if how == "logits":
        return _mean(predictions)
    several = task.kind == "multiclass"
    if how == "probabilities":
        return _as_logits(_mean(_as_probabilities(logits, several) for logits in predictions), several)
    pairs = [(_as_probabilities(logits, several), _vote(logits, several)) for logits in predictions]
    soft = _as_logits(_mean(soft for soft, _ in pairs), several)
    return pass_through(soft, _as_logits(_mean(vote for _, vote in pairs), several))


def _mean(values: Iterable[Tensor]) -> Tensor:
    first, *others = values
    return sum(others, start=first) / (1 + len(others))


def _as_probabilities(logits: Tensor, several: bool) -> Tensor:
    return logits.softmax(1) if several else logits.sigmoid()


def _as_logits(probabilities: Tensor, several: bool) -> Tensor:
    kept = probabilities.clamp(LEAST, 1 - LEAST)
    return kept.log() if several else kept.logit()


def _vote(logits: Tensor, several: bool) -> Tensor:
    """The predicted class of each pixel, as probabilities of 0 and 1."""
    logits = logits.detach()
    if not several:
        return (logits > 0).to(logits.dtype)
    return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
