"""The options of commands that choose where jobs run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advseg_bench.errors import SpecError, expected, unknown

if TYPE_CHECKING:
    from advseg_bench.running.executors.options import Options
    from advseg_bench.running.executors.slurm import SlurmOptions
    from advseg_bench.suite.suite import Suite

EXECUTORS = ("processes", "ray", "slurm")

ExecutorName = Annotated[
    str,
    typer.Option(
        help="Where jobs run: processes on this machine; ray, a cluster (needs advseg-bench[ray]); slurm, an array of "
        "jobs (needs advseg-bench[slurm])."
    ),
]
Address = Annotated[
    str,
    typer.Option(
        help="Head node of a Ray cluster, HOST:PORT or ray://HOST:PORT; by default RAY_ADDRESS, or else a cluster is "
        "started on this machine."
    ),
]

Jobs = Annotated[int | None, typer.Option(min=1, max=1000, help="Number of Slurm jobs; by default one for each model.")]
Partition = Annotated[str | None, typer.Option(help="Slurm partition; by default Slurm's.")]
Gpus = Annotated[int | None, typer.Option(min=0, max=64, help="GPUs of each Slurm job.")]
Hours = Annotated[
    float | None,
    typer.Option(min=0.02, max=10_000, help="Time limit of a Slurm job, by default 5; what is left is requeued."),
]
Account = Annotated[str | None, typer.Option(help="Account that Slurm charges.")]


def choose_slurm(
    suite: Suite, workers: int | None, jobs: int | None, partition: str | None, gpus: int | None, **other: Any
) -> SlurmOptions:
    """Return what the jobs of a run ask Slurm for, from the options of the command line; None stands for a default.

    Args:
        suite: The suite.
        workers: Not an option of Slurm jobs, each of which has one worker.
        jobs: Number of jobs.
        partition: Partition.
        gpus: GPUs of each job.
        other: Further fields of `SlurmOptions`.

    Raises:
        SpecError: If `workers` is given.
    """
    from advseg_bench.running.executors.slurm import SlurmOptions

    if workers is not None:
        raise SpecError(expected("--workers", "none for --executor slurm", workers, "Use --jobs."))
    given = {name: value for name, value in other.items() if value is not None}
    memory = suite.compute.memory_gb
    cpus = math.ceil(suite.compute.cpus or suite.compute.threads)
    asked = suite.compute.gpus if gpus is None else gpus
    return SlurmOptions(
        jobs or len(suite.models), partition, math.ceil(asked or 0), cpus=cpus, memory_gb=memory, **given
    )


def refuse_slurm_options(executor: str, given: Mapping[str, object]) -> None:
    """Refuse options of Slurm jobs for another executor.

    Raises:
        SpecError: If one is given.
    """
    for name, value in given.items():
        if value is not None:
            raise SpecError(expected(f"--{name}", f"none for --executor {executor}", value, "Add --executor slurm."))


def choose_executor(name: str, address: str, workers: int | None) -> Options | None:
    """Return the options of an executor, from those of the command line; None for local processes and for Slurm.

    Args:
        name: Name of the executor.
        address: Head node of a cluster, "" for none.
        workers: Number of workers; by default as many as suit the machine or the cluster.

    Raises:
        SpecError: The name is unknown, or an option does not belong to this executor.
    """
    from advseg_bench.running.executors.options import RayOptions

    if name not in EXECUTORS:
        raise SpecError(unknown("--executor", "executor", name, EXECUTORS))
    if name == "ray":
        return RayOptions(address, workers)
    if address:
        raise SpecError(expected("--address", f"none for --executor {name}", address, "Add --executor ray."))
    return None
