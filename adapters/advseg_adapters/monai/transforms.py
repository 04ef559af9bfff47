"""Attacks as dictionary transforms of MONAI, which replace the image of a sample by an adversarial one."""

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

    The image is attacked as a batch of one on the device of the model, and returned to its original device with its
    metadata. The model is frozen and in eval mode during the attack; afterwards its weights, buffers, modes, flags,
    gradients and hooks are restored. Labels are channel first, as usual in MONAI: zeros and ones (1, *S) for a binary
    task and (K, *S) for a multilabel task; class numbers 0, ..., K - 1 of shape (1, *S) for a multiclass task.

    Place it last, after all transforms of geometry or intensity. MONAI treats it as deterministic, so a `CacheDataset`
    keeps the adversarial image; use `RandAdversarialAttackd(prob=1)` while the model is being trained.

    Args:
        keys: Keys of the images, float32 (C, *S) inside `bounds`.
        label_key: Key of the labels.
        model: Images (N, C, *S) -> raw logits (N, K, *S), with normalisation inside.
        eps: Radius of the budget in units of intensity (4/255, not 4).
        task: "binary", "multilabel" or "multiclass".
        num_classes: Number of logit channels; optional for a binary task.
        attack: A name of the catalogue, of a plug-in or of a toolkit, "package.module:object", or an attack object.
        loss: Name of the loss of a named attack; an attack object has its own.
        norm: "linf" or "l2".
        settings: Further arguments of a named attack.
        valid_key: Key of a mask (1, *S) that is 0 at pixels to exclude from the loss; None if there is none.
        ignore: Label value of further pixels to exclude, such as 255.
        bounds: Smallest and largest intensity of an image.
        seed: Seed of random attacks, the same for every image.
        allow_missing_keys: Whether to return a sample without the image unchanged.
        stochastic: Whether the model is known to be random in eval mode; another model must be a function of its image.

    Raises:
        UserError: An argument or a sample is invalid, or the model does not fit.

    Cost:
        That of the attack for each image, and a copy of the model's weights.

    Example:
        >>> import torch
        >>> from advseg_adapters.monai import AdversarialAttackd
        >>> sample = {"image": torch.full((1, 8, 8), 0.5), "label": torch.ones(1, 8, 8)}
        >>> model = torch.nn.Conv2d(1, 1, 1)
        >>> attack = AdversarialAttackd("image", "label", model, 0.1, task="binary", attack="fgsm", loss="dice")
        >>> round(float((attack(sample)["image"] - sample["image"]).abs().max()), 3)
        0.1
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
        stochastic: bool = False,
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
        self.stochastic, self._checked = stochastic, False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the sample with adversarial images.

        Args:
            data: A sample with the images and the labels.

        Raises:
            DataError: The sample is invalid.
            IncompatibleError: The model does not fit the sample.
        """
        return self._attack_all(data, [self.seed] * len(self.keys))

    def _attack_all(self, data: Mapping[Hashable, Any], seeds: Sequence[int]) -> dict[Hashable, Any]:
        """Attack the image under each key with its seed."""
        sample = dict(data)
        for key, seed in self.key_iterator(sample, seeds):
            image = convert_to_tensor(sample[key], track_meta=get_track_meta())
            batch = self._read(f"{type(self).__name__} {key!r}", to_plain(image), sample)
            sample[key] = with_meta_of(image, self._perturb(batch, seed).to(image.device))
        return sample

    def _read(self, where: str, image: Tensor, sample: Mapping[Hashable, Any]) -> Batch:
        """Return a batch of one image on the device of the model."""
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
            self.attack,
            model,
            batch,
            self.budget,
            generators,
            name=self.attack_name,
            check_model=first,
            stochastic=self.stochastic,
        )[0]


class RandAdversarialAttackd(RandomizableTransform, AdversarialAttackd):  # type: ignore[misc]
    """Replace an image of a sample by an adversarial one with a given probability, for adversarial training.

    All random numbers come from the random state of the transform, which `Compose` sets. An image that is not attacked
    is still converted to a tensor.

    Args:
        keys: Keys of the images, float32 (C, *S) inside `bounds`.
        label_key: Key of the labels.
        model: Images (N, C, *S) -> raw logits (N, K, *S), with normalisation inside.
        eps: Radius of the budget in units of intensity.
        prob: Probability that a sample is attacked.
        **options: Further arguments of `AdversarialAttackd`, except for `seed`.

    Raises:
        UserError: An argument or a sample is invalid, or the model does not fit.

    Cost:
        As `AdversarialAttackd` if the sample is attacked, else none.

    Example:
        >>> import torch
        >>> from advseg_adapters.monai import RandAdversarialAttackd
        >>> sample = {"image": torch.full((1, 8, 8), 0.5), "label": torch.ones(1, 8, 8)}
        >>> options = {"task": "binary", "attack": "fgsm", "loss": "dice"}
        >>> attack = RandAdversarialAttackd("image", "label", torch.nn.Conv2d(1, 1, 1), 0.1, prob=0.6, **options)
        >>> attack = attack.set_random_state(seed=0)
        >>> [bool((attack(sample)["image"] != sample["image"]).any()) for _ in range(4)]
        [True, False, False, False]
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
        """Choose at random whether to attack, and if so a seed for each key."""
        super().randomize(None)
        if self._do_transform:
            self._seeds = [int(self.R.randint(2**31)) for _ in self.keys]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the sample, with adversarial images or with the images as tensors."""
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
        remedy = "Give one, such as loss='dice'." if entry.needs_loss else "Remove `loss`."
        raise SpecError(expected(where, f"{'a' if entry.needs_loss else 'no'} `loss` for {attack!r}", loss, remedy))
    kinds = catalogue.LOSSES[loss].kinds if loss in catalogue.LOSSES else catalogue.ALL_KINDS
    if task.kind not in kinds:
        raise IncompatibleError(
            expected(where, f"a loss for {task.kind} tasks", loss, f"Use it for {' and '.join(kinds)} tasks.")
        )
    try:
        written = json.dumps(dict(settings or {}))
    except TypeError as error:
        raise SpecError(f"{where}: settings: expected numbers, strings, booleans and lists, got {error}.") from None
    with torch.inference_mode(False), torch.enable_grad():  # the check of a loss needs its gradient
        return load_attack(attack, json.loads(written), loss or "", task)
