"""Run `docs/gallery.md` in a folder of its own and write its figures to `docs/gallery/`.

Usage: `python tools/site/gallery.py`, in an environment where the package is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

import matplotlib

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gallery.md"
FIGURES = ROOT / "docs" / "gallery"
FOLDERS = ("smoke/report/figures", ".")
"""Where the page's code leaves figures."""


def main() -> None:
    """Run each block in order, then copy the figures that the page shows."""
    text = PAGE.read_text()
    matplotlib.rcParams["svg.hashsalt"] = "gallery"  # with a fixed date, equal figures have equal bytes
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        namespace = {"__name__": "__main__"}
        for language, source in re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if language == "bash":
                command = source.replace("advseg-bench", f"{Path(sys.executable).parent}/advseg-bench", 1)
                subprocess.run(command, shell=True, check=True)
            else:
                exec(compile(source, str(PAGE), "exec"), namespace)
        for name in re.findall(r"\(gallery/([\w.]+)\)", text):
            found = next(path for place in FOLDERS if (path := Path(place) / name).exists())
            shutil.copyfile(found, FIGURES / name)


if __name__ == "__main__":
    main()
