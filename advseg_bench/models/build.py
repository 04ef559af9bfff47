"""From a specification to a network that has been seen to work: built, probed, and wrapped."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.checks.logits import probe
from advseg_bench.errors import IncompatibleError, PluginError, SpecError, UserError, expected, one_line, unknown
from advseg_bench.models.module import SegmentationModule
from advseg_bench.registry import catalogue, plugins
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Task

# What is never a setting, and why.
_FROM_DATA = "It follows from the data; remove it."
_FIXED: dict[str, str] = {
    **dict.fromkeys(("in_channels", "classes", "out_channels", "in_chans"), _FROM_DATA),
    "spatial_dims": _FROM_DATA,
    "encoder_name": "Write the key `encoder` of the model instead.",
    "backbone": "Write the key `encoder` of the model instead.",
    "activation": "Attacks and losses want raw logits; remove it.",
    "aux_params": "A second output is never used; remove it.",
    **dict.fromkeys(
        ("encoder_weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"),
        "Nothing is downloaded; give a file as the key `weights` of the model.",
    ),
}
_MONAI_FIXED: dict[str, str] = _FIXED | {
    "img_size": _FROM_DATA,
    **dict.fromkeys(("deep_supervision", "deep_supr_num"), "Only the last output is attacked; remove it."),
}
_MONAI_DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": (16, 32, 64, 128), "num_res_units": 2},
    "AttentionUnet": {"channels": (16, 32, 64, 128)},
    "DynUNet": {"filters": (16, 32, 64, 128)},
}
_MONAI_PATCH = {"UNETR": 16, "SwinUNETR": 32}  # what `img_size` has to be a multiple of; both need einops


def build_model(
    spec: ModelSpec, *, channels: int, task: Task, size: int | Sequence[int], seed: int = 0
) -> SegmentationModule:
    """Build a randomly initialised network on the CPU and check that it yields logits for the task.

    The libraries draw initial weights from PyTorch's global CPU generator, and cannot be told to use another. So
    its state is put aside, the generator is seeded, and the state is put back: the same seed gives the same
    weights, and the caller's random numbers are what they would have been. (A user network that draws from NumPy
    or `random` is beyond this.) Only the library that holds the network is imported. Weights named in the
    specification are not loaded here; see `advseg_bench.models.weights.load_weights`.

    The check runs the network twice, in eval mode, on two random images; batch norm buffers, training flags and
    random state are left alone.

    Args:
        spec: What to build. The stride is `spec.stride` if given, else what the network's structure says, else 1.
        channels: Channels of an image.
        task: One logit channel is wanted for each of its classes.
        size: Edge length of the square images the check uses, in pixels; or each of their two or three edges. Three
            make a network for 3-D images, which MONAI's are and those of segmentation-models-pytorch are not.
        seed: Of the initial weights.
    Returns: The network, in the mode its constructor left it in. Cost: two forwards of two images.
    Raises:
        SpecError: if the encoder or a setting is unknown, or the constructor refuses its arguments.
        PluginError: if a user network cannot be imported or is no `torch.nn.Module`.
        IncompatibleError: if the network fails on such images, has a stride of more than twice an edge of a volume, or
            returns anything but logits for the task.
    """
    where = f"model {spec.name!r}"
    edges = (size, size) if isinstance(size, int) else tuple(size)
    library, _, name = spec.architecture.partition(".")
    with _seeded(seed):
        if spec.architecture not in catalogue.ARCHITECTURES:
            net, stride = _build_user(where, spec, channels, len(task.classes)), 1
        elif library == "smp":
            if len(edges) != 2:
                remedy = f"{spec.architecture} is for 2-D images; take one of MONAI, such as monai.UNet."
                raise IncompatibleError(expected(where, "2-D images", f"{len(edges)}-D", remedy))
            net, stride = _build_smp(where, name, spec, channels, len(task.classes))
        else:
            assert library == "monai", "ModelSpec accepts no other"
            net, stride = _build_monai(where, name, spec, (channels, len(task.classes)), edges)
    model = SegmentationModule(net, mean=spec.mean, std=spec.std, stride=spec.stride or stride)
    _check_depth(where, model.stride, edges)
    x = torch.rand((2, channels, *edges), generator=torch.Generator().manual_seed(seed))
    model.head = probe(where, model, x, task, model.net)
    return model


def _check_depth(where: str, stride: int, edges: tuple[int, ...]) -> None:
    """Refuse a network that halves its image so often that most of a volume would be padding."""
    if len(edges) == 3 and stride > 2 * min(edges):
        what = f"volumes of {stride // 2} pixels or more along each axis, half its stride"
        remedy = "Take a network with fewer levels, or a larger `size`."
        raise IncompatibleError(expected(where, what, list(edges), remedy))


def set_head_bias(model: SegmentationModule, value: float) -> None:
    """Fill the bias of the layer that yields the logits.

    Rare classes train faster from an output that starts at their small prior than from one half.

    Args:
        model: From `build_model`, which found the layer by watching the network run.
        value: The bias, in logits.
    Raises: IncompatibleError: if no such layer was found or it has no bias.
    """
    bias = None if model.head is None else model.net.get_submodule(model.head).bias
    if not isinstance(bias, Tensor):
        raise IncompatibleError(
            f"head_bias: expected a network whose logits come from a convolution with a bias, got "
            f"{type(model.net).__name__}. Give its last convolution a bias, or train without `head_bias`."
        )
    with torch.no_grad():
        bias.fill_(value)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator, and put its state back afterwards; no other device is touched."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield


def _build_smp(where: str, name: str, spec: ModelSpec, channels: int, classes: int) -> tuple[nn.Module, int]:
    """Build a network of segmentation-models-pytorch; return it with its stride."""
    import segmentation_models_pytorch as smp

    make = getattr(smp, name)
    encoder = _check_smp_encoder(where, spec, smp.encoders.get_encoder_names())
    settings = _as_tuples(spec.settings)
    known = set(inspect.signature(make).parameters) - {"kwargs"}
    if encoder.startswith("tu-"):  # timm knows its own; SMP's own encoders would ignore the rest without a word
        known |= {key for key in settings if not key.startswith(("decoder_", "encoder_"))}
    _check_settings(where, spec, known, _FIXED)
    if name == "DPT" and not {"img_size", "dynamic_img_size"} & settings.keys():
        settings["dynamic_img_size"] = True  # else a vision transformer takes its pretraining's 224 pixels only
    fixed = {"encoder_weights": None, "in_channels": channels, "classes": classes, "activation": None}
    net = _construct(where, spec, make, {"encoder_name": encoder, **fixed, **settings})
    stride = int(net.encoder.output_stride)
    if name == "DPT":  # its decoder goes on to halve the patches: 1/4, 1/8, ... of the image, one level a feature map
        stride = math.lcm(stride, 2 ** (len(net.encoder.output_strides) + 1))
    return net, stride


def _check_smp_encoder(where: str, spec: ModelSpec, names: Collection[str]) -> str:
    """Return the encoder's name if SMP, or timm for "tu-...", has it."""
    encoder = _demand_encoder(where, spec)
    if encoder.startswith("tu-"):
        import timm

        # timm would take a name with a scheme, such as hf-hub:, for an order to download.
        if not timm.is_model(encoder.removeprefix("tu-")):
            raise SpecError(unknown(where, "encoder", encoder, [f"tu-{name}" for name in timm.list_models()]))
    elif encoder not in names and not encoder.startswith("timm-"):
        raise SpecError(unknown(where, "encoder", encoder, [*names, "tu-<any name of timm>"]))
    return encoder


def _demand_encoder(where: str, spec: ModelSpec) -> str:
    """Return the encoder's name; it has no default, so that a record always says what was attacked."""
    if spec.encoder is None:
        raise SpecError(expected(where, f"an `encoder` for {spec.architecture}", None, 'Try encoder = "resnet18".'))
    return spec.encoder


def _build_monai(
    where: str, name: str, spec: ModelSpec, channels: tuple[int, int], edges: tuple[int, ...]
) -> tuple[nn.Module, int]:
    """Build a network of MONAI from (image channels, classes) and the edges of an image; return it with its stride."""
    if name in _MONAI_PATCH and find_spec("einops") is None:
        what = f"{where}: {spec.architecture} needs the package einops, which is not installed."
        raise SpecError(f"{what} Run: pip install 'advseg-bench[monai]'")
    # A narrower import would gain nothing: `import monai` itself loads every network it has.
    nets = importlib.import_module("monai.networks.nets")
    make = getattr(nets, name)
    known = inspect.signature(make).parameters.keys()
    _check_settings(where, spec, known, _MONAI_FIXED)
    arguments = _complete_monai(name, _as_tuples(spec.settings))
    if name == "FlexibleUNet":
        backbones = importlib.import_module("monai.networks.nets.flexible_unet").FLEXUNET_BACKBONE.register_dict
        if (encoder := _demand_encoder(where, spec)) not in backbones:
            raise SpecError(unknown(where, "encoder", encoder, backbones))
        arguments |= {"backbone": encoder, "pretrained": False}
    elif spec.encoder is not None:
        raise SpecError(expected(where, f"no `encoder`, which {spec.architecture} has not", spec.encoder, "Remove it."))
    if "img_size" in known:  # SwinUNETR had it until MONAI 1.4
        arguments["img_size"] = tuple(math.ceil(edge / _MONAI_PATCH[name]) * _MONAI_PATCH[name] for edge in edges)
    arguments |= {"spatial_dims": len(edges), "in_channels": channels[0], "out_channels": channels[1]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*img_size", FutureWarning)  # 1.4 wants it and warns that it got it
        net = _construct(where, spec, make, arguments)
    if name == "BasicUNetPlusPlus":
        net.register_forward_hook(_take_last)
    if name == "UNETR":
        net.register_forward_pre_hook(_check_edges)
    return net, _find_monai_stride(name, net, len(edges))


def _complete_monai(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Add what a constructor of MONAI demands and has no default for."""
    arguments = _MONAI_DEFAULTS.get(name, {}) | settings
    if isinstance(arguments.get("channels"), tuple):
        arguments.setdefault("strides", (2,) * (len(arguments["channels"]) - 1))
    if name == "DynUNet" and isinstance(arguments["filters"], tuple):
        arguments.setdefault("strides", (1, *(2,) * (len(arguments["filters"]) - 1)))
        if isinstance(arguments["strides"], tuple):
            arguments.setdefault("kernel_size", (3,) * len(arguments["strides"]))
            arguments.setdefault("upsample_kernel_size", arguments["strides"][1:])
    return arguments


def _take_last(net: nn.Module, args: tuple[Tensor, ...], outputs: list[Tensor]) -> Tensor:
    """Forward hook: of a list of outputs keep the one that the others only helped to train."""
    return outputs[-1]


def _check_edges(net: Any, args: tuple[Tensor, ...]) -> None:
    """Forward hook of UNETR: it learns a vector for each patch of its image, so it takes images of one size."""
    wanted = tuple(n * patch for n, patch in zip(net.feat_size, net.patch_size, strict=True))
    if (given := tuple(args[0].shape[2:])) != wanted:
        remedy = "Build the network for these, or give it windows of its own size."
        raise IncompatibleError(expected("monai.UNETR", f"padded images of {wanted} pixels", given, remedy))


def _find_monai_stride(name: str, net: Any, axes: int) -> int:
    """Return the factor by which a MONAI network shrinks its image, from its structure."""
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


def _build_user(where: str, spec: ModelSpec, channels: int, classes: int) -> nn.Module:
    """Build a user's network from `package.module:callable`, or one of a plug-in."""
    if spec.encoder is not None:
        raise SpecError(expected(where, "no `encoder` for a network of your own", spec.encoder, "Use `settings`."))
    make = _import_callable(where, spec.architecture)
    parameters = inspect.signature(make).parameters.values()
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    outputs = next((key for key in ("classes", "out_channels", "num_classes") if key in known), "classes")
    arguments = {
        key: value for key, value in (("in_channels", channels), (outputs, classes)) if anything or key in known
    }
    _check_settings(where, spec, {*known, *spec.settings} if anything else known, dict.fromkeys(arguments, _FROM_DATA))
    net = _construct(where, spec, make, arguments | copy.deepcopy(spec.settings))
    if not isinstance(net, nn.Module):
        raise PluginError(expected(where, f"{spec.architecture} to make a torch.nn.Module", type(net).__name__))
    return net


def _import_callable(where: str, name: str) -> Callable[..., Any]:
    """Import the class or function that makes a user's network, from a path or a plug-in."""
    make = plugins.load_object("architecture", name, where)
    if callable(make) and not isinstance(make, nn.Module):
        with suppress(ValueError):  # a few built-in callables have no signature
            inspect.signature(make)
            return make
    kind = type(make).__name__
    raise PluginError(expected(where, f"{name} to be a class or function that makes a network", kind))


def _check_settings(where: str, spec: ModelSpec, known: Collection[str], fixed: Mapping[str, str]) -> None:
    """Refuse settings that are fixed, or that no constructor would read."""
    for key, value in spec.settings.items():
        if key in fixed:
            raise SpecError(expected(where, f"no setting {key!r}", value, fixed[key]))
        if key not in known:
            raise SpecError(unknown(where, f"setting of {spec.architecture}", key, set(known) - fixed.keys()))


def _construct(where: str, spec: ModelSpec, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a constructor; whatever it objects to becomes one line."""
    try:
        return make(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise SpecError(
            f"{where}: {spec.architecture} could not be built: {one_line(error)}. Check `encoder` and `settings`."
        ) from error


def _as_tuples(value: Any) -> Any:
    """Copy settings from TOML, with tuples for its lists, as the libraries want them."""
    if isinstance(value, Mapping):
        return {key: _as_tuples(entry) for key, entry in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value
