"""Logits from whatever a network returns: a tensor, a mapping, an object, a list, or logits smaller than the image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.instruments.modes import set_mode

KEYS = ("out", "logits", "pred")
"""Entries or attributes that are taken for the logits, in this order."""

LARGEST_FACTOR = 32
"""Logits may be smaller than the image by this factor at most."""

_INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, slots=True)
class Reading:
    """How logits were read from what a network returned.

    Attributes:
        output: Key, attribute or position of the logits; None if the network returned one tensor.
        resized: Factor by which the logits were enlarged along each space axis; () if they had the image's size.
        cast: The dtype of the logits, if it was not that of the images.
    """

    output: str | None = None
    resized: tuple[int, ...] = ()
    cast: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Return what a run stores: what differs from plain logits, and a description."""
        values = {key: value for key, value in asdict(self).items() if value}
        resized = {"resized": list(self.resized)} if self.resized else {}
        return values | resized | {"described": str(self)}

    def __str__(self) -> str:
        parts = [f"reads output {self.output!r}"] if self.output is not None else []
        if self.resized:
            how = _INTERPOLATIONS.get(len(self.resized), "linear")
            parts.append(f"enlarges logits {' x '.join(map(str, self.resized))} times ({how})")
        parts += [f"casts logits from {self.cast}"] if self.cast else []
        return ", ".join(parts)


PLAIN = Reading()


class Outputs:
    """Reads logits from what a network returns.

    Args:
        where: Start of every message.
        output: Key, attribute or position ("0") of the logits. If None, one tensor is the logits; of a mapping or an
            object it is "out", "logits" or "pred"; of a list or tuple the first entry, which must be the largest.
        resize: Whether logits may be smaller than the image. Each edge must be an integer fraction of the image's, at
            least 1/32; the logits are enlarged by linear interpolation with `align_corners=False`.

    Attributes:
        seen: How the last output was read.
    """

    def __init__(self, where: str = "network", output: str | None = None, resize: bool = True) -> None:
        self.where, self.output, self.resize = where, output, resize
        self.seen = PLAIN

    def read(self, returned: Any, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            returned: What the network returned.
            x: The images that it was given, shape (N, C, *S).

        Returns:
            Logits, shape (N, K, *S), in the dtype of the images.

        Raises:
            IncompatibleError: If there are no logits in it, or they are not of the image's size or a fraction of it.
        """
        seen, logits = self._find(returned)
        if not logits.is_floating_point():
            remedy = "Return raw logits, not labels."
            raise IncompatibleError(expected(self.where, "float32 tensor of logits", str(logits.dtype), remedy))
        cast = None
        if logits.dtype != x.dtype:
            cast, logits = str(logits.dtype).removeprefix("torch."), logits.to(x.dtype)
        factors = self._find_factors(logits, x)
        if factors:
            how = _INTERPOLATIONS[len(factors)]
            logits = F.interpolate(logits, size=tuple(x.shape[2:]), mode=how, align_corners=False)
        found = Reading(seen, factors, cast)
        if found != self.seen:
            self.seen = found
        return logits

    def describe(self) -> dict[str, Any]:
        """Return the entry of a record about what was read: nothing if it was plain logits."""
        return {} if self.seen == PLAIN else {"outputs": self.seen.as_record()}

    def _find(self, returned: Any) -> tuple[str | None, Tensor]:
        """The tensor of logits, and its key, attribute or position."""
        if isinstance(returned, Tensor):
            if self.output is not None:
                remedy = "Remove `output`."
                raise IncompatibleError(expected(self.where, f"an output {self.output!r}", "one tensor", remedy))
            return None, returned
        entries = _list_entries(returned)
        if self.output is not None:
            key: str | None = self.output
        elif (key := next((key for key in KEYS if isinstance(entries.get(key), Tensor)), None)) is None:
            key = self._find_first(entries)
        found = None if key is None else entries.get(key)
        if key is None or not isinstance(found, Tensor):
            wanted = f"output {self.output!r}" if self.output is not None else f"one of {', '.join(KEYS)}"
            tensors = [name for name, value in entries.items() if isinstance(value, Tensor)]
            held = f"{type(returned).__name__} with {', '.join(tensors) or 'no tensors'}"
            remedy = "Set `output` to the name of the logits, or return the segmentation alone."
            raise IncompatibleError(f"{self.where}: expected a tensor of logits or {wanted}, got {held}. {remedy}")
        return key, found

    def _find_first(self, entries: Mapping[str, Any]) -> str | None:
        """The first entry of a list, if no other is larger."""
        first = entries.get("0")
        if not isinstance(first, Tensor):
            return None
        sizes = {
            key: tuple(value.shape[2:])
            for key, value in entries.items()
            if isinstance(value, Tensor) and value.dim() == first.dim()
        }
        larger = [key for key, size in sizes.items() if any(a > b for a, b in zip(size, sizes["0"], strict=True))]
        if larger:
            what = "the logits of full resolution first in its list"
            remedy = f'Set output = "{larger[-1]}".'
            raise IncompatibleError(expected(self.where, what, list(sizes.values()), remedy))
        return "0"

    def _find_factors(self, logits: Tensor, x: Tensor) -> tuple[int, ...]:
        """By which factors logits are enlarged; () if they are of the image's size."""
        size, found = tuple(x.shape[2:]), tuple(logits.shape[2:])
        if logits.dim() == x.dim() and len(logits) == len(x):
            if found == size:
                return ()
            if all(edge > 1 and big % edge == 0 for big, edge in zip(size, found, strict=True)):
                factors = tuple(big // edge for big, edge in zip(size, found, strict=True))
                if max(factors) <= LARGEST_FACTOR and len(size) in _INTERPOLATIONS:
                    if self.resize:
                        return factors
                    remedy = "Set resize_logits = true."
                    raise IncompatibleError(expected(self.where, f"logits of {size} pixels", found, remedy))
        remedy = f"Logits must have the size of the image, or an integer fraction of it down to 1/{LARGEST_FACTOR}."
        wanted = ", ".join(map(str, (len(x), "K", *size)))
        raise IncompatibleError(expected(self.where, f"logits of shape ({wanted})", tuple(logits.shape), remedy))


def _list_entries(returned: Any) -> dict[str, Any]:
    """What a network returned, by key, attribute or position."""
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items()}
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        names = getattr(returned, "_fields", ())
        return {str(i): value for i, value in enumerate(returned)} | dict(zip(names, returned, strict=False))
    named = {key: value for key in KEYS if (value := getattr(returned, key, None)) is not None}
    return (dict(vars(returned)) if hasattr(returned, "__dict__") else {}) | named


class Segmenter(nn.Module):
    """A network whose outputs are read as logits and whose input is a copy of the image.

    Args:
        model: Images (N, C, *S) -> anything that `Outputs` reads: a module or any other callable.
        outputs: How its outputs are read.
    """

    def __init__(self, model: Callable[[Tensor], Any], outputs: Outputs) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        self.announced = False
        self.checked = False  # whether the forwards of the check were run; input values are compared only in these
        self.writes = False  # whether the model was seen to write to its input
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            x: Images, shape (N, C, *S); they are not changed.

        Returns:
            Logits, shape (N, K, *S), in the dtype of the images.

        Cost:
            One forward.
        """
        own = x.clone()
        returned = self.model(own)
        if not self.writes and not torch.compiler.is_compiling():
            changed = own.is_inference() or own._version > 0
            # Writes through `.data` or NumPy are not counted.
            self.writes = changed or (not self.checked and not torch.equal(own.detach(), x.detach()))
        return self.outputs.read(returned, x)

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode of the model, if it has one."""
        self.training = mode
        if isinstance(self.model, nn.Module):
            set_mode(self.model, mode)
        return self

    @property
    def is_needed(self) -> bool:
        """Whether the model differs from one that returns logits and leaves its input, by the forwards that were run.

        TorchScript always needs the wrapper: it lacks hooks, and some of it training flags.
        """
        script = isinstance(self.model, torch.jit.ScriptModule)
        return script or self.outputs.output is not None or self.writes or self.outputs.seen != PLAIN

    def simplest(self) -> Callable[[Tensor], Any]:
        """Return the model itself where it does not need this wrapper, otherwise the wrapper."""
        self.checked = True
        return self if self.is_needed else self.model

    def describe_outputs(self) -> dict[str, Any]:
        """Return what a record stores about the outputs: nothing if they are plain logits."""
        return self._find_outputs().describe()

    def announce(self) -> None:
        """Warn once about what is read from the outputs, if they are not plain logits and nobody declared it."""
        outputs = self._find_outputs()
        if outputs.seen != PLAIN and outputs.output is None and not self.announced:
            self.announced = True
            remedy = "To choose otherwise, pass ab.as_segmenter(model, output=..., resize_logits=...)."
            warnings.warn(f"{self.outputs.where}: {outputs.seen}. {remedy}", stacklevel=3)

    def _find_outputs(self) -> Outputs:
        """Where outputs are read: here, or in a part of the model that reads them itself, such as a `SlidingWindow`."""
        if self.outputs.seen != PLAIN or not isinstance(self.model, nn.Module):
            return self.outputs
        parts = [getattr(part, "outputs", None) for part in self.model.modules()]
        return next((part for part in parts if isinstance(part, Outputs) and part.seen != PLAIN), self.outputs)


def as_segmenter(
    model: Callable[[Tensor], Any], *, output: str | int | None = None, resize_logits: bool = True
) -> Segmenter:
    """Make any network that contains logits in its outputs a model from images to logits.

    Every front door (`ab.evaluate`, an attack called on a batch, the adapters) does this by itself with the defaults.
    The result differs from `model` only in what it returns: its parameters, buffers and modes are the model's own.

    Args:
        model: Images (N, C, *S) -> one tensor; a mapping with "out", "logits" or "pred"; an object with such an
            attribute; or a list or tuple with the logits of full resolution first. Images are copied for it, so a
            first layer may work in place.
        output: Key, attribute or position of the logits if it is another one.
        resize_logits: Whether logits whose edges are integer fractions of the image's are enlarged by linear
            interpolation, with `align_corners=False`.

    Returns:
        Images (N, C, *S) -> logits (N, K, *S); `model` itself if it is one already and nothing is chosen.

    Raises:
        SpecError: If `output` is neither a text nor a position.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> class Net(torch.nn.Module):
        ...     def forward(self, x):
        ...         return {"mask": 2 * x[..., ::2, ::2], "features": x}
        >>> tuple(ab.as_segmenter(Net(), output="mask")(torch.zeros(1, 1, 8, 8)).shape)
        (1, 1, 8, 8)
    """
    if isinstance(model, Segmenter) and output is None and resize_logits:
        return model
    if output is not None and (isinstance(output, bool) or not isinstance(output, (str, int))):
        raise SpecError(expected("as_segmenter", "a key, attribute or position as `output`", output))
    made = Segmenter(model, Outputs("model", None if output is None else str(output), resize_logits))
    made.announced = True
    return made


def read_model(where: str, model: Callable[[Tensor], Any]) -> Segmenter:
    """Wrap a model of a caller for its check; `simplest` afterwards is what is attacked.

    Args:
        where: Start of every message.
        model: As for `as_segmenter`.

    Returns:
        The wrapped model; `model` itself if the caller has wrapped it.
    """
    return model if isinstance(model, Segmenter) else Segmenter(model, Outputs(where))
