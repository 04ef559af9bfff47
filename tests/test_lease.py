"""Leases: one holder at a time, among processes and machines that come and go."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from advseg_bench.cache import lease as leases
from advseg_bench.cache import sweep
from advseg_bench.cache.holder import Holder, describe_self
from advseg_bench.cache.lease import find_holder, hold
from advseg_bench.errors import HeldError, RecordError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(leases, "POLL_S", 0.005)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / ".lease"


@pytest.fixture(scope="module")
def dead():
    """A process of this machine that has ended."""
    code = (
        "import dataclasses, json\nfrom advseg_bench.cache.holder import describe_self\n"
        "print(json.dumps(dataclasses.asdict(describe_self('training m'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return Holder(**json.loads(done.stdout))


def write(path: Path, holder: Holder, age: float = 0.0) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (path.stat().st_mtime - age,) * 2)


def test_one_holds_it_and_gives_it_back(path):
    with hold(path, what="training m") as lease:
        assert lease.is_held()
        assert lease.previous is None
        holder = find_holder(path)
        assert (holder.pid, holder.what) == (os.getpid(), "training m")
        with (
            pytest.raises(HeldError, match=rf"in use by process {os.getpid()} on .* \(since 20\d\d-"),
            hold(path, wait=False),
        ):
            pytest.fail("held twice")
    assert find_holder(path) is None
    assert not list(path.parent.iterdir())


def test_the_second_waits_and_learns_for_whom(path):
    waited, order = [], []

    def second() -> None:
        with hold(path, on_wait=waited.append):
            order.append("second")

    with hold(path, what="training m"):
        thread = threading.Thread(target=second)
        thread.start()
        while not waited:
            time.sleep(0.001)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert [holder.what for holder in waited] == ["training m"]


@pytest.mark.parametrize(
    ("change", "age", "gone"),
    [
        ({}, 0, True),  # the process has ended
        ({"started": "1"}, 0, True),
        ({"machine": "other", "host": "other"}, 10, False),
        ({"machine": "other", "host": "other"}, 61, True),
        ({"pid": os.getpid(), "started": "1"}, 0, True),  # another process has its number now
        ({"pid": os.getpid(), "started": describe_self("").started}, 1e6, False),  # it is stopped
        ({"pid": os.getpid(), "started": ""}, 10, False),
        ({"pid": os.getpid(), "started": ""}, 61, True),
    ],
)
def test_when_a_holder_is_gone(path, dead, change, age, gone):
    holder = replace(dead, **change)
    write(path, holder, age)
    assert find_holder(path) == (None if gone else holder)
    if gone:
        with hold(path, wait=False) as lease:
            assert lease.previous == holder
    else:
        with pytest.raises(HeldError, match=f"process {holder.pid} on {holder.host}"), hold(path, wait=False):
            pytest.fail("taken from a living process")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"host": "a"', b"[1]", b"\xff\xfe"])
def test_an_unreadable_lease_is_taken_when_it_is_old(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(HeldError, match="an unknown process"), hold(path, wait=False):
        pytest.fail("taken at once")
    os.utime(path, (path.stat().st_mtime - 61,) * 2)
    with hold(path, wait=False) as lease:
        assert lease.is_held()


def test_a_silent_machine_is_given_up_by_the_clock_of_the_one_that_waits(path, dead, monkeypatch):
    """The clock of the other machine is an hour fast."""
    monkeypatch.setattr(leases, "GONE_S", -3599.7)
    write(path, replace(dead, machine="other"), age=-3600)
    with hold(path) as lease:
        assert lease.previous.machine == "other"


def test_a_renewed_lease_of_another_machine_is_not_taken(path, dead, monkeypatch):
    monkeypatch.setattr(leases, "GONE_S", 0.3)
    other = replace(dead, machine="other")
    write(path, other)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(lambda: hold(path).__enter__())
            time.sleep(1)
            assert not taken.done()
            stop.set()
            thread.join()
            lease = taken.result(30)
            assert lease.previous == other
            lease.release()
    finally:
        stop.set()


def test_the_holder_renews_its_lease(path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    with hold(path):
        os.utime(path, (1, 1))
        while path.stat().st_mtime < 1e9:
            time.sleep(0.005)


def test_a_lease_that_another_took_is_noticed_and_left_alone(path, dead):
    with hold(path) as lease:
        write(path, replace(dead, machine="other", token="theirs"))
        with pytest.raises(HeldError, match=r"\.lease: another process took over"):
            lease.check()
    assert find_holder(path).token == "theirs"


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_wait_for_a_dead_holder_one_takes_its_place(path, dead, monkeypatch, links):
    """Every round all begin with the lease of a dead process; the file in the middle shows any overlap."""
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    inside, before = path.parent / "inside", []

    def work(start: threading.Barrier) -> None:
        start.wait()
        with hold(path) as lease:
            inside.touch(exist_ok=False)
            before.append(lease.previous)
            time.sleep(0.001)
            inside.unlink()

    with ThreadPoolExecutor(6) as pool:
        for _ in range(8):
            write(path, dead)
            start = threading.Barrier(6)
            for done in [pool.submit(work, start) for _ in range(6)]:
                done.result(60)
    assert sum(holder is not None and holder.token == dead.token for holder in before) == 8
    assert len(before) == 48
    assert not list(path.parent.iterdir())


def test_a_takeover_that_was_killed_in_the_middle_is_taken_over_itself(path, dead):
    write(path, replace(dead, token="first"))
    write(path.with_name(".lease.first.claim"), replace(dead, token="second"))
    write(path.with_name(".lease.old.claim"), replace(dead, token="third"))
    (path.parent / ".lease.0.tmp").touch()
    with hold(path, wait=False) as lease:
        assert lease.previous.token == "first"
        sweep(path.parent)
        lease.sweep_claims()
        assert [file.name for file in path.parent.iterdir()] == [".lease"]


def test_a_forked_child_does_not_give_it_back(path):
    with hold(path) as lease:
        child = os.fork()
        if child == 0:
            lease.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert lease.is_held()


def test_a_place_that_cannot_be_written_is_one_line():
    with pytest.raises(RecordError, match="/proc/nothing: cannot create this folder"), hold(Path("/proc/nothing/x")):
        pytest.fail("held")
