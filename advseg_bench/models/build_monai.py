"""Networks of MONAI, which is imported only when one is built."""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, SpecError, expected, unknown
from advseg_bench.models.construct import (
    FIXED,
    FROM_DATA,
    as_tuples,
    check_settings,
    construct,
    construct_pretrained,
    demand_encoder,
)
from advseg_bench.registry import catalogue
from advseg_bench.suite.specs import ModelSpec

_FIXED: dict[str, str] = FIXED | {
    "img_size": FROM_DATA,
    **dict.fromkeys(("deep_supervision", "deep_supr_num"), "Only the last output is attacked; remove it."),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": (16, 32, 64, 128), "num_res_units": 2},
    "AttentionUnet": {"channels": (16, 32, 64, 128)},
    "DynUNet": {"filters": (16, 32, 64, 128)},
}
_PATCH = {"UNETR": 16, "SwinUNETR": 32}
"""Networks that need einops -> number of pixels that `img_size` must be a multiple of."""


def build_monai(
    where: str, spec: ModelSpec, channels: int, classes: int, edges: tuple[int, ...]
) -> tuple[nn.Module, int]:
    """Build a network of MONAI for 2-D or 3-D images.

    Args:
        where: Start of every message.
        spec: The specification.
        channels: Number of channels of an image.
        classes: Number of logit channels.
        edges: Edge lengths of an image in pixels.

    Returns:
        The network, and its stride in pixels.

    Raises:
        SpecError: If the encoder or a setting is unknown, or the constructor refuses its arguments.
    """
    name = spec.architecture.removeprefix("monai.")
    if name in _PATCH and find_spec("einops") is None:
        what = f"the package einops, which {spec.architecture} needs"
        raise SpecError(expected(where, what, "not installed", "Run: pip install 'advseg-bench[monai]'"))
    # A narrower import would not be faster: `import monai` loads all of its networks.
    nets = importlib.import_module("monai.networks.nets")
    make = getattr(nets, name)
    known = inspect.signature(make).parameters.keys()
    check_settings(where, spec, known, _FIXED)
    arguments = _complete(name, as_tuples(spec.settings))
    if name == "FlexibleUNet":
        backbones = importlib.import_module("monai.networks.nets.flexible_unet").FLEXUNET_BACKBONE.register_dict
        if (encoder := demand_encoder(where, spec)) not in backbones:
            raise SpecError(unknown(where, "encoder", encoder, backbones))
        arguments |= {"backbone": encoder, "pretrained": False}
        if spec.encoder_weights not in (None, "imagenet"):
            raise SpecError(unknown(where, f"encoder_weights of {encoder}", str(spec.encoder_weights), ["imagenet"]))
    elif spec.encoder is not None:
        raise SpecError(expected(where, f"no `encoder` for {spec.architecture}", spec.encoder, "Remove it."))
    elif spec.encoder_weights is not None:
        what = f"no `encoder_weights` for {spec.architecture}, which has no pretrained encoder"
        raise SpecError(expected(where, what, spec.encoder_weights, "Remove it."))
    if "img_size" in known:  # SwinUNETR has it up to MONAI 1.4
        arguments["img_size"] = tuple(math.ceil(edge / _PATCH[name]) * _PATCH[name] for edge in edges)
    arguments |= {"spatial_dims": len(edges), "in_channels": channels, "out_channels": classes}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*img_size", FutureWarning
        )  # MONAI 1.4 requires the argument and warns about it
        if spec.encoder_weights is None:
            net = construct(where, spec, make, arguments)
        else:
            net = construct_pretrained(where, spec, make, arguments, "pretrained", True)
    return net, finish(name, net, len(edges))


def finish(name: str, net: nn.Module, axes: int) -> int:
    """Make a network of MONAI return one tensor of logits.

    Args:
        name: Name of its class.
        net: The network; hooks are added.
        axes: Space axes of an image.

    Returns:
        Its stride in pixels, 1 if it is unknown.
    """
    if name == "BasicUNetPlusPlus":
        net.register_forward_hook(_take_last)
    if name == "UNETR":
        net.register_forward_pre_hook(_check_edges)
    return _find_stride(name, net, axes) if f"monai.{name}" in catalogue.ARCHITECTURES else 1


def _complete(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Add defaults for required arguments of a constructor of MONAI."""
    arguments = _DEFAULTS.get(name, {}) | settings
    if isinstance(arguments.get("channels"), tuple):
        arguments.setdefault("strides", (2,) * (len(arguments["channels"]) - 1))
    if name == "DynUNet" and isinstance(arguments["filters"], tuple):
        arguments.setdefault("strides", (1, *(2,) * (len(arguments["filters"]) - 1)))
        if isinstance(arguments["strides"], tuple):
            arguments.setdefault("kernel_size", (3,) * len(arguments["strides"]))
            arguments.setdefault("upsample_kernel_size", arguments["strides"][1:])
    return arguments


def _take_last(net: nn.Module, args: tuple[Tensor, ...], outputs: list[Tensor]) -> Tensor:
    """Forward hook: return the last output of a list; the others are for deep supervision only."""
    return outputs[-1]


def _check_edges(net: Any, args: tuple[Tensor, ...]) -> None:
    """Forward pre-hook of UNETR, which has one vector per patch and so accepts images of one size only."""
    wanted = tuple(n * patch for n, patch in zip(net.feat_size, net.patch_size, strict=True))
    if (given := tuple(args[0].shape[2:])) != wanted:
        remedy = "Build the network for this size, or crop the images."
        raise IncompatibleError(expected("monai.UNETR", f"padded images of {wanted} pixels", given, remedy))


def _find_stride(name: str, net: Any, axes: int) -> int:
    """Return the total downsampling factor of a MONAI network, from its structure."""
    match name:
        case "BasicUNet" | "BasicUNetPlusPlus":
            return 2**4
        case "SegResNet":
            return int(2 ** (len(net.blocks_down) - 1))
        case "FlexibleUNet":
            return int(2 ** len(net.decoder.blocks))
        case "UNETR":
            return math.lcm(*net.patch_size)
        case "SwinUNETR":
            return int(net.patch_size**5)
    used = net.strides if name == "DynUNet" else net.strides[: len(net.channels) - 1]
    steps = ((s,) * axes if isinstance(s, int) else s for s in used)
    return math.lcm(*(math.prod(axis) for axis in zip(*steps, strict=True)))
