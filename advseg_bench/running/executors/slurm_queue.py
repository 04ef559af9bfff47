"""Asks Slurm's commands: is it there, and which jobs wait or run?"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec

from advseg_bench.errors import IncompatibleError, UserError, expected, unknown

HOPELESS = (
    "AccountNotAllowed",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionConfig",
    "PartitionInactive",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
)
"""Reasons of Slurm for which a job would wait for ever."""

ANSWER_S = 60.0
"""Longest time that a command of Slurm may take."""


def check_slurm(partition: str | None) -> None:
    """Check that Slurm and `submitit` are there, and the partition exists.

    Raises:
        UserError: In one line, before anything is submitted.
    """
    if find_spec("submitit") is None:
        raise IncompatibleError(
            'executor slurm: needs the package submitit. Install it: pip install "advseg-bench[slurm]"'
        )
    if missing := [name for name in ("sbatch", "squeue", "sinfo", "srun") if shutil.which(name) is None]:
        remedy = "Run the command on a login node of the cluster, or choose another --executor."
        raise UserError(expected("executor slurm", "Slurm's commands on PATH", f"no {missing[0]}", remedy))
    listed = ask("sinfo", "--noheader", "--format=%R")
    partitions = sorted(set(listed.split()))
    if partition is not None and partition not in partitions:
        raise UserError(unknown("--partition", "partition", partition, partitions))


def ask(*command: str) -> str:
    """Run a command of Slurm, and return its output.

    Raises:
        UserError: If it fails, such as when the controller does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: Slurm did not answer in {ANSWER_S:g} s. Try again later.") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{command[0]}: {said[-1]}. Check that Slurm is running, with `sinfo`.")
    return done.stdout


def list_queued(jobs: Sequence[str]) -> dict[str, str]:
    """Return those of some jobs that wait or run. Slurm forgets jobs that ended long ago, which is no error here.

    Returns:
        Number of a job, such as "7_0" -> the reason why it waits, or "None".
    """
    numbers = {job.partition("_")[0] for job in jobs}
    listed = ask("squeue", "--noheader", "--array", "--me", "--format=%i %r").splitlines()
    queued = dict(line.split(maxsplit=1) for line in listed if line.strip())
    return {job: reason.strip() for job, reason in queued.items() if job.partition("_")[0] in numbers}


def find_jobs(name: str) -> list[str]:
    """Return the numbers of the jobs of a name in the queue, in the order of their array."""
    listed = ask("squeue", "--noheader", "--array", "--me", f"--name={name}", "--format=%i").split()
    return sorted(listed, key=lambda job: [int(number) for number in job.split("_")])
