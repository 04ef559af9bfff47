"""A model prepared for attacks: the same logits and input gradients with less memory, or less time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, SpecError, expected, one_line
from advseg_bench.models.fold import CLOSE, fold_batch_norms
from advseg_bench.models.graphed import Graphed
from advseg_bench.models.lean import Lean, is_worth_it
from advseg_bench.models.reference import copy_model, differentiate, distance, find_reference, softplus_gradient
from advseg_bench.registry.preparation import check_steps

TOLERATED = 2.0
"""Largest accepted ratio of the gradient error of a prepared model to that of the unprepared model."""

_BOUND = ("compile", "cuda_graph")
"""Steps that cannot be copied with a model."""


class Prepared(nn.Module):
    """A frozen copy of a model, in eval mode, with the same logits up to the rounding of its steps.

    Attributes:
        net: The copy.
        steps: The steps of its preparation, from `registry.preparation.STEPS`.
    """

    def __init__(self, net: nn.Module, steps: Sequence[str]) -> None:
        super().__init__()
        self.net, self.steps = net, tuple(steps)
        self._run: Callable[[Tensor], Any] | None = None  # used in place of the net, if not None
        if "compile" in steps:
            self._run = torch.compile(lambda x: net(x))

    @property
    def exact(self) -> bool:
        """Whether logits and gradients are bit-identical to those of the model."""
        return set(self.steps) <= {"lean"}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            x: Images, shape (N, C, *S).

        Returns:
            Logits, shape (N, K, *S), in the dtype of the images.

        Cost:
            One forward.
        """
        dtype = x.dtype
        with ExitStack() as stack:
            if "channels_last" in self.steps:
                x = x.contiguous(memory_format=_channels_last(x))
            for name in {"bfloat16", "float16"}.intersection(self.steps):
                stack.enter_context(torch.autocast(x.device.type, getattr(torch, name)))
            if "lean" in self.steps and is_worth_it(x):
                stack.enter_context(Lean())
            logits: Any = (self._run or self.net)(x)
        if not isinstance(logits, Tensor):
            raise IncompatibleError(
                expected("prepared model", "a tensor of logits", type(logits).__name__, "Return it.")
            )
        return logits.to(dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        """Copy the net; the copy has no compiled or recorded function, since those belong to the original."""
        return Prepared(copy.deepcopy(self.net, memo), [name for name in self.steps if name not in _BOUND]).eval()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without a compiled or recorded function, as `__deepcopy__`."""
        return {**self.__dict__, "_run": None, "steps": tuple(name for name in self.steps if name not in _BOUND)}


@dataclass(frozen=True, slots=True)
class Choice:
    """The model to attack, and the reasons for the choice.

    Attributes:
        model: The prepared model, or the user's object if `steps` is empty.
        steps: The steps of its preparation.
        error: Distance of the input gradient of `model` from the float64 one, see `gradient_error`; NaN if unknown.
        raw_error: The same for the unprepared model.
        rejected: Steps -> reason why they were rejected.
        no_float64: Reason why there is no float64 gradient to compare with; "" if there is one, or none was needed.
    """

    model: nn.Module
    steps: tuple[str, ...]
    error: float
    raw_error: float
    rejected: dict[str, str] = field(default_factory=dict)
    no_float64: str = ""

    def as_record(self) -> dict[str, Any]:
        """Return the description that a run stores."""
        errors = {"gradient_error": self.error, "raw_gradient_error": self.raw_error}
        known = {key: None if math.isnan(value) else value for key, value in errors.items()}
        missing = {"no_float64": self.no_float64} if self.no_float64 else {}
        return {"steps": list(self.steps), **known, "rejected": self.rejected, **missing}


def prepare(model: nn.Module, x: Tensor, steps: Sequence[str]) -> Prepared:
    """Copy a model and prepare the copy; the model itself is not changed.

    Args:
        model: Images -> logits, in any mode; the copy is frozen and in eval mode.
        x: Example images (N, C, *S), on the device of the model.
        steps: Names from `registry.preparation.STEPS`: "fold" folds batch norms into convolutions (`models.fold`),
            "lean" saves memory in the backward of batches of over 2^15 pixels, with bit-identical results
            (`models.lean`), "channels_last" stores channels innermost, "bfloat16" and "float16" are autocast, "compile"
            is `torch.compile`, "cuda_graph" (experimental: not tested on a GPU) replays a recorded gradient for images
            of the shape of `x`. A step that cannot be used is an error.

    Returns:
        The prepared copy.

    Cost:
        Up to six forwards, and the compilation; one more if the model can only be copied after a forward.

    Raises:
        SpecError: If a step does not exist or cannot be used here.
        IncompatibleError: If the model cannot be copied, or folding changes its logits.
    """
    steps = check_steps(steps)
    if "cuda_graph" in steps and x.device.type != "cuda":
        raise SpecError(expected("prepare", "a CUDA device for 'cuda_graph'", x.device.type, "Leave out this step."))
    if "channels_last" in steps and x.dim() not in (4, 5):
        what = "images with 2 or 3 space axes for 'channels_last'"
        raise SpecError(expected("prepare", what, x.dim() - 2, "Leave out this step."))
    net = copy_model(model, x).eval().requires_grad_(False)
    if "fold" in steps:
        fold_batch_norms(net, x)
    if "channels_last" in steps:
        net.to(memory_format=_channels_last(x))
    prepared = Prepared(net, steps).eval()
    if "compile" in steps:
        _try_compiled(prepared, x)
    if "cuda_graph" in steps:
        prepared._run = Graphed(Prepared(net, [name for name in steps if name != "cuda_graph"]).eval(), x)
    return prepared


def prepare_checked(model: nn.Module, x: Tensor, steps: Sequence[str]) -> Choice:
    """Prepare a model if the prepared copy agrees with it, otherwise return it unprepared; time is not measured.

    Args:
        model: As for `prepare`, frozen and in eval mode.
        x: Images on which the gradients are compared.
        steps: As for `prepare`.

    Returns:
        The prepared model if its `gradient_error` is at most `TOLERATED` times that of the model. A model that does not
        run in float64 has no such error: its copy must then have the model's own gradient, bit for bit. The model
        itself if there are no steps.

    Raises:
        SpecError: As `prepare` does.
    """
    choices, raw = find_agreeing(model, x, [tuple(steps)] if steps else [])
    return choices[0] if choices else raw


def find_agreeing(model: nn.Module, x: Tensor, candidates: Sequence[tuple[str, ...]]) -> tuple[list[Choice], Choice]:
    """Prepare a model in several ways, and keep those that agree with it by the criterion of `prepare_checked`.

    Args:
        model: As for `prepare`, frozen and in eval mode.
        x: Images on which the gradients are compared.
        candidates: Lists of steps as for `prepare`.

    Returns:
        The candidates that agree, and the unprepared model, with the reasons why the others were rejected.

    Raises:
        SpecError: As `prepare` does.
    """
    if not candidates:
        return [], Choice(model, (), math.nan, math.nan)
    rejected: dict[str, str] = {}
    try:
        logits, own = differentiate(model, x)
        reference, no_float64 = find_reference(model, x, own)
        raw_error = distance(own, reference)
    except Exception as error:  # a model that cannot be differentiated is for the attacks to report
        return [], Choice(model, (), math.nan, math.nan, {_name(steps): one_line(error) for steps in candidates})
    choices = []
    stated = math.nan if no_float64 else raw_error
    for steps in candidates:
        try:
            prepared = prepare(model, x, steps)
        except IncompatibleError as error:
            rejected[_name(steps)] = str(error)
            continue
        try:
            # a few images represent whole batches, on which more calls are lean
            with Lean(small=0) if "lean" in steps else nullcontext():
                found_logits, gradient = differentiate(prepared, x)
        except Exception as error:  # after any error, the unprepared model can be attacked
            rejected[_name(steps)] = one_line(error)
            continue
        found = distance(gradient, reference)
        if prepared.exact and not (found_logits - logits).abs().max() <= CLOSE * logits.abs().max():
            rejected[_name(steps)] = "other logits than the model's"
        elif found <= TOLERATED * raw_error:
            stated_error = math.nan if no_float64 else found
            choices.append(Choice(prepared, prepared.steps, stated_error, stated, rejected, no_float64))
        elif no_float64:
            rejected[_name(steps)] = f"another gradient than the model's, and none in float64 to judge it: {no_float64}"
        else:
            why = f"gradient error {found:.3g}, more than {TOLERATED:g} times that of the model, {raw_error:.3g}"
            rejected[_name(steps)] = why
    return choices, Choice(model, (), stated, stated, rejected, no_float64)


def _name(steps: Sequence[str]) -> str:
    return "+".join(steps) or "raw"


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _try_compiled(prepared: Prepared, x: Tensor) -> None:
    """Compile immediately, so that a missing compiler is found here."""
    try:
        softplus_gradient(prepared, x)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise SpecError(expected("prepare", "'compile' to work here", reason, "Leave out this step.")) from None
