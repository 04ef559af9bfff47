"""Check that a model is a function of its image, and find what its own forward changes in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError

TOLERANCE = 1e-3
"""Largest accepted difference between the logits of one image in two calls, as a share of their range.

The place of an image in its batch changes float32 logits by about 1e-6 of their range; dropout and noise change them by
more than 1e-2.
"""

_ROUNDING = 1e-5
"""The same as a share of the largest logit: covers logits that hardly vary within an image."""

_REGISTRIES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MOST_NAMES = 3
_SEED = 0

_CAUSES = {
    "random": (
        "logits of a model that uses random numbers in eval mode",
        "Pass `training=self.training` to functional dropout and switch noise off in eval mode",
    ),
    "batch": (
        "logits that depend on the other images of the batch",
        "Use running statistics in eval mode (batch norm with `track_running_stats=True`), or instance norm",
    ),
    "place": (
        "logits that depend on the place of the image in its batch",
        "Treat all images of a batch alike",
    ),
    "gradients": (
        "other logits for the same image while gradients are computed",
        "Let the forward not depend on `torch.is_grad_enabled()`",
    ),
    "state": (
        "logits that depend on earlier calls, because it changes its own state or random generator in eval mode",
        "Keep no state from call to call in eval mode",
    ),
}
"""Why a model is no function of its image: what was observed, and the remedy."""


def check_function(where: str, model: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor) -> None:
    """Check that logits depend on the image alone, by one more call.

    The last image is the first of another batch, whose other images are noise, and gradients are enabled. Its logits
    there are compared with those in the batch `x`, which shows batch statistics, dependence on the place in the batch,
    and state from call to call. Random numbers, however small or rare their effect, show in the states of the global
    generators.

    Args:
        where: Prefix of the message.
        model: Images -> logits, in eval mode; gradients should be off.
        x: Images (N, C, *S).
        logits: Logits of an earlier call on `x`, (N, K, *S).

    Raises:
        IncompatibleError: The logits of an image differ, or a global generator was used. The message names the cause.

    Cost:
        1 forward of N images, 2 if N is 1; up to 5 more to find the cause of a difference.
    """
    company = torch.cat([x[-1:], _make_company(x)])
    before = _read_generators(x.device)
    again = _run_with_gradients(model, company)
    if not _are_alike(before, _read_generators(x.device)):
        raise IncompatibleError(_describe(where, "random"))
    if not _are_same(logits[-1:], again[:1]):
        raise IncompatibleError(_describe(where, _find_cause(model, x, company, logits, again)))


def check_calls(where: str, model: Callable[[Tensor], Tensor], x: Tensor, alone: Tensor, company: Tensor) -> None:
    """Check two calls that were made anyway: the first image of `x` alone, and all of `x`.

    Args:
        where: Prefix of the message.
        model: Images -> logits, in eval mode.
        x: Images (N, C, *S).
        alone: Logits of `x[:1]`, (1, K, *S).
        company: Logits of `x`, (N, K, *S).

    Raises:
        IncompatibleError: The logits of the first image differ.

    Cost:
        None; up to 6 forwards to find the cause of a difference.
    """
    if not _are_same(alone, company[:1]):
        with torch.no_grad():
            cause = _find_cause(model, x.flip(0), x, company.flip(0))  # the image in question is the last
        raise IncompatibleError(_describe(where, cause))


@contextmanager
def watch(model: nn.Module) -> Iterator[list[str]]:
    """Context in which a model is run; afterwards the list describes what the model changed in itself.

    Nothing is reverted: the model may rely on its hooks and buffers.

    Args:
        model: Any module.

    Yields:
        A list that is filled at the end of the context, one clause for each type of change.
    """
    before = _read(model)
    found: list[str] = []
    yield found
    after = _read(model)
    for what, verb in (("buffers", "writes to"), ("hooks", "registers"), ("modules", "adds or replaces")):
        changed = _list_changes(before[what], after[what])
        if changed:
            more = f" and {len(changed) - _MOST_NAMES} more" if len(changed) > _MOST_NAMES else ""
            noun = "hooks on" if what == "hooks" else what
            found.append(f"{verb} {noun} {', '.join(changed[:_MOST_NAMES])}{more} in eval mode")


def describe_behaviour(notes: Sequence[str], repeats: int = 1) -> dict[str, Any]:
    """Return what a model's entry in the record states about its behaviour: nothing if there is nothing to note.

    Args:
        notes: What it changes in itself, see `watch`.
        repeats: Number of repeats of each cell; more than 1 for a stochastic model.
    """
    noted: dict[str, Any] = {"notes": list(notes)} if notes else {}
    return noted | ({"stochastic": {"repeats": repeats, "bit_identical": False}} if repeats > 1 else {})


def _read(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What a forward may change, by name: values of buffers, hooks, identities of modules."""
    modules = dict(model.named_modules())
    hooks = {
        name or type(module).__name__: [dict(getattr(module, registry, None) or {}) for registry in _REGISTRIES]
        for name, module in modules.items()
    }
    return {
        "buffers": {name: buffer.detach().clone() for name, buffer in model.named_buffers()},
        "hooks": {name: found for name, found in hooks.items() if any(found)},
        "modules": {name: id(module) for name, module in modules.items()},
    }


def _list_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose value was added or differs."""
    return [name for name, value in after.items() if name not in before or not _is_equal(before[name], value)]


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return same and bool(((one == other) | ((one != one) & (other != other))).all())
    return bool(one == other)


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether logits are equal up to rounding; NaN equals NaN, and an infinity itself."""
    if one.shape != other.shape:
        return False
    one, other = one.detach(), other.detach()
    finite = one.isfinite() & other.isfinite()
    if not bool((finite | (one == other) | (one.isnan() & other.isnan())).all()):
        return False
    if not bool(finite.any()):
        return True
    values = one[finite]
    tolerance = TOLERANCE * float(values.max() - values.min()) + _ROUNDING * float(values.abs().max())
    return float((values - other[finite]).abs().max()) <= tolerance


def _find_cause(
    model: Callable[[Tensor], Tensor], x: Tensor, company: Tensor, logits: Tensor, again: Tensor | None = None
) -> str:
    """Name why the logits of the last image of `x` differ from those where it is the first of `company`.

    `again` are logits of `company` with gradients.
    """
    one, two = model(company), model(company)
    if not _are_same(one, two):
        seeded = [_run_seeded(model, company) for _ in range(2)]
        return "random" if _are_same(*seeded) else "state"
    copies = model(x[-1:].expand_as(company).contiguous())
    if not _are_same(copies[:1], copies[-1:]):
        return "place"
    if not _are_same(model(x), logits):
        return "state"
    return "batch" if again is None or _are_same(one, again) else "gradients"


def _make_company(x: Tensor) -> Tensor:
    """Noise for the other places of a batch, at least one, with a mean far from that of the last image.

    The values lie between the extremes of the images, 0 and 1.
    """
    lower, upper = min(float(x.min()), 0.0), max(float(x.max()), 1.0)
    shape = (max(len(x) - 1, 1), *x.shape[1:])
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(_SEED)).to(x) ** 3
    if float(x[-1].mean()) < (lower + upper) / 2:
        noise = 1 - noise
    return lower + (upper - lower) * noise


def _run_with_gradients(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run with gradients enabled, as attacks do; without them where a model fails, as if it calls NumPy."""
    try:
        with torch.enable_grad():
            return model(x).detach()
    except Exception:
        return model(x)


def _read_generators(device: torch.device) -> list[Any]:
    """The states of the global generators of torch, of the device, of NumPy and of Python."""
    of_device = [] if device.type == "cpu" else [getattr(torch, device.type).get_rng_state(device)]
    _, *of_numpy = np.random.get_state()  # noqa: NPY002
    return [torch.random.get_rng_state(), *of_device, *map(torch.as_tensor, of_numpy), random.getstate()]


def _are_alike(before: Sequence[Any], after: Sequence[Any]) -> bool:
    return all(_is_equal(one, other) for one, other in zip(before, after, strict=True))


def _run_seeded(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run with the global generators of torch, NumPy and Python in one known state, and restore them."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = () if x.device.type == "cpu" else (x.device,)
    with torch.random.fork_rng(devices, device_type=x.device.type if devices else "cuda"):
        torch.manual_seed(_SEED)
        np.random.seed(_SEED)  # noqa: NPY002
        random.seed(_SEED)
        try:
            return model(x)
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def _describe(where: str, cause: str) -> str:
    seen, remedy = _CAUSES[cause]
    return (
        f"{where}: expected logits that depend on the image alone, got {seen}. "
        f"{remedy}, or declare the model with stochastic = true."
    )
