"""One line attacks one batch, and gives the rows of a suite bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from strategies import CHANNELS, KINDS, make_batch
from torch import nn

import advseg_bench as ab
from advseg_bench import geometry, losses, metrics
from advseg_bench.attacks.base import image_generators
from advseg_bench.data import load_dataset
from advseg_bench.errors import DataError, IncompatibleError, PluginError, SpecError, UserError
from advseg_bench.models.build import build_model
from advseg_bench.registry import catalogue
from advseg_bench.registry.loading import load_attack
from advseg_bench.running.runner import Conditions, run_unit
from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import plan
from advseg_bench.suite.suite import parse_suite

EVERY_ATTACK = """
schema = 1
name = "all"
[data]
name = "mni152"
size = 32
[[models]]
name = "net"
architecture = "monai.BasicUNet"
settings = { features = [4, 4, 4, 8, 8, 4] }
[[attacks]]
name = "fgsm"
losses = ["bce", "dice"]
eps = ["4/255"]
vary = { form = ["additive", "blend", "blend_released"], order = ["defined", "released"] }
[[attacks]]
name = "bim"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 3 }
[[attacks]]
name = "pgd"
losses = ["dice"]
eps = ["2/255", "4/255"]
settings = { steps = 3 }
[[attacks]]
name = "pgd"
losses = ["bce"]
norm = "l2"
eps = [0.5]
settings = { steps = 3, keep = "best" }
[[attacks]]
name = "mifgsm"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 3 }
[[attacks]]
name = "nifgsm"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 3 }
[[attacks]]
name = "segpgd"
eps = ["4/255"]
settings = { steps = 3 }
[[attacks]]
name = "cospgd"
eps = ["4/255"]
settings = { steps = 3, restarts = 2 }
[[attacks]]
name = "tsallis_pgd"
eps = ["4/255"]
settings = { steps = 6, radius_schedule = "shrinking" }
[[attacks]]
name = "apgd"
losses = ["present_dice", "balanced_ce"]
eps = ["4/255"]
settings = { steps = 6, keep_by = "hard_dice", objective = "present_dice" }
[[attacks]]
name = "padam"
losses = ["dice"]
eps = ["4/255"]
settings = { steps = 3 }
[[attacks]]
name = "square"
eps = ["4/255"]
settings = { queries = 20 }
[[attacks]]
name = "square"
norm = "l2"
eps = [0.5]
settings = { queries = 20 }
[[attacks]]
name = "shuffled_sign"
losses = ["dice"]
eps = ["4/255"]
[[attacks]]
name = "random_sign"
eps = ["4/255"]
draws = 2
[[attacks]]
name = "uniform_noise"
eps = ["4/255"]
"""


def find_class(name: str, options: dict[str, object]) -> type:
    """The attribute of `ab.attacks` that an entry of the catalogue names."""
    target = catalogue.ATTACKS[name].find_target(options)
    return getattr(ab.attacks, target.rpartition(":")[2])


def test_every_shipped_attack_is_a_class_of_ab_attacks():
    targets = {t for entry in catalogue.ATTACKS.values() for t in (entry.target, *entry.variants.values())}
    for target in targets:
        module, _, name = target.partition(":")
        assert getattr(ab.attacks, name).__module__ == module
        assert name in ab.attacks.__all__
        assert name in dir(ab.attacks)


@pytest.fixture(scope="module")
def suite_rows():
    suite = parse_suite(EVERY_ATTACK, "all")
    assert {attack.name for attack in suite.attacks} == {*catalogue.ATTACKS} - {"transfer"}, "an attack is missing here"
    data = load_dataset(suite.data)
    model = build_model(suite.models[0], channels=1, task=data.task, size=32, seed=0).eval().requires_grad_(False)
    cells = [cell for cell in plan(suite) if cell.skip is None]
    test = data.split("test")[:8]
    rows, failures = run_unit(Unit("net", test, tuple(cells)), model, data, Conditions(seed=suite.seed, batch=8))
    assert not failures
    return suite, model, data.batch(test), cells, rows


def test_one_line_equals_the_rows_of_a_suite_bit_for_bit(suite_rows):
    suite, model, batch, cells, rows = suite_rows
    clean = metrics.predict(model(batch.x), batch.task)
    seen = set()
    for cell in cells[1:]:
        arm, wanted = cell.arm, [row for row in rows if row["cell"] == cell.id]
        given = {"loss": arm.loss} if arm.loss else {}
        attack = find_class(arm.attack, arm.options)(**given, **arm.options)
        generators = image_generators(suite.seed, cell.id, batch.images)
        budget = ab.Budget(arm.norm, cell.eps)
        x_adv = attack(model, batch, budget=budget, generators=generators)
        if not attack.traits.random:
            assert torch.equal(attack(model, batch, eps=cell.eps, norm=arm.norm), x_adv), cell.label
        counts = metrics.count(metrics.predict(model(x_adv), batch.task), clean, batch)
        moves = geometry.measure_moves(x_adv, batch.x)
        for i, row in enumerate(wanted):
            assert (row["tp"], row["fp"], row["fn"]) == tuple(c[i].tolist() for c in (counts.tp, counts.fp, counts.fn))
            assert row["flipped_pixels"] == int(counts.flipped[i])
            assert (row["linf"], row["l2"], row["unmoved"]) == tuple(float(m[i]) for m in moves), cell.label
        seen.add(type(attack).__name__)
    assert seen == {
        "FGSM",
        "ReleasedFGSM",
        "BIM",
        "PGD",
        "MIFGSM",
        "NIFGSM",
        "SegPGD",
        "CosPGD",
        "TsallisPGD",
        "APGD",
        "PAdam",
        "ShuffledSign",
        "RandomSign",
        "UniformNoise",
        "Square",
    }


def make_network(kind: str, axes: int = 2) -> nn.Module:
    convolution = nn.Conv2d if axes == 2 else nn.Conv3d
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(convolution(2, 6, 3, padding=1), nn.ReLU(), convolution(6, CHANNELS[kind], 1))


def make_convolution(channels: int, classes: int = 1, window: int = 1) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(channels, classes, window)


@pytest.mark.parametrize("space", [(7, 5), (5, 4, 6)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", catalogue.ATTACKS)
def test_one_line_attacks_any_module(name, kind, space):
    whole, _ = make_batch(kind, space=space)
    labels = whole.y if kind == "multiclass" else whole.y.double()
    batch = ab.Batch.of(whole.x, labels, task=kind, classes=CHANNELS[kind] if kind == "multiclass" else None)
    assert torch.equal(batch.y, whole.y)
    given = {"loss": "dice"} if catalogue.ATTACKS[name].needs_loss else {}
    if name == "transfer":
        given |= {"source": make_network(kind, len(space)), "keep": "last"}
    model = make_network(kind, len(space)).train()
    x_adv = find_class(name, {})(**given)(model, batch, eps=4 / 255)
    moved = geometry.distance(x_adv, batch.x, "linf")
    assert ((moved > 3 / 255) & (moved <= 4 / 255 + 1e-6)).all()
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_loss_is_a_name_or_a_function():
    assert ab.attacks.PGD(loss="dice").loss is losses.dice
    assert ab.attacks.PGD(loss=losses.dice) == ab.attacks.PGD(loss="dice")

    def doubled(logits, y, valid, task):
        return 2 * losses.bce(logits, y, valid, task)

    batch, _ = make_batch("binary")
    model = make_network("binary")
    mine, theirs = (ab.attacks.FGSM(loss=loss)(model, batch, eps=0.1) for loss in (doubled, "bce"))
    assert torch.equal(mine, theirs)


def test_random_attacks_are_seeded_per_image():
    batch, _ = make_batch("binary")
    attack, model = ab.attacks.RandomSign(), make_network("binary")
    first = attack(model, batch, eps=0.1)
    assert torch.equal(first, attack(model, batch, eps=0.1))
    assert not torch.equal(first, attack(model, batch, eps=0.1, seed=1))
    alone = attack(model, ab.Batch.of(batch.x[1:2], batch.y[1:2], task="binary", images=["image1"]), eps=0.1)
    assert torch.equal(alone[0], first[1]), "an image's result does not depend on its neighbours"
    assert len({tuple((first - batch.x)[i].sign().flatten().tolist()) for i in range(3)}) == 3


def test_arrays_in_any_order_of_memory_are_taken():
    x, y = X.numpy()[:, :, ::-1], Y.numpy().astype(">f4")
    batch = ab.Batch.of(x, y, task="binary")
    assert torch.equal(batch.x, X.flip(2))
    assert torch.equal(ab.Batch.of(list(X), list(Y), task="binary").x, X)


def test_a_loss_that_is_none_is_refused():
    def swapped(logits, y, valid, task):
        return -losses.bce(logits, y, valid, task)

    batch, _ = make_batch("binary")
    with pytest.raises(IncompatibleError, match="swapped"):
        ab.attacks.FGSM(loss=swapped)(make_network("binary"), batch, eps=0.1)


def test_an_own_loss_of_a_shipped_name_is_not_taken_for_it():
    def bce(logits, y, valid, task):
        return losses.ce(logits, y, valid, task)

    whole, _ = make_batch("multiclass")
    x_adv = ab.attacks.FGSM(loss=bce)(make_network("multiclass"), whole, eps=0.1)
    assert torch.equal(x_adv, ab.attacks.FGSM(loss="ce")(make_network("multiclass"), whole, eps=0.1))


def test_a_subclass_with_traits_of_its_own_climbs_all_the_same():
    class Far(ab.attacks.BIM):
        traits = ab.Traits(max_budget_ratio=2.0)

    batch, _ = make_batch("binary")
    wanted = ab.attacks.BIM(loss="dice", steps=3)(make_network("binary"), batch, eps=0.1)
    assert torch.equal(Far(loss="dice", steps=3)(make_network("binary"), batch, eps=0.1), wanted)


def test_a_subclass_with_a_loop_of_its_own_states_no_cost():
    class Twice(ab.attacks.FGSM):
        def perturb(self, model, batch, *, budget, generators):
            first = ab.attacks.FGSM.perturb(self, model, batch, budget=budget, generators=generators)
            return ab.attacks.FGSM.perturb(self, model, batch, budget=budget, generators=generators) * 0 + first

    assert ab.attacks.FGSM(loss="dice").traits.forwards == 1
    assert Twice(loss="dice").traits.forwards is None


LOOPS = {
    "APGD": ("perturb", "begin", "climb_ball"),
    "PAdam": ("perturb", "begin", "climb_ball"),
    "PGD": ("perturb", "begin", "climb_ball"),
    "Square": ("perturb", "begin"),
    "Transfer": ("perturb", "begin", "inner"),
}


@pytest.mark.parametrize(("name", "methods"), LOOPS.items())
def test_a_stepped_subclass_with_a_loop_of_its_own_states_no_cost(name, methods):
    base = getattr(ab.attacks, name)
    settings = {"source": "b"} if name == "Transfer" else {}
    settings |= {} if name == "Square" else {"loss": "dice"}
    assert base(**settings).traits.forwards
    assert type("Renamed", (base,), {})(**settings).traits.forwards
    for method in methods:
        other = type("Own", (base,), {method: lambda self, *given, **named: None})
        assert other(**settings).traits.forwards is None
        assert other(**settings).traits.backwards is None


def test_a_subclass_with_an_objective_of_its_own_shares_no_gradient():
    class Away(ab.attacks.ShuffledSign):
        def objective(self, logits, batch):
            return -ab.attacks.ShuffledSign.objective(self, logits, batch)

    keys = {attack.gradient_key() for attack in (Away(loss="dice"), ab.attacks.ShuffledSign(loss="dice"))}
    assert len(keys) == 2


def test_functions_and_toolkits_take_the_same_call():
    @ab.attack
    def shift(model, x, y, eps):
        return x + 2 * eps

    batch, _ = make_batch("binary")
    model = make_network("binary")
    with pytest.warns(UserWarning, match="attack .*shift: moved the image further than `eps`"):
        x_adv = shift(model, batch, eps=0.05)
    assert geometry.distance(x_adv, batch.x, "linf").amax() <= 0.05 + 1e-6
    task = batch.task
    theirs = load_attack("torchattacks.FGSM", {}, "dice", task)(model, batch, eps=0.05)
    assert torch.equal(theirs, ab.attacks.FGSM(loss="dice")(model, batch, eps=0.05))


X, Y = torch.linspace(0, 1, 128).view(2, 1, 8, 8), torch.zeros(2, 8, 8)
WRONG_BATCHES = [
    ({"x": (X * 255).byte()}, DataError, r"x: expected floating-point images, got 'torch.uint8'"),
    ({"x": X * 255 + 1}, DataError, r"batch: x: expected intensities from 0 to 1, got 1 to 256"),
    (
        {"x": X[0, 0]},
        DataError,
        r"x: expected 2-D or 3-D images of shape \(N, C, \*S\), got \(8, 8\)",
    ),
    ({"y": Y + 255}, DataError, r"y\[0\]: expected labels 0 and 1, got 255\. Threshold or renumber"),
    (
        {"y": Y[:, :4]},
        DataError,
        r"expected binary labels \(2, 1, 8, 8\) for images .*, got x .* and y \(2, 4, 8\)",
    ),
    ({"y": Y[:1]}, DataError, r"expected binary labels \(2, 1, 8, 8\) .* and y \(1, 8, 8\)"),
    ({"task": "multi"}, SpecError, r"task: unknown task 'multi'\. Did you mean 'multilabel'"),
    ({"task": "multiclass"}, SpecError, r"expected 2 or more \(the background is one\) as `classes`.*got None"),
    ({"task": "multiclass", "classes": 3, "y": Y + 3}, DataError, r"y\[0\]: expected labels 0 to 2, got 3"),
    ({"bounds": (1, 0)}, SpecError, "bounds: expected a smaller and a larger number"),
    ({"subjects": ["one"]}, DataError, "subjects: expected one for each of 2 images, got 1"),
    ({"images": ["a", "a"]}, DataError, "images: expected .*, got 'a'"),
    ({"classes": "liver"}, SpecError, "task: expected a number or a list of names as `classes`, got 'liver'"),
    ({"valid": torch.ones(8, 8, 2)}, DataError, r"valid: expected one value per pixel, \(2, 8, 8\), got \(8, 8, 2\)"),
    ({"x": None}, DataError, "x: expected numbers, got 'NoneType'"),
    ({"x": X.masked_fill(X > 0.9, float("nan"))}, DataError, r"x\[1\]: expected finite intensities, got NaN"),
    ({"spacing": (1.0, 1.0)}, DataError, "spacing: expected 2 edge lengths for each image"),
    ({"bounds": 1.0}, SpecError, "bounds: expected a smaller and a larger number"),
    ({"ignore": "255"}, SpecError, "ignore: expected one label value, such as 255, got '255'"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG_BATCHES)
def test_what_is_no_batch_is_one_line(given, error, message):
    arguments = {"x": X, "y": Y, "task": "binary"} | given
    with pytest.raises(error, match=message) as found:
        ab.Batch.of(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert "\n" not in str(found.value)


WRONG_MODELS = [
    (nn.Sequential(make_convolution(1), nn.Sigmoid()), "model.*: expected raw logits.*Remove the final sigmoid"),
    (make_convolution(1, 2), r"model.*: expected 1 logit channels \(class0\), got 2"),
    (make_convolution(3), r"model.*: the network fails on images of shape \(1, 8, 8\): RuntimeError"),
    (make_convolution(1, 1, 3), r"model.*: expected logits of shape \(2, K, 8, 8\), got \(2, 1, 6, 6\)"),
]


@pytest.mark.parametrize(("model", "message"), WRONG_MODELS, ids=["probabilities", "classes", "channels", "size"])
def test_a_model_without_logits_for_the_task_is_one_line(model, message):
    batch = ab.Batch.of(X, Y, task="binary")
    with pytest.raises(IncompatibleError, match=message) as found:
        ab.attacks.FGSM(loss="dice")(model, batch, eps=4 / 255)
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match=message):
        ab.evaluate(model, [batch], [ab.attacks.FGSM(loss="dice")])


WRONG_CALLS = [
    (lambda: ab.attacks.FGSM(loss="dcie"), {"eps": 0.1}, PluginError, "unknown loss 'dcie'. Did you mean 'dice'"),
    (lambda: ab.attacks.FGSM(loss="ce"), {"eps": 0.1}, IncompatibleError, "loss 'ce' is defined for multiclass tasks"),
    (lambda: ab.attacks.BIM(loss="ce"), {"eps": 0.1}, IncompatibleError, "loss 'ce' is defined for multiclass tasks"),
    (lambda: ab.attacks.FGSM(loss=None), {"eps": 0.1}, PluginError, "loss: expected a loss by name, or a function"),
    (lambda: ab.attacks.FGSM(loss="dice"), {}, SpecError, "attack FGSM: expected a radius, got none. Give `eps`"),
    (lambda: ab.attacks.FGSM(loss="dice"), {"eps": 4}, SpecError, "expected an L_inf `eps` below 1.*write 4/255"),
    (lambda: ab.attacks.FGSM(loss="dice"), {"eps": 0.1, "norm": "l1"}, SpecError, "unknown norm 'l1'"),
    (
        lambda: ab.attacks.FGSM(loss="dice"),
        {"eps": 0.1, "budget": ab.Budget("linf", 0.1)},
        SpecError,
        "expected `budget` or `eps`, got both",
    ),
    (
        lambda: ab.attacks.ReleasedFGSM(loss="dice", form="blend"),
        {"eps": 0.1, "norm": "l2"},
        IncompatibleError,
        "form 'blend' is defined for L_inf budgets",
    ),
]


@pytest.mark.parametrize(("make", "given", "error", "message"), WRONG_CALLS)
def test_a_wrong_call_is_one_line(make, given, error, message):
    batch = ab.Batch.of(X, Y, task="binary")
    with pytest.raises(error, match=message) as found:
        make()(make_convolution(1), batch, **given)
    assert "\n" not in str(found.value)


def test_the_package_and_its_attacks_load_no_torch():
    code = "import sys, advseg_bench as ab; ab.attacks; print(dir(ab.attacks)[:1], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['APGD'] False\n"
