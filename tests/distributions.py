"""Makes installed distributions for tests: modules and *.dist-info folders on the path, read by the real machinery."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

Install = Callable[..., Path]


def write_distribution(
    folder: Path, name: str, points: Mapping[str, Mapping[str, str]], files: Mapping[str, str] | None = None
) -> Path:
    """Write a distribution of version 1.0.

    Args:
        folder: What is put on the path.
        name: Of the distribution.
        points: Group, after "advseg_bench." -> entry name -> value.
        files: Path -> content, of modules and data.
    """
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    sections = ("\n".join([f"[advseg_bench.{g}]", *(f"{k} = {v}" for k, v in e.items())]) for g, e in points.items())
    (info / "entry_points.txt").write_text("\n\n".join(sections) + "\n")
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    top = {path.split("/")[0].removesuffix(".py") for path in files or {}}
    (info / "top_level.txt").write_text("\n".join(sorted(top)))
    return folder


@contextmanager
def installing(tmp_path: Path) -> Iterator[Install]:
    """Provide a function that installs a distribution; its modules are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:

        def install(name: str, points: Mapping[str, Mapping[str, str]], files: Mapping[str, str] | None = None) -> Path:
            folder = write_distribution(tmp_path / f"site-{name}", name, points, files)
            patch.syspath_prepend(folder)
            return folder

        yield install
    for module in set(sys.modules) - before:
        origin = getattr(sys.modules[module], "__file__", None)
        if origin and Path(origin).is_relative_to(tmp_path):
            del sys.modules[module]
