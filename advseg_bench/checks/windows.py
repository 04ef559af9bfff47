"""Why does a model that sees images through sliding windows fail: because of the windows?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, UserError, expected, one_line

_DOUBLINGS = 6
"""How often the edges of the windows are doubled in the search for windows that the network accepts."""


def explain_failure(where: str, model: nn.Module, x: Tensor, error: Exception) -> IncompatibleError:
    """Return the error for a model that failed on images.

    Args:
        where: Prefix of the message.
        model: The model; it, or the `model` that it wraps, has its sliding windows, if any, as attribute `windows`.
        x: Images, float32 (N, C, *S).
        error: What it raised.

    Returns:
        An error that names `inference.roi` and windows that the network accepts, if it fails because of its windows.

    Cost:
        With sliding windows up to 6 forwards, of as few windows as possible.
    """
    owner: Any = model if hasattr(model, "windows") else getattr(model, "model", None)
    shape, keys = tuple(x.shape[1:]), "`settings` and `stride`"
    if getattr(owner, "windows", None) is not None:
        edges = owner.windows.find_edges(x.dim() - 2)
        accepted = _find_windows(model, owner, x, edges)
        if accepted:
            what = f"windows that the network accepts, such as {list(accepted)}"
            remedy = f"It fails on these: {one_line(error)}. Increase `roi`."
            return IncompatibleError(expected(f"{where}: inference.roi", what, list(edges), remedy))
        shape, keys = (x.shape[1], *edges), "`settings`, `stride` and `inference.roi`"
    return IncompatibleError(
        f"{where}: the network fails on images of shape {shape}: {one_line(error)}. "
        f"Check the channels, dtype and size it supports; in a suite, check {keys}."
    )


def _find_windows(model: nn.Module, owner: Any, x: Tensor, edges: tuple[int, ...]) -> tuple[int, ...] | None:
    """Double the edges of the windows until the network accepts one, up to the size of the images; None if it does not.

    The network runs on a grey image of the size of a single window.
    """
    own = owner.windows
    try:
        for power in range(1, _DOUBLINGS + 1):
            larger = tuple(edge * 2**power for edge in edges)
            owner.windows = replace(own, roi=larger)
            try:
                logits = model(x.new_full((1, x.shape[1], *larger), 0.5))
            except (UserError, RuntimeError, ValueError, AssertionError, IndexError, TypeError):
                logits = None
            if isinstance(logits, Tensor) and bool(torch.isfinite(logits).all()):
                return larger
            if all(edge >= size for edge, size in zip(larger, x.shape[2:], strict=True)):
                break
    finally:
        owner.windows = own
    return None
