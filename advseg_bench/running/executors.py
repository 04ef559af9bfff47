"""Where jobs run: in this process, or in worker processes. Results do not depend on the choice."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import util
from typing import Any, Protocol

from advseg_bench.errors import UserError, WorkerError, one_line
from advseg_bench.instruments import profiling
from advseg_bench.instruments.allocator import keep_freed_memory

Emit = Callable[[str, int, int], None]


class JobError(Exception):
    """A job raised something that is not the user's to mend; the message names its type."""


class Executor(Protocol):
    """Runs jobs: functions of `advseg_bench.running.jobs`, named so that this process need not import torch.

    Attributes:
        capacity: How many jobs run at a time; one more would wait for a worker.
    """

    capacity: int

    def submit(self, job: str, *arguments: Any) -> Future[Any]:
        """Start a job, or queue it."""
        ...


@contextmanager
def open_executor(workers: int, threads: int, emit: Emit) -> Iterator[Executor]:
    """Provide an executor and leave nothing behind.

    Args:
        workers: 1 runs the jobs in this process; more start so many processes.
        threads: Threads of each worker; part of what a result depends on.
        emit: Called in this process with every progress event.
    """
    if workers == 1:
        profiling.prepare_for_jobs()
        keep_freed_memory()
        with _threads(threads):
            yield _InProcess(emit)
        return
    with _Interrupts() as interrupts:
        context = multiprocessing.get_context("spawn")
        events, stop = context.SimpleQueue(), threading.Event()
        listener = threading.Thread(target=_listen, args=(events, emit, stop), daemon=True)
        listener.start()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads, events))
        try:
            with _interrupts_blocked():
                # Each of these starts a worker, which inherits that Ctrl-C is none of its business.
                for _ in range(workers):
                    pool.submit(os.getpid)
            interrupts.kill(pool)
            yield _Processes(pool, workers)
        except BaseException:
            # A run that ends early must not wait for a training: what a worker has not returned is computed again.
            _kill(pool)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            stop.set()
            listener.join(timeout=1)


def collect(future: Future[Any]) -> Any:
    """Return a job's result. Raises: WorkerError: if its worker process died."""
    with _deaths_told(), profiling.span(profiling.WAITING):
        result = future.result()
    if isinstance(result, _Answer):
        profiling.add(result.spent)
        return result.result
    return result


@contextmanager
def _deaths_told() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise WorkerError(
            "A worker process was killed, probably for lack of memory. What was finished is kept: "
            "run the same command again with fewer --workers."
        ) from None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a worker process returns: a job's result, and where its time went if that is wanted."""

    result: Any
    spent: dict[str, float]


class _InProcess:
    """Runs each job when it is submitted."""

    capacity = 1

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        import_module("advseg_bench.running.jobs").forget()

    def submit(self, job: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(_work(self.emit, job, arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class _Processes:
    """Hands jobs to a pool of processes."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self.pool = pool
        self.capacity = workers

    def submit(self, job: str, *arguments: Any) -> Future[Any]:
        with _deaths_told():
            return self.pool.submit(_work_here, job, arguments)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Set torch's threads inside, and the caller's number again outside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Interrupts:
    """Ctrl-C while there are workers: it kills them, ends what waits for them, and is raised when all is tidied up.

    Raised at once it could leave a lock of the pool taken, and the run would wait for that lock for ever. Only the main
    thread is ever interrupted, and a caller's own way with Ctrl-C is left alone.
    """

    def __init__(self) -> None:
        self.noted = False
        self.pool: ProcessPoolExecutor | None = None

    def kill(self, pool: ProcessPoolExecutor) -> None:
        """Say whose workers to kill. Raises: KeyboardInterrupt: if Ctrl-C has come before."""
        self.pool = pool
        if self.noted:
            raise KeyboardInterrupt

    def __enter__(self) -> _Interrupts:
        main = threading.current_thread() is threading.main_thread()
        self.ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self.ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.noted:
            raise KeyboardInterrupt from None

    def _note(self, number: int, frame: object) -> None:
        self.noted = True
        if self.pool:
            _kill(self.pool)


def _kill(pool: ProcessPoolExecutor) -> None:
    """Kill a pool's workers, so that nothing waits for what they would have returned."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    # Without this the pool would wait for the rest of a result that a worker was writing.
    if pool._result_queue:
        pool._result_queue._writer.close()  # type: ignore[attr-defined]


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes inside: they never hear Ctrl-C. This one hears it here or, if it has no other thread, later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_emit_from_worker: Emit = lambda what, done, total: None  # noqa: E731


def _start_worker(threads: int, events: Any) -> None:
    """Prepare a worker, which neither hears Ctrl-C nor outlives its parent."""
    global _emit_from_worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    util.Finalize(None, _leave, exitpriority=-100)
    with suppress(Exception):  # what cannot be imported the first job says better: here it would look like a death
        profiling.start_in_worker()
    gc.freeze()  # what is there now stays, and is not looked through for garbage again and again
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    _emit_from_worker = lambda what, done, total: events.put((what, done, total))  # noqa: E731


def _leave() -> None:
    """End a worker that has tidied up: to unload its libraries would take it seconds that the run would wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_here(job: str, arguments: tuple[Any, ...]) -> Any:
    result = _work(_emit_from_worker, job, arguments)
    return _Answer(result, profiling.take())


def _work(emit: Emit, job: str, arguments: tuple[Any, ...]) -> Any:
    """Run a job. Anything but a `UserError` is reworded: an exception of foreign code may not survive pickling."""
    try:
        return getattr(import_module("advseg_bench.running.jobs"), job)(emit, *arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        failed = JobError(one_line(error))
        failed.add_note(traceback.format_exc())
        raise failed from None


def _listen(events: Any, emit: Emit, stop: threading.Event) -> None:
    """Pass on events until told to stop. It never waits for a lock that a killed worker may have held."""
    while not stop.is_set():
        if events.empty():
            stop.wait(0.05)
        else:
            emit(*events.get())
