"""Networks that are defined beside their weights: by a MONAI bundle, or by `save_pretrained` of an SMP network."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError
from torch import nn

from advseg_bench.errors import IncompatibleError, SpecError, expected, one_line, unknown
from advseg_bench.models.build_monai import finish
from advseg_bench.models.build_smp import build_smp
from advseg_bench.models.checkpoints.bundles import read_network
from advseg_bench.models.checkpoints.places import BUNDLE_CONFIGS, find_local
from advseg_bench.models.construct import FIXED, as_tuples, construct
from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import ModelSpec


def build_defined(
    where: str, spec: ModelSpec, channels: int, classes: int, edges: tuple[int, ...]
) -> tuple[nn.Module, int]:
    """Build the network that the folder of a model's weights defines.

    Args:
        where: Put before every message.
        spec: What to build; `weights` is a folder, or a repository of the Hugging Face Hub.
        channels: Channels of an image.
        classes: Logit channels.
        edges: Edge lengths of an image in pixels.

    Returns:
        The network with random weights, and its stride in pixels.

    Raises:
        SpecError: If the folder defines no network, one that would have to be run to be read, or the constructor
            refuses its arguments.
        IncompatibleError: If the network is for images of other channels or axes, or has other classes.
    """
    assert spec.weights is not None
    if spec.encoder is not None or spec.settings:
        found = {"encoder": spec.encoder, "settings": spec.settings}
        what = "no `encoder` and `settings`, which the folder defines"
        raise SpecError(expected(where, what, found, "Remove them."))
    folder = find_local(spec.weights)
    if not folder.is_dir():
        what = f"the folder that defines the network of {spec.architecture}"
        raise SpecError(
            expected(where, f"{what} as `weights`", str(spec.weights), "Name the folder, not a file in it.")
        )
    build = _build_bundle if spec.architecture == "monai.bundle" else _build_saved
    return build(where, spec, folder, channels, classes, edges)


def _build_bundle(
    where: str, spec: ModelSpec, folder: Path, channels: int, classes: int, edges: tuple[int, ...]
) -> tuple[nn.Module, int]:
    """Build the network of a MONAI bundle."""
    file = next((folder / name for name in BUNDLE_CONFIGS if (folder / name).is_file()), None)
    if file is None:
        remedy = "Set `weights` to the folder of a MONAI bundle."
        raise SpecError(expected(where, f"a file {BUNDLE_CONFIGS[0]} in {folder}", "none", remedy))
    name, arguments = read_network(file)
    nets = importlib.import_module("monai.networks.nets")
    make = getattr(nets, name, None)
    if not (isinstance(make, type) and issubclass(make, nn.Module)):
        raise SpecError(unknown(file, "network of MONAI", name, _list_nets(nets)))
    _check_number(where, file, "in_channels", arguments, channels)
    _check_number(where, file, "out_channels", arguments, classes)
    _check_number(where, file, "spatial_dims", arguments, len(edges))
    if "img_size" not in inspect.signature(make).parameters:
        arguments.pop("img_size", None)  # networks of MONAI had it until 1.4
    if "pretrained" in arguments:
        arguments["pretrained"] = False  # its weights come from the bundle
    net = construct(where, spec, make, arguments)
    return net, finish(make.__name__, net, len(edges))


def _list_nets(nets: ModuleType) -> list[str]:
    """Names of MONAI's networks, without their other spellings."""
    return [name for name, make in vars(nets).items() if isinstance(make, type) and make.__name__ == name]


def _build_saved(
    where: str, spec: ModelSpec, folder: Path, channels: int, classes: int, edges: tuple[int, ...]
) -> tuple[nn.Module, int]:
    """Build the network of a folder of `save_pretrained`; its activation is left out, so that it yields logits."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Set `weights` to a folder that `save_pretrained` of segmentation-models-pytorch wrote."
        raise SpecError(expected(where, f"a file {file}", "none", remedy)) from None
    except (OSError, ValueError) as error:
        raise SpecError(expected(file, "JSON", one_line(error), "Save the network again.")) from None
    name = config.get("_model_class") if isinstance(config, Mapping) else None
    if name not in catalogue.SMP_ARCHITECTURES:
        raise SpecError(unknown(file, "_model_class", str(name), catalogue.SMP_ARCHITECTURES))
    _check_number(where, file, "in_channels", config, channels)
    _check_number(where, file, "classes", config, classes)
    left_out = {*FIXED, "encoder_name", "_model_class"}
    settings = {key: value for key, value in config.items() if key not in left_out and value is not None}
    try:
        inner = ModelSpec(
            name=spec.name, architecture=f"smp.{name}", encoder=config.get("encoder_name"), settings=settings
        )
    except ValidationError as error:
        raise SpecError(expected(file, "arguments of the network", one_line(error, 160))) from None
    return build_smp(where, inner, channels, classes, edges)


def _check_number(where: str, file: Path, key: str, config: Mapping[str, Any], wanted: int) -> None:
    """Refuse a network whose definition has another number than the data."""
    names = {
        "in_channels": ("channels of an image", "Set `channels` in [data]."),
        "out_channels": ("classes", "Use data with the classes that it was trained for."),
        "classes": ("classes", "Use data with the classes that it was trained for."),
        "spatial_dims": ("axes of an image", "Set `size` in [data]: one number for 2-D images, three for 3-D ones."),
    }
    value = as_tuples(config).get(key)
    if isinstance(value, int) and value != wanted:
        what, remedy = names[key]
        raise IncompatibleError(f"{where}: expected {value} {what} ({key} in {file}), got {wanted}. {remedy}")
