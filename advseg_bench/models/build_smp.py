"""Networks of segmentation-models-pytorch, which is imported only when one is built."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from advseg_bench.errors import IncompatibleError, SpecError, expected, unknown
from advseg_bench.models.construct import (
    FIXED,
    as_tuples,
    check_settings,
    construct,
    construct_pretrained,
    demand_encoder,
)
from advseg_bench.suite.specs import ModelSpec


def build_smp(
    where: str, spec: ModelSpec, channels: int, classes: int, edges: tuple[int, ...]
) -> tuple[nn.Module, int]:
    """Build a network of segmentation-models-pytorch.

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
        IncompatibleError: If images are not 2-D.
    """
    import segmentation_models_pytorch as smp

    if len(edges) != 2:
        remedy = f"{spec.architecture} is for 2-D images: use a network of MONAI, such as monai.UNet."
        raise IncompatibleError(expected(where, "2-D images", f"{len(edges)}-D", remedy))
    name = spec.architecture.removeprefix("smp.")
    make = getattr(smp, name)
    encoder = _check_encoder(where, spec, smp.encoders.get_encoder_names())
    settings = as_tuples(spec.settings)
    known = set(inspect.signature(make).parameters) - {"kwargs"}
    if encoder.startswith("tu-"):  # timm checks its settings; SMP's encoders ignore unknown ones silently
        known |= {key for key in settings if not key.startswith(("decoder_", "encoder_"))}
    check_settings(where, spec, known, FIXED)
    if name == "DPT" and not {"img_size", "dynamic_img_size"} & settings.keys():
        settings["dynamic_img_size"] = True  # otherwise a vision transformer accepts only 224 pixels, as in pretraining
    fixed = {"encoder_weights": None, "in_channels": channels, "classes": classes, "activation": None}
    arguments = {"encoder_name": encoder, **fixed, **settings}
    if spec.encoder_weights is None:
        net = construct(where, spec, make, arguments)
    else:
        wanted = _check_pretrained(where, encoder, spec.encoder_weights, smp.encoders.encoders)
        net = construct_pretrained(where, spec, make, arguments, "encoder_weights", wanted)
    stride = int(net.encoder.output_stride)
    if name == "DPT":  # its decoder downsamples the patches further, to 1/4, 1/8, ... of the image
        stride = math.lcm(stride, 2 ** (len(net.encoder.output_strides) + 1))
    return net, stride


def _check_encoder(where: str, spec: ModelSpec, names: Collection[str]) -> str:
    """Return the encoder's name if SMP, or timm for "tu-...", has such an encoder."""
    encoder = demand_encoder(where, spec)
    if encoder.startswith("tu-"):
        import timm

        # timm would download a model for a name with a scheme, such as hf-hub:.
        if not timm.is_model(encoder.removeprefix("tu-")):
            raise SpecError(unknown(where, "encoder", encoder, [f"tu-{name}" for name in timm.list_models()]))
    elif encoder not in names and not encoder.startswith("timm-"):
        raise SpecError(unknown(where, "encoder", encoder, [*names, "tu-<any name of timm>"]))
    return encoder


def _check_pretrained(where: str, encoder: str, weights: str, encoders: Mapping[str, Mapping[str, Any]]) -> str | bool:
    """Return what SMP calls some pretrained weights, if the encoder has them; one of timm has those of its name."""
    universal = encoder.startswith("tu-")
    known = ["imagenet"] if universal else encoders.get(encoder, {}).get("pretrained_settings", {})
    if weights not in known:
        raise SpecError(unknown(where, f"encoder_weights of {encoder}", weights, known))
    return universal or weights
