"""A connection to a Ray cluster, and what its machines have: every mistake is one line, in bounded time."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from advseg_bench.errors import SpecError, WorkerError, expected
from advseg_bench.running.executors.options import Needs, RayOptions

CONNECT_S = 5.0
"""Seconds for the head node to accept a connection."""
ANSWER_S = 30.0
"""Seconds for it to answer as one."""
REMEDY = 'Start one there by "ray start --head", or correct --address.'
COMPARED = ("advseg-bench", "torch", "monai", "numpy")
"""Distributions that are compared before any of them is imported; `Description.binding` has all."""

_TRY = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except Exception as error:
    print("ADVSEG", type(error).__name__, " ".join(str(error).split()))
    sys.exit(3)
"""


def import_ray() -> Any:
    """Return the module ray.

    Raises:
        SpecError: It is not installed.
    """
    try:
        return import_module("ray")
    except ImportError:
        remedy = "Run: pip install 'advseg-bench[ray]'"
        raise SpecError(expected("--executor ray", "the package ray", "not installed", remedy)) from None


@contextmanager
def connect(options: RayOptions, needs: Needs) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine that ends on exit.

    Args:
        options: Address and number of workers.
        needs: What one worker takes of a machine.

    Yields:
        The module ray. If the caller is connected already and gives no address, that connection is used and left open.
    """
    ray = import_ray()
    if ray.is_initialized() and not options.address:
        yield ray
        return
    address = options.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        _try_address(address)
    silent = {"log_to_driver": False, "logging_level": "CRITICAL"}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # silences Ray's C++ part, which prints that it is set
    with _ending_in_order():
        try:
            if address:
                with _without_stderr():
                    ray.init(address=address, **silent)
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                cpus = max(1, math.ceil(find_workers(options, needs) * needs.cpus))
                with _without_stderr():
                    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **silent)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            where = address or "a new cluster"
            raise WorkerError(f"--executor ray: cannot connect to {where}: {reason:.300}") from None
        _end_on_sigterm()
        ray._private.worker._worker_logs_enabled = False  # no option of `init` keeps messages of raylets off stdout
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what is written to the descriptor of standard error; errors are raised as anywhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Restore the handling of SIGTERM, which Ray replaces, at the end."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _end_on_sigterm() -> None:
    """End this process in order on SIGTERM, so that no process of Ray is left, with the exit code of a shell."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def find_workers(options: RayOptions, needs: Needs) -> int:
    """Return the number of workers of a cluster on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return options.workers or max(1, math.floor(cores / needs.cpus))


def _try_address(address: str) -> None:
    """Check that a head node answers. Ray itself would try for minutes.

    Raises:
        WorkerError: It does not.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, ValueError, OverflowError) as error:
            reason = str(error).rpartition("] ")[2] if isinstance(error, OSError) else "it is not HOST:PORT"
            remedy = f"It cannot be reached: {reason}. {REMEDY}"
            raise WorkerError(expected("--address", "the head node of a Ray cluster", address, remedy)) from None
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY, address], capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:
        what = f"the head node of a Ray cluster, which answers within {ANSWER_S:g} s"
        raise WorkerError(expected("--address", what, address, REMEDY)) from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.startswith("ADVSEG ")]
        reason = lines[0].removeprefix("ADVSEG ") if lines else f"Ray ended with exit code {done.returncode}"
        remedy = f"Ray reports: {reason:.300}. {REMEDY}"
        raise WorkerError(expected("--address", "the head node of a Ray cluster", address, remedy))


@dataclass(slots=True, eq=False)
class Machine:
    """A node of the cluster.

    Attributes:
        id: Ray's id of the node.
        name: Its address.
        most: Number of workers that fit.
        compared: Whether its versions are those of the process that owns the run.
        began: Whether a worker has started on it.
        admitted: Whether its first job has shown that it agrees with the other machines.
        data: A reference to the packed data set of its first worker, which its other workers take, or nothing.
        failed_starts: Number of workers that could not be started.
    """

    id: str
    name: str
    most: int
    compared: bool = False
    began: bool = False
    admitted: bool = False
    data: tuple[Any, ...] = ()
    failed_starts: int = 0

    @property
    def limit(self) -> int:
        """Number of workers that may be started now: one before the machine is admitted."""
        return self.most if self.admitted else 1


def list_machines(ray: Any, needs: Needs) -> dict[str, Machine]:
    """Return the living nodes that are large enough for a worker, by id."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    found = [Machine(node["NodeID"], node["NodeManagerAddress"], needs.fit(node["Resources"])) for node in nodes]
    return {machine.id: machine for machine in found if machine.most}


def refuse_needs(ray: Any, needs: Needs) -> SpecError:
    """Return the error that no node of the cluster is large enough for a worker."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus, memory = (max((n.get(name, 0.0) for n in nodes), default=0.0) for name in ("CPU", "GPU", "memory"))
    largest = Needs(cpus, gpus, int(memory) if needs.memory_bytes else 0)
    remedy = "Start a larger node, or ask for less by the keys cpus, gpus and memory_gb of [compute]."
    what = f"a node of the Ray cluster with {needs}"
    return SpecError(expected("compute", what, f"at most {largest} on {len(nodes)} nodes", remedy))


def make_look() -> Callable[[tuple[str, ...]], dict[str, str]]:
    """Return a function that returns the versions on a machine. It is sent by value, since the package may differ."""

    def look(names: tuple[str, ...]) -> dict[str, str]:
        import importlib.metadata
        import platform

        versions = {"python": platform.python_version()}
        for name in names:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "not installed"
        return versions

    return look


def compare_versions(machine: Machine, found: dict[str, str]) -> str:
    """Return what differs between the versions on a machine and here, as a message; "" if nothing."""
    for name, here in make_look()(COMPARED).items():
        if found[name] != here:
            return expected(
                f"machine {machine.name}", f"{name} {here}, as here", found[name], "Install the same versions on all."
            )
    return ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker on another machine takes over from the process that owns the run.

    Attributes:
        folder: The current folder, if it exists there; relative paths of the suite start at it.
        paths: Folders from which Python imports, apart from those of the interpreter.
        variables: Environment variables; None removes one.
    """

    folder: str
    paths: tuple[str, ...]
    variables: dict[str, str | None]

    @classmethod
    def describe(cls) -> Surroundings:
        """Return those of this process."""
        own = tuple({sys.prefix, sys.base_prefix})
        paths = tuple(str(Path(path).absolute()) for path in sys.path if not path.startswith(own))
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        package = (name for name in os.environ if name.startswith("ADVSEG_BENCH_"))
        return cls(str(Path.cwd()), paths, {name: os.environ.get(name) for name in (*threads, *package)})

    def enter(self) -> None:
        """Take them over in the calling process."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path[:0] = [path for path in self.paths if path not in sys.path and Path(path).exists()]
        for name, value in self.variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
