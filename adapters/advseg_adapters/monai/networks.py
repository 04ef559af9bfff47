"""A grid model, or any model, as a network of MONAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from pydantic import ValidationError
from torch import Tensor, nn

from advseg_bench.checks.outputs import Outputs
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.models.build import build_model
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.weights import load_weights
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Task


class MetaNetwork(nn.Module):
    """Any model, images -> logits, in the form MONAI wants: a `MetaTensor` in, a `MetaTensor` out.

    The model itself computes on a plain tensor, so that it need not know the class and no operation pays for it. The
    gradient passes through. With `set_track_meta(False)` the output is a plain tensor, as everywhere in MONAI.

    Args:
        model: Images (N, C, *S) -> logits (N, K, *S), or outputs that contain them (`checks.outputs.as_segmenter`).
        spatial_dims: Number of space axes; None lets any pass.
        in_channels: Channels of an image; None lets any pass.
        out_channels: Channels of the logits; None lets any pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        spatial_dims: int | None = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.outputs = Outputs("network")
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K, *S) with the metadata of the images. Cost: one forward.

        Raises:
            IncompatibleError: If images or logits have another number of axes or channels than was said.
        """
        if self.spatial_dims not in (None, x.dim() - 2):
            what = f"{self.spatial_dims}-D images, shape (N, C, *S)"
            raise IncompatibleError(expected("network", what, tuple(x.shape), "Build it with other `spatial_dims`."))
        if self.in_channels not in (None, x.shape[1]):
            remedy = "Build it with other `in_channels`."
            raise IncompatibleError(expected("network", f"images of {self.in_channels} channels", x.shape[1], remedy))
        plain = to_plain(x)
        # A copy, since the first layer may write to it; that of a `SegmentationModule` gets one anyway.
        own = plain if isinstance(self.model, SegmentationModule) else plain.clone()
        logits = self.outputs.read(self.model(own), plain)
        if self.out_channels not in (None, logits.shape[1]):
            raise IncompatibleError(expected("network", f"{self.out_channels} logit channels", logits.shape[1]))
        return with_meta_of(x, logits)


def as_network(
    model: nn.Module,
    *,
    spatial_dims: int | None = None,
    in_channels: int | None = None,
    out_channels: int | None = None,
) -> MetaNetwork:
    """Wrap a model that is built already, such as one trained by a suite; see `MetaNetwork` for the arguments."""
    return MetaNetwork(model, spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels)


class GridNetwork(MetaNetwork):
    """A model of the grid, built by the names a MONAI network is built by: for scripts and as `_target_` of a bundle.

    Normalisation and padding are inside, as in a suite. The network is built and checked as in a suite, too: it must
    yield raw logits for images of `img_size`.

    Args:
        spatial_dims: 2, or 3 for networks of MONAI and your own.
        in_channels: Channels of an image.
        out_channels: Channels of the logits.
        architecture: "smp.<Class>", "monai.<Class>" or "package.module:callable".
        encoder: Encoder of segmentation-models-pytorch or of MONAI's FlexibleUNet.
        settings: Further arguments of the network.
        weights: A state dict, .safetensors or weights-only .pt; the initial weights are random without it.
        mean: Subtracted from the image inside the model: one number, or one per channel.
        std: The image is divided by it, after `mean`: one number, or one per channel.
        stride: Multiple the image is padded to; found from the network where it is known.
        img_size: Edge lengths of the images it is checked with; UNETR takes only such images. By default 64 in 2-D
            and 32 (64 for SwinUNETR) in 3-D.
        seed: Of the initial weights; PyTorch's global generator is neither used nor moved.

    Raises:
        SpecError: See `build_model` and `load_weights`.
        IncompatibleError: See `build_model` and `load_weights`.
        PluginError: See `build_model` and `load_weights`.
        DataError: See `build_model` and `load_weights`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        architecture: str,
        *,
        encoder: str | None = None,
        settings: Mapping[str, Any] | None = None,
        weights: str | PathLike[str] | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        stride: int | None = None,
        img_size: int | Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        given = {"architecture": architecture, "encoder": encoder, "mean": mean, "std": std, "stride": stride}
        spec = _specify(given | {"settings": dict(settings or {})})
        task = Task("multilabel", tuple(f"class{k}" for k in range(out_channels)))
        edges = _find_edges(architecture, spatial_dims, img_size)
        model = build_model(spec, channels=in_channels, task=task, size=edges, seed=seed)
        if weights is not None:
            load_weights(Path(weights), model)
        super().__init__(model, spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels)


def _specify(values: dict[str, Any]) -> ModelSpec:
    """Build a model's specification; the first mistake becomes one line."""
    try:
        return ModelSpec.model_validate({"name": "network"} | values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = f"{key}: {first['msg'].removeprefix('Value error, ').removeprefix(f'{key}: ')}"
        raise SpecError(f"model 'network': {message.rstrip('.')}, got {first['input']!r}.") from None


def _find_edges(architecture: str, spatial_dims: int, img_size: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the edges of the images a new network is checked with."""
    if spatial_dims not in (2, 3):
        raise SpecError(expected("model 'network'", "2 or 3 `spatial_dims`", spatial_dims))
    if img_size is None and architecture == "monai.UNETR":
        remedy = "It takes images of one size, such as img_size=64."
        raise SpecError(expected("model 'network'", "an `img_size` for monai.UNETR", None, remedy))
    if img_size is None:
        img_size = 64 if spatial_dims == 2 or architecture == "monai.SwinUNETR" else 32
    edges = (img_size,) * spatial_dims if isinstance(img_size, int) else tuple(img_size)
    if len(edges) != spatial_dims:
        raise SpecError(expected("model 'network'", f"{spatial_dims} edges as `img_size`", img_size))
    return edges


def to_plain(x: Tensor) -> Tensor:
    """Return a tensor without metadata; values and gradient are shared."""
    plain: Tensor = x.as_tensor() if isinstance(x, MetaTensor) else x
    return plain


def with_meta_of(source: Tensor, values: Tensor) -> Tensor:
    """Return values with the metadata of a source, if that has any and MONAI is told to track it."""
    if not (isinstance(source, MetaTensor) and get_track_meta()):
        return values
    result: Tensor = MetaTensor(values).copy_meta_from(source)
    return result
