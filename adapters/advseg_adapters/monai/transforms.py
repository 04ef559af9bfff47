"""Attacks as dictionary transforms of MONAI: one sample in, the same sample with its image attacked out."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.transforms.traits import ThreadUnsafe
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor, nn

from advseg_adapters.monai.networks import to_plain, with_meta_of
from advseg_adapters.monai.samples import MASK, check_image, find, read_labels
from advseg_bench.arguments import make_bounds, make_budget, make_task
from advseg_bench.attacks.base import attack_batch
from advseg_bench.batches import Batch
from advseg_bench.checks.outputs import read_model
from advseg_bench.checks.results import name_of
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.protocols import Attack
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.types import Norm, Task, TaskKind


class AdversarialAttackd(ThreadUnsafe, MapTransform):  # type: ignore[misc]
    """Replace an image of a sample by an adversarial one.

    The image runs as a batch of one, on the device of the model, and comes back to its own device with its metadata.
    Meanwhile the model is frozen and in eval mode; afterwards its weights, buffers, modes, flags, gradients and hooks
    are what they were. Labels are channel first, as MONAI wants them, and hold 0 and 1: (1, *S) for a binary task,
    (K, *S) for a multilabel one; for a multiclass task (1, *S) with 0, 1, ..., K - 1.

    Place it last, after everything that changes the geometry or the intensities. MONAI takes it for deterministic, so
    a `CacheDataset` keeps the attacked image; use `RandAdversarialAttackd(prob=1)` where the model goes on learning.

    Args:
        keys: Of the images, float32 (C, *S) inside `bounds`.
        label_key: Of the label that the loss compares with.
        model: Images (N, C, *S) -> raw logits (N, K, *S), with its normalisation inside.
        eps: Radius of the budget in units of the image (4/255, not 4).
        task: "binary", "multilabel" or "multiclass".
        num_classes: Logit channels; may be left out for a binary task.
        attack: A name of the catalogue, a plug-in or a toolkit, "package.module:object", or an attack object.
        loss: Name of the loss that a named attack follows; an object brings its own.
        norm: "linf" or "l2".
        settings: Further arguments of a named attack.
        valid_key: Of a mask (1, *S), 0 where a pixel counts in no loss; None if all count.
        ignore: Label value of further pixels that do not count, such as 255.
        bounds: Smallest and largest intensity of an image.
        seed: Of the random numbers of an attack that draws some; the same for each image.
        allow_missing_keys: Leave a sample without the image as it is.

    Raises:
        UserError: One line about the first mistake found in the arguments or in a sample.
    """

    backend: ClassVar[list[str]] = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        label_key: Hashable,
        model: nn.Module,
        eps: float,
        *,
        task: TaskKind,
        num_classes: int | None = None,
        attack: str | Attack = "fgsm",
        loss: str | None = None,
        norm: Norm = "linf",
        settings: Mapping[str, Any] | None = None,
        valid_key: Hashable | None = None,
        ignore: int | None = None,
        bounds: Sequence[float] = (0.0, 1.0),
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        where = type(self).__name__
        if not isinstance(model, nn.Module):
            raise SpecError(expected(where, "a torch.nn.Module as `model`", type(model).__name__))
        self.label_key, self.valid_key, self.ignore, self.seed = label_key, valid_key, ignore, seed
        self.model, self._reader = model, read_model("model", model)
        self.bounds = make_bounds(where, bounds)
        self.task = make_task(where, task, num_classes, "num_classes")
        self.budget = make_budget(where, norm, eps, self.bounds)
        self.attack = _find_attack(where, attack, loss, settings, self.task)
        self.attack_name = attack if isinstance(attack, str) else name_of(attack)
        self._checked = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with its images attacked. Cost: that of the attack and a copy of the weights, per image.

        Raises:
            DataError: The sample or the model does not fit; see the class.
            IncompatibleError: The sample or the model does not fit; see the class.
        """
        return self._attack_all(data, [self.seed] * len(self.keys))

    def _attack_all(self, data: Mapping[Hashable, Any], seeds: Sequence[int]) -> dict[Hashable, Any]:
        """Attack the image under each key, each with its seed."""
        sample = dict(data)
        for key, seed in self.key_iterator(sample, seeds):
            image = convert_to_tensor(sample[key], track_meta=get_track_meta())
            batch = self._read(f"{type(self).__name__} {key!r}", to_plain(image), sample)
            sample[key] = with_meta_of(image, self._perturb(batch, seed).to(image.device))
        return sample

    def _read(self, where: str, image: Tensor, sample: Mapping[Hashable, Any]) -> Batch:
        """Make a batch of one image, on the device of the model."""
        check_image(where, image, self.bounds)
        device = next((p.device for p in self.model.parameters()), image.device)
        labels = find(where, sample, self.label_key, "label_key")
        y, valid = read_labels(where, labels, image.shape[1:], self.task, self.ignore)
        if self.valid_key is not None:
            mask = find(where, sample, self.valid_key, "valid_key")
            counts, _ = read_labels(f"{where}, mask {self.valid_key!r}", mask, image.shape[1:], MASK)
            valid &= counts[0]
        return Batch(
            x=image.detach()[None].to(device),
            y=y[None].to(device),
            valid=valid[None].to(device),
            task=self.task,
            bounds=self.bounds,
            images=("image",),
            subjects=("subject",),
            blocks=("block",),
            spacing=((math.nan,) * (image.dim() - 1),),
        )

    def _perturb(self, batch: Batch, seed: int) -> Tensor:
        """Return the adversarial image (C, *S), inside bounds and budget."""
        first, self._checked = not self._checked, True
        generators = [torch.Generator().manual_seed(seed)]
        model = self._reader if first else self._reader.simplest()
        return attack_batch(
            self.attack, model, batch, self.budget, generators, name=self.attack_name, check_model=first
        )[0]


class RandAdversarialAttackd(RandomizableTransform, AdversarialAttackd):  # type: ignore[misc]
    """Attack a sample with some probability: adversarial augmentation.

    Whether a sample is attacked and what its attack draws come from the random state of the transform, which `Compose`
    sets, and from nothing else. An image that is not attacked is converted to a tensor all the same.

    Args:
        keys: As in `AdversarialAttackd`, like all that is not named here, except for `seed`.
        label_key: As there.
        model: As there.
        eps: As there.
        prob: Probability that a sample is attacked.
        options: Further arguments of `AdversarialAttackd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: Hashable,
        model: nn.Module,
        eps: float,
        *,
        prob: float = 0.1,
        **options: Any,
    ) -> None:
        if "seed" in options:
            raise SpecError(
                expected(type(self).__name__, "no `seed`", options["seed"], "Use set_random_state or set_determinism.")
            )
        AdversarialAttackd.__init__(self, keys, label_key, model, eps, **options)
        RandomizableTransform.__init__(self, prob)
        self._seeds = [0] * len(self.keys)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to attack, and if so a seed for each key."""
        super().randomize(None)
        if self._do_transform:
            self._seeds = [int(self.R.randint(2**31)) for _ in self.keys]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample, attacked or not. Cost: as `AdversarialAttackd` if it is attacked."""
        self.randomize()
        if self._do_transform:
            return self._attack_all(data, self._seeds)
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = convert_to_tensor(sample[key], track_meta=get_track_meta())
        return sample


def _find_attack(
    where: str, attack: str | Attack, loss: str | None, settings: Mapping[str, Any] | None, task: Task
) -> Attack:
    """Build a named attack; return an object as it is."""
    if not isinstance(attack, str):
        if loss is not None or settings:
            raise SpecError(f"{where}: an attack object has its own loss and settings. Remove `loss` and `settings`.")
        if not callable(attack) or isinstance(attack, type):
            raise SpecError(expected(where, "an attack's name, or an object called with a model and a batch", attack))
        return attack
    entry = catalogue.ATTACKS.get(attack)
    if entry is not None and entry.needs_loss != (loss is not None):
        remedy = "It follows one, such as 'dice'." if entry.needs_loss else "It follows none."
        raise SpecError(expected(where, f"{'a' if entry.needs_loss else 'no'} `loss` for {attack!r}", loss, remedy))
    kinds = catalogue.LOSSES[loss].kinds if loss in catalogue.LOSSES else catalogue.ALL_KINDS
    if task.kind not in kinds:
        raise IncompatibleError(
            expected(where, f"a loss for {task.kind} tasks", loss, f"It is for {' and '.join(kinds)}.")
        )
    try:
        written = json.dumps(dict(settings or {}))
    except TypeError as error:
        raise SpecError(f"{where}: settings: expected numbers, strings, booleans and lists: {error}.") from None
    with torch.inference_mode(False), torch.enable_grad():  # a loss is looked at by its gradient
        return load_attack(attack, json.loads(written), loss or "", task)
