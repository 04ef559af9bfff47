"""Runs a suite as an array of Slurm jobs, one part each, on `submitit`; the parts are merged at the end.

A job runs its part into a folder of its own, so nothing is lost when a job, a node or the submitting process ends. The
submitting process only watches: called again, it finds the jobs that it submitted. Before its time limit a job gets a
signal from Slurm, stops, and is requeued; it then continues with the rows that its part lacks (`slurm_job`).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from advseg_bench.cache import content_hash, make_folder, write_json
from advseg_bench.errors import UserError, WorkerError, expected, one_line
from advseg_bench.results.descriptions import read_json
from advseg_bench.results.run import Run
from advseg_bench.running.executors import slurm_queue
from advseg_bench.running.executors.slurm_job import RunPart
from advseg_bench.running.parts import Part, name_part
from advseg_bench.running.recording import Event
from advseg_bench.suite.suite import Suite

SUBMISSIONS = 3
"""Most times that a part is submitted: a job that ends without a result, as with a dead node, is submitted again."""
REQUEUES = 100
"""Most times that a job is requeued at its time limit."""
WARNED_S = 120
"""Seconds before its time limit at which Slurm signals a job to stop."""
QUERY_S = 2.0
"""Seconds between two queries of the queue."""
ENDED_QUERIES = 3
"""Queries in which a job must be missing from the queue, without a result, before it counts as lost."""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What the jobs of a run ask Slurm for.

    Attributes:
        jobs: Number of jobs, and so of parts.
        partition: Partition; Slurm's default if None.
        gpus: GPUs per job.
        hours: Time limit of a job; what is left at the limit is requeued.
        cpus: CPU cores per job.
        memory_gb: Memory per job in GB; Slurm's default if None.
        account: Account that is charged; Slurm's default if None.
        at_once: Most jobs that run at a time; all if None.
    """

    jobs: int
    partition: str | None = None
    gpus: int = 0
    hours: float = 5.0
    cpus: int = 1
    memory_gb: float | None = None
    account: str | None = None
    at_once: int | None = None

    def as_parameters(self) -> dict[str, Any]:
        """Return the parameters of `submitit.SlurmExecutor`."""
        asked: dict[str, Any] = {
            "time": max(1, round(self.hours * 60)),
            "cpus_per_task": self.cpus,
            "signal_delay_s": WARNED_S,
            "array_parallelism": self.at_once or self.jobs,
            "stderr_to_stdout": True,
        }
        if self.partition is not None:
            asked["partition"] = self.partition
        if self.gpus:
            asked["gpus_per_node"] = self.gpus
        if self.memory_gb is not None:
            asked["mem"] = f"{round(self.memory_gb * 1024)}M"
        if self.account is not None:
            asked["account"] = self.account
        return asked


@dataclass(slots=True)
class _Watched:
    """A part with its job: submissions, queries in which the job was gone, and whether the part has ended."""

    part: Part
    job: str
    submissions: int = 1
    gone: int = 0
    ended: bool = False


def run_on_slurm(
    suite: Suite,
    out: Path,
    options: SlurmOptions,
    *,
    device: str | None = None,
    shard: int = 8,
    progress: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Run a suite as an array of Slurm jobs, or continue to watch the jobs of an earlier call, and merge the parts.

    Args:
        suite: The suite.
        out: The run directory; the parts, the jobs' logs and their numbers are in `OUT-parts` beside it, which jobs and
            this process share.
        options: Number of jobs and resources.
        device: Device of models and images; by default "cuda" with GPUs and "cpu" without.
        shard: Images per job of a worker.
        progress: Called with the progress of all jobs together.

    Returns:
        The merged run.

    Raises:
        IncompatibleError: If the extra `slurm` is not installed.
        UserError: If Slurm is not there, refuses the jobs, or a part failed.
    """
    slurm_queue.check_slurm(options.partition)
    folder = out.with_name(f"{out.name}-parts")
    make_folder(folder)
    watcher = _Watcher(suite, folder, options, device or ("cuda" if options.gpus else "cpu"), shard)
    watcher.begin()
    watcher.watch(progress)
    from advseg_bench.running.merge import merge

    return merge([watcher.place(each.part) for each in watcher.watched], out)


class _Watcher:
    """Submits the jobs of a run, and watches them.

    Args:
        suite: The suite.
        folder: Holds the parts' run folders, `logs/` and `jobs.json`.
        options: Number of jobs and resources.
        device: Device of models and images.
        shard: Images per job of a worker.
    """

    def __init__(self, suite: Suite, folder: Path, options: SlurmOptions, device: str, shard: int) -> None:
        from submitit import SlurmExecutor

        self.watched: list[_Watched] = []
        self._suite, self._folder, self._options = suite, folder.resolve(), options
        self._device, self._shard = device, shard
        self._key = content_hash({"suite": suite.as_json(), "jobs": options.jobs, "device": device})
        self._submitter = SlurmExecutor(folder=self._folder / "logs", max_num_timeout=REQUEUES)
        self._submitter.update_parameters(job_name=self._name, **options.as_parameters())

    @property
    def _name(self) -> str:
        """The name of the jobs, by which they are found if this process ended before it wrote their numbers."""
        return f"advseg-{content_hash([self._key, str(self._folder)])}"

    @property
    def _record(self) -> Path:
        return self._folder / "jobs.json"

    def place(self, part: Part) -> Path:
        """Return the run folder of a part."""
        return self._folder / name_part(part)

    def begin(self) -> None:
        """Find the jobs of an earlier call, or submit an array.

        Raises:
            UserError: If the folder holds the jobs of another suite, or Slurm refuses the jobs.
        """
        parts = [(i + 1, self._options.jobs) for i in range(self._options.jobs)]
        if self._record.exists():
            self._adopt(parts, read_json(self._record))
        elif len(known := slurm_queue.find_jobs(self._name)) == len(parts):
            self.watched = [_Watched(part, job) for part, job in zip(parts, known, strict=True)]
        else:
            self.watched = [_Watched(part, job) for part, job in zip(parts, self._submit(parts), strict=True)]
        self._write_record()

    def watch(self, progress: Callable[[Event], None]) -> None:
        """Wait until every part has ended; jobs that ended without a result are submitted again.

        Raises:
            UserError: If a part failed. The other jobs are cancelled then; finished rows are kept.
        """
        while waiting := [each for each in self.watched if not each.ended]:
            queued = slurm_queue.list_queued([each.job for each in waiting])
            for each in waiting:
                result = self._find_result(each)
                if result == "":
                    each.ended = True
                elif each.job in queued:  # an error may be that of a requeued job, which runs again
                    each.gone = 0
                    self._check_hope(each, queued[each.job])
                elif result is not None:
                    self._fail(each, result)
                else:
                    each.gone += 1
            self._submit_again([each for each in waiting if not each.ended and each.gone >= ENDED_QUERIES])
            progress(self._sum_progress())
            if any(not each.ended for each in self.watched):
                time.sleep(QUERY_S)
        if left := slurm_queue.list_queued([each.job for each in self.watched]):  # such as one that was just requeued
            subprocess.run(["scancel", *left], check=False, capture_output=True)

    def _adopt(self, parts: Sequence[Part], record: Any) -> None:
        """Take over the jobs that an earlier call wrote down."""
        if not isinstance(record, dict) or record.get("key") != self._key:
            remedy = "Run it as before, or choose another --out."
            what = "the jobs of this suite, with the same --jobs, --gpus and device"
            raise UserError(expected(self._record, what, "those of another", remedy))
        jobs, counts = record["jobs"], record["submissions"]
        self.watched = [_Watched(part, jobs[i], counts[i]) for i, part in enumerate(parts)]
        queued = slurm_queue.list_queued([each.job for each in self.watched])
        failed = [each for each in self.watched if each.job not in queued and self._find_result(each)]
        for each in failed:
            each.submissions = 0  # its cause may be gone
        self._submit_again(failed)

    def _submit(self, parts: Sequence[Part]) -> list[str]:
        """Submit a job for each part; return their numbers, such as "7_0"."""
        from submitit.core.utils import FailedJobError

        jobs = [RunPart(self._suite, part, self.place(part), self._device, self._shard) for part in parts]
        try:
            with self._submitter.batch():
                submitted = [self._submitter.submit(job) for job in jobs]
        except FailedJobError as error:
            said = next((line for line in reversed(str(error).splitlines()) if "error:" in line), str(error))
            reason = said.partition("error:")[2].strip() or one_line(error)
            raise UserError(f"sbatch: refused the jobs: {reason.rstrip('.')}. See `sinfo`.") from None
        return [str(job.job_id) for job in submitted]

    def _submit_again(self, lost: Sequence[_Watched]) -> None:
        """Submit jobs again that ended without a result.

        Raises:
            WorkerError: If one of them was submitted `SUBMISSIONS` times.
        """
        if not lost:
            return
        for each in lost:
            if each.submissions >= SUBMISSIONS:
                log = self._folder / "logs" / f"{each.job}_0_log.out"
                raise WorkerError(
                    f"{name_part(each.part)}: its job ended {SUBMISSIONS} times without a result, as when memory runs "
                    f"out or a node fails. See {log}. Finished rows are kept; run the same command again to go on."
                )
        for each, job in zip(lost, self._submit([each.part for each in lost]), strict=True):
            each.job, each.gone, each.submissions = job, 0, each.submissions + 1
        self._write_record()

    def _find_result(self, each: _Watched) -> str | None:
        """Return what the job returned, "" for a success, or None if it has not ended by itself."""
        from submitit import SlurmJob
        from submitit.core.utils import pickle_load

        paths = SlurmJob(self._folder / "logs", each.job).paths
        if not paths.result_pickle.exists():
            return None
        outcome, value = pickle_load(paths.result_pickle)
        return str(value) if outcome == "success" else str(value).strip().splitlines()[-1]

    def _fail(self, each: _Watched, error: str) -> NoReturn:
        """Cancel the jobs that have not ended, and raise the error of one."""
        left = [other.job for other in self.watched if not other.ended or other is each]
        subprocess.run(["scancel", *left], check=False, capture_output=True)
        raise UserError(error)

    def _check_hope(self, each: _Watched, reason: str) -> None:
        """End the run if Slurm will never start a job."""
        if reason in slurm_queue.HOPELESS:
            self._fail(each, f"sbatch: Slurm will never start job {each.job} ({reason}). Ask for less, see `sinfo`.")

    def _sum_progress(self) -> Event:
        """Add up the progress that the parts wrote."""
        done = total = 0
        for each in self.watched:
            path = self.place(each.part).with_suffix(".progress.json")
            if path.exists():
                noted = read_json(path)
                done, total = done + noted["done"], total + noted["total"]
        ended = sum(each.ended for each in self.watched)
        return Event("attack", f"{ended} of {len(self.watched)} jobs ended", done, total)

    def _write_record(self) -> None:
        write_json(
            self._record,
            {
                "key": self._key,
                "jobs": [each.job for each in self.watched],
                "submissions": [each.submissions for each in self.watched],
            },
        )
