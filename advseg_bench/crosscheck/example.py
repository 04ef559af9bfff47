"""A disagreement made small: one image, one model, cropped as far as it still disagrees, saved as a script."""

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
"""Pixels along an axis under which nothing is cropped."""

SCRIPT = '''"""{name} against {reference}: {verdict}.

{reason}

{size} of image {image!r}, model {subject}, {kind}, loss {loss}, {norm} {eps:.6g}.
Run it where advseg-bench{extra} is installed: python reproduce.py
"""

from pathlib import Path

from advseg_bench.crosscheck import load_example

example = load_example(Path(__file__).parent{model})
finding = example.judge()
print(finding.verdict + ":", finding.reason)
print("loss gained by the reference", finding.ours.gain, "and by the other", finding.theirs.gain)
print("pixels that really disagree:", finding.real.any(1).nonzero()[:20, 1:].tolist())
'''


class Example:
    """One image in front of one model, with both implementations.

    Attributes:
        plan: What is compared with what.
        place: The point of the grid.
        name: The other implementation.
        model: Images -> logits of the task.
        batch: One image.
    """

    def __init__(self, plan: Plan, place: Place, name: str, model: nn.Module, batch: Batch) -> None:
        self.plan, self.place, self.name, self.model, self.batch = plan, place, name, model, batch

    def judge(self) -> Finding:
        """Run both implementations and compare them."""
        return judge_at(self.plan, self.place, self.name, self.model, self.batch)


def save_example(pair: Pair, plan: Plan, subject: Subject, folder: Path) -> Path:
    """Make a real disagreement small and write it as a script with its tensors.

    Args:
        pair: With a real disagreement, so that `pair.case` is there.
        plan: It was found with.
        subject: The network.
        folder: Made for it: reproduce.py, case.json, tensors.safetensors, model.safetensors.

    Returns:
        The script.

    Cost:
        Some ten judgements of ever smaller images.
    """
    assert pair.case is not None
    assert pair.finding.real is not None
    worst = int(pair.finding.real.flatten(1).sum(1).argmax())
    example = Example(plan, pair.place, pair.implementation, pair.case.model, select_images(pair.case.batch, [worst]))
    finding = example.judge()
    if finding.verdict != pair.finding.verdict:  # it takes the whole batch
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
    """Read what `save_example` wrote.

    Args:
        folder: With case.json.
        model: The network, for its own task; needed if the example was saved without one.

    Raises:
        RecordError: If a file is missing or damaged.
        SpecError: If a model is needed.
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
        raise RecordError(f"{folder}: expected an example of a crosscheck, got {error}. Make it again.") from None
    if model is None:
        if case["spec"] is None:
            raise SpecError(expected(folder, "a model, since the example was saved without one", None, "Give `model`."))
        spec = ModelSpec(**case["spec"])
        model = build_model(spec, channels=case["channels"], task=source, size=case["size"])
        load_weights(folder / "model.safetensors", model)
    model.eval().requires_grad_(False)
    return Example(plan, place, case["implementation"], RecastModel(model, source, place.kind).eval(), batch)


def _shrink(example: Example, verdict: Verdict) -> tuple[Example, Finding] | None:
    """Cut an axis in half so that the two still disagree with the same verdict, or None if no cut does."""
    for batch in _halves(example.batch):
        smaller = Example(example.plan, example.place, example.name, example.model, batch)
        try:
            finding = smaller.judge()
        except (RuntimeError, ValueError):
            continue  # the network cannot take so small an image
        if finding.verdict == verdict and finding.real is not None and finding.real.any():
            return smaller, finding
    return None


def _halves(batch: Batch) -> Iterator[Batch]:
    """The batch with one space axis cut in half, the longest axis first, either half."""
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
        kind=place.kind,
        loss=place.loss,
        norm=place.norm,
        eps=place.eps,
        extra=f"[{toolkit}]" if "." in example.name and ":" not in example.name else "",
        model="" if subject.spec else ", model=...",
    )
