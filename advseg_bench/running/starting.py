"""How a worker of a run starts, in whatever process is to do its jobs. Torch-free until it is called, and picklable."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.instruments import profiling
from advseg_bench.instruments.allocator import keep_freed_memory
from advseg_bench.running.outcomes import Do
from advseg_bench.running.work import Context, Emit

WORKER = "advseg_bench.running.worker"
NETWORKS = ("segmentation_models_pytorch", "monai.networks")
"""What building a model imports."""


@dataclass(frozen=True, slots=True)
class Start:
    """A `StartWorker`: call it once in each process that is to run jobs.

    Attributes:
        context: The run.
    """

    context: Context

    def __call__(self, emit: Emit) -> Do:
        """Make this run's worker in the calling process, which from here on has torch and keeps the memory it frees.

        Args:
            emit: Told the progress of trainings.

        Returns:
            `Worker.do`.
        """
        profiling.import_ahead(WORKER, *(NETWORKS if profiling.is_on() else ()))
        keep_freed_memory()
        from advseg_bench.running.worker import Worker

        return Worker(self.context, emit).do
