"""Building a network from its specification: constructed, wrapped, and checked on random images."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from advseg_bench.checks.logits import check_output, probe
from advseg_bench.checks.model import watch
from advseg_bench.checks.outputs import Outputs
from advseg_bench.checks.sample import choose_sample
from advseg_bench.errors import IncompatibleError, PluginError, SpecError, expected
from advseg_bench.models.build_defined import build_defined
from advseg_bench.models.build_monai import build_monai
from advseg_bench.models.build_smp import build_smp
from advseg_bench.models.build_torchscript import load_torchscript
from advseg_bench.models.construct import FROM_DATA, check_settings, construct
from advseg_bench.models.inference import Windows
from advseg_bench.models.module import SegmentationModule
from advseg_bench.registry import catalogue, plugins
from advseg_bench.suite.specs import Inference, ModelSpec
from advseg_bench.types import Task

_DOWNLOADS = ("weights", "weights_backbone")
"""Arguments of torchvision that name weights to download."""


def build_model(
    spec: ModelSpec,
    *,
    channels: int,
    task: Task,
    size: int | Sequence[int],
    seed: int = 0,
    check_function: bool = True,
    inference: Inference | None = None,
) -> SegmentationModule:
    """Build a randomly initialised network on the CPU and check that it yields logits for the task.

    The libraries take initial weights from PyTorch's global CPU generator and accept no other. It is therefore seeded
    during the construction and restored afterwards: the same seed gives the same weights, and the caller's random
    numbers do not change. (This does not cover user networks that use NumPy or `random`.) Only the library that
    contains the network is imported. Weights named in the specification are not loaded; see `load_weights`. The
    exception is TorchScript, whose file holds both.

    The check runs the network in eval mode on two random images; it changes neither batch norm buffers nor training
    flags nor random state. For volumes the images are crops, if the network runs on them, and one whole volume follows.
    A network whose logits depend on more than the image is refused, unless `spec.stochastic`.

    Args:
        spec: Architecture, encoder, settings, normalisation and stride. Without `spec.stride` the stride follows from
            the structure of the network; it is 1 for user networks.
        channels: Number of channels of an image.
        task: The network gets one logit channel for each of its classes.
        size: Edge length in pixels of the square images of the check, or their two or three edges. With three, the
            network is for 3-D images, which MONAI has and segmentation-models-pytorch has not.
        seed: Seed of the initial weights.
        inference: Sliding windows through which the network sees images; it is then built for images of their size.
        check_function: Whether to check that logits depend on the image alone; False if that was checked before.

    Returns:
        The network, images (N, C, *S) in [0, 1] -> logits (N, K, *S), in the mode that its constructor sets.

    Cost:
        Three forwards of two images; two without `check_function`. One more of one image for volumes.

    Raises:
        SpecError: If the encoder or a setting is unknown, or the constructor refuses its arguments.
        PluginError: If a user network cannot be imported or is not a `torch.nn.Module`.
        IncompatibleError: If the network fails on such images, has a stride of more than twice an edge of a volume, or
            returns anything but logits for the task, or logits that depend on more than the image.

    Example:
        >>> from advseg_bench.models import build_model
        >>> from advseg_bench.suite.specs import ModelSpec
        >>> from advseg_bench.types import Task
        >>> spec = ModelSpec(name="tiny", architecture="torch.nn:Conv2d", settings={"kernel_size": 3, "padding": 1})
        >>> model = build_model(spec, channels=1, task=Task("multilabel", ("liver", "spleen")), size=16)
        >>> tuple(model.net.weight.shape), model.stride
        ((2, 1, 3, 3), 1)
    """
    where = f"model {spec.name!r}"
    edges = (size, size) if isinstance(size, int) else tuple(size)
    windows = None if inference is None else Windows(inference.edges, inference.overlap, inference.mode)
    seen = edges if windows is None else windows.find_edges(len(edges))
    with _seeded(seed):
        if spec.architecture == catalogue.TORCHSCRIPT:
            net, stride = load_torchscript(where, spec), 1
        elif spec.architecture in catalogue.DEFINED_ARCHITECTURES:
            net, stride = build_defined(where, spec, channels, len(task.classes), seen)
        elif spec.architecture in catalogue.ARCHITECTURES:
            build = {"smp": build_smp, "monai": build_monai}[spec.architecture.partition(".")[0]]
            net, stride = build(where, spec, channels, len(task.classes), seen)
        else:
            net, stride = _build_user(where, spec, channels, len(task.classes)), 1
    outputs = Outputs(where, spec.output, spec.resize_logits)
    model = SegmentationModule(
        net, mean=spec.mean, std=spec.std, stride=spec.stride or stride, outputs=outputs, windows=windows
    )
    _check_normalisation(where, spec, channels)
    _check_depth(where, model.stride, seen, "size" if windows is None else "inference.roi")
    x = torch.rand((2, channels, *edges), generator=torch.Generator().manual_seed(seed))
    sample = choose_sample(model, x)
    with _alike(model) if spec.stochastic else nullcontext(), watch(model.net) as notes:
        model.head = probe(where, model, sample, task, model.net, function=check_function and not spec.stochastic)
        if sample is not x:
            check_output(where, model, x[:1], task)
    model.notes = tuple(notes)
    return model


def _check_normalisation(where: str, spec: ModelSpec, channels: int) -> None:
    """Refuse a mean or std for another number of channels."""
    for key, value in (("mean", spec.mean), ("std", spec.std)):
        if isinstance(value, tuple) and len(value) not in (1, channels):
            what = f"one number as `{key}`, or one for each of {channels} channels"
            raise SpecError(expected(where, what, list(value), f"Correct `{key}`."))


def _check_depth(where: str, stride: int, edges: tuple[int, ...], key: str) -> None:
    """Refuse a network whose stride is so large that most of a volume would be padding."""
    if len(edges) == 3 and stride > 2 * min(edges):
        seen = "volumes" if key == "size" else f"windows ({key})"
        what = f"{seen} of {stride // 2} pixels or more along each axis, half its stride"
        remedy = f"Use a network with fewer levels, or a larger `{key}`."
        raise IncompatibleError(expected(where, what, list(edges), remedy))


def set_head_bias(model: SegmentationModule, value: float) -> None:
    """Set the bias of the layer that computes the logits.

    Rare classes are learned faster if the initial output is their low prevalence instead of 0.5.

    Args:
        model: A model of `build_model`, which finds the layer by observing a forward pass.
        value: The bias, in logits.

    Raises:
        IncompatibleError: If no such layer was found or it has no bias.
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
def _alike(model: nn.Module) -> Iterator[None]:
    """Let each forward of a stochastic model use the same random numbers, so that its head is found."""
    with torch.random.fork_rng(devices=()), model.register_forward_pre_hook(lambda *_: _restart()):
        yield


def _restart() -> None:
    torch.manual_seed(0)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator, and restore its state afterwards; other devices are not affected."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield


def _build_user(where: str, spec: ModelSpec, channels: int, classes: int) -> nn.Module:
    """Build a user's network from `package.module:callable`, or a network of a plug-in."""
    if spec.encoder is not None:
        raise SpecError(expected(where, "no `encoder` for a user network", spec.encoder, "Use `settings`."))
    if spec.encoder_weights is not None:
        remedy = "Remove it. The network can load pretrained weights by itself, with a key of `settings`."
        raise SpecError(expected(where, "no `encoder_weights` for a user network", spec.encoder_weights, remedy))
    make = _import_callable(where, spec.architecture)
    parameters = inspect.signature(make).parameters.values()
    shipped = getattr(make, "__module__", "").partition(".")[0] == "torchvision"
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    outputs = next((key for key in ("classes", "out_channels", "num_classes") if key in known), "classes")
    takes_all = anything and not shipped
    sizes = (("in_channels", channels), (outputs, classes))
    arguments: dict[str, Any] = {key: value for key, value in sizes if takes_all or key in known}
    if shipped:  # its constructors download weights by default
        arguments |= {key: None for key in _DOWNLOADS if key in known and key not in spec.settings}
    check_settings(where, spec, {*known, *spec.settings} if anything else known, dict.fromkeys(arguments, FROM_DATA))
    net = construct(where, spec, make, arguments | copy.deepcopy(spec.settings))
    if not isinstance(net, nn.Module):
        found = type(net).__name__
        remedy = "Return the network from it."
        raise PluginError(expected(where, f"{spec.architecture} to return a torch.nn.Module", found, remedy))
    return net


def _import_callable(where: str, name: str) -> Callable[..., Any]:
    """Import the class or function that builds a user's network, from a path or a plug-in."""
    make = plugins.load_object("architecture", name, where)
    if callable(make) and not isinstance(make, nn.Module):
        with suppress(Exception):  # a few built-in callables have no signature; an object's attributes may raise
            inspect.signature(make)
            return make
    what = f"{name} to be a class or function that returns a network"
    raise PluginError(expected(where, what, type(make).__name__, "Correct `architecture`."))
