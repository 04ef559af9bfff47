"""Import ART without side effects: no folder in the home directory, no change of the logging configuration."""

from __future__ import annotations

import importlib.util
import logging
import logging.config
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any


def _import_art() -> Any:
    """Import ART without its two side effects; an ART that is already imported is returned as it is.

    `art.config` creates `~/.art` with a file and a folder. If it does not exist, the module runs with a temporary home
    directory. `art` replaces the logging configuration, which closes all other handlers. Here that call is disabled,
    and the logger of ART gets a `NullHandler`, as is usual for libraries.
    """
    if sys.modules.get("art") is not None:
        return import_module("art")
    spec = importlib.util.find_spec("art")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError('art is not installed. Run: pip install "advseg-bench[art]"', name="art")
    try:
        if not Path("~/.art/config.json").expanduser().exists():
            _load_config(Path(spec.submodule_search_locations[0], "config.py"))
        with _kept_logging():
            art: Any = import_module("art")
    except BaseException:
        sys.modules.pop("art.config", None)
        raise
    logging.getLogger("art").addHandler(logging.NullHandler())
    art.config = sys.modules["art.config"]
    return art


def _load_config(path: Path) -> None:
    """Run ART's configuration module with a temporary home; its data folder is created on first use."""
    spec = importlib.util.spec_from_file_location("art.config", path)
    assert spec is not None
    assert spec.loader is not None
    config: Any = importlib.util.module_from_spec(spec)
    with tempfile.TemporaryDirectory() as folder, _other_home(folder):
        spec.loader.exec_module(config)
    config.ART_DATA_PATH = str(Path("~/.art/data").expanduser())
    sys.modules["art.config"] = config


@contextmanager
def _other_home(folder: str) -> Iterator[None]:
    """Use a folder as the home directory."""
    names = ("HOME", "USERPROFILE")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, folder))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _kept_logging() -> Iterator[None]:
    """Disable changes of the logging configuration."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure


ART: Any = _import_art()
EVASION: Any = import_module("art.attacks.evasion")
EvasionAttack: Any = import_module("art.attacks.attack").EvasionAttack
PyTorchEstimator: Any = import_module("art.estimators.pytorch").PyTorchEstimator
PyTorchClassifier: Any = import_module("art.estimators.classification.pytorch").PyTorchClassifier
PreprocessorPyTorch: Any = import_module("art.defences.preprocessor.preprocessor").PreprocessorPyTorch
