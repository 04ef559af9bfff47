"""A model of a suite, or any other model, as a MONAI network."""

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
    """A model as a MONAI network, which maps a `MetaTensor` of images to a `MetaTensor` of logits.

    The model computes on plain tensors, which avoids the overhead of `MetaTensor`; gradients pass through. With
    `set_track_meta(False)` the output is a plain tensor, as everywhere in MONAI.

    Args:
        model: Images (N, C, *S) -> logits (N, K, *S), or outputs that contain them (`checks.outputs.as_segmenter`).
        spatial_dims: Number of spatial axes; None accepts any.
        in_channels: Channels of an image; None accepts any.
        out_channels: Channels of the logits; None accepts any.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from advseg_adapters.monai import MetaNetwork
        >>> network = MetaNetwork(torch.nn.Conv2d(1, 3, 1), spatial_dims=2, in_channels=1, out_channels=3)
        >>> logits = network(MetaTensor(torch.zeros(2, 1, 8, 8)))
        >>> type(logits).__name__, tuple(logits.shape)
        ('MetaTensor', (2, 3, 8, 8))
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
        """Return logits with the metadata of the images.

        Args:
            x: Images (N, C, *S), a `MetaTensor` or a plain tensor.

        Returns:
            Logits (N, K, *S).

        Raises:
            IncompatibleError: Images or logits have the wrong number of axes or channels.

        Cost:
            1 forward.
        """
        if self.spatial_dims not in (None, x.dim() - 2):
            what = f"{self.spatial_dims}-D images, shape (N, C, *S)"
            raise IncompatibleError(expected("network", what, tuple(x.shape), "Check `spatial_dims`."))
        if self.in_channels not in (None, x.shape[1]):
            remedy = "Check `in_channels`."
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
    """Wrap an existing model, such as one trained by a suite, as a MONAI network.

    Args:
        model: Images (N, C, *S) -> logits (N, K, *S).
        spatial_dims: Number of spatial axes; None accepts any.
        in_channels: Channels of an image; None accepts any.
        out_channels: Channels of the logits; None accepts any.

    Returns:
        The network; it shares the parameters of the model.

    Example:
        >>> import torch
        >>> from advseg_adapters.monai import as_network
        >>> network = as_network(torch.nn.Conv2d(1, 1, 1), spatial_dims=2)
        >>> tuple(network(torch.zeros(2, 1, 8, 8)).shape)
        (2, 1, 8, 8)
    """
    return MetaNetwork(model, spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels)


class GridNetwork(MetaNetwork):
    """A model of a suite with the constructor of a MONAI network, for scripts and as `_target_` of a bundle.

    The network is built and checked as in a suite: normalisation and padding are inside, and it must return raw logits
    for images of `img_size`.

    Args:
        spatial_dims: 2, or 3 for networks of MONAI and user-defined networks.
        in_channels: Channels of an image.
        out_channels: Channels of the logits.
        architecture: "smp.<Class>", "monai.<Class>" or "package.module:callable".
        encoder: Encoder of segmentation-models-pytorch or of MONAI's FlexibleUNet.
        settings: Further arguments of the network.
        weights: File with a state dict, .safetensors or weights-only .pt; None keeps the random initial weights.
        mean: Mean that the model subtracts from the image, in input units: one number, or one per channel.
        std: Standard deviation that the model divides by, after `mean`, in input units: one number, or
            one per channel.
        stride: The model pads images to multiples of this many pixels; None derives it from the network.
        img_size: Edge lengths in pixels of the images for the check; UNETR accepts only such images. The default is 64
            in 2-D and 32 (64 for SwinUNETR) in 3-D.
        seed: Seed of the initial weights; PyTorch's global generator is not used.
        stochastic: Whether the network is known to be random in eval mode.

    Raises:
        SpecError: An argument is invalid; see `build_model` and `load_weights`.
        IncompatibleError: The network does not return logits for such images, or the weights do not fit.
        PluginError: The architecture is unknown.
        DataError: The file of weights is missing or damaged.

    Cost:
        That of the check: a few forwards of small images.

    Example:
        >>> import torch
        >>> from advseg_adapters.monai import GridNetwork
        >>> shape = {"channels": [4, 8], "strides": [2]}
        >>> network = GridNetwork(2, 1, 3, "monai.UNet", settings=shape, img_size=16)
        >>> tuple(network(torch.zeros(1, 1, 16, 16)).shape)
        (1, 3, 16, 16)
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
        stochastic: bool = False,
    ) -> None:
        given = {"architecture": architecture, "encoder": encoder, "mean": mean, "std": std, "stride": stride}
        given |= {"stochastic": stochastic}
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
    """Return the edge lengths of the images that a new network is checked with."""
    if spatial_dims not in (2, 3):
        raise SpecError(expected("model 'network'", "2 or 3 `spatial_dims`", spatial_dims))
    if img_size is None and architecture == "monai.UNETR":
        remedy = "Give the size of the images, such as img_size=64."
        raise SpecError(expected("model 'network'", "an `img_size` for monai.UNETR", None, remedy))
    if img_size is None:
        img_size = 64 if spatial_dims == 2 or architecture == "monai.SwinUNETR" else 32
    edges = (img_size,) * spatial_dims if isinstance(img_size, int) else tuple(img_size)
    if len(edges) != spatial_dims:
        raise SpecError(expected("model 'network'", f"{spatial_dims} edges as `img_size`", img_size))
    return edges


def to_plain(x: Tensor) -> Tensor:
    """Return a tensor without metadata, which shares values and gradient."""
    plain: Tensor = x.as_tensor() if isinstance(x, MetaTensor) else x
    return plain


def with_meta_of(source: Tensor, values: Tensor) -> Tensor:
    """Return values with the metadata of a source, if it has any and MONAI tracks metadata."""
    if not (isinstance(source, MetaTensor) and get_track_meta()):
        return values
    result: Tensor = MetaTensor(values).copy_meta_from(source)
    return result
