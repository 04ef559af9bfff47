"""Minimal examples: a disagreement reduced to one model and one cropped image, saved as a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import safetensors.torch
from torch import nn

from advseg_bench.batches import Batch, select_images
from advseg_bench.cache import write_bytes, write_json
from advseg_bench.crosscheck.grid import Pair, judge_at
from advseg_bench.crosscheck.plan import Place, Plan, Subject
from advseg_bench.crosscheck.verdict import Finding, Verdict
from advseg_bench.errors import RecordError, SpecError, expected
from advseg_bench.models.build import build_model
from advseg_bench.models.recast import RecastModel
from advseg_bench.models.weights import load_weights, save_weights
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.types import Bounds, Task

SMALLEST = 8
"""Shortest axis, in pixels, that is still cropped."""

SCRIPT = '''"""{name} against {reference}: {verdict}.

{reason}

{size} of image {image!r}, model {subject}, task type {task}, loss {loss}, {norm} {eps:.6g}.
Requires advseg-bench{extra}. Run: python reproduce.py
"""

from pathlib import Path

from advseg_bench.crosscheck import load_example

example = load_example(Path(__file__).parent{model})
finding = example.judge()
print(finding.verdict + ":", finding.reason)
print("loss increase of the reference:", finding.ours.gain, "and of the other:", finding.theirs.gain)
print("pixels with a real disagreement:", finding.real.any(1).nonzero()[:20, 1:].tolist())
'''


class Example:
    """One image and one model on which two implementations disagree.

    Attributes:
        plan: The comparison.
        place: The point of the grid.
        name: The other implementation.
        model: Images -> logits of the task.
        batch: One image; more where the disagreement needs the whole batch.
    """

    def __init__(self, plan: Plan, place: Place, name: str, model: nn.Module, batch: Batch) -> None:
        self.plan, self.place, self.name, self.model, self.batch = plan, place, name, model, batch

    def judge(self) -> Finding:
        """Run both implementations and return the finding."""
        return judge_at(self.plan, self.place, self.name, self.model, self.batch)


def save_example(pair: Pair, plan: Plan, subject: Subject, folder: Path) -> Path:
    """Reduce a real disagreement to a small example and write it as a script with its tensors.

    Args:
        pair: A pair with a real disagreement, so that `pair.case` is not None.
        plan: The comparison that found it.
        subject: The network.
        folder: Is created and gets reproduce.py, case.json, tensors.safetensors and model.safetensors.

    Returns:
        The path of the script.

    Cost:
        About ten comparisons of images of decreasing size.
    """
    assert pair.case is not None
    assert pair.finding.real is not None
    worst = int(pair.finding.real.flatten(1).sum(1).argmax())
    example = Example(plan, pair.place, pair.implementation, pair.case.model, select_images(pair.case.batch, [worst]))
    finding = example.judge()
    if finding.verdict != pair.finding.verdict:  # the disagreement needs the whole batch
        example.batch, finding = pair.case.batch, pair.finding
    while (smaller := _shrink(example, finding.verdict)) is not None:
        example, finding = smaller
    batch = example.batch
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"x": batch.x, "y": batch.y, "valid": batch.valid}
    write_bytes(folder / "tensors.safetensors", safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))
    if subject.spec is not None:
        save_weights(folder / "model.safetensors", subject.model)  # type: ignore[arg-type]
    write_json(folder / "case.json", _describe(example, subject))
    script = folder / "reproduce.py"
    write_bytes(script, _write_script(example, finding, subject).encode())
    return script


def load_example(folder: Path, model: nn.Module | None = None) -> Example:
    """Read an example that `save_example` wrote.

    Args:
        folder: The folder with case.json.
        model: The network, for its original task; required if the example was saved without one.

    Returns:
        The example, its model in eval mode and frozen.

    Raises:
        RecordError: A file is missing or damaged.
        SpecError: The example was saved without a model, and none is given.
    """
    try:
        case = json.loads((folder / "case.json").read_text())
        tensors = safetensors.torch.load((folder / "tensors.safetensors").read_bytes())
        source = Task(case["source"]["kind"], tuple(case["source"]["classes"]))
        place = Place(**case["place"])
        batch = Batch(
            **tensors,
            task=Task(place.kind, tuple(case["classes"])),
            bounds=Bounds(**case["bounds"]),
            images=tuple(case["images"]),
            subjects=tuple(case["images"]),
            blocks=tuple(case["images"]),
            spacing=((float("nan"),) * (tensors["x"].dim() - 2),) * len(case["images"]),
        )
        plan = Plan(**case["plan"])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RecordError(
            f"{folder}: expected an example of a crosscheck, got {error}. Run crosscheck again."
        ) from None
    if model is None:
        if case["spec"] is None:
            raise SpecError(expected(folder, "a model, since the example was saved without one", None, "Give `model`."))
        spec = ModelSpec(**case["spec"])
        model = build_model(spec, channels=case["channels"], task=source, size=case["size"])
        load_weights(folder / "model.safetensors", model)
    model.eval().requires_grad_(False)
    return Example(plan, place, case["implementation"], RecastModel(model, source, place.kind).eval(), batch)


def _shrink(example: Example, verdict: Verdict) -> tuple[Example, Finding] | None:
    """Halve one axis such that the verdict stays the same; None if no half keeps it."""
    for batch in _halves(example.batch):
        smaller = Example(example.plan, example.place, example.name, example.model, batch)
        try:
            finding = smaller.judge()
        except (RuntimeError, ValueError):
            continue  # the image is too small for the network
        if finding.verdict == verdict and finding.real is not None and finding.real.any():
            return smaller, finding
    return None


def _halves(batch: Batch) -> Iterator[Batch]:
    """Yield both halves of the batch along each spatial axis, the longest axis first."""
    space = batch.x.shape[2:]
    for axis in sorted(range(len(space)), key=lambda a: -space[a]):
        half = (space[axis] + 1) // 2
        if space[axis] < 2 * SMALLEST:
            continue
        for start in (0, space[axis] - half):
            cut = {
                name: getattr(batch, name).narrow(axis - len(space), start, half).clone()
                for name in ("x", "y", "valid")
            }
            yield replace(batch, **cut)


def _describe(example: Example, subject: Subject) -> dict[str, object]:
    plan, batch, source = example.plan, example.batch, subject.batch.task
    return {
        "implementation": example.name,
        "place": asdict(example.place),
        "plan": {
            "reference": plan.reference,
            "settings": dict(plan.settings),
            "others": {example.name: dict(plan.others[example.name])},
            "norm": plan.norm,
            "seed": plan.seed,
        },
        "images": list(batch.images),
        "classes": list(batch.task.classes),
        "bounds": asdict(batch.bounds),
        "source": {"kind": source.kind, "classes": list(source.classes)},
        "spec": subject.spec.model_dump(mode="json", exclude={"weights"}) if subject.spec else None,
        "channels": batch.x.shape[1],
        "size": list(subject.batch.x.shape[2:]),
    }


def _write_script(example: Example, finding: Finding, subject: Subject) -> str:
    place, toolkit = example.place, example.name.split(".")[0]
    return SCRIPT.format(
        name=example.name,
        reference=example.plan.reference,
        verdict=finding.verdict,
        reason=finding.reason,
        size=" x ".join(map(str, example.batch.x.shape[2:])) + " pixels",
        image=example.batch.images[0],
        subject=place.subject,
        task=place.kind,
        loss=place.loss,
        norm=place.norm,
        eps=place.eps,
        extra=f"[{toolkit}]" if "." in example.name and ":" not in example.name else "",
        model="" if subject.spec else ", model=...",
    )
