"""Read and restore the global state of the process."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def read_globals() -> dict[str, Any]:
    """Return the global state that an attack could change, by names for messages."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch's global generator": torch.random.get_rng_state().numpy().tobytes(),
        "torch's generators of CUDA": tuple(state.numpy().tobytes() for state in cuda),
        "NumPy's global generator": (kind, np.asarray(keys).tobytes(), *rest),
        "Python's global generator": random.getstate(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def write_globals(state: Mapping[str, Any]) -> None:
    """Restore a state returned by `read_globals`."""
    torch.random.set_rng_state(_tensor(state["torch's global generator"]))
    for device, of_device in enumerate(state["torch's generators of CUDA"]):
        torch.cuda.set_rng_state(_tensor(of_device), device)
    kind, keys, *rest = state["NumPy's global generator"]
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["Python's global generator"])
    torch.set_grad_enabled(state["torch's gradient mode"])
    torch.set_default_dtype(state["torch's default dtype"])
    torch.use_deterministic_algorithms(state["torch's deterministic mode"])
    if torch.get_num_threads() != state["torch's number of threads"]:
        torch.set_num_threads(state["torch's number of threads"])


def seed_globals(seed: int) -> None:
    """Seed every global generator; use it only inside `isolated`."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def isolated() -> Iterator[None]:
    """Enable gradients, and restore the global state at the end."""
    state = read_globals()
    try:
        with torch.enable_grad():
            yield
    finally:
        write_globals(state)


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
