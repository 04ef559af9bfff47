"""A segmenter as an ART estimator: not a classifier, so that labels stay masks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from advseg_adapters.art.defences import defend
from advseg_adapters.art.inputs import check_logits, read_bounds, read_images, read_labels, read_shape
from advseg_adapters.art.models import read_loss, read_segmenter
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
    """What `as_estimator` returns; made by it.

    Unlike ART's own estimators it leaves training flags, gradients and hooks of the model as it found them, and
    refuses images and masks it cannot mean with a `UserError`.

    Attributes:
        task: What the labels mean.
        ignore: The label that marks pixels which do not count, or None.
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
        self._layer_names = [name for name, _ in model.named_modules() if name]

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
        """Return where images are put."""
        return self._device

    def predict(self, x: Any, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Return logits, float32 (N, K, *S), after ART's `postprocessing_defences` if there are any."""
        images = self._images(x)
        with in_mode(self._model, training_mode), torch.no_grad():
            parts = [self._logits(part).cpu() for part in torch.split(images, batch_size)]
        logits = torch.cat(parts).float().numpy()
        return cast(np.ndarray, self._apply_postprocessing(preds=logits, fit=False))

    def predict_masks(self, x: Any, batch_size: int = 128) -> np.ndarray:
        """Return predicted labels as `y` takes them: bool (N, K, *S), or class numbers int64 (N, *S) if multiclass.

        For attacks that shall not see the truth: `attack.generate(x, estimator.predict_masks(x))`.
        """
        return metrics.predict(torch.from_numpy(self.predict(x, batch_size)), self.task).numpy()

    def compute_loss(
        self, x: Any, y: Any, reduction: Reduction = "none", batch_size: int = 128, **kwargs: Any
    ) -> np.ndarray | Tensor:
        """Return the loss of images.

        Args:
            x: Images (N, C, *S); a tensor gives a tensor with its graph.
            y: Masks, see `as_estimator`.
            reduction: "none": one value per image, (N,). "mean" or "sum" of them.
            batch_size: Images a forward pass.
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
        """Return the loss of logits, as `compute_loss` does of images."""
        logits = torch.as_tensor(pred)
        check_logits(logits, self.task, logits.new_empty(len(logits), 0, *logits.shape[2:]))
        y, valid = read_labels(y, self.task, logits, self.ignore)
        return _reduce(self._loss(logits, y, valid, self.task), reduction, pred)

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> np.ndarray | Tensor:
        """Return the gradient of each image's loss by that image.

        Args:
            x: Images (N, C, *S), array or tensor.
            y: Masks, see `as_estimator`.
            training_mode: Whether the model is in training mode meanwhile.

        Returns:
            Like `x`: float32 array or tensor.

        Cost:
            One forward and one backward of all images together.
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
        """Train the model on the mean of the images' losses, with the optimiser given to `as_estimator`.

        Args:
            x: Images (N, C, *S).
            y: Masks, see `as_estimator`.
            batch_size: Images a step.
            nb_epochs: Passes over the images.
            training_mode: Whether the model is in training mode meanwhile.
            drop_last: Leave out a last batch that is not full.
            scheduler: Stepped after every epoch.
            seed: Of the order of the images, which is drawn anew every epoch.

        Raises:
            SpecError: There is no optimiser.
        """
        if self._optimizer is None:
            raise SpecError("fit: the estimator has no optimiser. Give `optimizer` to as_estimator.")
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
        """Return what a layer puts out.

        Args:
            x: Images (N, C, *S), array or tensor.
            layer: Name of a module, or its index in `layer_names`.
            batch_size: Images a forward pass.
            framework: Return a tensor with its graph.

        Raises:
            SpecError: No such layer.
        """
        images = self._images(x)
        found: list[Tensor] = []
        with in_mode(self._model, False), torch.set_grad_enabled(framework):
            handle = self._find_layer(layer).register_forward_hook(lambda module, args, out: found.append(out))
            try:
                for part in torch.split(images, len(images) if framework else batch_size):
                    self._logits(part)
            finally:
                handle.remove()
        return torch.cat(found) if framework else torch.cat([out.cpu() for out in found]).numpy()

    def clone_for_refitting(self) -> SegmentationEstimator:
        """Return a copy with new weights (each layer's own `reset_parameters`) and a new optimiser of the same kind."""
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
                "model: expected logits that can be differentiated by the images, got some without a graph. Remove "
                "`torch.no_grad`, `detach` or NumPy from the model."
            )
        return logits

    def _find_layer(self, layer: int | str) -> nn.Module:
        names: list[str] = self._layer_names
        if isinstance(layer, int) and -len(names) <= layer < len(names):
            layer = names[layer]
        if not isinstance(layer, str) or layer not in names:
            what = f"an index below {len(names)}, or one of the `layer_names`" if names else "a model with layers"
            raise SpecError(expected("get_activations: layer", what, layer))
        return cast(nn.Module, self._model.get_submodule(layer))


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
) -> SegmentationEstimator:
    """Make an ART estimator of a segmenter: any attack of ART that asks for loss gradients runs on it.

    Labels stay masks: for binary and multilabel tasks zeros and ones of any type, (N, K, *S); for multiclass tasks
    class numbers, (N, *S). `predict` returns logits. Images may have any number of space axes, channels first.

    Args:
        model: Images inside `clip_values` -> logits (N, K, *S): a module, or any function. Normalisation is inside.
        task: What the labels mean, or its kind alone.
        input_shape: Shape of one image, (C, *S).
        loss: A name such as "dice", or a function (logits, y, valid, task) -> one value per image. None stands for
            the cross-entropy of the task: "bce", or "ce" for multiclass.
        clip_values: Smallest and largest intensity of an image.
        ignore: A label that marks pixels which do not count, such as 255.
        optimizer: For `fit`.
        preprocessing: ART's (mean, std), applied after the defences; None is none.
        preprocessing_defences: ART's preprocessors, one or a list, NumPy and PyTorch in any order.
        postprocessing_defences: ART's postprocessors; they change what `predict` returns, and no gradient.
        device_type: "cpu" or "gpu" moves a module there; None leaves it where it is.
    Raises:
        IncompatibleError: the model fails, returns probabilities or another shape, or the loss is not one for the task.
        SpecError, PluginError: an argument without a meaning, or an unknown loss.

    Cost:
        Two forwards of one image, to see that the model returns logits.
    """
    bounds, shape = read_bounds(clip_values), read_shape(input_shape)
    if device_type not in ("cpu", "gpu", None):
        raise SpecError(expected("device_type", "'cpu', 'gpu' or None", device_type))
    device = torch.device("cpu")
    if isinstance(model, nn.Module):
        if device_type is not None:
            model.to("cuda" if device_type == "gpu" and torch.cuda.is_available() else "cpu")
        device = next((p.device for p in model.parameters()), device)
    module, known = read_segmenter(model, task, shape, bounds, device)
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
