"""The image-level views as ART classifiers, for attacks that require a classifier."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from advseg_adapters.art.inputs import as_tensor, read_bounds, read_images, read_labels, read_shape
from advseg_adapters.art.models import read_loss, read_segmenter
from advseg_adapters.art.toolkit import PyTorchClassifier
from advseg_adapters.foreign import find_threshold
from advseg_adapters.views import LossView, MarginView
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.types import Bounds, Task, TaskKind

_NEVER = 1e4


class ViewClassifier(PyTorchClassifier):  # type: ignore[misc]
    """An ART classifier of two classes over a view: 0 for a good segmentation, 1 for a bad one.

    Built by `as_classifier`. The cross-entropy is summed over images, so that the gradient of an image is independent
    of the batch size.

    Args:
        view: Images (N, C, *S) -> logits (N, 2).
        batch: The images of the view.
        probabilities: Return the softmax, which some attacks require.
        third: Add a class that never wins, for attacks that reject two classes.
    """

    def __init__(self, view: nn.Module, batch: Batch, *, probabilities: bool = False, third: bool = False) -> None:
        self._is_loss_view, self._images = isinstance(view, LossView), len(batch.x)
        device = batch.x.device
        model: nn.Module = _Third(view) if third else view
        super().__init__(
            model=_Softmax(model) if probabilities else model,
            loss=nn.CrossEntropyLoss(reduction="sum"),
            input_shape=tuple(batch.x.shape[1:]),
            nb_classes=3 if third else 2,
            clip_values=(batch.bounds.lower, batch.bounds.upper),
            preprocessing=None,
            device_type="cpu" if device.type == "cpu" else "gpu",
        )
        self._device = device
        self._model.to(device)

    @property
    def labels(self) -> np.ndarray:
        """Return the label 0 of every image in ART's form: float32 (N, number of classes), one-hot."""
        return self.one_hot(0)

    def one_hot(self, label: int) -> np.ndarray:
        """Return the same label for every image in ART's form: float32 (N, number of classes), one-hot."""
        return np.tile(np.eye(self.nb_classes, dtype=np.float32)[label], (self._images, 1))

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> np.ndarray | Tensor:
        """Return the gradient of the cross-entropy.

        Args:
            x: Images (N, C, *S), array or tensor.
            y: Labels, one-hot or class numbers; 0 for a loss view.
            training_mode: As in ART.
            **kwargs: As in ART.

        Returns:
            The gradient, (N, C, *S); an array for an array, a tensor for a tensor.

        Raises:
            IncompatibleError: A label of a loss view is not 0; its cross-entropy decreases where the loss increases.
        """
        if self._is_loss_view:
            classes = y.argmax(1) if y.ndim == 2 else y
            if bool((classes != 0).any()):
                raise IncompatibleError(
                    "y: expected label 0 for each image of a loss view, got 1, which would lower the loss. Without `y` "
                    "ART uses the predicted class: give y=classifier.labels."
                )
        return cast(np.ndarray | Tensor, super().loss_gradient(x, y, training_mode=training_mode, **kwargs))


class _Softmax(nn.Module):
    """A view that returns probabilities."""

    def __init__(self, view: nn.Module) -> None:
        super().__init__()
        self.view = view
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, *S) to probabilities (N, 2)."""
        logits: Tensor = self.view(x)
        return logits.softmax(1)


class _Third(nn.Module):
    """A view with a third class that never wins."""

    def __init__(self, view: nn.Module) -> None:
        super().__init__()
        self.view = view
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, *S) to logits (N, 3)."""
        logits: Tensor = self.view(x)
        return torch.cat([logits, logits.amin(1, keepdim=True) - _NEVER], 1)


def as_classifier(
    model: Model,
    x: Any,
    y: Any,
    *,
    task: Task | TaskKind,
    loss: str | Loss | None = None,
    view: Literal["loss", "margin"] = "loss",
    threshold: float | None = None,
    rise: float | None = None,
    clip_values: tuple[float, float] = (0.0, 1.0),
    ignore: int | None = None,
) -> ViewClassifier:
    """Wrap a segmentation model and given images as an ART classifier, for attacks that require a classifier.

    Run an attack by `attack.generate(x, classifier.labels)`. With one image, the attack may evaluate any number of
    rows. With several images it must evaluate exactly these, in order, as attacks do that treat a batch like separate
    images; other batches are an error.

    Args:
        model: Images (N, C, *S) inside `clip_values` -> logits (N, K, *S).
        x: The images to attack, (N, C, *S).
        y: Their masks, as for `as_estimator`.
        task: The task, or its type "binary", "multilabel" or "multiclass".
        loss: As for `as_estimator`.
        view: "loss": the cross-entropy for class 0 is 1 + loss, so an attack that increases it increases the loss.
            "margin": class 1 wins where the loss exceeds a threshold, for attacks that stop at success or search for a
            minimal perturbation.
        threshold: For "margin": the loss above which an attack succeeds.
        rise: For "margin": the same threshold as a share above the clean loss of each image; by default 0.1.
        clip_values: Smallest and largest intensity of an image.
        ignore: Label value of pixels without ground truth.

    Returns:
        The classifier; its `labels` are the argument `y` of an attack.

    Raises:
        IncompatibleError: See `as_estimator`.
        SpecError: See `as_estimator`.
        DataError: See `as_estimator`.
        PluginError: See `as_estimator`.

    Cost:
        Two forwards of one image; for "margin" one more forward of all images.

    Example:
        >>> import torch
        >>> from advseg_adapters.art import as_classifier
        >>> x, y = torch.full((1, 1, 8, 8), 0.5), torch.ones(1, 1, 8, 8)
        >>> classifier = as_classifier(torch.nn.Conv2d(1, 1, 1), x, y, task="binary", loss="dice")
        >>> classifier.nb_classes, classifier.labels.tolist(), classifier.predict(x.numpy()).shape
        (2, [[1.0, 0.0]], (1, 2))
    """
    bounds = read_bounds(clip_values)
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    device = next((p.device for p in parameters), torch.device("cpu"))
    x = as_tensor("x", x)
    shape = read_shape(tuple(x.shape[1:]))
    model, known = read_segmenter(model, task, shape, bounds, device)
    images = read_images(x, shape, bounds, device)
    labels, valid = read_labels(y, known, images, ignore)
    names = tuple(str(i) for i in range(len(images)))
    spacing = ((float("nan"),) * (len(shape) - 1),) * len(images)
    batch = Batch(images, labels, valid, known, Bounds(*bounds), names, names, names, spacing)
    value = read_loss(loss, known)
    settings = {k: v for k, v in (("threshold", threshold), ("rise", rise)) if v is not None}
    if view == "loss":
        if settings:
            raise SpecError(f"{min(settings)}: a loss view has no success criterion. Remove it, or use view='margin'.")
        return ViewClassifier(LossView(model, batch, value), batch)
    if view != "margin":
        raise SpecError(expected("view", "'loss' or 'margin'", view))
    return ViewClassifier(make_margin_view(model, batch, value, settings), batch)


def make_margin_view(model: Model, batch: Batch, loss: Loss, settings: dict[str, Any]) -> MarginView:
    """Return the margin view of images, with a threshold from their clean logits.

    Raises:
        SpecError: `threshold` or `rise` is invalid, or both are given.

    Cost:
        1 forward.
    """
    if len(settings) == 2:
        raise SpecError("as_classifier: expected `threshold` or `rise`, got both. Remove one.")
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(expected(name, "a number, such as 0.1", value))
    if settings.get("rise", 1) <= 0:
        raise SpecError(expected("rise", "a positive share of the clean loss, such as 0.1", settings["rise"]))
    with torch.no_grad():
        threshold, scale = find_threshold(loss, model(batch.x), batch, settings)
    return MarginView(model, batch, loss, threshold=threshold, scale=scale)
