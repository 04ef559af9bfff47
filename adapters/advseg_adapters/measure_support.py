"""Measure the capabilities of each attack class of a toolkit on a trained segmentation model.

Run `python -m advseg_adapters.measure_support torchattacks foolbox art --page docs/support.md`. One network of the
suite `quick` is recast to all three task types, and every class with a route attacks the same four images with the
settings of its route. The result is one JSON table per toolkit, which the core reads without an import of the toolkit;
`support_page` renders the tables as Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from advseg_adapters import support_page
from advseg_adapters.foreign import ForeignAttack, Route
from advseg_adapters.loading import SUPPORT
from advseg_bench.batches import Batch
from advseg_bench.cache import write_json
from advseg_bench.checks.results import inspect
from advseg_bench.data import load_dataset
from advseg_bench.geometry import project, random_sign, steepest
from advseg_bench.instruments.counter import Counter
from advseg_bench.losses import dice
from advseg_bench.models.recast import RecastModel, recast_batch
from advseg_bench.models.training import obtain_model
from advseg_bench.suite.suite import Suite
from advseg_bench.types import Budget, Norm, TaskKind

DISTRIBUTIONS = {"art": "adversarial-robustness-toolbox", "torchattacks": "torchattacks", "foolbox": "foolbox"}
KINDS: tuple[TaskKind, ...] = ("binary", "multilabel", "multiclass")
EPS: dict[Norm, float] = {"linf": 8 / 255, "l2": 1.0}
IMAGES = 4
SEED = 0
VIOLATIONS = {"non_finite": "not finite", "out_of_bounds": "out of bounds", "over_budget": "over budget"}
ATTEMPT_S = 60
"""Time limit, in seconds, for a class that is expected to fail."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A trained network and images with every class, for one task type.

    Attributes:
        model: Images (N, C, *S) -> logits (N, K, *S).
        batch: Images and labels.
    """

    model: nn.Module
    batch: Batch

    def loss(self, x: Tensor) -> Tensor:
        """Return the loss of each image, (N,)."""
        with torch.no_grad():
            return dice(self.model(x), self.batch.y, self.batch.valid, self.batch.task)


class Rowwise(nn.Module):
    """A model that evaluates images one by one.

    The logits of an image are then bit-identical in any batch, so that any effect of the batch is due to the attack.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        return torch.cat([self.model(row) for row in torch.split(x, 1)])


def make_scenes(name: str = "quick", network: str = "basicunet-s", *, rowwise: bool = False) -> dict[TaskKind, Scene]:
    """Return the scenes of all task types; the network is trained if it is not in the cache.

    Args:
        name: Name of a shipped suite.
        network: Name of one of its models.
        rowwise: Evaluate images one by one; see `Rowwise`.

    Returns:
        Task type -> scene.
    """
    suite = Suite.load(name)
    torch.set_num_threads(suite.compute.threads)
    dataset = load_dataset(suite.data)
    spec = next(model for model in suite.models if model.name == network)
    trained = obtain_model(spec, suite.training, dataset, suite.seed).model.eval()
    indices = dataset.split("test")
    whole = dataset.batch(indices)
    shown = [i for i, y in zip(indices, whole.y, strict=True) if y.flatten(1).any(1).all()]
    chosen = dataset.batch(shown[:: max(1, len(shown) // IMAGES)][:IMAGES])
    scenes = {}
    for kind in KINDS:
        batch = recast_batch(chosen, kind)
        model = RecastModel(trained, chosen.task, kind)
        scenes[kind] = Scene(Rowwise(model) if rowwise else model, batch)
    return scenes


def measure_toolkit(toolkit: str, only: Sequence[str] = ()) -> Json:
    """Return the support table of a toolkit.

    Args:
        toolkit: "art", "torchattacks" or "foolbox".
        only: Names of the classes to measure; other rows are kept from the file. Empty for all.

    Returns:
        The table, as in the file.
    """
    module = import_module(f"advseg_adapters.{toolkit}")
    path = SUPPORT / f"{toolkit}.json"
    before = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if only and path.is_file() else {}
    scenes, rowwise = make_scenes(), make_scenes(rowwise=True)
    rows = []
    for name in module.ROUTES:
        row = before.get(f"{toolkit}.{name}")
        if row is None or not only or name in only:
            started = time.perf_counter()
            row = measure_class(module, toolkit, name, scenes, rowwise)
            took = time.perf_counter() - started
            print(f"{row['name']:60} {row['status']:7} {row['batching']:17} {took:6.1f} s  {_brief(row)}", flush=True)
        rows.append(row)
    used = ["torch", "monai", "numpy", DISTRIBUTIONS[toolkit], *(["numba"] if find_spec("numba") else [])]
    measured = {
        "versions": {name: version(name) for name in used},
        "model": "basicunet-s of the suite quick, recast to each task type",
        "loss": "dice",
        "images": list(scenes["binary"].batch.images),
        "eps": EPS,
        "seed": SEED,
    }
    return {"toolkit": toolkit, "version": version(DISTRIBUTIONS[toolkit]), "measured_with": measured, "rows": rows}


def measure_class(
    module: ModuleType, toolkit: str, name: str, scenes: dict[TaskKind, Scene], rowwise: dict[TaskKind, Scene]
) -> Json:
    """Return one row of the table: the route, and the results for every task type and norm."""
    route: Route = module.ROUTES[name]
    row: Json = {"name": f"{toolkit}.{name}", "status": "cannot", "reason": route.reason}
    row |= {"view": "" if route.view == "none" else route.view}
    row |= {"objective": "" if route.objective == "none" else route.objective}
    row |= {"norms": list(route.norms), "kinds": [], "dims": list(route.dims), "batching": "", "random": route.random}
    row |= {"settings": dict(route.settings), "note": route.note, "raises": False, "evidence": []}
    if route.reason:
        return row | {"view": "", "objective": "", "norms": [], "attempt": _attempt(module, name, scenes)}
    try:
        evidence = [_measure_run(module, name, kind, norm, scenes[kind]) for kind in KINDS for norm in route.norms]
    except Exception as error:
        return row | {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    violated = sorted({word for entry in evidence for word in entry.pop("violated")})
    if violated:
        return row | {"reason": f"its result is {' and '.join(violated)}", "evidence": evidence}
    preserved = all(_is_preserved(module, name, kind, norm, rowwise[kind]) for kind in KINDS for norm in route.norms)
    return row | {
        "status": "runs",
        "kinds": list(KINDS),
        "batching": "batch-preserving" if preserved else "one image",
        "raises": all(entry["raises"] for entry in evidence),
        "evidence": evidence,
    }


def _build(module: ModuleType, name: str, scene: Scene, settings: Json | None = None) -> ForeignAttack:
    attack = module.load(name, settings or {}, dice, scene.batch.task)
    assert isinstance(attack, ForeignAttack)
    return attack


def _run(attack: ForeignAttack, scene: Scene, norm: Norm) -> Tensor:
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(scene.batch.x))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of a toolkit are irrelevant here
        return attack(scene.model, scene.batch, budget=Budget(norm, EPS[norm]), generators=generators)


def _measure_run(module: ModuleType, name: str, kind: TaskKind, norm: Norm, scene: Scene) -> Json:
    """Attack the images of a scene, one image per call, and return the results."""
    attack = replace(_build(module, name, scene), batched=False)
    batch, model, n = scene.batch, scene.model, len(scene.batch.x)
    with Counter(model).count(n) as tally:
        started = time.perf_counter()
        x_adv = _run(attack, scene, norm)
        seconds = time.perf_counter() - started
    passes = {"forwards": tally.all_forwards / n, "backwards": tally.all_backwards / n}
    clean, attacked, noise = scene.loss(batch.x), scene.loss(x_adv), scene.loss(_random_sign(batch, norm))
    with torch.no_grad():
        reached = attack.reached(model(x_adv), model(batch.x), batch)
    count = None if reached is None else int(reached.sum())
    flags = set().union(*inspect(x_adv, batch, Budget(norm, EPS[norm]), attack.traits).flags)
    return {
        "kind": kind,
        "norm": norm,
        "loss": {"clean": _mean(clean), "attacked": _mean(attacked), "random_sign": _mean(noise)},
        "reached": count,
        "raises": attack.route.view != "none"
        and (bool(attacked.mean() > max(clean.mean(), noise.mean())) or bool(count)),
        "unchanged": int((x_adv == batch.x).flatten(1).all(1).sum()),
        **passes,
        "seconds": round(seconds / n, 3),
        "violated": [words for flag, words in VIOLATIONS.items() if flag in flags],
    }


def _is_preserved(module: ModuleType, name: str, kind: TaskKind, norm: Norm, scene: Scene) -> bool:
    """Return whether one call for all images is bit-identical to one call per image, without a random start."""
    route: Route = module.ROUTES[name]
    fixed = {key: False for key in route.random_by if route.settings.get(key)}
    attack = replace(_build(module, name, scene, fixed), batched=True)
    if attack.together(len(scene.batch.x)) == 1:
        return False
    alone = _run(replace(attack, batched=False), scene, norm)
    try:
        together = _run(attack, scene, norm)
    except Exception:  # any failure is due to the batch: single images succeeded
        return False
    return torch.equal(alone, together)


def _attempt(module: ModuleType, name: str, scenes: dict[TaskKind, Scene]) -> str:
    """Run a class that is expected to fail, and describe the outcome."""
    scene = scenes["multilabel"]
    route = replace(module.ROUTES[name], reason="")

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {ATTEMPT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(ATTEMPT_S)
    try:
        with patch.dict(module.ROUTES, {name: route}):
            x_adv = _run(_build(module, name, scene), scene, route.norms[0])
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:160]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if torch.equal(x_adv, scene.batch.x):
        return "returned the clean images"
    images = (scene.batch.x, x_adv, _random_sign(scene.batch, route.norms[0]))
    clean, attacked, noise = (_mean(scene.loss(x)) for x in images)
    return f"ran; loss {clean:.3f} -> {attacked:.3f} ({noise:.3f})"


def _random_sign(batch: Batch, norm: Norm) -> Tensor:
    """Return the noise baseline: a random sign at full radius."""
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(batch.x))]
    direction = steepest(random_sign(batch.x, generators), norm)
    return project(batch.x + EPS[norm] * direction, batch.x, Budget(norm, EPS[norm]), batch.bounds)


def _mean(values: Tensor) -> float:
    mean = float(values.mean())
    return round(mean, 4) if math.isfinite(mean) else mean


def _brief(row: Json) -> str:
    if row["status"] == "cannot":
        return str(row["reason"])
    parts = [f"{e['loss']['clean']:.3f}->{e['loss']['attacked']:.3f} {e['reached'] or ''}" for e in row["evidence"]]
    return ("raises " if row["raises"] else "WEAK   ") + "  ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure toolkits and write their tables."""
    parser = argparse.ArgumentParser(prog="advseg_adapters.measure_support", description=main.__doc__)
    parser.add_argument(
        "toolkits", nargs="*", choices=[*DISTRIBUTIONS, []], help="toolkits to measure; none writes the page only"
    )
    parser.add_argument("--only", default="", help="comma-separated class names; other rows are kept")
    parser.add_argument("--page", type=Path, help="Markdown file to write the tables to, such as docs/support.md")
    options = parser.parse_args(arguments)
    only = [name for name in options.only.split(",") if name]
    for toolkit in options.toolkits:
        write_json(SUPPORT / f"{toolkit}.json", measure_toolkit(toolkit, only))
    if options.page:
        options.page.write_text(support_page.render(support_page.read_tables(SUPPORT)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
