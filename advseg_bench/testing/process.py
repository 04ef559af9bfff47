"""Runs an attack under test without a trace in the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from advseg_bench.instruments.process_state import watched


@contextmanager
def isolated() -> Iterator[None]:
    """Enable gradients, and restore the state of the process at the end."""
    with watched(), torch.enable_grad():
        yield
