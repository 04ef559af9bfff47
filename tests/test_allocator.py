import os
import subprocess
import sys

import pytest

from advseg_bench.allocator import SETTINGS

ROUND = """
import sys
import numpy as np
from advseg_bench.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) // 1024

print(keep_freed_memory() if sys.argv[1] == "keep" else None)
before = resident()
block = np.ones(200 << 20, np.uint8)
held = resident() - before
del block
print(held, resident() - before)
"""


def free_a_block(how: str, **variables: str) -> tuple[str, int, int]:
    """What `keep_freed_memory` says, and the MB that are resident with a block of 200 MB and without it again."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", ROUND, how]
    told = subprocess.run(command, env=clean | variables, check=True, capture_output=True, text=True).stdout.split()
    return told[0], int(told[1]), int(told[2])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is glibc, on Linux, that gives memory back")
def test_freed_memory_stays_unless_the_user_has_decided() -> None:
    said, held, after = free_a_block("keep")
    if said == "False":
        pytest.skip("this C library is not glibc")
    assert (said, held > 180, after > 180) == ("True", True, True)
    assert free_a_block("leave")[2] < 20
    for name, value in {"MALLOC_TRIM_THRESHOLD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.check=0"}.items():
        said, _, after = free_a_block("keep", **{name: value})
        assert (said, after < 20) == ("False", True)
