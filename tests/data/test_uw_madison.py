import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from clocks import count_calls
from PIL import Image
from pydantic import ValidationError

from advseg_bench.data import count_images
from advseg_bench.data.phantom.scanner import View, prepare_scan, render_slice
from advseg_bench.data.uw_madison.dataset import NOTE, load, split_cases
from advseg_bench.data.uw_madison.files import COMMON_FAULTS, OFFICIAL_FAULTS, ORGANS, list_slices, read_table
from advseg_bench.data.uw_madison.make import draw_phantom, write_uw_madison
from advseg_bench.data.uw_madison.phantom import expect_images, locate_phantom, slice_heights
from advseg_bench.data.uw_madison.rle import encode_runs
from advseg_bench.errors import DataError
from advseg_bench.suite.specs import PhantomFolder, UwMadisonData


def spec(path, **keys):
    return UwMadisonData(**{"name": "uw_madison", "path": path, "size": 16, "folds": 3} | keys)


def naive(code, rows, columns):
    """Pixel by pixel, as the data's description says: from 1, along the rows."""
    image = np.zeros((rows, columns), bool)
    numbers = [int(word) for word in code.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            image[pixel // columns, pixel % columns] = True
    return image


def pixels(case, number, rows=20, columns=24):
    return np.random.default_rng([case, number]).integers(0, 900 + case, (rows, columns)).astype(np.uint16)


def mask(case, number, rows=20, columns=24):
    """Large bowel: none on slice 1 of each scan; higher than wide, left of the middle."""
    plane = np.zeros((rows, columns), bool)
    if number > 1:
        plane[2 : 10 + number, 1 : 3 + case % 3] = True
    return plane


def write(path, scans, slices=3, rows=20, columns=24):
    """A folder of little slices; stomach has the rows mirrored, so that it may overlap."""
    lines = ["id,class,segmentation"]
    for case, day in scans:
        folder = path / "train" / f"case{case}" / f"case{case}_day{day}" / "scans"
        folder.mkdir(parents=True)
        for n in range(1, slices + 1):
            image = Image.fromarray(pixels(case, n, rows, columns))
            image.save(folder / f"slice_{n:04d}_{columns}_{rows}_1.50_2.50.png")
            plane = mask(case, n, rows, columns)
            for organ, shown in zip(ORGANS, (plane, plane & False, plane[::-1]), strict=True):
                lines.append(f"case{case}_day{day}_slice_{n:04d},{organ},{encode_runs(shown)}")
    (path / "train.csv").write_text("\n".join(lines) + "\n")
    return path


SCANS = ((1, 0), (1, 20), (2, 0), (7, 0), (7, 19), (10, 0), (11, 0))


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "data", SCANS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_uw_madison(tmp_path_factory.mktemp("uw") / "drawn", cases=4, slices=4, days=2, seed=5)


def find(data, image):
    return next(i for i, case in enumerate(data.cases) if case.image == image)


def test_cases_arrive_in_order_with_subject_scan_and_spacing(good):
    data = load(spec(good, labelled_only=False))
    numbers = [tuple(map(int, re.findall(r"\d+", case.image))) for case in data.cases]
    assert numbers == sorted(numbers)
    assert len(numbers) == 18
    case = data.cases[find(data, "case7_day19_slice_0002")]
    assert (case.subject, case.block) == ("case7", "case7_day19")
    assert case.spacing == (2.5 * 20 / 16, 1.5 * 24 / 16)
    padded = load(spec(good, labelled_only=False, fit="pad")).cases[0]
    assert padded.spacing == (2.5 * 24 / 16, 1.5 * 24 / 16)
    assert data.task.classes == ORGANS


def test_pixels_and_masks_arrive_where_they_belong(good):
    data = load(spec(good, size=24, fit="pad", labelled_only=False))
    sample = data.read(find(data, "case10_day0_slice_0003"))
    grey = pixels(10, 3)
    np.testing.assert_allclose(sample.image[0, 2:22], grey / grey.max(), atol=1e-6)
    assert (sample.label[0, 2:22] == mask(10, 3)).all()
    assert not sample.label[1].any()
    assert (sample.label[2, 2:22] == mask(10, 3)[::-1]).all()
    assert (sample.label[0] & sample.label[2]).any()
    assert sample.valid.sum() == 20 * 24
    binary = load(spec(good, size=24, fit="pad", labelled_only=False, task="binary"))
    assert binary.task.classes == ("gi_tract",)
    assert (binary.read(find(data, "case10_day0_slice_0003")).label[0] == sample.label.any(axis=0)).all()


def test_stretching_scales_both_edges_alike_and_leaves_all_valid(good):
    data = load(spec(good, size=16, labelled_only=False))
    sample = data.read(find(data, "case1_day0_slice_0002"))
    assert sample.valid.all()
    rows, columns = np.nonzero(sample.label[0])
    # rows 2 to 11 of 20 become 1.6 to 9.6 of 16, columns 1 to 3 of 24 become .67 to 2.67; half of a window counts
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 9, 1, 2)
    grey = pixels(1, 2) / pixels(1, 2).max()
    assert abs(sample.image.mean() - grey.mean()) < 0.02


def test_drawn_folder_agrees_with_its_own_masks_and_a_naive_decoder(drawn):
    table = dict(line.rsplit(",", 1) for line in (drawn / "train.csv").read_text().splitlines()[1:])
    data = load(spec(drawn, folds=2, size=360, fit="pad", labelled_only=False))
    heights = slice_heights(4)
    for image, view in (("case1_day1_slice_0002", View(266, 266, 1.5)), ("case2_day0_slice_0003", View(310, 360, 1.5))):
        case, day, number = map(int, re.findall(r"\d+", image))
        rendered, masks = render_slice(prepare_scan(5, case, day), float(heights[number - 1]), view)
        decoded = [naive(table[f"{image},{organ}"], view.height, view.width) for organ in ORGANS]
        assert (np.stack(decoded) == masks).all()
        path = next((drawn / "train").rglob(f"case{case}_day{day}/scans/slice_{number:04d}_*"))
        assert path.name == f"slice_{number:04d}_{view.width}_{view.height}_1.50_1.50.png"
        assert (np.asarray(Image.open(path)) == rendered).all()
        if view.width == 360:
            sample = data.read(find(data, image))
            assert (sample.label[:, 25:335] == masks).all()
            assert not sample.label[:, :25].any()
            assert masks.sum() > 1000
            wrong = masks[0].reshape(-1).reshape(masks[0].shape, order="F")
            assert (wrong != masks[0]).any(), "this mask would not catch columns first"


def test_the_drawn_folder_has_all_sizes_some_empty_slices_and_no_faulty_name(drawn):
    data = load(spec(drawn, folds=2, exclude="official", labelled_only=False))
    assert len(data.cases) == 4 * 4 * 2
    assert len({case.spacing for case in data.cases}) == 2
    shown = [data.read(i).label.any() for i in range(len(data.cases))]
    assert 0.5 < np.mean(shown) < 1
    assert "Procedural phantom" in data.note


@pytest.mark.parametrize(
    ("exclude", "left_out"),
    [
        ("none", set()),
        ("common", {"case7_day0"}),
        ("official", {"case7_day0"}),
        (("case1_day20", "case11_day0"), {"case1_day20", "case11_day0"}),
    ],
)
def test_excluded_scans_are_compared_whole_and_said(good, exclude, left_out):
    data = load(spec(good, exclude=exclude, labelled_only=False))
    names = {f"case{case}_day{day}" for case, day in SCANS}
    assert {case.block for case in data.cases} == names - left_out
    assert set(re.findall(r"case\d+_day\d+", data.note)) == left_out
    assert NOTE in data.note


def test_a_day_is_not_mistaken_for_one_that_begins_alike(tmp_path):
    write(tmp_path, ((1, 2), (1, 20), (1, 21), (2, 2), (3, 0)))
    data = load(spec(tmp_path, exclude=("case1_day2",), labelled_only=False))
    assert {case.block for case in data.cases} == {"case1_day20", "case1_day21", "case2_day2", "case3_day0"}


def test_lists_of_faulty_scans():
    assert set(COMMON_FAULTS) < set(OFFICIAL_FAULTS)
    assert (len(COMMON_FAULTS), len(set(OFFICIAL_FAULTS))) == (2, 12)


def test_rows_of_excluded_scans_need_no_images(good):
    shutil.rmtree(good / "train" / "case7" / "case7_day0")
    assert len(load(spec(good, labelled_only=False)).cases) == 18
    with pytest.raises(DataError, match=r"train\.csv, line 29: expected an id with an image .*'case7_day0_slice_0001'"):
        load(spec(good, exclude="none"))


def test_no_case_is_in_two_splits_and_only_labelled_slices_are_scored(good):
    data = load(spec(good))
    splits = {}
    for case in data.cases:
        splits.setdefault(case.subject, set()).add(case.split)
    assert all(len(found) == 1 for found in splits.values())
    test = data.split("test")
    assert all(data.read(i).label.any() for i in test)
    assert not all(data.read(i).label.any() for i in data.split("train"))
    everything = load(spec(good, labelled_only=False))
    scans = {data.cases[i].block for i in test}
    assert len(everything.split("test")) == len(test) + len(scans)
    assert "Test images are the slices with a mask." in data.note
    assert "Test images" not in everything.note


def test_every_thins_each_scan(good):
    data = load(spec(good, every=2, labelled_only=False))
    assert {case.image[-1] for case in data.cases} == {"1", "3"}
    assert len(data.cases) == 12


def sizes(seed):
    rng = np.random.default_rng(seed)
    return dict(zip(rng.permutation(200)[:40].tolist(), (rng.permutation(900)[:40] + 80).tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_folds_partition_the_cases_and_are_balanced(tmp_path, seed):
    given = sizes(seed)
    tests = []
    for fold in range(10):
        splits = split_cases(given, spec(tmp_path, folds=10, fold=fold))
        assert splits.keys() == given.keys()
        assert Counter(splits.values())["validation"] == round(0.15 * (40 - Counter(splits.values())["test"]))
        tests.append({case for case, split in splits.items() if split == "test"})
    assert sorted(case for part in tests for case in part) == sorted(given)
    loads = [sum(given[case] for case in part) for part in tests]
    assert max(loads) - min(loads) < max(given.values())


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_those_of_scikit_learn(tmp_path, seed):
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn comes with the extra `art`")
    given = sizes(seed)
    groups = np.repeat(list(given), list(given.values()))
    for fold, (_, test) in enumerate(selection.GroupKFold(10).split(groups, groups=groups)):
        splits = split_cases(given, spec(tmp_path, folds=10, fold=fold))
        assert {case for case, split in splits.items() if split == "test"} == set(groups[test].tolist())


def test_the_seed_moves_validation_and_never_the_test_fold(tmp_path):
    given = sizes(0)
    splits = [split_cases(given, spec(tmp_path, folds=5, seed=seed)) for seed in range(4)]
    assert len({frozenset(c for c, s in found.items() if s == "test") for found in splits}) == 1
    assert len({frozenset(c for c, s in found.items() if s == "validation") for found in splits}) > 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 10}, "expected a case for each of 10 folds, got '5 cases'. Set folds = 5 or lower"),
        ({"folds": 2, "validation": 0.99}, "subjects for training beside the test fold, got"),
        ({"exclude": ("case7_day1",)}, r"unknown scan 'case7_day1'\. Did you mean 'case7_day19'\?"),
        ({"every": 3}, r"expected a slice with a mask in fold 0, got 'none'\. Set labelled_only = false"),
    ],
)
def test_specifications_that_do_not_fit_the_folder(good, keys, message):
    with pytest.raises(DataError, match=message):
        load(spec(good, **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "multiclass"}, "task: .*masks may overlap, got 'multiclass'"),
        ({"fold": 3}, "fold: expected 0 to 2, got 3"),
        ({"neighbours": True}, "neighbours: expected channels = 3"),
        ({"exclude": ("case7",)}, "exclude"),
    ],
)
def test_specifications_that_contradict_themselves(tmp_path, keys, message):
    with pytest.raises(ValidationError, match=message):
        spec(tmp_path, **keys)


def test_neighbours_are_the_slices_before_and_after(good):
    plain = load(spec(good, size=24, fit="pad", channels=3, labelled_only=False))
    data = load(spec(good, size=24, fit="pad", channels=3, labelled_only=False, neighbours=True))
    for number, shown in ((1, (1, 1, 2)), (2, (1, 2, 3)), (3, (2, 3, 3))):
        index = find(data, f"case2_day0_slice_{number:04d}")
        stack = np.stack([pixels(2, n) for n in shown])
        np.testing.assert_allclose(data.read(index).image[:, 2:22], stack / stack.max(), atol=1e-6)
        copies = plain.read(index).image
        assert (copies[0] == copies[1]).all()
        assert (copies[0] == copies[2]).all()
        assert (data.read(index).label == plain.read(index).label).all()
    thinned = load(spec(good, size=24, fit="pad", channels=3, labelled_only=False, neighbours=True, every=2))
    third = thinned.read(find(thinned, "case2_day0_slice_0003")).image
    assert (third == data.read(find(data, "case2_day0_slice_0003")).image).all()


def test_black_slices_stay_black(good):
    path = next((good / "train" / "case1" / "case1_day0" / "scans").glob("slice_0001*"))
    Image.fromarray(np.zeros((20, 24), np.uint16)).save(path)
    assert load(spec(good, labelled_only=False)).read(0).image.max() == 0


def test_fingerprint_follows_table_names_and_keys_and_not_the_place(good, tmp_path):
    before = load(spec(good)).fingerprint
    assert load(spec(good, fold=1)).fingerprint != before
    moved = tmp_path / "moved"
    shutil.copytree(good, moved)
    assert load(spec(moved)).fingerprint == before
    table = moved / "train.csv"
    table.write_text(table.read_text().replace("large_bowel,50 3", "large_bowel,50 2", 1))
    assert load(spec(moved)).fingerprint != before


def _edit(folder, old, new):
    path = folder / "train.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _drop(folder, start):
    path = folder / "train.csv"
    path.write_text("".join(s for s in path.read_text().splitlines(keepends=True) if not s.startswith(start)))


def _scan(folder, scan="case2_day0"):
    return folder / "train" / scan.partition("_")[0] / scan / "scans"


def _name(folder, name):
    path = _scan(folder) / "slice_0002_24_20_1.50_2.50.png"
    path.rename(path.with_name(name))


LINE_OF_STOMACH = "case1_day0_slice_0002,stomach,"
DAMAGES = {
    "no folder": (shutil.rmtree, r"data: expected a folder, got 'nothing of that name'\. Set `path`"),
    "no train": (lambda d: shutil.rmtree(d / "train"), r"train: expected a folder"),
    "no table": (lambda d: (d / "train.csv").unlink(), r"train\.csv: expected a file"),
    "no slices": (
        lambda d: [shutil.rmtree(p) for p in (d / "train").iterdir()],
        r"train: expected slices train/caseC/caseC_dayD.*got 'none'",
    ),
    "stray folder": (lambda d: (d / "train" / "Case1").mkdir(), "Case1: expected a folder of the layout"),
    "stray file": (lambda d: (d / "train" / "a.txt").touch(), r"a\.txt: expected a folder of .* 'file a\.txt'"),
    "wrong case": (lambda d: (d / "train" / "case1" / "case2_day5").mkdir(), "case2_day5: expected a folder"),
    "no scans": (lambda d: (_scan(d).parent / "scan").mkdir(), "scan: expected a folder of the layout"),
    "three digits": (lambda d: _name(d, "slice_002_24_20_1.50_2.50.png"), r"expected a name slice_NNNN_WIDTH_HEIGHT"),
    "no spacing": (lambda d: _name(d, "slice_0002_24_20.png"), r"a name slice_NNNN_WIDTH_HEIGHT.*'slice_0002_24_20"),
    "zero spacing": (lambda d: _name(d, "slice_0002_24_20_0.00_2.50.png"), "a name slice_NNNN_WIDTH_HEIGHT"),
    "zero width": (lambda d: _name(d, "slice_0002_0_20_1.50_2.50.png"), "a name slice_NNNN_WIDTH_HEIGHT"),
    "other type": (lambda d: _name(d, "slice_0002_24_20_1.50_2.50.tif"), "a name slice_NNNN_WIDTH_HEIGHT"),
    "twice": (
        lambda d: (_scan(d) / "slice_0002_20_24_1.50_2.50.png").touch(),
        r"scans: expected one file for slice 2, got \['slice_0002_20_24",
    ),
    "column": (
        lambda d: _edit(d, "segmentation", "predicted"),
        r"train\.csv: expected the columns id, class, segmentation, got \['id', 'class', 'predicted'\]",
    ),
    "ragged": (lambda d: _edit(d, LINE_OF_STOMACH, "a,b,c," + LINE_OF_STOMACH), r"train\.csv: expected a readable CSV"),
    "empty table": (lambda d: (d / "train.csv").write_text(""), r"train\.csv: expected a readable CSV"),
    "odd": (lambda d: _edit(d, "large_bowel,50 3", "large_bowel,50"), r"line 5: expected pairs .* got '\d+ numbers'"),
    "word": (lambda d: _edit(d, "large_bowel,50 3", "large_bowel,50 b"), r"line 5: expected whole numbers .* got 'b'"),
    "beyond": (
        lambda d: _edit(d, LINE_OF_STOMACH, LINE_OF_STOMACH + "480 2 "),
        r"line 7: expected runs of at least one pixel within 1 to 480, got '480 2'",
    ),
    "order": (
        lambda d: _edit(d, LINE_OF_STOMACH, LINE_OF_STOMACH + "470 2 "),
        r"line 7: expected runs in order that do not overlap, after '470 2', got",
    ),
    "class": (
        lambda d: _edit(d, LINE_OF_STOMACH, "case1_day0_slice_0002,stomack,"),
        r"line 7: unknown class 'stomack'\. Did you mean 'stomach'\?",
    ),
    "same row": (
        lambda d: _edit(d, LINE_OF_STOMACH, "case1_day0_slice_0002,large_bowel,"),
        r"line 7: expected one row for each id and class, got 'case1_day0_slice_0002 as in line 5'",
    ),
    "no image": (
        lambda d: (_scan(d) / "slice_0003_24_20_1.50_2.50.png").unlink(),
        r"train\.csv, line 26: expected an id with an image in train/, got 'case2_day0_slice_0003'",
    ),
    "no id": (lambda d: _edit(d, LINE_OF_STOMACH, ",stomach,"), r"line 7: expected an id with an image .* got ''"),
    "no row": (
        lambda d: _drop(d, "case2_day0_slice_0002,small"),
        r"train\.csv: expected a row for id case2_day0_slice_0002 and class small_bowel, got 'none'.*slice_0002_24_20",
    ),
    "no rows": (lambda d: _drop(d, "case2_day0_slice_0002"), r"expected a row for id case2_day0_slice_0002 and class"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(good, damage):
    do, message = DAMAGES[damage]
    do(good)
    with pytest.raises(DataError, match=message) as caught:
        load(spec(good))
    assert "\n" not in str(caught.value)


def _save(folder, array):
    Image.fromarray(array).save(_scan(folder, "case1_day0") / "slice_0001_24_20_1.50_2.50.png")


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (
            lambda d: _save(d, np.zeros((24, 20), np.uint16)),
            r"slice_0001.*: expected 20 rows x 24 columns.*, got '24 x 20'",
        ),
        (lambda d: _save(d, np.zeros((20, 24), np.uint8)), r"expected 16-bit grey pixels, got 'uint8 \(20, 24\)'"),
        (
            lambda d: _save(d, np.zeros((20, 24, 3), np.uint8)),
            r"expected 16-bit grey pixels, got 'uint8 \(3, 20, 24\)'",
        ),
        (
            lambda d: (_scan(d, "case1_day0") / "slice_0001_24_20_1.50_2.50.png").write_bytes(b"x"),
            r"slice_0001.*: expected a readable PNG",
        ),
    ],
)
def test_damaged_slices_show_when_they_are_read(good, do, message):
    do(good)
    with pytest.raises(DataError, match=message):
        load(spec(good, labelled_only=False)).read(0)


def test_neighbours_of_other_sizes_are_refused(good):
    path = _scan(good) / "slice_0003_24_20_1.50_2.50.png"
    path.rename(path.with_name("slice_0003_20_24_1.50_2.50.png"))
    with pytest.raises(DataError, match=r"slice_0003_20_24.*: expected the size of its neighbour slice_0002"):
        load(spec(good, channels=3, neighbours=True))


def test_hidden_files_are_passed_over(good):
    for folder in (good / "train", good / "train" / "case1", _scan(good)):
        (folder / ".DS_Store").touch()
    assert len(load(spec(good, labelled_only=False)).cases) == 18


@pytest.mark.slow
def test_making_a_folder_does_not_depend_on_workers_and_overwrites_nothing(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path, workers in ((one, 1), (two, 2)):
        write_uw_madison(path, cases=2, slices=1, days=1, workers=workers)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 4
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    taken = tmp_path / "taken"
    (taken / "train").mkdir(parents=True)
    for path in (two, taken, two / "train.csv"):
        with pytest.raises(DataError, match=f"{path.name}: expected a new or an empty folder, got 'a f"):
            write_uw_madison(path, cases=1, slices=1)
    assert (two / files[-1]).read_bytes() == (one / files[-1]).read_bytes()


def test_an_interrupted_making_begins_again(tmp_path):
    write_uw_madison(tmp_path, cases=2, slices=1)
    (tmp_path / "train.csv").unlink()
    write_uw_madison(tmp_path, cases=1, slices=1)
    assert len(list((tmp_path / "train").rglob("*.png"))) == 1
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "drawn"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_phantom_data_take_the_place_of_data_and_change_no_dump(tmp_path, cache):
    phantom = PhantomFolder(cases=3, slices=2, seed=4)
    drawn = load(spec(tmp_path / "nowhere", phantom=phantom))
    folder = write_uw_madison(tmp_path / "made", cases=3, slices=2, seed=4)
    made = load(spec(folder))
    assert contents(locate_phantom(phantom)) == contents(folder)
    assert (drawn.cases, drawn.fingerprint, drawn.note) == (made.cases, made.fingerprint, made.note)
    assert drawn.note.startswith("Procedural phantom")
    assert (drawn.read(0).image == made.read(0).image).all()
    assert spec("x", phantom=phantom).model_dump() == spec("x").model_dump()
    assert locate_phantom(PhantomFolder(cases=3, slices=2, seed=5)) != locate_phantom(phantom)


KILLED = """
import os, signal, sys
from PIL import Image
from advseg_bench.data.uw_madison.make import draw_phantom
from advseg_bench.suite.specs import PhantomFolder
owner, name = {"image": (Image.Image, "save"), "table": (os, "fsync")}[sys.argv[1]]
function, calls = getattr(owner, name), []
def call_and_die(*arguments):
    function(*arguments)
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, call_and_die)
draw_phantom(PhantomFolder(cases=2, slices=1))
"""


@pytest.mark.parametrize("moment", [pytest.param("image", marks=pytest.mark.slow), "table"])
def test_a_killed_drawing_is_not_taken_for_a_finished_one(tmp_path, cache, moment):
    phantom = PhantomFolder(cases=2, slices=1)
    assert subprocess.run([sys.executable, "-c", KILLED, moment]).returncode == -9
    assert len(list(cache.rglob("*.png"))) == 2, "it was killed too early to leave anything"
    assert not locate_phantom(phantom).exists()
    assert contents(draw_phantom(phantom)) == contents(write_uw_madison(tmp_path / "made", cases=2, slices=1))
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [locate_phantom(phantom).name]


def test_two_that_draw_at_once_draw_once(cache):
    phantom = PhantomFolder(cases=2, slices=2)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(draw_phantom, phantom), pool.submit(draw_phantom, phantom)
        while not locate_phantom(phantom).exists() and not (one.done() and two.done()):
            time.sleep(0.01)
        table = locate_phantom(phantom) / "train.csv"
        written = table.stat().st_ino
        assert one.result() == two.result() == table.parent
    assert table.stat().st_ino == written
    assert len(table.read_text().splitlines()) == 1 + 2 * 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [{}, {"fold": 1, "folds": 2, "validation": 0.4}, {"every": 2}, {"labelled_only": False, "fold": 2}]
)
def test_images_of_phantom_data_are_counted_before_they_are_drawn(tmp_path, cache, keys):
    asked = spec(tmp_path / "nowhere", phantom=PhantomFolder(cases=5, slices=5, days=2), **keys)
    expected = expect_images(asked, asked.phantom)
    assert count_images(asked) == (*expected, "expected of phantom data, which are not drawn yet")
    assert not cache.exists()
    data = load(asked)
    train, test = len(data.split("train")), len(data.split("test"))
    assert expected[0] == train
    assert abs(expected[1] - test) <= 0.1 * test
    assert count_images(asked) == (train, test, "counted in the phantom data")


BIG = """
import re, sys
from pathlib import Path
from advseg_bench.data.uw_madison.files import list_slices, read_table
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
root = Path(sys.argv[1])
slices = list_slices(root)
table = read_table(root / "train.csv", slices, ())
painted = table.planes(1, slices[1].shape).sum()
print(len(slices), len(table.runs.starts), painted, peak() - before)
"""


def write_slices(root, count):
    """A folder of so many slices, each image an empty file; returns the rows of its table."""
    code = " ".join(f"{start} 40" for start in range(2000, 70000, 700))
    lines, left = ["id,class,segmentation"], count
    for case in range(1, 86):
        for day in range(4):
            scan = f"case{case}_day{day}"
            folder = root / "train" / f"case{case}" / scan / "scans"
            folder.mkdir(parents=True)
            for n in range(1, min(144, left) + 1):
                (folder / f"slice_{n:04d}_266_266_1.50_1.50.png").touch()
                lines += [f"{scan}_slice_{n:04d},{organ},{code if n % 3 else ''}" for organ in ORGANS]
            left -= min(144, left)
            if not left:
                break
        if not left:
            break
    (root / "train.csv").write_text("\n".join(lines))
    return len(lines) - 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_folder_of_the_real_size_takes_bounded_memory(tmp_path):
    assert write_slices(tmp_path, 38496) == 115488
    done = subprocess.run([sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, check=True)
    slices, runs, painted, megabytes = map(float, done.stdout.split())
    assert slices == 38496
    assert runs > 7e6
    assert painted == 3 * 98 * 40
    assert megabytes < 1000, "more than a few times the 67 MB of the table"


def test_the_work_of_reading_grows_no_faster_than_the_folder(tmp_path):
    def read(root):
        slices = list_slices(root)
        return read_table(root / "train.csv", slices, ()).planes(1, slices[1].shape)

    small, large = tmp_path / "small", tmp_path / "large"
    write_slices(small, 100)
    write_slices(large, 800)
    read(small)
    assert count_calls(read, large) < 8.5 * count_calls(read, small)
