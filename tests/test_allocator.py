"""Memory that is freed stays with the process or returns to the system, and garbage is looked for or not."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import pytest

from advseg_bench.instruments.allocator import SETTINGS, without_collector

ROUND = """
import sys
import numpy as np
from advseg_bench.instruments import allocator

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) // 1024

exec(sys.argv[1])
print(said)
before = resident()
for _ in range(2):
    block = np.ones(int(sys.argv[2]) << 20, np.uint8)
    held = resident() - before
    del block
print(held, resident() - before)
"""


START_WORKER = """
from advseg_bench.running.starting import Start
from advseg_bench.running.work import Context
from advseg_bench.suite.suite import Suite

said = bool(Start(Context(Suite.load("smoke"), "cpu"))(print))
"""


def free_a_block(first: str, megabytes: int, **variables: str) -> tuple[str, int, int]:
    """What some code sets `said` to, and the MB that are resident after it with a block and without it again."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", ROUND, first, str(megabytes)]
    told = subprocess.run(command, env=clean | variables, check=True, capture_output=True, text=True).stdout.split()
    if told[0] == "False" and not variables:
        pytest.skip("this C library is not glibc")
    return told[0], int(told[1]), int(told[2])


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is glibc, on Linux, that is told")


@on_linux
def test_freed_memory_stays_unless_the_user_has_decided() -> None:
    said, held, after = free_a_block("said = allocator.keep_freed_memory()", 200)
    assert (said, held > 180, after > 180) == ("True", True, True)
    assert free_a_block("said = None", 200)[2] < 20
    for name, value in {"MALLOC_TRIM_THRESHOLD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.check=0"}.items():
        said, _, after = free_a_block("said = allocator.keep_freed_memory()", 200, **{name: value})
        assert (said, after < 20) == ("False", True)


@on_linux
def test_freed_memory_is_returned_where_glibc_would_keep_it() -> None:
    said, held, after = free_a_block("said = allocator.return_freed_memory()", 10)
    assert (said, held > 8, after < 2) == ("True", True, True)
    assert free_a_block("said = None", 10)[2] > 8


@pytest.mark.slow
@on_linux
def test_freed_memory_stays_where_a_run_works() -> None:
    assert free_a_block(START_WORKER, 200)[2] > 180


class Knot:
    """Refers to itself, so that only the search for cycles frees it."""

    def __init__(self) -> None:
        self.me = self


def is_garbage_found() -> bool:
    """Whether a knot goes away while many other objects are made."""
    knot = weakref.ref(Knot())
    kept = [[i] for i in range(200_000)]
    return knot() is None or not kept


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def before(request):
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()
    gc.collect()


def test_no_garbage_is_looked_for_inside_and_as_before_afterwards(before):
    assert is_garbage_found() == before
    with without_collector():
        assert not is_garbage_found()
        with without_collector():
            assert not is_garbage_found()
        assert not is_garbage_found()
    assert is_garbage_found() == before


def test_an_error_inside_leaves_the_search_as_before(before):
    with pytest.raises(KeyError), without_collector():
        raise KeyError
    assert is_garbage_found() == before


@on_linux
def test_large_blocks_of_volumes_return_to_the_system() -> None:
    keep = "said = allocator.keep_freed_memory(volumes=True)"
    said, held, after = free_a_block(keep, 200)
    assert (said, held > 180, after < 20) == ("True", True, True)
    assert free_a_block(keep, 24)[2] > 15
