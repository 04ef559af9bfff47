import os
import subprocess
import sys

import pytest

from advseg_bench.instruments.allocator import SETTINGS

ROUND = """
import sys
import numpy as np
from advseg_bench.instruments import allocator

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) // 1024

print(getattr(allocator, sys.argv[1])() if sys.argv[1] else None)
before = resident()
for _ in range(2):
    block = np.ones(int(sys.argv[2]) << 20, np.uint8)
    held = resident() - before
    del block
print(held, resident() - before)
"""


def free_a_block(how: str, megabytes: int, **variables: str) -> tuple[str, int, int]:
    """What a function of the module says, and the MB that are resident with a block and without it again."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", ROUND, how, str(megabytes)]
    told = subprocess.run(command, env=clean | variables, check=True, capture_output=True, text=True).stdout.split()
    if told[0] == "False" and not variables:
        pytest.skip("this C library is not glibc")
    return told[0], int(told[1]), int(told[2])


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is glibc, on Linux, that is told")


def test_freed_memory_stays_unless_the_user_has_decided() -> None:
    said, held, after = free_a_block("keep_freed_memory", 200)
    assert (said, held > 180, after > 180) == ("True", True, True)
    assert free_a_block("", 200)[2] < 20
    for name, value in {"MALLOC_TRIM_THRESHOLD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.check=0"}.items():
        said, _, after = free_a_block("keep_freed_memory", 200, **{name: value})
        assert (said, after < 20) == ("False", True)


def test_freed_memory_is_returned_where_glibc_would_keep_it() -> None:
    said, held, after = free_a_block("return_freed_memory", 10)
    assert (said, held > 8, after < 2) == ("True", True, True)
    assert free_a_block("", 10)[2] > 8
