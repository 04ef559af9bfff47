"""ART, imported without the traces its import leaves: no folder at home, no new set-up of logging."""

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
    """Import ART with its two side effects contained; one that is imported already is taken as it is.

    `art.config` makes `~/.art`, a file and a folder in it: where there is none yet, the module is run with another
    home. `art` replaces the configuration of logging, which closes the handlers of everybody else: here it keeps
    silent, and its logger gets the handler that does nothing, as libraries' loggers should have.
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
    """Run ART's module of configuration with a home that is thrown away; its data folder is made when it is used."""
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
