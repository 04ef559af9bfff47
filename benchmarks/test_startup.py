"""Cold start of the commands that must not import torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.benchmark(group="cold start")
@pytest.mark.parametrize("arguments", [["--help"], ["plan", "quick"], ["list", "attacks"]], ids=" ".join)
def test_startup(benchmark, arguments):
    command = [sys.executable, "-m", "advseg_bench", *arguments]
    benchmark.pedantic(subprocess.run, args=(command,), kwargs={"check": True, "capture_output": True}, rounds=5)
