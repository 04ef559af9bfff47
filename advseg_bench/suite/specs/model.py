"""Specification of one model of a suite: its network, weights, normalisation and outputs."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from advseg_bench.registry import catalogue
from advseg_bench.suite.specs.base import Settings, Spec, check_known
from advseg_bench.suite.specs.defence import Defences
from advseg_bench.suite.specs.images import LARGEST
from advseg_bench.suite.specs.limits import LARGEST_INTEGER, LONGEST_TEXT, MOST_DRAWS, FileName, Place


def _per_channel(value: object) -> object:
    """Read one number, or one for each channel of the image."""
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        raise ValueError("expected a number, or a list of one number per channel")
    if not all(abs(v) <= LARGEST_INTEGER if isinstance(v, int) else math.isfinite(v) for v in values):
        raise ValueError("expected finite numbers")
    return tuple(float(v) for v in values) if isinstance(value, (list, tuple)) else value


def _positive(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """Check that a divisor is above 0."""
    if not all(v > 0 for v in (value if isinstance(value, tuple) else (value,))):
        raise ValueError("expected positive numbers")
    return value


def _architecture(name: str) -> str:
    """Check the name of an architecture; a file is none."""
    if name.endswith((".ts", ".pt", ".pth", ".torchscript")):
        keys = f'architecture = "{catalogue.TORCHSCRIPT}", weights = "{name}" and trust = true'
        raise ValueError(f"expected the name of a network, got a file. For TorchScript set {keys}")
    return check_known("architecture", name)


ArchitectureName = Annotated[str, AfterValidator(_architecture)]
PerChannel = Annotated[float | tuple[float, ...], BeforeValidator(_per_channel)]


class ModelSpec(Spec):
    """One model of a suite.

    Attributes:
        name: Name in tables, unique in the suite.
        architecture: "smp.<Class>", "monai.<Class>", name of a plug-in, "package.module:callable" for any network, or
            "torchscript" for a network that is a TorchScript file, named as `weights`.
        encoder: Encoder name of segmentation-models-pytorch (and of MONAI's FlexibleUNet).
        settings: Further constructor arguments of the network.
        weights: Checkpoint, folder with a checkpoint, or `hf:owner/name` of the Hugging Face Hub; the model is then not
            trained. Files are read weights-only, whatever their names.
        weights_key: State dict of the checkpoint to load, such as "ema.state_dict"; required if several fit.
        encoder_weights: Pretrained weights that the encoder starts its training from, such as "imagenet"; fetched by
            the library.
        mean: Value subtracted from the image inside the model: one number, or one per channel.
        std: Value that the image is divided by inside the model, after subtracting `mean`: one number, or one
            per channel.
        stride: Images are padded to a multiple of it inside the model; by default derived from a known network.
        output: Key, attribute or position of the logits in what the network returns. By default one tensor; "out",
            "logits" or "pred"; or the first entry of a list.
        resize_logits: Whether logits whose edges are an integer fraction of the image's are enlarged by linear
            interpolation inside the model; otherwise they are refused.
        trust: Open a TorchScript file. It holds a program, so set this only for a file of known origin.
        stochastic: Whether the model is random in eval mode, such as by Monte Carlo dropout. Every cell, the clean one
            too, then has several repeats, attacks get the model itself, and rows are not promised to be bit-identical.
        repeats: Number of repeats of each cell of a stochastic model; an attack with more `draws` has these.
        defence: Defence, or list of them, around the network; the first one gets the image. Attacks and scores see the
            whole. A random one makes the model stochastic.
    """

    name: FileName = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    architecture: ArchitectureName
    encoder: str | None = None
    settings: Settings = Field(default_factory=dict)
    weights: Place | None = None
    weights_key: str | None = Field(default=None, min_length=1, max_length=LONGEST_TEXT)
    encoder_weights: str | None = Field(default=None, min_length=1)
    mean: PerChannel = 0.0
    std: Annotated[PerChannel, AfterValidator(_positive)] = 1.0
    stride: int | None = Field(default=None, ge=1, le=LARGEST)
    output: str | None = None
    resize_logits: bool = True
    trust: bool = False
    stochastic: bool = False
    repeats: int = Field(default=5, ge=2, le=MOST_DRAWS)
    defence: Defences = ()

    @property
    def random(self) -> bool:
        """Whether logits depend on random numbers: of the network, as declared, or of a defence."""
        return self.stochastic or any(each.is_random for each in self.defence)

    @model_validator(mode="after")
    def _check_repeats(self) -> ModelSpec:
        if "repeats" in self.model_fields_set and not self.random:
            raise ValueError("repeats: is for models with stochastic = true or a random defence. Remove the key")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> ModelSpec:
        """Keys about weights agree with each other."""
        if self.weights_key is not None and self.weights is None:
            raise ValueError("weights_key: selects a part of `weights`, of which there are none. Give `weights` too")
        if self.encoder_weights is not None and self.weights is not None:
            raise ValueError("encoder_weights: `weights` replace them all. Remove one of both keys")
        if self.architecture in catalogue.DEFINED_ARCHITECTURES and self.weights is None:
            raise ValueError(f"weights: {self.architecture} reads the network from there. Give its path")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys of `LATER` at their default, so that they do not enter ids and cache keys there."""
        written: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        unused = {key for key in LATER if getattr(self, key) == fields[key].default}
        return {key: value for key, value in written.items() if key not in unused}


LATER = ("weights_key", "encoder_weights", "output", "resize_logits", "trust", "stochastic", "repeats", "defence")
"""Keys of a model that are in a record only where they are used."""
