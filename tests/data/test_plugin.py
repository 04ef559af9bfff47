"""Data sets of plug-ins: called with the specification and the settings, and held to the form of all data sets."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from advseg_bench.data import load_dataset
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.data.prepare import fingerprint, prepare, task_for
from advseg_bench.errors import DataError, PluginError, SpecError, UserError
from advseg_bench.suite.specs import PluginData

HERE = "test_plugin"
SPLITS = ("train", "validation", "test")
fault = lambda sample: sample  # noqa: E731


def unreadable(spec):
    data = blobs(spec)

    def read(index):
        if index:
            raise OSError(5, "no disk")
        return data.read(index)

    return Dataset(name="gone", task=data.task, cases=data.cases, read=read, fingerprint="f")


def blobs(spec, *, noise=0.1, classes=("blob",)):
    """A bright corner in each image."""

    def read(index):
        draw = np.random.default_rng(index)
        planes = np.zeros((len(classes), 20, 20), bool)
        planes[:, : 5 + index, :9] = True
        image = (0.2 + 0.5 * planes[0] + noise * draw.random((20, 20))).clip(0, 1)
        return fault(prepare(image, planes, None, spec))

    cases = [Case(f"blob{i}", f"person{i}", "b", (1.0, 1.0), split) for i, split in enumerate(SPLITS)]
    task = task_for(spec.task, classes)
    return Dataset(name="blobs", task=task, cases=cases, read=read, fingerprint=fingerprint(spec, "1"), note="Blobs.")


def demands(spec, depth):
    return blobs(spec)


def takes_all(spec, **settings):
    return blobs(spec, **settings)


def fails(spec):
    raise KeyError("no such file")


def refuses(spec):
    raise DataError("blobs: file x is damaged.")


def returns_none(spec):
    return None


def keywords(*, noise=1):
    return None


def other_task(spec):
    return blobs(PluginData(name="a:b", task="multilabel"))


def twins(spec):
    data = blobs(spec)
    cases = [Case("twin", case.subject, case.block, case.spacing, case.split) for case in data.cases]
    return Dataset(name="twins", task=data.task, cases=cases, read=data.read, fingerprint="f")


def one_split(spec):
    data = blobs(spec)
    return Dataset(name="one", task=data.task, cases=data.cases[:2], read=data.read, fingerprint="f")


number = 7


def spec(name="blobs", **keys):
    return PluginData.model_validate({"name": f"{HERE}:{name}", "task": "binary", "size": 16, **keys})


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_a_data_set_by_path_gives_batches(kind):
    data = load_dataset(spec(task=kind, channels=3, settings={"noise": 0.0}))
    batch = data.batch(range(3))
    assert batch.x.shape == (3, 3, 16, 16)
    assert batch.y.shape == ((3, 16, 16) if kind == "multiclass" else (3, 1, 16, 16))
    assert batch.task.kind == kind
    assert (data.name, data.note) == ("blobs", "Blobs.")
    assert [len(data.split(name)) for name in SPLITS] == [1, 1, 1]
    assert load_dataset(spec("takes_all", settings={"noise": 0.2})).name == "blobs"


def test_the_fingerprint_follows_specification_settings_and_code(tmp_path, monkeypatch):
    prints = {
        load_dataset(s).fingerprint for s in (spec(), spec(size=17), spec(settings={"noise": 0.2}), spec("takes_all"))
    }
    assert len(prints) == 4
    assert load_dataset(spec()).fingerprint in prints
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for text in ("from test_plugin import blobs", "from test_plugin import blobs  # changed"):
        (tmp_path / "blobs_of_mine.py").write_text(text)
        sys.modules.pop("blobs_of_mine", None)
        found.add(load_dataset(PluginData(name="blobs_of_mine:blobs", task="binary", size=16)).fingerprint)
    sys.modules.pop("blobs_of_mine")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (spec(settings={"noize": 1}), SpecError, "unknown setting 'noize'. Did you mean 'noise'?"),
        (spec("demands"), SpecError, "expected a setting 'depth', got none. Add it"),
        (spec("fails"), DataError, "expected a data set, got KeyError: 'no such file'. Check"),
        (spec("returns_none"), PluginError, "expected its function to return .*Dataset, got 'NoneType'"),
        (spec("keywords"), PluginError, r"expected a function f\(spec, \*\*settings\), got 'f\(\*, noise=1\)'"),
        (spec("number"), PluginError, r"expected a function f\(spec, \*\*settings\) .*, got 'int'"),
        (spec("blob"), PluginError, "unknown object of test_plugin 'blob'. Did you mean 'blobs'?"),
        (spec("other_task"), DataError, "expected labels for a binary task, got 'multilabel'. Set `task`"),
        (spec("twins"), DataError, "expected a unique name .*, got 'twin' twice"),
        (spec("one_split"), DataError, "expected images in the test split, got none."),
    ],
)
def test_what_is_no_data_set_is_one_line(wrong, error, message):
    with pytest.raises(error, match=f"^data set {wrong.name}: {message}".replace("?", r"\?")) as raised:
        load_dataset(wrong)
    assert "\n" not in str(raised.value)


def test_a_mistake_that_the_data_set_finds_is_told_as_it_is():
    with pytest.raises(UserError, match=r"^blobs: file x is damaged.$"):
        load_dataset(spec("refuses"))


def test_an_image_that_cannot_be_read_is_named():
    data = load_dataset(spec("unreadable"))
    with pytest.raises(DataError, match=r"^data set .*: blob1: .*got OSError: \[Errno 5\] no disk"):
        data.batch([1])


def ignored(value):
    """The label of a pixel that does not count may be anything."""
    return lambda s: Sample(s.image, np.where(np.eye(16, dtype=bool), value, s.label), ~np.eye(16, dtype=bool))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("binary", lambda s: s._replace(image=s.image.astype(float)), "image: expected float32 .*, got float64"),
        ("binary", lambda s: s._replace(image=s.image[0]), r"image: expected .* \(1, 16, 16\), got float32 \(16, 16\)"),
        ("binary", lambda s: s._replace(image=s.image * 255), r"image: expected finite values in \[0, 1\], got values"),
        ("binary", lambda s: s._replace(image=s.image * np.float32("nan")), "image: expected finite values"),
        ("binary", lambda s: s._replace(label=s.label.astype(np.uint8) * 255), "label: expected bool .*, got uint8"),
        ("binary", lambda s: s._replace(label=s.label.repeat(2, 0)), r"label: expected bool \(1, .* got bool \(2, 1"),
        ("multiclass", lambda s: s._replace(label=s.label * 255), "label: expected classes 0 to 1, got 255"),
        ("multiclass", lambda s: s._replace(label=s.label - 1), "label: expected classes 0 to 1, got -1"),
        ("multiclass", lambda s: s._replace(label=s.label.astype(np.int32)), "label: expected int64 .*, got int32"),
        ("binary", lambda s: s._replace(valid=s.valid.astype(int)), r"valid: expected bool \(16, 16\), got int64"),
        ("binary", lambda s: s._replace(valid=[1]), "valid: expected bool .*, got list, no NumPy array"),
        ("multiclass", ignored(255), None),
    ],
)  # fmt: skip
def test_a_sample_that_is_not_as_promised_names_the_image(monkeypatch, kind, change, message):
    data = load_dataset(spec(task=kind))
    monkeypatch.setattr(sys.modules[HERE], "fault", change)
    if message is None:
        assert data.batch([1, 2]).y.shape == (2, 16, 16)
        return
    with pytest.raises(DataError, match=f"^data set {HERE}:blobs: blob1: {message}") as error:
        data.batch([1])
    assert "\n" not in str(error.value)
