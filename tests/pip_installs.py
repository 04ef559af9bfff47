"""Installs packages into folders of their own, with pip; for tests that are marked `network`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def pip_install(target: Path, *arguments: str | Path, dependencies: bool = False) -> None:
    """Install what pip's arguments name, by default without what it depends on; skip the test where that cannot be."""
    if find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    command = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += [] if dependencies else ["--no-deps"]
    command += ["--retries", "1", "--target", target, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Could not find a version that satisfies" in done.stderr:
        pytest.skip("pip reaches no registry that has the packages")
    assert done.returncode == 0, done.stdout + done.stderr
