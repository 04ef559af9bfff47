"""Starts a worker of a run in the process that runs its jobs. Picklable; imports torch only when called."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.instruments import profiling
from advseg_bench.instruments.allocator import keep_freed_memory
from advseg_bench.running.outcomes import Do
from advseg_bench.running.work import Context, Emit

WORKER = "advseg_bench.running.worker"
NETWORKS = ("segmentation_models_pytorch", "monai.networks")
"""Modules that building a model imports."""


@dataclass(frozen=True, slots=True)
class Start:
    """A `StartWorker`: called once in each process that runs jobs.

    Attributes:
        context: The run.
    """

    context: Context

    def __call__(self, emit: Emit) -> Do:
        """Create the worker in the calling process, which then has torch loaded and keeps the memory it frees.

        Args:
            emit: Called with the progress of trainings.

        Returns:
            `Worker.do`.
        """
        profiling.import_ahead(WORKER, *(NETWORKS if profiling.is_on() else ()))
        keep_freed_memory(volumes=len(self.context.suite.data.edges) == 3)
        from advseg_bench.running.worker import Worker

        return Worker(self.context, emit).do
