from __future__ import annotations

import json
import re
import tomllib
from importlib.resources import files

import pytest

from advseg_bench.data import count_images, load_dataset
from advseg_bench.errors import DataError, SpecError
from advseg_bench.suite.cells import plan, show_eps, show_radii
from advseg_bench.suite.cost import estimate
from advseg_bench.suite.layers import list_suites
from advseg_bench.suite.specs import FolderData, PhantomData, PluginData
from advseg_bench.suite.suite import Suite, parse_suite
from advseg_bench.suite.timing import expect

TEXT = files("advseg_bench.suite.shipped").joinpath("smoke.toml").read_text()


def test_a_relative_path_to_nothing_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^no/where: expected a folder, .* images/ and masks/.* {tmp_path}/no/where"):
        load_dataset(FolderData(name="folder", path="no/where", classes=("a",)))


@pytest.mark.parametrize("name", list_suites())
def test_shipped_suites_load_and_survive_json(name):
    suite = Suite.load(name)
    assert suite.name == name
    assert Suite.model_validate_json(json.dumps(suite.as_json())) == suite
    cells = plan(suite)
    assert len({cell.id for cell in cells}) == len(cells)
    assert sum(cell.arm.attack == "none" for cell in cells) == len(suite.models)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size = 32", "sizee = 32", "^s.toml: data: unknown key 'sizee'. Did you mean 'size'?"),
        ("size = 32", "size = 3", "data.size: expected an edge of 16 to 1024 pixels, or for volumes three .*, got 3"),
        ('"mni152"', '"mni15"', "data.name: unknown data set 'mni15'. Did you mean 'mni152'?"),
        ('"multilabel"', '"multilabels"', "data.task: Input should be 'binary', 'multilabel' or 'multiclass'"),
        ("[training]", "[trainin]", "top level: unknown key 'trainin'. Did you mean 'training'?"),
        ('recipe = "quick"', 'recipe = "qick"', "training: unknown recipe 'qick'. Did you mean 'quick'?"),
        ("epochs = 10", 'loss = "dise"', "training.loss: unknown loss 'dise'. Did you mean 'dice'?"),
        ("epochs = 10", "epoch = 10", "training: unknown key 'epoch'. Did you mean 'epochs'?"),
        ("monai.UNet", "monai.Unet", "architecture: unknown architecture 'monai.Unet'. Did you mean"),
        ('"unet-xs"', '"basicunet-xs"', "models: two models are named 'basicunet-xs'. Rename one"),
        ('"unet-xs"', '"../x"', "model 2 .../x., name: String should match"),
        ('"fgsm"', '"fgms"', "attack 1 .fgms., name: unknown attack 'fgms'. Did you mean 'fgsm'?"),
        (
            '["bce", "dice"]',
            '["bce", "dicce"]',
            "attack 1 .fgsm., losses.1: unknown loss 'dicce'.* 'dice'?",
        ),
        ('["bce", "dice"]', "[]", "attack 1 .fgsm.: losses: attack 'fgsm' needs a loss"),
        ("draws = 2", 'losses = ["bce"]', "attack 2 .random_sign.: losses: attack 'random_sign' takes no loss"),
        ('losses = ["bce"', 'draws = 2\nlosses = ["bce"', "attack 1 .fgsm.: draws: attack 'fgsm' is not random"),
        ('"8/255"', "8", 'attack 1 .fgsm.: eps: expected L_inf radii below 1.* got 8.* write "8/255"'),
        ('"8/255"', "1.0", "attack 1 .fgsm.: eps: expected L_inf radii below 1"),
        ('"8/255"', "-0.1", "attack 1 .fgsm., eps.1: expected a finite eps >= 0, got -0.1"),
        ('"8/255"', "nan", "attack 1 .fgsm., eps.1: expected a finite eps >= 0, got nan"),
        ('"8/255"', "true", 'attack 1 .fgsm., eps.1: expected a number or a fraction such as "4/255"'),
        ('"8/255"', '"8/0"', "attack 1 .fgsm., eps.1: expected a number or a fraction"),
        ('"8/255"', '"2/255"', "attack 1 .fgsm.: eps: a value of attack 'fgsm' is listed twice"),
        ("epochs = 10", "lr = inf", "training.lr: Input should be a finite number"),
        ("mean = 0.5", "mean = nan", "model 1 .basicunet-xs., mean: expected finite numbers, got nan"),
        ("epochs = 10", "head_bias = false", 'training.head_bias: expected a number or "none"'),
        (
            "draws = 2",
            "settings = { day = 2020-01-01 }",
            "attack 2 .random_sign., settings: expected numbers, strings",
        ),
        ('recipe = "quick"', 'recipe = ["quick"]', "training: unknown recipe"),
        ('"8/255"', '"1e999"', "attack 1 .fgsm., eps.1: expected a"),
        ("schema = 1", "schema = 2", "schema: Input should be 1, got 2"),
        ("seed = 0", "seed = -1", "seed: Input should be greater than or equal to 0, got -1"),
        ("[data]", "[data", "^s.toml: is not valid TOML"),
        ('name = "mni152"', "", "data.name: missing. Known: mni152, phantom, folder"),
        ('name = "smoke"', "", "name: missing. Add this key"),
        (
            'name = "mni152"',
            'name = "folder"\npath = "x"\nclasses = ["a", "a"]',
            "data: classes: a name is listed twice",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_remedy(old, new, message):
    assert old in TEXT
    with pytest.raises(SpecError, match=message) as error:
        parse_suite(TEXT.replace(old, new, 1), "s.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "classes", "message"),
    [
        ("binary", ["a", "b"], "classes: .*binary task, got 2"),
        ("multiclass", ["a"], "classes: .*multiclass task, .*got 1"),
    ],
)
def test_classes_must_fit_the_task(task, classes, message):
    data = f'name = "folder"\npath = "x"\nclasses = {json.dumps(classes)}'
    text = TEXT.replace('name = "mni152"', data).replace('"multilabel"', f'"{task}"')
    with pytest.raises(SpecError, match=message):
        parse_suite(text, "s.toml")


def test_an_unknown_suite_names_the_nearest(tmp_path):
    with pytest.raises(SpecError, match=r"unknown suite 'quik'\. Did you mean 'quick'?.* path of a TOML file"):
        Suite.load("quik")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read as text"):
        Suite.load(tmp_path / "binary.toml")


def test_cell_ids_follow_the_content():
    suite = parse_suite(TEXT, "s")
    ids = {cell.id for cell in plan(suite)}
    assert ids == {cell.id for cell in plan(parse_suite(TEXT, "t"))}
    assert ids == {cell.id for cell in plan(parse_suite(TEXT.replace("title =", "title = 'x' #"), "s"))}
    for change in (("seed = 0", "seed = 1"), ("size = 32", "size = 48"), ("epochs = 10", "lr = 0.1")):
        assert ids.isdisjoint(cell.id for cell in plan(parse_suite(TEXT.replace(*change, 1), "s")))
    more = {cell.id for cell in plan(parse_suite(TEXT.replace('"8/255"]', '"8/255", "16/255"]', 1), "s"))}
    assert ids < more


def test_overlapping_attack_tables_are_refused():
    again = '\n[[attacks]]\nname = "fgsm"\nlosses = ["dice"]\neps = ["8/255"]\n'
    with pytest.raises(SpecError, match="the attack 'basicunet-xs fgsm dice linf 8/255' is listed twice"):
        plan(parse_suite(TEXT + again, "s"))


def test_a_loss_without_meaning_for_the_task_is_skipped_with_the_reason():
    cells = plan(parse_suite(TEXT.replace('"multilabel"', '"multiclass"'), "s"))
    skipped = [cell for cell in cells if cell.skip]
    assert len(skipped) == 4
    assert {cell.arm.loss for cell in skipped} == {"bce"}
    assert "defined for binary and multilabel tasks, not for multiclass" in skipped[0].skip


def test_the_cost_of_a_sweep_is_one_forward_a_backward_per_loss_and_a_forward_per_result():
    cost = estimate(plan(parse_suite(TEXT, "s")))
    models, losses, eps, draws = 2, 2, 2, 2
    assert cost.shared_forwards == models * (1 + losses * eps + draws * eps)
    assert cost.shared_backwards == models * losses
    assert cost.separate_forwards == models * (1 + 2 * losses * eps + draws * eps)
    assert cost.separate_backwards == models * losses * eps


def test_the_cost_of_a_plugin_is_unknown():
    assert estimate(plan(parse_suite(TEXT.replace('"random_sign"', '"my.attacks:Mine"'), "s"))) is None


def test_an_l2_radius_may_be_larger_than_one():
    suite = parse_suite(TEXT.replace('"8/255"', '3.5\nnorm = "l2"'.replace("\n", ', "1/2"]\nnorm = "l2"#')), "s")
    assert {attack.eps for attack in suite.attacks if attack.norm == "l2"} == {(2 / 255, 3.5, 0.5)}


def test_the_head_bias_can_be_switched_off():
    assert parse_suite(TEXT.replace("epochs = 10", 'head_bias = "none"'), "s").training.head_bias is None


def test_eps_is_shown_in_grey_levels_where_it_is_one():
    assert [show_eps(4 / 255), show_eps(0.007), show_eps(0.0)] == ["4/255", "0.007", "0/255"]
    assert [show_eps(0.8, 400), show_eps(0.8), show_eps(4 / 255, 1.0)] == ["0.8", "204/255", "4/255"]


def test_many_radii_are_shown_in_short():
    assert show_radii([1 / 255, 2 / 255, 4 / 255, 8 / 255]) == "1 2 4 8 /255"
    assert show_radii([0.009, *(n / 255 for n in range(17)), 0.007]) == "0-16 /255, 0.007, 0.009"
    assert show_radii([0.5]) == "0.5"


@pytest.mark.parametrize(
    ("name", "profile", "images", "limits"),
    [
        ("quick", None, (91, 36), (1, 8)),
        ("smoke", None, (91, 36), (0.1, 1)),
        ("standard", None, (91, 36), (5, 60)),
        ("wang2024", "smoke", (60, 56), (0.1, 3)),
        ("wang2024", "cpu", (60, 56), (5, 20)),
        ("wang2024", "full", (29_449, 1_659), (10_000, 1_000_000)),
    ],
)
def test_the_minutes_of_a_shipped_suite_are_known_before_it_has_run(
    name, profile, images, limits, tmp_path, monkeypatch
):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path))
    suite = Suite.load(name, profile=profile)
    expected = expect(suite, plan(suite), images=images, workers=2)
    assert expected is not None, "run the suite, or benchmarks/measure_timings.py, and fill suite/shipped/timings.json"
    assert limits[0] < expected.minutes < limits[1]
    assert "measured on" in expected.source
    slower = expect(suite, plan(suite), images=images, workers=1)
    more = expect(suite, plan(suite), images=(2 * images[0], images[1]), workers=2)
    assert min(slower.minutes, more.minutes) > expected.minutes


def test_every_profile_of_a_shipped_suite_is_timed():
    profiles = tomllib.loads(files("advseg_bench.suite.shipped").joinpath("wang2024.toml").read_text())["profiles"]
    assert set(profiles) == {"full", "cpu", "smoke"}
    assert set(list_suites()) == {"quick", "smoke", "standard", "wang2024"}


CROSSED = """
[[attacks]]
name = "fgsm"
losses = ["bce", "ce"]
eps = ["4/255"]
vary = { order = ["defined", "released"], form = ["additive", "blend"], channels = ["tied"] }
"""


def test_vary_makes_an_attack_of_every_combination_and_defaults_are_not_told():
    text = TEXT.split("[[attacks]]")[0].replace("size = 32", "size = 32\nchannels = 3") + CROSSED
    cells = [cell for cell in plan(parse_suite(text, "s")) if cell.model == "unet-xs" and cell.arm.loss == "bce"]
    assert [cell.arm.options for cell in cells] == [
        {"channels": "tied"},
        {"channels": "tied", "form": "blend"},
        {"channels": "tied", "order": "released"},
        {"channels": "tied", "order": "released", "form": "blend"},
    ]
    assert not any(cell.skip for cell in cells)
    cost = estimate(tuple(cells))
    assert (cost.shared_backwards, cost.separate_backwards) == (2, 4), "form and channels share a gradient"
    assert cost.shared_forwards == 4


def test_a_limit_of_forwards_is_told_to_each_cell_and_changes_no_identity():
    free, limited = TEXT, TEXT.replace('name = "fgsm"', 'name = "fgsm"\nmax_forwards = 20', 1)
    assert free != limited
    without, cells = plan(parse_suite(free, "s")), plan(parse_suite(limited, "s"))
    assert [cell.id for cell in cells] == [cell.id for cell in without]
    assert {(cell.arm.attack, cell.max_forwards) for cell in cells} >= {("none", None), ("fgsm", 20)}
    assert {cell.max_forwards for cell in without} == {None}
    message = r"attack 1 \(fgsm\), max_forwards: Input should be greater than or equal to 1, got 0"
    with pytest.raises(SpecError, match=message):
        parse_suite(limited.replace("= 20", "= 0"), "s")


def test_shuffled_signs_share_the_gradient_of_fgsm():
    both = '[[attacks]]\nname = "{}"\nlosses = ["bce"]\neps = ["4/255"]\n'
    text = TEXT.split("[[attacks]]")[0] + both.format("fgsm") + both.format("shuffled_sign")
    cost = estimate(plan(parse_suite(text, "s")))
    assert (cost.shared_backwards, cost.separate_backwards) == (2, 4)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"tied"', '"tied"', "channels 'tied' equals 'independent'"),
        ('losses = ["bce", "ce"]', 'losses = ["ce"]', "loss 'ce' is defined for multiclass tasks, not for multilabel"),
        ('eps = ["4/255"]', 'eps = [0.5]\nnorm = "l2"', "form 'blend' is defined for L_inf budgets"),
        ('"multilabel"', '"multiclass"', "order 'released' needs masks and logits of equal shape"),
        ('["bce", "ce"]', '["my.losses:mine"]', "loss 'my.losses:mine' is undefined with its arguments swapped"),
    ],
)
def test_settings_without_meaning_are_skipped_with_the_reason(old, new, reason):
    text = TEXT.split("[[attacks]]")[0] + CROSSED.replace('"tied"', '"tied", "independent"')
    cells = plan(parse_suite(text.replace(old, new), "s"))
    assert any(cell.skip and cell.skip.startswith(reason) for cell in cells), {cell.skip for cell in cells}


def test_a_setting_stands_in_one_place():
    text = TEXT.split("[[attacks]]")[0] + CROSSED
    with pytest.raises(SpecError, match=r"vary: 'order' of attack 'fgsm' is in settings too"):
        parse_suite(text + 'settings = { order = "released" }\n', "s")
    with pytest.raises(SpecError, match=r"vary\.channels: a value of attack 'fgsm' is listed twice"):
        parse_suite(text.replace('["tied"]', '["tied", "tied"]'), "s")
    with pytest.raises(SpecError, match=r"vary\.channels: a value of attack 'fgsm' is listed twice"):
        parse_suite(text.replace('["tied"]', "[[1, 2], [1, 2]]"), "s")


PROFILES = """
[profiles.small]
note = "smaller"
training = { epochs = 2 }
data = { size = 16 }

[[profiles.small.models]]
name = "one"
architecture = "monai.UNet"
settings = { channels = [8, 16], strides = [2] }
"""


def test_a_profile_is_laid_over_the_suite():
    suite = parse_suite(TEXT + PROFILES, "s", "small")
    plain = parse_suite(TEXT + PROFILES, "s")
    assert (suite.profile, suite.note, suite.training.epochs, suite.data.size) == ("small", "smaller", 2, 16)
    assert (suite.training.floor, suite.data.task) == (plain.training.floor, "multilabel"), "the rest stays"
    assert [model.name for model in suite.models] == ["one"]
    assert suite.attacks == plain.attacks == parse_suite(TEXT, "s").attacks
    assert plain.profile == ""
    with pytest.raises(SpecError, match=r"s: unknown profile 'smal'\. Did you mean 'small'\?"):
        parse_suite(TEXT + PROFILES, "s", "smal")
    with pytest.raises(SpecError, match="s: has no profiles"):
        parse_suite(TEXT, "s", "small")


def test_a_suite_extends_another_with_a_data_set_of_its_own(tmp_path):
    (tmp_path / "base.toml").write_text(TEXT + PROFILES)
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'extends = "base.toml"\nprofile = "small"\nname = "mine"\n'
        '[data]\nname = "folder"\npath = "here"\nclasses = ["a"]\n[profiles.other]\nseed = 3\n'
    )
    suite = Suite.load(mine)
    assert (suite.name, suite.profile, suite.note) == ("mine", "small", "smaller")
    assert (suite.data.name, suite.data.size, suite.data.task) == ("folder", 16, "multilabel")
    assert [model.name for model in suite.models] == ["one"]
    other = Suite.load(mine, profile="other")
    assert (other.seed, other.profile, len(other.models)) == (3, "other", 2)
    assert str(Suite.load(mine, data="there").data.path) == "there"
    with pytest.raises(SpecError, match="unknown profile 'bad'"):
        Suite.load(mine, profile="bad")


def test_a_profile_of_a_file_refines_the_one_of_the_suite_that_it_extends(tmp_path):
    (tmp_path / "base.toml").write_text(TEXT + PROFILES)
    (tmp_path / "middle.toml").write_text('extends = "base.toml"\nseed = 7\n')
    (tmp_path / "mine.toml").write_text('extends = "middle.toml"\n[profiles.small]\nnote = "mine"\n')
    suite = Suite.load(tmp_path / "mine.toml", profile="small")
    assert (suite.note, suite.seed, suite.training.epochs, len(suite.models)) == ("mine", 7, 2, 1)


@pytest.mark.parametrize("profile", ["cpu", "smoke"])
def test_a_profile_draws_phantom_data_only_where_its_own_path_leads_nowhere(profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absent = Suite.load("wang2024", profile=profile)
    assert absent.data.phantom.cases >= 12
    assert Suite.model_validate_json(json.dumps(absent.as_json())) == absent
    assert Suite.load("wang2024").data.phantom is None
    assert Suite.load("wang2024", profile=profile, data="elsewhere").data.phantom is None
    absent.data.path.mkdir()
    there = Suite.load("wang2024", profile=profile)
    assert there.data.phantom is None
    assert "phantom" not in there.as_json()["data"]
    assert [cell.id for cell in plan(there)] == [cell.id for cell in plan(absent)]


def test_half_of_the_cpu_profiles_phantom_subjects_are_for_test():
    data = Suite.load("wang2024", profile="cpu").data
    assert data.phantom.cases // data.folds >= 12


def test_phantom_data_belong_to_the_path_that_they_stand_in_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.toml"
    head = 'extends = "wang2024"\nprofile = "cpu"\nname = "mine"\n[data]\n'
    mine.write_text(f'{head}path = "misspelt"\n')
    assert Suite.load(mine).data.phantom is None
    mine.write_text(f"{head}size = 64\n")
    assert Suite.load(mine).data.phantom.cases == 24
    mine.write_text(f'{head}path = "mine"\nphantom = {{ cases = 30 }}\n')
    assert Suite.load(mine).data.phantom.cases == 30
    mine.write_text(f"{head}phantom = {{ case = 30 }}\n")
    with pytest.raises(SpecError, match=r"data\.phantom: unknown key 'case'\. Did you mean 'cases'\?"):
        Suite.load(mine)
    mine.write_text(f'{head}name = "phantom"\n')
    assert Suite.load(mine).data.name == "phantom"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "nowhere"', "unknown suite 'nowhere'"),
        ('extends = "self.toml"', "extends to name another suite, or a TOML file beside this one, got 'self.toml'"),
        ("extends = 3", "expected extends to name another suite"),
        ('extends = "smoke"\nprofiles = 3', "expected profiles to be tables"),
        ('extends = "smoke"\nprofile = ["a"]', "expected profile to be one of the names"),
        ('extends = "smoke"\nextend = 3', "unknown key 'extend'. Did you mean 'extends'?"),
    ],
)
def test_a_file_that_cannot_be_resolved_is_one_line(text, message, tmp_path):
    (tmp_path / "self.toml").write_text(text)
    with pytest.raises(SpecError, match=message):
        Suite.load(tmp_path / "self.toml")


def test_a_path_for_data_without_one_is_refused():
    with pytest.raises(SpecError, match="smoke: data: unknown key 'path'"):
        Suite.load("smoke", data="x")


def test_images_are_counted_fixed_assumed_or_not_at_all(tmp_path):
    assert count_images(Suite.load("quick").data) == (91, 36, "")
    away = Suite.load("wang2024", data=tmp_path / "none").data
    train, test, how = count_images(away)
    assert (train, test) == (round(38_496 * 0.9 * 0.85), 1659)
    assert "none does not exist: numbers of the whole data set" in how
    halves = Suite.load("wang2024", profile="cpu", data=tmp_path / "none").data
    assert count_images(halves)[1] == 16_590 // 2
    assert count_images(PhantomData(name="phantom", subjects=4, slices=2, size=16))[2] == "drawn"
    assert count_images(PluginData(name="mypkg.data:load")) is None


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ('name = "fgsm"\nlosses = ["dise"]\neps = ["4/255"]', "unknown loss 'dise'"),
        ('name = "fgsm"\nlosses = ["dice"]\neps = [-1]', "a finite eps >= 0, got -1"),
        ('nam = "fgsm"\nlosses = ["dice"]\neps = ["4/255"]', "unknown key 'nam'. Did you mean 'name'"),
    ],
)
def test_one_mistake_in_an_attack_is_one_problem(tmp_path, attack, message):
    path = tmp_path / "suite.toml"
    path.write_text(f'extends = "smoke"\nname = "mine"\n[[attacks]]\n{attack}\n')
    with pytest.raises(SpecError, match=re.escape(message)) as raised:
        Suite.load(path)
    assert "more problem" not in str(raised.value)
