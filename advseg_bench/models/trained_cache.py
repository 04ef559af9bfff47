"""The cache of trained models: one folder for each key, checked at every use and written by one process at a time.

| file | content |
|---|---|
| `model.safetensors`, `model.json` | the trained weights and their description |
| `SHA256SUMS` | the digests of both |
| `about.json` | which model, data and suite the training was for; only read by `advseg-bench cache` |
| `resume.pt` | the last checkpoint of a training that is not complete, with its digest at the end |
| `.lease` | the process that trains |
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from advseg_bench.cache import CACHE_REMEDY, is_writable, make_folder, sweep, write_bytes, write_json
from advseg_bench.cache.contents import ABOUT, CHECKPOINT, SIDECAR, VERIFIED, WEIGHTS
from advseg_bench.cache.digests import SUMS, find_change, seal, unseal, write_sums
from advseg_bench.cache.holder import Holder
from advseg_bench.cache.lease import LEASE, Lease, hold
from advseg_bench.cache.notices import report
from advseg_bench.errors import RecordError, UserError, one_line
from advseg_bench.models.module import SegmentationModule
from advseg_bench.models.training_loop import Training
from advseg_bench.models.weights import load_weights, save_weights


class TrainedFolder:
    """The folder of one trained model.

    Args:
        path: The folder; it need not exist.
        key: The key under which the model is cached.
        name: Name of the model, for messages.
    """

    def __init__(self, path: Path, key: str, name: str) -> None:
        self.path, self.key, self.name = path, key, name
        self._fault: str | None = None

    def read(self, model: SegmentationModule) -> dict[str, Any] | None:
        """Load the weights, if the files match their digests.

        Files without digests, as older versions wrote, get them if the folder can be written.

        Args:
            model: Receives the weights; it is unchanged if nothing is returned.

        Returns:
            The content of `model.json`; None if the model is not in the cache or its files are damaged.
        """
        self._fault = None
        if not any((self.path / name).exists() for name in (*VERIFIED, SUMS)):
            return None
        try:
            new = not (self.path / SUMS).exists()
            if not all((self.path / name).exists() for name in VERIFIED) and new:
                return None  # a training that ended between two files
            self._fault = None if new else find_change(self.path / SUMS, self.path, VERIFIED)
            if self._fault is not None:
                return None
            outcome: dict[str, Any] = json.loads((self.path / SIDECAR).read_text())
            if not {*outcome} >= {"validation_dice", "train_seconds"}:
                raise ValueError(f"{SIDECAR} lacks its keys")
            load_weights(self.path / WEIGHTS, model)
        except (UserError, ValueError, TypeError, OSError) as error:
            self._fault = one_line(error)
            return None
        self._tidy(new)
        return outcome

    def read_written(self, model: SegmentationModule) -> dict[str, Any]:
        """Read what `finish` wrote.

        Raises:
            RecordError: If it is not what was written, or a weight is not finite.
        """
        outcome = self.read(model)
        if outcome is None:
            raise RecordError(f"model {self.name}: {self.path}: {self._fault}. Run the same command again.")
        return outcome

    @contextmanager
    def held(self) -> Iterator[Lease]:
        """Hold the folder, so that two processes never train one model at once; the second one waits.

        Files that `read` found damaged before are removed, and leftovers of interrupted writing as well.

        Raises:
            RecordError: If the folder cannot be written.
        """
        if (reason := is_writable(self.path)) is not None:
            why = f"{self._fault}, so model {self.name} has to" if self._fault else f"model {self.name} has to"
            raise RecordError(
                f"{self.path}: {why} be trained, and the folder cannot be written: {reason}. {CACHE_REMEDY} "
                "It can be a copy of this cache."
            )
        make_folder(self.path, CACHE_REMEDY)
        with hold(self.path / LEASE, what=f"training {self.name}", on_wait=self._report_wait) as lease:
            sweep(self.path)
            lease.sweep_claims()
            yield lease

    def discard_damaged(self) -> None:
        """Remove files that `read` found damaged, and report it; the lease must be held."""
        if self._fault is None:
            return
        report(f"model {self.name}: {self.path}: {self._fault}. It is trained again.")
        for name in (SUMS, *VERIFIED):
            (self.path / name).unlink(missing_ok=True)

    def describe(self, about: dict[str, Any]) -> None:
        """Write what the training is for."""
        write_json(self.path / ABOUT, about)

    def save(self, training: Training) -> None:
        """Write a checkpoint, from which an interrupted training resumes."""
        buffer = io.BytesIO()
        torch.save({"key": self.key, "training": training.as_state()}, buffer)
        write_bytes(self.path / CHECKPOINT, seal(buffer.getvalue()))

    def resume(self, training: Training, previous: Holder | None = None) -> None:
        """Restore the last checkpoint; without one, or with a damaged one, the training starts from the beginning.

        Args:
            training: A training that has not begun.
            previous: A process that trained and is gone.
        """
        path = self.path / CHECKPOINT
        fault = None
        if path.exists():
            fault = self._restore(training, path)
            if fault is not None:
                aside = path.with_name(f"{path.name}.damaged")
                path.replace(aside)
                report(
                    f"model {self.name}: {path}: {fault}. It is renamed to {aside.name}, and the training starts anew."
                )
        if previous is not None and fault is None:
            where = f"after epoch {training.epoch} of {training.recipe.epochs}" if training.epoch else "from the start"
            report(f"model {self.name}: {previous}, which trained it, has ended; the training continues {where}.")

    def finish(self, training: Training, outcome: dict[str, Any]) -> None:
        """Write weights, description and digests, and remove the checkpoint."""
        save_weights(self.path / WEIGHTS, training.model)
        write_json(self.path / SIDECAR, outcome)
        (self.path / CHECKPOINT).unlink(missing_ok=True)
        write_sums(self.path / SUMS, self.path, VERIFIED)

    def _restore(self, training: Training, path: Path) -> str | None:
        """Restore a checkpoint; return what is wrong with it, upon which the training is as it was."""
        before = copy.deepcopy(training.as_state())
        try:
            data = unseal(path.read_bytes())
            if data is None:
                return "does not match its digest, or is of another version"
            content = torch.load(io.BytesIO(data), map_location=training.device, weights_only=True)
            if content["key"] != self.key:
                return "is of another training"
            training.restore(content["training"])
            _check_position(training)
        except Exception as error:  # torch raises many types for a damaged file
            training.restore(before)
            return f"cannot be restored ({one_line(error, 100)})"
        return None

    def _report_wait(self, holder: Holder) -> None:
        report(f"model {self.name}: waiting for {holder}, which trains it now.")

    def _tidy(self, new: bool) -> None:
        """Write missing digests and remove leftovers, if the folder can be written and no other process holds it."""
        leftover = new or any(self.path.glob(".*.tmp")) or (self.path / LEASE).exists()
        if not leftover or is_writable(self.path) is not None:
            return
        with suppress(RecordError), hold(self.path / LEASE, wait=False) as lease:
            sweep(self.path)
            lease.sweep_claims()
            if new and not (self.path / SUMS).exists():
                write_sums(self.path / SUMS, self.path, VERIFIED)


def _check_position(training: Training) -> None:
    """Raise `ValueError` if what a checkpoint restored cannot be the state of this training."""
    if not (isinstance(training.epoch, int) and 0 <= training.epoch <= training.recipe.epochs):
        raise ValueError(f"epoch {training.epoch!r}")
    if not (isinstance(training.best_dice, float) and isinstance(training.seconds, int | float)):
        raise ValueError(f"Dice {training.best_dice!r}")
    shapes = {name: tensor.shape for name, tensor in training.model.state_dict().items()}
    if training.best and {name: tensor.shape for name, tensor in training.best.items()} != shapes:
        raise ValueError("weights of another network")
