"""Real packages write checkpoints, build networks, and a suite attacks them; run by `tox -e network`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
PACKAGES = {
    "pytorch_lightning": "pytorch-lightning",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "regex": "regex",
}
SITE = "ADVSEG_BENCH_THIRD_PARTY"
"""A folder where these packages are installed already."""

MODELS: dict[str, dict[str, Any]] = {
    "lightning": {"architecture": "third_party:basic", "weights": "best.ckpt", "stride": 16},
    "nnunet": {"architecture": "third_party:nnunet", "weights": "checkpoint_final.pth", "stride": 4},
    "nnunet-list": {
        "architecture": "third_party:nnunet",
        "settings": {"deep_supervision": True},
        "weights": "checkpoint_final.pth",
        "stride": 4,
    },
    "segformer": {
        "architecture": "third_party:segformer",
        "weights": ".",
        "stride": 32,
        "output": "logits",
        "resize_logits": True,
    },
    "deeplab": {"architecture": "third_party:deeplab", "weights": "model.pth.tar", "output": "out"},
    "bundle": {"architecture": "monai.bundle", "weights": "."},
}
RECORDS = {
    "lightning": {"key": "state_dict.model", "left_out": ["loss.pos_weight"]},
    "nnunet": {"key": "network_weights", "left_out": []},
    "nnunet-list": {"key": "network_weights", "left_out": []},
    "segformer": {"key": ".", "left_out": []},
    "deeplab": {"key": "model", "left_out": "aux_classifier"},
    "bundle": {"key": "model", "left_out": []},
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder with the packages; None if they are installed."""
    if given := os.environ.get(SITE):
        return Path(given)
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if not missing:
        return None
    if find_spec("pip") is None:
        pytest.skip(f"this environment has no pip to install {', '.join(missing)} with")
    folder = tmp_path_factory.mktemp("third_party")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-input", "--target", str(folder), *missing]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Could not find a version that satisfies" in done.stderr:
        pytest.skip(f"pip reaches no registry that has {', '.join(missing)}")
    assert done.returncode == 0, done.stderr
    return folder


def call(site: Path | None, folder: Path, *command: str) -> str:
    """Run Python with the packages and this folder's modules."""
    path = [str(HERE), *([str(site)] if site else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    environment["ADVSEG_BENCH_CACHE"] = str(folder / "cache")
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_suite(folder: Path, name: str) -> Path:
    """Two pictures and a suite that attacks one model on both."""
    for part in ("images", "masks"):
        (folder / "data" / part).mkdir(parents=True)
    for i in range(2):
        values = np.random.default_rng(i).integers(1, 255, (64, 64, 3), np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 20:40] = 255
        Image.fromarray(values[..., 0]).save(folder / "data" / "images" / f"s{i}.png")
        Image.fromarray(mask).save(folder / "data" / "masks" / f"s{i}.png")
    keys = {"name": name} | MODELS[name]
    lines = [f"{key} = {_write(value)}" for key, value in keys.items()]
    suite = folder / "suite.toml"
    suite.write_text(
        'schema = 1\nname = "third"\n[data]\nname = "folder"\npath = "data"\ntask = "binary"\nclasses = ["disc"]\n'
        "size = 64\nchannels = 3\n[compute]\nbatch = 2\n[[models]]\n"
        + "\n".join(lines)
        + '\n[[attacks]]\nname = "pgd"\nlosses = ["bce"]\neps = ["4/255"]\nsettings = { steps = 2 }\n'
    )
    return suite


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_write(entry)}" for key, entry in value.items()) + " }"
    return json.dumps(value)


@pytest.mark.network
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_a_real_package_is_attacked(site: Path | None, tmp_path: Path, name: str) -> None:
    call(site, tmp_path, str(HERE / "third_party.py"), name.partition("-")[0], str(tmp_path))
    suite = write_suite(tmp_path, name)
    call(site, tmp_path, "-m", "advseg_bench", "run", str(suite), "--out", "run")
    record = json.loads((tmp_path / "run" / "models" / f"{name}.json").read_text())
    left_out = record["weights"]["left_out"]
    wanted = RECORDS[name]
    assert record["weights"]["key"] == wanted["key"]
    if isinstance(wanted["left_out"], str):
        assert left_out
        assert all(wanted["left_out"] in entry for entry in left_out)
    else:
        assert left_out == wanted["left_out"]
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["data"]["splits"]["test"] == 2
