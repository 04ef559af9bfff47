"""A script for Slurm that runs the parts of a suite as an array and merges them; printed for editing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = """#!/bin/bash
# Computes {title} in {n} parts, one for each task of a Slurm array, and merges them.
# Edit what follows, then submit both jobs with: bash FILE
# The same command resumes what is not finished.
#SBATCH --job-name={job}
#SBATCH --array=1-{n}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
{more}#SBATCH --output=slurm-%x-%A-%a.log
set -euo pipefail

PARTS={n}
SUITE={suite}
OUT={out}
RUN=({command})

if [ "${{1:-}}" = merge ]; then
    exec "${{RUN[@]}}" merge "$OUT"-parts/part-*-of-"$PARTS" --out "$OUT"{device}
elif [ -n "${{SLURM_ARRAY_TASK_ID:-}}" ]; then
    task=$SLURM_ARRAY_TASK_ID
    "${{RUN[@]}}" run "$SUITE" --part "$task/$PARTS" --out "$OUT-parts/part-$task-of-$PARTS"{options} \\
        || [ $? -eq 1 ]  # 1: some cells failed, which the report names
else
    array=$(sbatch --parsable "$0")
    sbatch --array=1-1 --dependency=afterok:"${{array%%;*}}" "$0" merge
fi
"""


def make_script(
    suite: str, options: Sequence[str], n: int, out: Path, *, hours: float, partition: str, device: str, cpus: int
) -> str:
    """Return the script.

    Args:
        suite: Name or file of the suite.
        options: Options of `run`.
        n: Number of parts.
        out: Run folder of the merged run.
        hours: Time limit of each task.
        partition: Name of a partition, or "" for the cluster's default.
        device: Device of models and images; a GPU is requested unless it is "cpu".
        cpus: Cores of each task.
    """
    minutes = max(1, round(60 * hours))
    more = [f"#SBATCH --partition={partition}\n"] if partition else []
    more += ["#SBATCH --gres=gpu:1\n"] if device != "cpu" else []
    return SCRIPT.format(
        title=suite,
        job="advseg-" + "".join(c if c.isalnum() or c in "._-" else "_" for c in Path(suite).stem),
        n=n,
        cpus=cpus,
        time=f"{minutes // 60}:{minutes % 60:02}:00",
        more="".join(more),
        suite=shlex.quote(suite),
        out=shlex.quote(str(out)),
        command=shlex.join([sys.executable, "-m", "advseg_bench"]),
        device=f" --device {shlex.quote(device)}" if device != "cpu" else "",
        options="".join(f" {shlex.quote(each)}" for each in options),
    )
