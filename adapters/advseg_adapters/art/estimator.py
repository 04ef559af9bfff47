"""A segmentation model as an ART estimator; it is not a classifier, so labels remain masks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from advseg_adapters.art.defences import defend
from advseg_adapters.art.inputs import check_logits, read_bounds, read_images, read_labels, read_shape
from advseg_adapters.art.models import find_layer, list_layers, read_loss, read_segmenter
from advseg_adapters.art.toolkit import PyTorchEstimator
from advseg_bench import metrics
from advseg_bench.attacks.gradient import input_gradients
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.instruments.guard import frozen
from advseg_bench.instruments.modes import in_mode
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.types import Task, TaskKind

Reduction = Literal["none", "mean", "sum"]


class SegmentationEstimator(PyTorchEstimator):  # type: ignore[misc]
    """An ART estimator of a segmentation model; built by `as_estimator`.

    Unlike ART's own estimators, it leaves training flags, gradients and hooks of the model unchanged, and rejects
    invalid images and masks with a `UserError`.

    Attributes:
        task: The task.
        ignore: Label value of pixels without ground truth, or None.
    """

    estimator_params = (*PyTorchEstimator.estimator_params, "loss", "input_shape", "optimizer", "task", "ignore")

    def __init__(
        self, model: nn.Module, *, task: Task, loss: Loss, input_shape: Sequence[int], device: torch.device, **rest: Any
    ) -> None:
        self.ignore: int | None = rest.pop("ignore", None)
        self._optimizer: torch.optim.Optimizer | None = rest.pop("optimizer", None)
        device_type = "cpu" if device.type == "cpu" else "gpu"
        super().__init__(model=model, channels_first=True, device_type=device_type, **rest)
        self._device = device
        self._loss, self._input_shape, self.task = loss, tuple(input_shape), task
        self._layer_names = list_layers(model)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one image, (C, *S)."""
        return self._input_shape

    @property
    def loss(self) -> Loss:
        """Return the loss: one value per image."""
        return self._loss

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """Return the optimiser that `fit` uses."""
        return self._optimizer

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self._device

    def predict(self, x: Any, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Return logits, float32 (N, K, *S), after ART's `postprocessing_defences`. Cost: 1 forward."""
        images = self._images(x)
        with in_mode(self._model, training_mode), torch.no_grad():
            parts = [self._logits(part).cpu() for part in torch.split(images, batch_size)]
        logits = torch.cat(parts).float().numpy()
        return cast(np.ndarray, self._apply_postprocessing(preds=logits, fit=False))

    def predict_masks(self, x: Any, batch_size: int = 128) -> np.ndarray:
        """Return predicted labels in the form of `y`: bool (N, K, *S), or class numbers int64 (N, *S) if multiclass.

        For attacks without ground truth: `attack.generate(x, estimator.predict_masks(x))`.
        """
        return metrics.predict(torch.from_numpy(self.predict(x, batch_size)), self.task).numpy()

    def compute_loss(
        self, x: Any, y: Any, reduction: Reduction = "none", batch_size: int = 128, **kwargs: Any
    ) -> np.ndarray | Tensor:
        """Return the loss of images.

        Args:
            x: Images (N, C, *S); for a tensor, the result is a tensor with its graph.
            y: Masks, see `as_estimator`.
            reduction: "none" for one value per image, (N,); "mean" or "sum" of them.
            batch_size: Images per forward pass.
        """
        images = self._images(x)
        y, valid = read_labels(y, self.task, images, self.ignore)
        parts = [torch.split(tensor, batch_size) for tensor in (images, y, valid)]
        with in_mode(self._model, False), torch.set_grad_enabled(isinstance(x, Tensor)):
            values = [self._loss(self._logits(a), b, c, self.task) for a, b, c in zip(*parts, strict=True)]
        return _reduce(torch.cat(values), reduction, x)

    def compute_loss_from_predictions(
        self, pred: Any, y: Any, reduction: Reduction = "none", **kwargs: Any
    ) -> np.ndarray | Tensor:
        """Return the loss of logits (N, K, *S); the other arguments are those of `compute_loss`."""
        logits = torch.as_tensor(pred)
        check_logits(logits, self.task, logits.new_empty(len(logits), 0, *logits.shape[2:]))
        y, valid = read_labels(y, self.task, logits, self.ignore)
        return _reduce(self._loss(logits, y, valid, self.task), reduction, pred)

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> np.ndarray | Tensor:
        """Return the gradient of each image's loss with respect to that image.

        Args:
            x: Images (N, C, *S), array or tensor.
            y: Masks, see `as_estimator`.
            training_mode: Whether the model is in training mode during the call.

        Returns:
            float32 (N, C, *S), an array or a tensor like `x`.

        Cost:
            1 forward and 1 backward of all images together.
        """
        images = self._images(x)
        y, valid = read_labels(y, self.task, images, self.ignore)
        with in_mode(self._model, training_mode), frozen(self._model):
            _, (gradient,) = input_gradients(
                self._differentiable, images, [lambda logits: self._loss(logits, y, valid, self.task)]
            )
        return gradient if isinstance(x, Tensor) else gradient.cpu().numpy()

    def fit(
        self,
        x: Any,
        y: Any,
        batch_size: int = 128,
        nb_epochs: int = 10,
        training_mode: bool = True,
        drop_last: bool = False,
        scheduler: Any = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        """Train the model on the mean loss of the images, with the optimiser given to `as_estimator`.

        Args:
            x: Images (N, C, *S).
            y: Masks, see `as_estimator`.
            batch_size: Images per step.
            nb_epochs: Number of epochs.
            training_mode: Whether the model is in training mode during the call.
            drop_last: Skip an incomplete last batch.
            scheduler: Learning-rate scheduler; stepped after every epoch.
            seed: Seed of the order of the images, which changes every epoch.

        Raises:
            SpecError: The estimator has no optimiser.
        """
        if self._optimizer is None:
            raise SpecError(expected("fit: optimizer", "an optimiser", None, "Give one to as_estimator."))
        images = self._images(x)
        y, valid = read_labels(y, self.task, images, self.ignore)
        generator = torch.Generator().manual_seed(seed)
        with in_mode(self._model, training_mode), torch.enable_grad():
            for _ in range(nb_epochs):
                for rows in torch.split(torch.randperm(len(images), generator=generator), batch_size):
                    if drop_last and len(rows) < batch_size:
                        continue
                    logits = self._logits(images[rows], fit=True)
                    value = self._loss(logits, y[rows], valid[rows], self.task).mean()
                    self._optimizer.zero_grad()
                    torch.autograd.backward(value)
                    self._optimizer.step()
                if scheduler is not None:
                    scheduler.step()

    def get_activations(
        self, x: Any, layer: int | str, batch_size: int = 128, framework: bool = False
    ) -> np.ndarray | Tensor:
        """Return the output of a layer.

        Args:
            x: Images (N, C, *S), array or tensor.
            layer: Name of a module, or its index in `layer_names`.
            batch_size: Images per forward pass.
            framework: Return a tensor with its graph.

        Raises:
            SpecError: The layer does not exist.
        """
        images = self._images(x)
        found: list[Tensor] = []
        with in_mode(self._model, False), torch.set_grad_enabled(framework):
            handle = find_layer(self._model, layer).register_forward_hook(lambda module, args, out: found.append(out))
            try:
                for part in torch.split(images, len(images) if framework else batch_size):
                    self._logits(part)
            finally:
                handle.remove()
        return torch.cat(found) if framework else torch.cat([out.cpu() for out in found]).numpy()

    def clone_for_refitting(self) -> SegmentationEstimator:
        """Return a copy with new weights (by `reset_parameters` of each layer) and a new optimiser of that class."""
        model = copy.deepcopy(self._model)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        clone = copy.copy(self)
        clone._model, clone._optimizer = model, None
        clone.preprocessing_operations = list(self.preprocessing_operations)
        if self._optimizer is not None:
            clone._optimizer = type(self._optimizer)(model.parameters(), **self._optimizer.defaults)
        return clone

    def _images(self, x: Any) -> Tensor:
        low, high = self._clip_values
        return read_images(x, self._input_shape, (float(low), float(high)), self._device)

    def _logits(self, images: Tensor, fit: bool = False) -> Tensor:
        logits = self._model(defend(images, self.preprocessing_operations, fit=fit))
        return check_logits(logits, self.task, images)

    def _differentiable(self, images: Tensor) -> Tensor:
        logits = self._logits(images)
        if not logits.requires_grad:
            raise IncompatibleError(
                "model: expected logits that depend on the images by autograd, got none. "
                "Remove `torch.no_grad`, `detach` or NumPy from the model."
            )
        return logits


def _reduce(values: Tensor, reduction: Reduction, like: Any) -> np.ndarray | Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise SpecError(expected("reduction", "'none', 'mean' or 'sum'", reduction))
    if reduction != "none":
        values = values.mean() if reduction == "mean" else values.sum()
    return values if isinstance(like, Tensor) else values.detach().cpu().numpy()


def as_estimator(
    model: Model,
    *,
    task: Task | TaskKind,
    input_shape: Sequence[int],
    loss: str | Loss | None = None,
    clip_values: tuple[float, float] = (0.0, 1.0),
    ignore: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    preprocessing: Any = None,
    preprocessing_defences: Any = None,
    postprocessing_defences: Any = None,
    device_type: Literal["cpu", "gpu"] | None = None,
    stochastic: bool = False,
) -> SegmentationEstimator:
    """Wrap a segmentation model as an ART estimator, for every attack of ART that needs only loss gradients.

    Labels remain masks: zeros and ones of any type, (N, K, *S), for binary and multilabel tasks; class numbers,
    (N, *S), for multiclass tasks. `predict` returns logits. Images are channels first, with any number of spatial axes.

    Args:
        model: Images (N, C, *S) inside `clip_values` -> logits (N, K, *S): a module or a function, with normalisation.
        task: The task, or its type "binary", "multilabel" or "multiclass".
        input_shape: Shape of one image, (C, *S).
        loss: A name such as "dice", or a function (logits, y, valid, task) -> one value per image. None is the
            cross-entropy of the task: "bce", or "ce" for multiclass.
        clip_values: Smallest and largest intensity of an image.
        ignore: Label value of pixels without ground truth, such as 255.
        optimizer: Optimiser for `fit`.
        preprocessing: ART's (mean, std), applied after the defences.
        preprocessing_defences: ART's preprocessors, one or a list, NumPy and PyTorch in any order.
        postprocessing_defences: ART's postprocessors; they affect `predict`, but no gradient.
        device_type: "cpu" or "gpu" moves a module to that device; None does not move it.
        stochastic: Whether the model is known to be random in eval mode; another model must be a function of its image.

    Returns:
        The estimator.

    Raises:
        IncompatibleError: The model fails, returns probabilities or another shape, or the loss does not fit the task.
        SpecError: An argument is invalid.
        PluginError: The loss is unknown.

    Cost:
        Three forwards of one image and one of two, to check that the model returns logits of the image alone.

    Example:
        >>> import numpy as np, torch
        >>> from art.attacks.evasion import FastGradientMethod
        >>> from advseg_adapters.art import as_estimator
        >>> x, y = np.full((1, 1, 8, 8), 0.5, np.float32), np.ones((1, 1, 8, 8))
        >>> estimator = as_estimator(torch.nn.Conv2d(1, 1, 1), task="binary", input_shape=(1, 8, 8), loss="dice")
        >>> x_adv = FastGradientMethod(estimator, eps=0.1).generate(x, y)
        >>> round(float(abs(x_adv - x).max()), 3)
        0.1
    """
    bounds, shape = read_bounds(clip_values), read_shape(input_shape)
    if device_type not in ("cpu", "gpu", None):
        raise SpecError(expected("device_type", "'cpu', 'gpu' or None", device_type))
    device = torch.device("cpu")
    if isinstance(model, nn.Module):
        if device_type is not None:
            model.to("cuda" if device_type == "gpu" and torch.cuda.is_available() else "cpu")
        device = next((p.device for p in model.parameters()), device)
    module, known = read_segmenter(model, task, shape, bounds, device, stochastic=stochastic)
    return SegmentationEstimator(
        module,
        task=known,
        loss=read_loss(loss, known),
        input_shape=shape,
        device=device,
        clip_values=bounds,
        ignore=ignore,
        optimizer=optimizer,
        preprocessing=preprocessing,
        preprocessing_defences=preprocessing_defences,
        postprocessing_defences=postprocessing_defences,
    )
