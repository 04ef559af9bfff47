"""The random numbers of a stochastic model, so that it can be run again with those of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """The state of torch's random numbers.

    Attributes:
        cpu: State of the CPU's generator.
        cuda: State of the device's generator; None on a CPU, and while a CUDA graph is recorded.
        device: The device.
    """

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def read(cls, device: torch.device, last: RandomState | None = None) -> RandomState:
        """Return the state at this moment; `last` itself if it has not changed since."""
        on_cuda = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        state = cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_cuda else None, device)
        return last if last is not None and state.equals(last) else state

    def equals(self, other: RandomState) -> bool:
        """Whether both give the same random numbers."""
        if self.cuda is None or other.cuda is None:
            return self.cuda is other.cuda and torch.equal(self.cpu, other.cpu)
        return torch.equal(self.cpu, other.cpu) and torch.equal(self.cuda, other.cuda)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Use this state within the context, and the present one again afterwards."""
        with torch.random.fork_rng([] if self.cuda is None else [self.device]):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
