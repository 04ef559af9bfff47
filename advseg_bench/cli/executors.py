"""The options of commands that choose where jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from advseg_bench.cli.common import default_workers
from advseg_bench.errors import SpecError, expected, unknown

if TYPE_CHECKING:
    from advseg_bench.running.executors.options import Options
    from advseg_bench.suite.suite import Suite

EXECUTORS = ("processes", "ray")

ExecutorName = Annotated[
    str, typer.Option(help="Where jobs run: processes on this machine, or ray, a cluster (needs advseg-bench[ray]).")
]
Address = Annotated[
    str,
    typer.Option(
        help="Head node of a Ray cluster, HOST:PORT or ray://HOST:PORT; by default RAY_ADDRESS, or else a cluster is "
        "started on this machine."
    ),
]


def choose_executor(name: str, address: str, workers: int | None, suite: Suite) -> Options:
    """Return the options of an executor, from those of the command line.

    Args:
        name: Name of the executor.
        address: Head node of a cluster, "" for none.
        workers: Number of workers; by default as many as suit the machine or the cluster.
        suite: The suite.

    Raises:
        SpecError: The name is unknown, or an option does not belong to this executor.
    """
    from advseg_bench.running.executors.options import LocalOptions, RayOptions

    if name not in EXECUTORS:
        raise SpecError(unknown("--executor", "executor", name, EXECUTORS))
    if name == "ray":
        return RayOptions(address, workers)
    if address:
        raise SpecError(expected("--address", "none for --executor processes", address, "Add --executor ray."))
    return LocalOptions(workers or default_workers(suite))
