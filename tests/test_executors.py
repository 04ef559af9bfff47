"""What an executor guarantees, and Ctrl-C: whenever it comes, nothing is lost, nothing hangs, no process is left."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import stub_worker
from stub_worker import Call, Tell, fail, find_process

from advseg_bench.errors import DataError, TaintedError, UserError
from advseg_bench.running.executors.base import call, open_executor
from advseg_bench.running.executors.output import SHOWN
from advseg_bench.running.outcomes import TAINTED, TIMEOUT, Death, JobError, Outcome, WorkerDied
from advseg_bench.running.work import Running


def no_news(message):
    pass


def open_stub(workers, emit=no_news, start_worker=stub_worker.start_worker, **options):
    return open_executor(workers, start_worker, emit, **options)


@pytest.fixture(scope="module")
def told():
    """What the workers of `here` and `pool` have told of their progress."""
    return []


@pytest.fixture(scope="module")
def here(told):
    """An executor in this process."""
    with open_stub(1, partial(note, told)) as executor:
        yield executor


@pytest.fixture(scope="module")
def pool(told):
    """Three processes for all tests that leave them alive."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C stays with the tests
    with open_stub(3, partial(note, told)) as executor:
        signal.signal(signal.SIGINT, before)
        yield executor


def note(told, message):
    assert threading.current_thread() is threading.main_thread()
    told.append((message.model, message.done, message.total))


@pytest.fixture(params=["here", "pool"])
def executor(request):
    return request.getfixturevalue(request.param)


def test_a_job_returns_its_result_or_says_why_not_and_harms_no_other(executor):
    assert call(executor, Call(abs, (-3,))) == 3
    with pytest.raises(DataError, match="no such folder"):
        call(executor, Call(fail, (DataError, "no such folder")))
    with pytest.raises(JobError, match=r"^StubbornError: one two\n") as told:
        call(executor, Call(fail, (stub_worker.StubbornError, "one", "two")))
    assert "in fail" in "".join(told.value.__notes__)
    with pytest.raises(UserError, match=r"^one two$"):
        call(executor, Call(fail, (stub_worker.StubbornUserError, "one", "two")))
    with pytest.raises(JobError, match="SystemExit: 3"):
        call(executor, Call(fail, (SystemExit, 3)))
    assert call(executor, Call(abs, (-4,))) == 4


def test_a_result_that_cannot_be_sent_is_an_error_of_its_job(pool):
    with pytest.raises(JobError, match="pickle"):
        call(pool, Call(stub_worker.make_a_function))
    assert call(pool, Call(abs, (-4,))) == 4


def test_there_is_a_place_for_each_worker(here, pool):
    assert (here.capacity, pool.capacity) == (1, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_cannot_be_made_says_so_in_each_job(workers):
    with open_stub(workers, start_worker=stub_worker.start_no_worker) as executor:
        for _ in range(2):
            with pytest.raises(JobError, match="ModuleNotFoundError: No module named 'no_such_module'"):
                call(executor, Tell(1, "a"))


def test_every_job_comes_back_once_and_progress_comes_before_it_in_the_callers_thread(executor, told):
    told.clear()
    jobs = [Tell(n % 4, str(n)) for n in range(20)]
    waiting, ended, running = list(jobs), [], 0
    while running or waiting:
        while waiting and running < executor.capacity:
            executor.submit(waiting.pop())
            running += 1
        job, outcome = executor.wait()
        running -= 1
        assert outcome.result() == job.word
        assert [e for e in told if e[0] == job.word] == [(job.word, n + 1, job.steps) for n in range(job.steps)]
        ended.append(job)
    assert Counter(ended) == Counter(jobs)


def test_the_next_job_goes_to_the_worker_that_became_free_last(pool):
    for label in range(3):
        pool.submit(Call(find_process, (label,)))
    freed = [pool.wait()[1].result() for _ in range(3)]
    assert len(set(freed)) == 3
    for label in range(3):
        pool.submit(Call(find_process, (label,)))
    took = dict(pool.wait() for _ in range(3))
    assert [took[Call(find_process, (label,))].result() for label in range(3)] == freed[::-1]


def die(how, *arguments):
    """Run a job after which the worker is gone, and return its death."""
    with open_stub(1, isolate=True) as executor:
        executor.submit(Call(how, arguments))
        outcome = executor.wait()[1]
        assert call(executor, Call(abs, (-3,))) == 3, "a fresh worker does the next job"
    assert isinstance(outcome.error, WorkerDied)
    assert pickle.loads(pickle.dumps(outcome.error)).death == outcome.error.death
    return outcome.error.death


def test_a_worker_that_dies_is_replaced_and_its_job_says_how():
    death = die(stub_worker.print_and_crash)
    assert death.cause == "SIGSEGV"
    assert death.running == Running("a", ("c",), ("i",))
    assert 2**23 < death.peak_bytes < 2**33
    assert "Segmentation fault in " in death.last_words
    assert ", stub_worker.py:" in death.last_words
    death = die(stub_worker.say_and_exit, "one\ntwo\x1b[31m\n", 3)
    assert (death.cause, death.last_words) == ("exit code 3", "one | two[31m")


def test_a_job_that_is_lost_costs_no_other_and_an_idle_death_nothing():
    with open_stub(2) as executor:
        executor.submit(Call(os._exit, (1,)))
        executor.submit(Call(abs, (-4,)))
        ended = dict(executor.wait() for _ in range(2))
        assert ended[Call(abs, (-4,))].result() == 4
        assert isinstance(ended[Call(os._exit, (1,))].error, WorkerDied)
        os.kill(call(executor, Call(os.getpid)), signal.SIGKILL)
        outcome = Outcome(error=WorkerDied(Death("")))
        while isinstance(outcome.error, WorkerDied):  # if the system is late to notice, the job is lost
            executor.submit(Call(abs, (-3,)))
            outcome = executor.wait()[1]
        assert outcome.result() == 3


@pytest.mark.parametrize("how", [stub_worker.sleep_long, stub_worker.spin])
def test_a_call_that_exceeds_its_time_costs_its_job_and_says_where_it_was(how):
    death = die(how, 0.3)
    assert death.cause == TIMEOUT
    assert how.__name__ in death.last_words


def test_a_forked_copy_of_a_worker_neither_answers_nor_delays_its_death():
    with open_stub(1, isolate=True) as executor:
        assert call(executor, Call(stub_worker.fork_and_return)) == call(executor, Call(os.getpid))
    assert die(stub_worker.fork_and_die).cause == "exit code 1"


def test_a_job_that_taints_its_process_gets_a_fresh_one():
    death = die(fail, TaintedError, "attack x: expected no thread that keeps running, got 1.")
    assert (death.cause, death.last_words) == (TAINTED, "attack x: expected no thread that keeps running, got 1.")


def test_endless_output_is_cut_and_neither_fills_memory_nor_blocks(capsys):
    with open_stub(1, isolate=True) as executor:
        assert call(executor, Call(stub_worker.print_much, (400,))) == 400
    shown = capsys.readouterr().err
    assert "Further output of workers is not shown" in shown
    assert len(shown) < 2 * SHOWN
    assert max(map(len, shown.splitlines())) < 600


def test_workers_look_for_no_garbage_among_what_they_imported(pool):
    assert call(pool, Call(gc.get_freeze_count)) > 200_000
    assert call(pool, Call(gc.isenabled))
    assert gc.get_freeze_count() == 0


BEGIN = f"""
import os, signal, struct, sys, threading, time, traceback

sys.path.insert(0, {str(Path(__file__).parent)!r})
import subprocess
from advseg_bench.running.executors import processes
from advseg_bench.running.executors.base import call, open_executor
from stub_worker import Call, start_worker

os.environ.setdefault("TERMINAL", str(os.getpgrp()))
HALF = os.path.abspath(__file__) + ".half"

def open_stub(workers=2):
    return open_executor(workers, start_worker, lambda *event: None)

def ctrl_c():
    os.killpg(int(os.environ["TERMINAL"]), signal.SIGINT)  # as a terminal does

def find_pipe():
    frame = sys._getframe()
    while "pipe" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["pipe"].fileno()

def run_a_thread():
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
"""

START = """
def interrupted(start):
    def start_and_interrupt(*arguments, **options):
        found = start(*arguments, **options)
        ctrl_c()
        return found
    return start_and_interrupt

if __name__ == "__main__":
    THREAD()
    WHAT = interrupted(WHAT)
    with open_stub():
        print("went on")
"""

MOMENTS = {
    "while workers start": START.replace("WHAT", "processes.Processes.start").replace("THREAD", "int"),
    "while a worker is half started": START.replace("WHAT", "subprocess.Popen").replace("THREAD", "run_a_thread"),
    "while a result is half written": """
def half_a_result():
    os.write(find_pipe(), struct.pack("!i", 1000) + b"half")
    open(HALF, "w").close()
    time.sleep(1000)

def wait_and_interrupt():
    while not os.path.exists(HALF) or "recv" not in list_frames():
        time.sleep(0.01)
    ctrl_c()

def list_frames():
    return {frame.name for frame in traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])}

if __name__ == "__main__":
    threading.Thread(target=wait_and_interrupt).start()
    with open_stub() as executor:
        call(executor, Call(half_a_result))
""",
    "in a destructor": """
class Gone:
    def __del__(self):
        ctrl_c()

if __name__ == "__main__":
    with open_stub() as executor:
        Gone()
        call(executor, Call(time.sleep, (1000,)))
""",
    "when the last job has ended": """
if __name__ == "__main__":
    with open_stub() as executor:
        call(executor, Call(os.getpid))
        ctrl_c()
""",
    "after polars has put its own ear to it": """
def interrupt_and_sleep():
    ctrl_c()
    time.sleep(1000)

if __name__ == "__main__":
    import polars
    with open_stub() as executor:
        call(executor, Call(interrupt_and_sleep))
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
    assert (done.returncode, done.stdout) == (-signal.SIGINT, ""), done.stderr
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_a_callers_own_way_with_ctrl_c_is_left_alone():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with open_stub(2) as executor:
            os.kill(os.getpid(), signal.SIGINT)
            assert call(executor, Call(abs, (-3,))) == 3
    finally:
        after = signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
    assert after.__name__ == "<lambda>"


def test_workers_can_be_had_in_a_thread_and_never_hear_ctrl_c():
    def use():
        with open_stub(2) as executor:
            ignored.append(call(executor, Call(signal.getsignal, (signal.SIGINT,))))

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


STARTING = """
if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda number, frame: None)
    with open_stub() as executor:
        for _ in range(20):
            ctrl_c()
            time.sleep(0.02)
        print(call(executor, Call(abs, (-3,))))
"""


def test_a_worker_does_not_hear_ctrl_c_while_it_starts(tmp_path):
    done = run_script(tmp_path, STARTING)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


ENDS_LATE = """
def stay_long():
    import multiprocessing

    print("said")
    multiprocessing.RLock()
    threading.Thread(target=time.sleep, args=(1000,)).start()

if __name__ == "__main__":
    with open_stub() as executor:
        for _ in range(2):
            executor.submit(Call(stay_long))
        for _ in range(2):
            executor.wait()[1].result()
    print("left")
"""


def test_workers_that_take_their_time_to_end_are_not_waited_for(tmp_path):
    done = run_script(tmp_path, ENDS_LATE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "said\nsaid\n")


DIES = """
if __name__ == "__main__":
    with open_stub() as executor:
        for _ in range(2):
            executor.submit(Call(time.sleep, (1000,)))
        print(*(worker.child.pid for worker in executor._all), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_die_with_their_parent_even_in_the_middle_of_a_job(tmp_path):
    done = run_script(tmp_path, DIES)
    workers = [Path("/proc", pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    assert done.stderr == ""
    deadline = time.monotonic() + 20
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)


LOADED = """
def list_heavy():
    return [name for name in ("torch", "polars") if name in sys.modules]

if __name__ == "__main__":
    with open_stub() as executor:
        print(list_heavy(), call(executor, Call(list_heavy)))
    import advseg_bench.running.benchmark
    print(list_heavy())
"""


def test_only_a_runs_own_worker_imports_torch(tmp_path):
    done = run_script(tmp_path, LOADED)
    assert done.stdout == "[] []\n['polars']\n", done.stderr
