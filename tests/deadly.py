"""Attacks that end their process, never end, or raise what is not meant for them; and good ones of the same forms."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import advseg_bench as ab


class _Attack:
    """Moves no image; a subclass overrides what happens before."""

    def __init__(self, loss: Any = None) -> None:
        self.loss = loss

    def __call__(self, model, batch, *, budget, generators) -> Tensor:
        self.act(batch, budget)
        return (batch.x + budget.eps / 2).clamp(0, 1)

    def act(self, batch, budget) -> None:
        pass


class Segfault(_Attack):
    def act(self, batch, budget):
        ctypes.string_at(0)


class SegfaultLate(_Attack):
    """Dies on the second image alone."""

    def act(self, batch, budget):
        if batch.images[0].endswith("2"):
            ctypes.string_at(0)


class Abort(_Attack):
    def act(self, batch, budget):
        os.abort()


class Leave(_Attack):
    def act(self, batch, budget):
        print("leaving\nwith a last word")
        sys.stdout.flush()
        os._exit(0)


class KillItself(_Attack):
    def act(self, batch, budget):
        os.kill(os.getpid(), signal.SIGKILL)


class Sleep(_Attack):
    def act(self, batch, budget):
        time.sleep(1000)


class Spin(_Attack):
    def act(self, batch, budget):
        while True:
            pass


class Stop(_Attack):
    def act(self, batch, budget):
        os.kill(os.getpid(), signal.SIGSTOP)


class CloseAll(_Attack):
    """Closes the pipe to the owner of the run."""

    def act(self, batch, budget):
        os.closerange(3, 4096)


class Interrupt(_Attack):
    def act(self, batch, budget):
        raise KeyboardInterrupt


class EndGenerator(_Attack):
    def act(self, batch, budget):
        raise GeneratorExit


class Exit(_Attack):
    def act(self, batch, budget):
        sys.exit(0)


class Recurse(_Attack):
    def act(self, batch, budget):
        self.act(batch, budget)


class Allocate(_Attack):
    def act(self, batch, budget):
        torch.empty(10**15)


class Mute(_Attack):
    def act(self, batch, budget):
        class Error(Exception):
            def __str__(self) -> str:
                raise KeyboardInterrupt

            __repr__ = __str__

        raise Error


class Long(_Attack):
    def act(self, batch, budget):
        raise RuntimeError("first\nsecond " + "y" * 5_000_000)


class Print(_Attack):
    """Prints 20 MB in a line, and is good."""

    def act(self, batch, budget):
        for _ in range(20):
            print("x" * (1 << 20), end="")


class Fork(_Attack):
    """Leaves a copy of the process that goes on, and is good."""

    def act(self, batch, budget):
        os.fork()


class Linger(_Attack):
    """Leaves a thread that keeps the process from its end, and cannot be ended."""

    def act(self, batch, budget):
        threading.Thread(target=time.sleep, args=(1000,)).start()


class KilledOnce(_Attack):
    """Is killed from outside once, and is good."""

    def act(self, batch, budget):
        path = Path(os.environ["ADVSEG_TESTS_KILLED"])
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class SteppedSegfault(ab.attacks.PGD):
    """Dies in its first step."""

    def begin(self, batch, *, budget, generators):
        ctypes.string_at(0)
        yield from super().begin(batch, budget=budget, generators=generators)


class SteppedEnd(ab.attacks.PGD):
    def begin(self, batch, *, budget, generators):
        yield from ()
        raise GeneratorExit


class LastTraining(nn.Conv2d):
    """A network whose training ends the process."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1:
            os._exit(7)
        return super().forward(x)
