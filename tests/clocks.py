"""What tests read in place of the wall clock: a clock of their own, and counts of what a function does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Time:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


class SteadyMachine(TorchDispatchMode):
    """The clock of a machine that does so many floating point operations a second, and all else at once.

    Each product of matrices and each convolution takes `start_s` more.
    """

    def __init__(self, flops_per_s: float = 1e9, start_s: float = 0.0) -> None:
        super().__init__()
        self.seconds, self.flops_per_s, self.start_s = 0.0, flops_per_s, start_s

    def now(self) -> float:
        return self.seconds

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.seconds += self.start_s + count(*args, **(kwargs or {}), out_val=out) / self.flops_per_s
        return out


def count_calls(function: Callable[..., object], *arguments: object) -> int:
    """Return how many calls of Python functions, and from Python of C functions, a call makes in this thread."""
    calls = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return calls
