"""Doubt flags: planted defences and planted mistakes raise the doubt that names them, sound attacks raise none."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from runs import Synthetic, write_run
from torch import Tensor, nn

import advseg_bench as ab
from advseg_bench.checks.doubtful_rows import find_doubts
from advseg_bench.checks.doubts import DOUBTS, TRACED, Trace, flag_images, measure_zero
from advseg_bench.errors import IncompatibleError
from advseg_bench.report import write_report
from advseg_bench.report.doubts import find_run_doubts
from advseg_bench.report.integrity import FLAGS
from advseg_bench.results.run import Run
from advseg_bench.results.scores import UNMEASURED

pytestmark = pytest.mark.usefixtures("_forked")

EPS = (4 / 255, 8 / 255)
DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def _forked():
    """Networks of these tests draw from the global generator."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        yield


def blobs(n: int = 12, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy discs on a dark background, and their masks."""
    generator = torch.Generator().manual_seed(3)
    middle = torch.rand((n, 2, 1, 1), generator=generator) * 8 + 12
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((y - middle[:, 0]) ** 2 + (x - middle[:, 1]) ** 2).sqrt()
    truth = distance < torch.linspace(5, 9, n).view(-1, 1, 1)
    smooth = 0.4 + 0.2 * torch.sigmoid(torch.linspace(5, 9, n).view(-1, 1, 1) - distance)
    image = smooth + 0.01 * torch.randn(smooth.shape, generator=generator)
    return image.clamp(0, 1)[:, None], truth


class Blur(nn.Module):
    """A local mean against a threshold: noise averages out, an attack does not."""

    def __init__(self, width: int = 3, scale: float = 20.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, width, padding=width // 2, padding_mode="replicate")
        with torch.no_grad():
            self.conv.weight.fill_(scale / width**2)
            self.conv.bias.fill_(-0.5 * scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Curved(Blur):
    """The same with a nonlinear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(self.conv(x)) + 0.1 * self.conv(x)


class Saturated(Blur):
    """A defence: the output is rounded to 0 or 1, so that the gradient is 0 off the contour."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.logit(torch.sigmoid(1e4 * self.conv(x)).clamp(1e-6, 1 - 1e-6))


class Quantised(Blur):
    """A defence: the input is rounded to 17 grey levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x * 16).round() / 16)


class RandomInput(Blur):
    """A defence: noise on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + 0.1 * torch.randn_like(x))


class RandomOutput(Blur):
    """A defence: noise on the logits, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.randn(x.shape, generator=self.generator)


def trained(*layers: nn.Module) -> nn.Module:
    """A small network trained on the images."""
    net = nn.Sequential(Centred(), *layers)
    x, y = blobs()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(net(x)[:, 0], y.float()).backward()
        optimiser.step()
    return net.eval()


def conv(channels: int, out: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out, 5, padding=2), nn.ReLU()


class Centred(nn.Module):
    """Subtract the middle grey level, and widen the range."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * (x - 0.5)


class Transfer(ab.attacks.BaseAttack):
    """PGD on another model."""

    traits = ab.Traits(gradient=False, random=False)

    def perturb(self, model, batch, *, budget, generators):
        return ab.attacks.PGD(loss="dice")(surrogate(), batch, budget=budget)


@cache
def surrogate() -> nn.Module:
    return trained(*conv(1, 4), *conv(4, 8), nn.Conv2d(8, 1, 1))


BATTERY = {
    "fgsm": ab.attacks.FGSM(loss="bce"),
    "pgd": ab.attacks.PGD(loss="bce"),
    "pgd of Dice": ab.attacks.PGD(loss="dice", steps=20, keep="best"),
    "bim": ab.attacks.BIM(loss="dice"),
    "mifgsm": ab.attacks.MIFGSM(loss="bce"),
    "random_sign": ab.attacks.RandomSign(),
    "transfer": Transfer(),
}


def attack(model: nn.Module, attacks=BATTERY, eps=EPS) -> Run:
    return ab.evaluate({"net": model}, [blobs()], attacks, task="binary", eps=eps, batch=4)


def names(run: Run) -> set[tuple[str, str]]:
    """Each doubt with the attack that it concerns."""
    return {(found.doubt, found.arm[0] if found.arm else "") for found in find_run_doubts(run)}


UNDEFENDED = {
    "curved": Curved,
    "curved and wide": lambda: Curved(5),
    "trained": lambda: trained(*conv(1, 8), *conv(8, 8), nn.Conv2d(8, 1, 1)),
    "trained with batch norm": lambda: trained(*conv(1, 8), nn.BatchNorm2d(8), *conv(8, 8), nn.Conv2d(8, 1, 1)),
    "trained with pooling": lambda: trained(
        *conv(1, 8), nn.MaxPool2d(2), *conv(8, 16), nn.Upsample(scale_factor=2), *conv(16, 8), nn.Conv2d(8, 1, 1)
    ),
}


@pytest.mark.parametrize("name", UNDEFENDED)
def test_undefended_models_raise_no_doubt(name, tmp_path):
    run = attack(UNDEFENDED[name]())
    drops = dict(run.table("drop", by="attack", where={"eps": EPS[1]}).select("attack", "mean").iter_rows())
    assert drops["pgd"] > 0.05 > 2 * drops["random_sign"]  # the attacks have an effect, so the silence means something
    assert find_run_doubts(run) == ()
    write_report(run, tmp_path)
    assert "No doubt about an attack was raised." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("defence", [Saturated, Quantised])
def test_a_model_without_a_gradient_is_named(defence, tmp_path):
    run = attack(defence())
    assert {("zero_gradient", "fgsm"), ("zero_gradient", "pgd"), ("gradient_masking", "transfer")} <= names(run)
    write_report(run, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "| zero_gradient | fgsm" in page.replace("\\_", "_")
    assert DOUBTS["gradient_masking"].remedy in page
    table = pl.read_csv(tmp_path / "tables" / "doubts.csv")
    assert {"threshold", "source"} < set(table.columns)


@pytest.mark.parametrize(
    ("defence", "cause"), [(RandomInput, "uses random numbers"), (RandomOutput, "random generator")]
)
def test_a_random_model_is_refused_before_anything_is_attacked(defence, cause):
    with pytest.raises(IncompatibleError, match=f"model net: expected logits that depend on the image alone.*{cause}"):
        attack(defence())


def test_probabilities_are_refused_before_anything_is_attacked():
    with pytest.raises(IncompatibleError, match="model net: expected raw logits, got values between 0 and 1"):
        attack(nn.Sequential(Blur(), nn.Sigmoid()))


def test_mistakes_of_attacks_are_named():
    class TooSmall(ab.attacks.BaseAttack):
        """A scale error: eps in units of 1/255."""

        def perturb(self, model, batch, *, budget, generators):
            small = ab.Budget(budget.norm, budget.eps / 255)
            return ab.attacks.BIM(loss="bce", steps=3).perturb(model, batch, budget=small, generators=generators)

    class Ascends(ab.attacks.BaseAttack):
        """A sign error."""

        def perturb(self, model, batch, *, budget, generators):
            return ab.attacks.BIM(loss="bce", targeted=True).perturb(model, batch, budget=budget, generators=generators)

    attacks = {
        "fgsm": ab.attacks.FGSM(loss="bce"),
        "fgsm again": ab.attacks.BIM(loss="bce", steps=1),
        "small": TooSmall(),
        "wrong sign": Ascends(),
        "random_sign": ab.attacks.RandomSign(),
    }
    found = names(attack(Blur(3, 2.0), attacks, (16 / 255, 48 / 255)))
    assert ("tie", "fgsm again") in found
    assert ("weaker_than_noise", "small") in found
    assert ("weaker_than_noise", "wrong sign") in found
    assert not {name for _, name in found} & {"fgsm", "random_sign"}


def test_a_step_rule_that_cannot_cross_the_ball_is_named():
    attacks = [
        ab.attacks.PGD(loss="bce", steps=10, step_size=0.1),
        ab.attacks.PGD(loss="dice", steps=10, step_size=0.2),
        ab.attacks.BIM(loss="bce", steps=10, step_size=0.1),
        ab.attacks.BIM(loss="bce", steps=10, step_size=0.1, keep="best"),
    ]
    run = attack(Blur(), attacks, (4 / 255,))
    found = [found for found in find_run_doubts(run) if found.doubt == "short_steps"]
    assert [(each.arm[:2], json.loads(each.arm[2])["step_size"]) for each in found] == [
        (("bim", "bce"), 0.1),
        (("pgd", "bce"), 0.1),
    ]
    assert json.loads(found[0].arm[2])["keep"] == "best"
    assert "steps of 0.1 eps x 10 = 1 eps of 2 eps" in found[1].describe()


def test_a_finding_is_one_sentence_with_cause_threshold_source_and_remedy():
    (found,) = [f for f in find_run_doubts(attack(Quantised(), [BATTERY["fgsm"]])) if f.doubt == "zero_gradient"]
    known = DOUBTS["zero_gradient"]
    assert (found.images, found.eps) == (12, EPS)
    for part in ("net, fgsm bce at eps 0.01569, 0.03137", known.cause, known.threshold, known.source, known.remedy):
        assert part in found.describe()
    assert "\n" not in found.describe()


PASSES = {"fgsm": 1.0, "random_sign": 0.0, "square": 0.0, "none": 0.0}


def rows(**arms: object) -> pl.DataFrame:
    """Scored rows of one model: arm, as "attack loss settings eps" with spaces as "__", -> Dice of each image."""
    listed = []
    for name, values in arms.items():
        assert isinstance(values, (list, tuple))
        attack, loss, settings, eps = name.split("__")
        for i, value in enumerate(values):
            dice, flags = value if isinstance(value, tuple) else (value, [])
            lost = round(1000 * (1 - (0.9 if dice is None else dice)))
            listed.append(
                {
                    "model": "net",
                    "attack": attack,
                    "loss": loss,
                    "settings": json.dumps({"steps": int(settings)} if settings else {}),
                    "norm": "linf",
                    "eps": int(eps) / 255,
                    "draw": 0,
                    "subject": f"s{i}",
                    "image": f"i{i}",
                    "tp": [1000 - lost],
                    "fp": [lost],
                    "fn": [lost],
                    "unmoved": 0.0,
                    "backwards": PASSES.get(attack, float(settings or 10)),
                    "dice": dice,
                    "dice_clean": 0.9,
                    "flags": flags,
                }
            )
    return pl.DataFrame(listed, schema_overrides={"dice": pl.Float64, "flags": pl.List(pl.String)})


def doubts(width: float = 1.0, validation=None, **arms: object) -> list[str]:
    found = find_doubts(rows(**arms), ("random_sign",), width=width, validation=validation)
    return [f"{each.doubt} {each.arm[0] if each.arm else each.model}" for each in found]


def near(value: float, n: int = 20, spread: float = 0.004) -> list[float]:
    """Values around a mean, of which each arm has another order."""
    return [value + spread * ((7 * i + round(1000 * value)) % n - n / 2) / n for i in range(n)]


CASES = {
    "weaker than noise": ({"pgd__bce____4": near(0.80), "random_sign______4": near(0.75)}, ["weaker_than_noise pgd"]),
    "as weak as noise": ({"pgd__bce____4": near(0.752), "random_sign______4": near(0.75)}, []),
    "noise elsewhere": ({"pgd__bce____4": near(0.80), "random_sign______8": near(0.75)}, []),
    "weaker than one step": (
        {"pgd__bce____4": near(0.60), "fgsm__bce____4": near(0.55)},
        ["weaker_than_one_step pgd"],
    ),
    "of another loss": ({"pgd__bce____4": near(0.60), "fgsm__dice____4": near(0.55)}, []),
    "one step is no iteration": ({"fgsm__dice____4": near(0.60), "fgsm__bce____4": near(0.55)}, []),
    "weaker than its prefix": (
        {"pgd__bce__20__4": near(0.60), "pgd__bce____4": near(0.55)},
        ["weaker_than_prefix pgd"],
    ),
    "stronger than its prefix": ({"pgd__bce__20__4": near(0.55), "pgd__bce____4": near(0.60)}, []),
    "rising": ({"pgd__bce____4": near(0.5), "pgd__bce____8": near(0.55)}, ["rising_curve pgd"]),
    "rising past the last one": (
        {"pgd__bce____4": near(0.5), "pgd__bce____8": near(0.505), "pgd__bce____16": near(0.512)},
        ["rising_curve pgd"],
    ),
    "rising above clean": ({"pgd__bce____4": near(0.95)}, ["rising_curve pgd"]),
    "falling": ({"pgd__bce____4": near(0.5), "pgd__bce____8": near(0.45)}, []),
    "rising by noise": ({"pgd__bce____4": near(0.5, spread=0.9), "pgd__bce____8": near(0.525, spread=0.9)}, []),
    "masked": (
        {"pgd__bce____4": near(0.8), "square______4": [0.7, 0.7] + [0.85] * 18},
        ["gradient_masking square"],
    ),
    "masked on one image": ({"pgd__bce____4": near(0.8), "square______4": [0.7] + [0.85] * 19}, []),
    "masked, and nothing moved": (
        {"fgsm__bce____4": [(None, ["unchanged"])] * 20, "square______4": near(0.7)},
        ["zero_gradient fgsm", "gradient_masking square"],
    ),
    "a weak attack among strong ones": (
        {"fgsm__bce____4": near(0.8), "pgd__dice____4": near(0.5), "square______4": near(0.7)},
        [],
    ),
    "unbounded": ({"pgd__bce____255": near(0.3)}, ["unbounded_attack_fails pgd"]),
    "unbounded and empty": ({"pgd__bce____255": near(0.05)}, []),
    "one step is not unbounded": ({"fgsm__bce____255": near(0.3)}, []),
    "tie": ({"pgd__bce____4": near(0.5), "bim__bce____4": near(0.5)}, ["tie pgd"]),
    "tie on most images": ({"pgd__bce____4": near(0.5), "bim__bce____4": [*near(0.5)[:-1], 0.4]}, []),
    "tie without an effect": ({"pgd__bce____4": near(0.9), "bim__bce____4": near(0.9)}, []),
    "tie at 0": ({"pgd__bce____4": [0.0] * 20, "bim__bce____4": [0.0] * 20}, []),
    "not finished": (
        {"pgd__bce____4": [(0.5, ["incomplete"])] * 3 + near(0.5)[3:]},
        ["incomplete pgd"],
    ),
    "not finished on one image of two": ({"pgd__bce____4": [(0.5, ["incomplete"]), 0.5]}, []),
    "no gradient on one image of two": ({"pgd__bce____4": [(0.5, ["zero_gradient"]), 0.5]}, ["zero_gradient pgd"]),
    "not finished on one image of ten": ({"pgd__bce____4": [(0.5, ["incomplete"])] * 2 + near(0.5)[2:]}, []),
    "not finished on one image": ({"pgd__bce____4": [(0.5, ["incomplete"]), *near(0.5)[1:]]}, []),
    "the minimum over attacks is none": (
        {"worst_case__bce____4": near(0.95), "fgsm__bce____4": near(0.5), "random_sign______4": near(0.8)},
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_doubts_about_rows(case):
    arms, expected = CASES[case]
    assert doubts(**arms) == expected


def test_a_wide_range_of_intensities_moves_the_unbounded_radius():
    assert doubts(width=2.0, pgd__bce____255=near(0.3)) == []


def test_clean_dice_is_compared_with_the_training_log():
    clean = {"none______0": near(0.7)}
    assert doubts(validation={"net": 0.9}, **clean) == ["clean_unlike_log net"]
    assert doubts(validation={"net": 0.8}, **clean) == []
    assert doubts(validation={"net": None, "other": 0.9}, **clean) == []


def test_without_rows_there_are_no_doubts():
    assert find_doubts(rows(none______0=[0.5]).clear()) == ()


def trace(*steps: list[float], **more: object) -> Trace:
    return Trace(values=[torch.tensor(step) for step in steps], **more)  # type: ignore[arg-type]


def test_an_objective_that_still_increases_is_incomplete():
    done = [[min(i, 15.0), float(i), 0.0, 5 - abs(i - 5.0), float("nan")] for i in range(20)]
    assert flag_images(trace(*done))["incomplete"] == {1}
    assert flag_images(trace(*done[:9]))["incomplete"] == set()
    assert flag_images(trace(*done, path=1.0))["incomplete"] == set()
    assert flag_images(trace(*done, path=2.5))["incomplete"] == {1}


def test_the_last_tenth_may_add_a_twentieth():
    for gain, images in ((0.04, set()), (0.06, {0})):
        assert flag_images(trace(*([0.0], *[[1 - gain]] * 8, [1.0])))["incomplete"] == images


def test_a_lost_success_is_silent():
    scores = [torch.tensor([0.9, 0.9, 0.9]), torch.tensor([0.5, 0.5, 0.2]), torch.tensor([0.6, 0.53, 0.2])]
    assert flag_images(Trace(success=scores))["silent_success"] == {0}
    assert flag_images(Trace(success=scores, keep="best"))["silent_success"] == set()


def test_a_gradient_that_vanishes_is_flagged_unless_the_mask_is_lost():
    zero = [torch.tensor([0.0, 0.95, 0.0, 0.85]), torch.tensor([0.0, 0.0, 1.0, 0.85])]
    assert flag_images(Trace(zero=zero))["zero_gradient"] == {1, 2}
    score = [torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0, 0.5])]
    assert flag_images(Trace(zero=zero, success=score))["zero_gradient"] == {1}
    assert flag_images(Trace()) == {name: set() for name in TRACED}


def follow(model: nn.Module, steps: int = 20, size: float = 0.25, loss=ab.losses.bce) -> Trace:
    """The course of PGD on the images."""
    x, y = blobs()
    batch, eps = ab.Batch.of(x, y, task="binary"), EPS[1]
    found, x_adv = Trace(path=steps * size), x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        logits = model(x_adv)
        value = loss(logits, batch.y, batch.valid, batch.task)
        (gradient,) = torch.autograd.grad(value.sum(), x_adv, allow_unused=True)
        gradient = torch.zeros_like(x_adv) if gradient is None else gradient
        wrong = ((logits > 0) & ~batch.y).flatten(1).sum(1), (~(logits > 0) & batch.y).flatten(1).sum(1)
        hit = ((logits > 0) & batch.y).flatten(1).sum(1)
        found.values.append(value.detach())
        found.zero.append(measure_zero(gradient, batch))
        found.success.append(2 * hit / (2 * hit + wrong[0] + wrong[1]))
        x_adv = x + (x_adv.detach() + size * eps * gradient.sign() - x).clamp(-eps, eps)
    return found


@pytest.mark.parametrize("name", UNDEFENDED)
def test_the_course_of_pgd_on_undefended_models_raises_no_flag(name):
    flags = flag_images(follow(UNDEFENDED[name]()))
    assert not flags["zero_gradient"]
    assert all(len(images) <= 1 for images in flags.values())  # one image makes no doubt


@pytest.mark.parametrize("defence", [Saturated, Quantised])
def test_the_course_of_pgd_shows_a_vanishing_gradient(defence):
    assert flag_images(follow(defence()))["zero_gradient"] == {*range(12)}


def test_the_course_of_small_steps_is_incomplete():
    assert flag_images(follow(Curved(), size=0.02))["incomplete"] == set()  # its path ends inside the ball
    small = follow(Curved(), size=0.02)
    small.path = None
    assert flag_images(small)["incomplete"] == {*range(12)}


def test_values_at_the_bounds_do_not_count_unless_all_are_zero():
    x = torch.full((4, 1, 2, 5), 0.5)
    x[0, 0, 0] = 0
    x[3] = 1
    gradient = torch.ones_like(x)
    gradient[0, 0, 0] = 0
    gradient[1, 0, 0] = 0
    gradient[2] = 0
    gradient[3, 0, 0] = 0
    batch = ab.Batch.of(x, x[:, 0] > 0.25, task="binary")
    assert measure_zero(gradient, batch).tolist() == [0.0, 0.5, 1.0, 0.0]


def test_flags_of_traces_are_notes_and_leave_every_mean_as_it_is(tmp_path):
    assert not set(TRACED) & set(UNMEASURED)
    run = Run(write_run(tmp_path / "run", Synthetic()))
    marked = run.rows.cast({pl.Categorical(): pl.String}).with_columns(
        flags=pl.when(pl.col("attack") == "fgsm").then(pl.lit(list(TRACED))).otherwise("flags")
    )
    noted = Run.from_rows(run.info, marked, run.models)
    for score in ("dice", "drop", "apsr", "pooled_dice", "dice_below"):
        by = ("model", "attack", "loss", "eps")
        assert noted.table(score, by=by).equals(run.table(score, by=by))
    write_report(noted, tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "none of" in page
    assert all(FLAGS[name] in page for name in TRACED)


def test_the_page_lists_every_doubt_with_its_cause_threshold_source_and_remedy():
    table = re.findall(
        r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", (DOCS / "doubts.md").read_text(), re.MULTILINE
    )
    listed = {name: tuple(re.sub(r"\[|\]\([^)]*\)", "", part) for part in parts) for name, *parts in table}
    assert listed == {
        name: (doubt.cause, doubt.threshold, doubt.source, doubt.remedy) for name, doubt in DOUBTS.items()
    }
