"""The data set made of the phantom: names, splits, tasks, cache."""

from __future__ import annotations

import re

import numpy as np
import pytest

from advseg_bench.data.phantom import dataset as phantom
from advseg_bench.data.phantom.bowel import ORGANS
from advseg_bench.errors import RecordError
from advseg_bench.suite.specs import PhantomData


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path))
    return PhantomData(name="phantom", subjects=3, slices=4, size=48, seed=5)


def test_names_spacing_and_splits(spec):
    data = phantom.load(spec.model_copy(update={"days": 2}))
    assert len(data.cases) == 3 * 2 * 4
    first = data.cases[0]
    assert (first.image, first.block, first.subject) == ("case01_day0_slice_0001", "case01_day0", "case01")
    assert data.cases[-1].image == "case03_day1_slice_0004"
    assert first.spacing == (400 / 48, 400 / 48)
    assert len({case.image for case in data.cases}) == len(data.cases)
    by_subject = {case.subject: {c.split for c in data.cases if c.subject == case.subject} for case in data.cases}
    assert all(len(splits) == 1 for splits in by_subject.values())
    assert data.note == "Procedural phantom; no patient data."


@pytest.mark.parametrize(("count", "validation", "test"), [(3, 1, 1), (4, 1, 1), (6, 1, 2), (12, 2, 3), (85, 14, 21)])
def test_subjects_are_dealt_out_by_share(count, validation, test):
    splits = phantom.split_subjects(count, 0)
    assert (splits.count("validation"), splits.count("test")) == (validation, test)
    assert splits == phantom.split_subjects(count, 0)
    assert any(phantom.split_subjects(count, seed) != splits for seed in range(1, 6))


def test_the_three_tasks_show_the_same_organs(spec):
    multilabel, multiclass, binary = (
        phantom.load(spec.model_copy(update={"task": kind})) for kind in ("multilabel", "multiclass", "binary")
    )
    assert multilabel.task.classes == ORGANS
    assert multiclass.task.classes == ("background", *ORGANS)
    assert binary.task.classes == ("gi_tract",)
    seen = 0
    for index in range(len(multilabel.cases)):
        planes = multilabel.read(index).label
        labels = multiclass.read(index).label
        np.testing.assert_array_equal(planes, labels == np.arange(1, 4)[:, None, None])
        np.testing.assert_array_equal(binary.read(index).label[0], planes.any(axis=0))
        seen += planes.any()
    assert 0 < seen < len(multilabel.cases)


def test_a_sample_is_scaled_by_its_own_maximum(spec):
    data = phantom.load(spec.model_copy(update={"channels": 3}))
    batch = data.batch(range(4))
    assert tuple(batch.x.shape) == (4, 3, 48, 48)
    assert tuple(batch.y.shape) == (4, 3, 48, 48)
    assert bool(batch.valid.all())
    for image in batch.x:
        assert float(image.max()) == 1.0
        assert float(image.min()) >= 0.0


def test_a_black_slice_stays_black(spec):
    sample = phantom._prepare_slice(np.zeros((48, 48), np.uint16), np.zeros((48, 48), np.uint8), spec)
    assert not sample.image.any()


def test_the_cache_returns_what_was_rendered(spec, tmp_path, monkeypatch):
    rendered = phantom.load(spec).read(1)
    files = list((tmp_path / "phantom").glob("*.npz"))
    assert len(files) == 1
    monkeypatch.setattr(phantom, "render_stack", lambda *_, **__: pytest.fail("rendered again"))
    again = phantom.load(spec).read(1)
    for one, two in zip(rendered, again, strict=True):
        np.testing.assert_array_equal(one, two)
    more = phantom.load(spec.model_copy(update={"subjects": 9, "task": "binary"})).read(1)
    np.testing.assert_array_equal(more.image, rendered.image)
    with np.load(files[0]) as arrays:
        assert set(arrays) == {"images", "labels"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_cache_is_rendered_again(spec, tmp_path, monkeypatch, damage):
    rendered = phantom.load(spec).read(1)
    (file,) = (tmp_path / "phantom").glob("*.npz")
    good = file.read_bytes()
    middle = len(good) // 2
    file.write_bytes(
        {
            "cut": good[:middle],
            "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
            "empty": b"",
            "text": b"not an archive, but longer than a digest of thirty-two bytes",
        }[damage]
    )
    again = phantom.load(spec).read(1)
    monkeypatch.setattr(phantom, "render_stack", lambda *_, **__: pytest.fail("rendered a third time"))
    for one, two, three in zip(rendered, again, phantom.load(spec).read(1), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_a_cache_that_cannot_be_written_is_the_users_error(spec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(RecordError, match=re.escape(str(tmp_path / "file"))):
        phantom.load(spec).read(0)


def test_the_fingerprint_follows_the_specification_and_the_generator(spec, monkeypatch):
    fingerprint = phantom.load(spec).fingerprint
    assert fingerprint == phantom.load(spec).fingerprint
    changes = ({"seed": 6}, {"subjects": 4}, {"days": 2}, {"slices": 5}, {"size": 64}, {"task": "binary"})
    others = {phantom.load(spec.model_copy(update=change)).fingerprint for change in changes}
    monkeypatch.setattr(phantom, "GENERATOR_VERSION", "phantom-0")
    others.add(phantom.load(spec).fingerprint)
    assert len(others | {fingerprint}) == len(changes) + 2
