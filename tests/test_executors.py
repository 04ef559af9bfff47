"""Worker processes and Ctrl-C: whenever it comes, nothing is lost, nothing hangs, and no process is left."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

from advseg_bench.errors import WorkerError
from advseg_bench.instruments.allocator import SETTINGS
from advseg_bench.running import executors

BEGIN = """
import os, signal, struct, sys, time
from concurrent import futures
from advseg_bench.running import executors

HALF = os.path.abspath(__file__) + ".half"

def no_news(what, done, total):
    pass

def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
"""

MOMENTS = {
    "while workers start": """
class Pool(executors.ProcessPoolExecutor):
    def _spawn_process(self):
        super()._spawn_process()
        if len(self._processes) == 1:
            ctrl_c()

if __name__ == "__main__":
    executors.ProcessPoolExecutor = Pool
    with executors.open_executor(2, 1, no_news):
        print("went on")
""",
    "while a lock of the pool is held": """
class Acquire(futures._base._AcquireFutures):
    def __enter__(self):
        self.futures[0]._condition.acquire()
        ctrl_c()
        for future in self.futures[1:]:
            future._condition.acquire()

if __name__ == "__main__":
    with executors.open_executor(2, 1, no_news) as executor:
        waiting = [executor.pool.submit(time.sleep, 1000) for _ in range(2)]
        futures._base._AcquireFutures = Acquire
        futures.wait(waiting)
        executors.collect(waiting[0])
""",
    "while a result is half written": """
def half_a_result():
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    frame.f_locals["result_queue"]._writer._send(struct.pack("!i", 1000) + b"half")
    open(HALF, "w").close()
    time.sleep(1000)

if __name__ == "__main__":
    with executors.open_executor(2, 1, no_news) as executor:
        future = executor.pool.submit(half_a_result)
        while not os.path.exists(HALF):
            time.sleep(0.05)
        ctrl_c()
        executors.collect(future)
""",
    "when the last job has ended": """
if __name__ == "__main__":
    with executors.open_executor(2, 1, no_news) as executor:
        executors.collect(executor.pool.submit(os.getpid))
        ctrl_c()
""",
    "after polars has put its own ear to it": """
if __name__ == "__main__":
    import polars, threading
    with executors.open_executor(2, 1, no_news) as executor:
        threading.Timer(1, ctrl_c).start()
        executors.collect(executor.pool.submit(time.sleep, 1000))
""",
}


def run_script(tmp_path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a script that hears Ctrl-C; it and its workers are killed if it does not end within a minute."""
    path = tmp_path / "script.py"
    path.write_text(BEGIN + text)
    process = subprocess.Popen(
        [sys.executable, path],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        out, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(path, process.returncode, out, errors)


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_is_never_lost(tmp_path, moment):
    done = run_script(tmp_path, MOMENTS[moment])
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_a_callers_own_way_with_ctrl_c_is_left_alone():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with executors.open_executor(2, 1, print) as executor:
            os.kill(os.getpid(), signal.SIGINT)
            assert executors.collect(executor.pool.submit(abs, -3)) == 3
    finally:
        after = signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
    assert after.__name__ == "<lambda>"


def test_workers_can_be_had_in_a_thread_and_never_hear_ctrl_c():
    def use():
        with executors.open_executor(2, 1, print) as executor:
            ignored.append(executors.collect(executor.pool.submit(signal.getsignal, signal.SIGINT)))

    ignored = []
    thread = threading.Thread(target=use)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a script's `&` started the tests
    try:
        thread.start()
        thread.join()
    finally:
        after = signal.signal(signal.SIGINT, before)
    assert ignored == [signal.SIG_IGN]
    assert after is signal.default_int_handler


def test_a_job_after_a_workers_death_is_told_so():
    told = pytest.raises(WorkerError, match="A worker process was killed")
    with told, executors.open_executor(2, 1, print) as executor:
        wait([executor.pool.submit(os._exit, 1)])
        executor.submit("describe")


ENDS_LATE = """
import threading

def stay_long():
    import multiprocessing

    print("said")
    multiprocessing.RLock()
    threading.Thread(target=time.sleep, args=(1000,)).start()

if __name__ == "__main__":
    with executors.open_executor(2, 1, no_news) as executor:
        for future in [executor.pool.submit(stay_long) for _ in range(2)]:
            executors.collect(future)
    print("left")
"""


def test_workers_that_take_their_time_to_end_are_not_waited_for(tmp_path):
    done = run_script(tmp_path, ENDS_LATE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "said\nsaid\nleft\n", "")


KEEPS = """
import numpy as np

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) >> 10

def keep_a_block():
    before = resident()
    block = np.ones(200 << 20, np.uint8)
    del block
    return resident() - before

if __name__ == "__main__":
    with executors.open_executor(WORKERS, 1, no_news) as executor:
        print(keep_a_block() if WORKERS == 1 else executors.collect(executor.pool.submit(keep_a_block)))
"""


FREEZES = """
import gc

if __name__ == "__main__":
    with executors.open_executor(2, 1, no_news) as executor:
        frozen = executors.collect(executor.pool.submit(gc.get_freeze_count))
        print(frozen, executors.collect(executor.pool.submit(gc.isenabled)), gc.get_freeze_count())
"""


LACKS = """
from advseg_bench.instruments import profiling

profiling.FOR_JOBS = ("no_such_module",)  # in the workers too, which run this file first

if __name__ == "__main__":
    with executors.open_executor(2, 1, no_news) as executor:
        print(executors.collect(executor.pool.submit(len, "ab")))
"""


def test_a_worker_that_cannot_import_something_lives_to_tell(tmp_path):
    done = run_script(tmp_path, LACKS)
    assert done.stdout.strip() == "2", done.stderr


def test_workers_look_for_no_garbage_among_what_they_imported(tmp_path):
    done = run_script(tmp_path, FREEZES)
    frozen, collecting, here = done.stdout.split()
    assert (int(frozen) > 100_000, collecting, here) == (True, "True", "0"), done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc, on Linux, that is told")
@pytest.mark.parametrize("workers", [1, 2])
def test_freed_memory_stays_where_jobs_run(tmp_path, monkeypatch, workers):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    done = run_script(tmp_path, KEEPS.replace("WORKERS", str(workers)))
    assert int(done.stdout) > 180, done.stderr
