"""Options of executors: what a user chooses, before anything is started. Imports no engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from advseg_bench.suite.specs import Compute


@dataclass(frozen=True, slots=True)
class Needs:
    """What one worker takes of a machine.

    Attributes:
        cpus: CPUs.
        gpus: GPUs, also a fraction.
        memory_bytes: Memory; 0 if it is not counted.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0

    def fit(self, machine: Mapping[str, float]) -> int:
        """Return how many workers fit on a machine.

        Args:
            machine: Its "CPU", "GPU" and "memory" (bytes); none of what is missing.
        """
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_bytes}
        shares = (machine.get(name, 0.0) / amount for name, amount in wanted.items() if amount)
        return math.floor(min(shares) + 1e-9)

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        memory = f", {self.memory_bytes / 1e9:g} GB of memory" if self.memory_bytes else ""
        return f"{self.cpus:g} CPUs{gpus}{memory}"


def find_needs(compute: Compute, device: str) -> Needs:
    """Return what a worker of a run takes of a machine.

    Args:
        compute: Table of the suite.
        device: Device of models and images.
    """
    return Needs(
        cpus=compute.threads if compute.cpus is None else compute.cpus,
        gpus=float(device.startswith("cuda")) if compute.gpus is None else compute.gpus,
        memory_bytes=round((compute.memory_gb or 0) * 1e9),
    )


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """Workers on this machine.

    Attributes:
        workers: Number of processes.
        isolate: Whether one worker is a process of its own, see `base.open_executor`.
        import_script: Whether worker processes import the caller's script.
    """

    workers: int = 1
    isolate: bool = False
    import_script: bool = True


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Workers on a Ray cluster.

    Attributes:
        address: Address of the head node as `ray.init` takes it, such as "10.0.0.1:6379" or "ray://10.0.0.1:10001";
            by default that of the environment variable RAY_ADDRESS, otherwise a cluster is started on this machine and
            stopped at the end.
        workers: Most workers; by default as many as fit.
    """

    address: str = ""
    workers: int | None = None


Options = LocalOptions | RayOptions
