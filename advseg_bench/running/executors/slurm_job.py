"""What a Slurm job of a run does: it runs one part, and writes its progress beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from advseg_bench.cache import write_json
from advseg_bench.errors import UserError
from advseg_bench.running.parts import Part
from advseg_bench.running.recording import Event
from advseg_bench.suite.suite import Suite

if TYPE_CHECKING:
    import submitit


@dataclass(frozen=True, slots=True)
class RunPart:
    """What a job does. Picklable; `submitit` calls it, and calls `checkpoint` when the job has to stop.

    Attributes:
        suite: The suite.
        part: The part.
        out: Run folder of the part.
        device: Device of models and images.
        shard: Images per job of a worker.
    """

    suite: Suite
    part: Part
    out: Path
    device: str
    shard: int

    def __call__(self) -> str:
        """Run the part.

        Returns:
            "" or the error that ended it, in one line.
        """
        from advseg_bench.running.benchmark import run

        try:
            run(
                self.suite,
                self.out,
                device=self.device,
                shard=self.shard,
                part=self.part,
                isolate=True,  # the signal before the time limit ends this process by an exception
                progress=_Noter(self.out.with_suffix(".progress.json")),
            )
        except UserError as error:
            return str(error)
        return ""

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what the requeued job does: the same; rows that exist are not computed again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Noter:
    """Writes the progress of a part into a file, at most once a second and at its end.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._next = path, 0.0

    def __call__(self, event: Event) -> None:
        if event.stage == "attack" and (time.monotonic() >= self._next or event.done == event.total):
            write_json(self._path, {"done": event.done, "total": event.total})
            self._next = time.monotonic() + 1.0
