"""The networks of a comparison: models of a suite, and networks with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pydantic import ValidationError

from advseg_bench.batches import Batch
from advseg_bench.crosscheck.plan import Subject
from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Dataset
from advseg_bench.errors import IncompatibleError, SpecError, unknown
from advseg_bench.models.build import build_model
from advseg_bench.models.training import obtain_model
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.suite.suite import Suite


def load_subjects(
    suite: Suite,
    *,
    models: Sequence[str] = (),
    untrained: Sequence[str] = (),
    images: int = 4,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Subject]:
    """Return the models of a suite with test images; models that are not in the cache are trained.

    Args:
        suite: Models, data and training recipe.
        models: Names of models; empty for all of the suite.
        untrained: Further networks with random weights, such as "smp.Unet:vgg13" or "monai.SegResNet".
        images: Number of test images, evenly spaced among those with a mask.
        progress: Called with (model, epochs done, total epochs).

    Returns:
        One `Subject` per network, all with the same images.

    Raises:
        UserError: A model is unknown, or cannot be built or trained; or too few test images have a mask.
    """
    known = {spec.name: spec for spec in suite.models}
    for name in models:
        if name not in known:
            raise SpecError(unknown(f"suite {suite.name}", "model", name, known))
    dataset = load_dataset(suite.data)
    extra = [_read_spec(text) for text in untrained]
    batch = _spread(dataset, images)
    subjects = []
    for spec in [known[name] for name in models or known]:
        trained = obtain_model(
            spec,
            suite.training,
            dataset,
            suite.seed,
            partial(progress, spec.name),
            inference=suite.inference,
            suite=suite.name,
        )
        subjects.append(Subject(spec.name, trained.model, batch, True, spec))
    for spec in extra:
        channels, *size = batch.x.shape[1:]
        model = build_model(
            spec, channels=channels, task=dataset.task, size=size, seed=suite.seed, inference=suite.inference
        )
        subjects.append(Subject(f"{spec.name} (untrained)", model, batch, False, spec))
    return subjects


def _read_spec(text: str) -> ModelSpec:
    """Parse "architecture:encoder", such as "smp.Unet:vgg13"."""
    architecture, _, encoder = text.partition(":")
    name = text.replace(":", "-")
    try:
        return ModelSpec(name=name, architecture=architecture, encoder=encoder or None)
    except ValidationError as error:
        raise SpecError(f"untrained model {text}: {error.errors()[0]['msg']}.") from None


def _spread(dataset: Dataset, images: int) -> Batch:
    """Select evenly spaced test images among those with the largest number of classes in their mask."""
    test = dataset.split("test")
    first = 1 if dataset.task.kind == "multiclass" else 0
    shown = []
    for i in test:
        label = dataset.read(i).label
        classes = {k for k in range(first, len(dataset.task.classes)) if (label[k] if first == 0 else label == k).any()}
        shown.append((len(classes), i))
    most = max(count for count, _ in shown)
    best = [i for count, i in shown if count == most]
    if not most or len(best) < images:
        raise IncompatibleError(
            f"crosscheck: expected at least {images} test images that show {most or 'some'} classes, got {len(best)}. "
            "Use fewer images."
        )
    return dataset.batch([best[(2 * i + 1) * len(best) // (2 * images)] for i in range(images)])
