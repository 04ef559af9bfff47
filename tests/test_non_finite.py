"""NaN and infinity in logits and gradients: flagged, in no mean, and named before any number."""

from __future__ import annotations

import warnings
from io import StringIO
from pathlib import Path

import polars as pl
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import advseg_bench as ab
from advseg_bench.instruments.counter import Counter, rows_of
from advseg_bench.report import write_report
from advseg_bench.report.brief import print_summary
from advseg_bench.results.run import Run
from advseg_bench.results.scores import UNMEASURED

N = 4
EPS = 0.125


class Pixelwise(nn.Module):
    """Logit 20 (x - 0.5): a pixel is right as long as it stays on its side of 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(x, 20 * (x - 0.5))

    def spoil(self, x: Tensor, logits: Tensor) -> Tensor:
        return logits


class NanOnBright(Pixelwise):
    """NaN at one pixel of images whose first pixel is above 0.9, as 0 / 0 in a normalisation."""

    value = float("nan")

    def spoil(self, x: Tensor, logits: Tensor) -> Tensor:
        bad = x[:, :, :1, :1] > 0.9
        corner = torch.zeros_like(logits)
        corner[..., 0, 0] = 1
        return torch.where(bad & (corner > 0), self.value, logits)


class InfinityOnBright(NanOnBright):
    value = float("inf")


class NanUnderAttack(Pixelwise):
    """NaN where an intensity is between 0.45 and 0.55, which no clean image of `parted` has."""

    def spoil(self, x: Tensor, logits: Tensor) -> Tensor:
        return torch.where((x - 0.5).abs() < 0.05, float("nan"), logits)


class RootOfZero(Pixelwise):
    """Finite logits whose gradient is infinite times 0 on pixels of exactly 0.5 in the first row."""

    def spoil(self, x: Tensor, logits: Tensor) -> Tensor:
        return logits + (logits * (x - 0.5).abs()).abs().sqrt() * (x[:, :, :1] == 0.5)


def images() -> Tensor:
    """Ramps between 0.2 and 0.8; the first pixel of the last two images is 0.95."""
    x = torch.linspace(0.2, 0.8, 64).reshape(1, 1, 8, 8).repeat(N, 1, 1, 1)
    x[2:, :, 0, 0] = 0.95
    return x


def parted() -> Tensor:
    """Images without intensities between 0.4 and 0.6."""
    x = images()
    return (x + 0.1 * (x - 0.5).sign()).clamp(0, 1)


def batch(x: Tensor | None = None) -> ab.Batch:
    x = images() if x is None else x
    return ab.Batch.of(x, x > 0.5, task="binary")


def flags_of(run: Run, attack: str) -> dict[str, set[str]]:
    rows = run.rows.filter(pl.col("attack") == attack)
    return {str(row["image"]): set(row["flags"]) for row in rows.to_dicts()}


def evaluate(model, attacks=None, x: Tensor | None = None, **options) -> Run:
    attacks = attacks or [ab.attacks.FGSM(loss="bce"), ab.attacks.RandomSign()]
    return ab.evaluate(model, [batch(x)], attacks, **{"eps": EPS} | options)


@pytest.mark.parametrize("model", [NanOnBright(), InfinityOnBright()], ids=["nan", "infinity"])
def test_all_rows_of_an_image_with_such_clean_logits_are_flagged_and_in_no_mean(model):
    run = evaluate({"net": model})
    for attack in ("none", "fgsm", "random_sign"):
        flags = flags_of(run, attack)
        assert all("non_finite_logits" in flags[name] for name in ("image2", "image3"))
        assert all("non_finite_logits" not in flags[name] for name in ("image0", "image1"))
    sound = evaluate({"net": Pixelwise()})
    for score in ("dice", "drop", "flipped", "pooled_dice"):
        kept = sound.rows.filter(pl.col("image").cast(pl.String).is_in(["image0", "image1"]))
        wanted = Run.from_rows(sound.info, _plain(kept)).table(score, by=("attack", "eps"))["mean"].to_list()
        assert run.table(score, by=("attack", "eps"))["mean"].to_list() == wanted
    assert run.table("dice", by="attack")["n_images"].to_list() == [2, 2, 2]


def _plain(rows: pl.DataFrame) -> pl.DataFrame:
    names = [name for name, kind in rows.schema.items() if kind == pl.Categorical()]
    return rows.with_columns(pl.col(name).cast(pl.String) for name in names)


def test_nan_under_attack_alone_is_no_drop():
    """Scored as "predicts nothing" the drop would be 1; each attack here makes NaN on every image."""
    run = evaluate(NanUnderAttack(), x=parted())
    assert all("non_finite_logits" in flags for flags in flags_of(run, "fgsm").values())
    assert not any(flags_of(run, "none").values())
    table = {row["attack"]: row for row in run.table("dice", by="attack").to_dicts()}
    assert table["none"]["mean"] == 1
    assert table["fgsm"]["mean"] is None
    assert run.table("drop", by="attack", where={"attack": "fgsm"})["mean"].to_list() == [None]
    assert run.table("diff", by="attack", where={"attack": "fgsm"})["mean"].to_list() == [None]


def summarise(run: Run, folder: Path) -> tuple[str, str]:
    write_report(run, folder)
    console = Console(width=160, record=True, file=StringIO())
    print_summary(run, [], console)
    return (folder / "report.html").read_text(), console.export_text()


def test_it_is_named_first_and_counted(tmp_path):
    page, printed = summarise(evaluate({"bad": NanOnBright(), "good": Pixelwise()}), tmp_path)
    sentence = "Model bad yields NaN or infinity on 2 of 4 clean test images"
    assert sentence in page
    assert page.index(sentence) < page.index("lowers mean Dice")
    assert printed.index(sentence) < printed.index("lowers mean Dice")
    assert "non_finite_logits 6" in printed
    assert "non_finite_logits" in page


def test_under_attack_it_is_named_too(tmp_path):
    page, printed = summarise(evaluate(NanUnderAttack(), x=parted()), tmp_path)
    for text in (page, printed):
        assert "Model NanUnderAttack yields NaN or infinity under attack" in text
        assert "lowers mean Dice" not in text


def test_a_model_without_any_finite_prediction_has_a_report(tmp_path):
    run = evaluate({"bad": Pixelwise(), "good": Pixelwise()})
    broken = pl.when(pl.col("model") == "bad").then(pl.lit(["non_finite_logits"])).otherwise(pl.col("flags"))
    spoiled = Run.from_rows(run.info, _plain(run.rows).with_columns(broken.alias("flags")), run.models)
    page, _ = summarise(spoiled, tmp_path)
    assert "Model bad yields NaN or infinity on 4 of 4 clean test images" in page
    for score in ("dice", "pooled_dice", "apsr"):
        means = dict(spoiled.table(score, by="model").select("model", "mean").iter_rows())
        assert means["bad"] is None
        assert means["good"] is not None


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "attack",
    [
        ab.attacks.FGSM(loss="bce"),
        ab.attacks.PGD(loss="bce", steps=2, random_start=False),
        ab.attacks.PGD(loss="bce", steps=3, random_start=False, keep="best"),
        ab.attacks.BIM(loss="dice", steps=2),
        ab.attacks.MIFGSM(loss="bce", steps=2),
        ab.attacks.ShuffledSign(loss="bce"),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_a_gradient_of_nan_does_not_count_as_an_attack_that_did_nothing(attack, norm):
    x = images()
    x[0, 0, 0, 0] = 0.5
    run = evaluate(RootOfZero(), [attack], x=x, norm=norm)
    (name,) = set(run.rows["attack"].cast(pl.String)) - {"none"}
    flags = flags_of(run, name)
    assert "non_finite_gradient" in flags["image0"]
    assert not any("non_finite_gradient" in flags[f"image{i}"] for i in (1, 2, 3))
    assert run.table("dice", by="attack")["n_images"].to_list() == [4, 3]


def autograd(model, x, y, eps):
    leaf = x.requires_grad_()
    nn.functional.binary_cross_entropy_with_logits(model(leaf), y.float(), reduction="sum").backward()
    return (x.detach() + eps * leaf.grad.sign()).clamp(0, 1)


def test_gradients_of_a_users_own_attack_are_watched_too():
    x = images()
    x[1, 0, 0, 0] = 0.5
    for per_image in (False, True):
        run = evaluate(RootOfZero(), {"mine": ab.attack(per_image=per_image)(autograd)}, x=x)
        flags = flags_of(run, "mine")
        assert [name for name in flags if "non_finite_gradient" in flags[name]] == ["image1"]


def test_finite_gradients_are_not_flagged():
    run = evaluate(Pixelwise(), [ab.attacks.FGSM(loss="bce"), ab.attacks.PGD(loss="dice", steps=3)])
    assert {flag for flags in run.rows["flags"].to_list() for flag in flags} & set(UNMEASURED) == set()


def test_one_line_warns_of_such_a_gradient():
    x = images()
    x[0, 0, 0, 0] = 0.5
    with pytest.warns(UserWarning, match="gradients with NaN or infinity"):
        ab.attacks.FGSM(loss="bce")(RootOfZero(), batch(x), eps=EPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ab.attacks.FGSM(loss="bce")(Pixelwise(), batch(), eps=EPS)


def test_a_gradient_is_laid_to_its_image():
    def model(x: Tensor) -> Tensor:
        return x.sqrt()

    counter = Counter(model)
    x = torch.ones(3, 1, 2, 2)
    x[1] = 0
    with counter.count(3) as tally:
        for group in ([0], [2, 1]):
            with rows_of(group):
                leaf = x[group].requires_grad_()
                torch.autograd.grad(counter.model(leaf).sum(), leaf)
    assert tally.find_non_finite() == {1}
    with counter.count(3) as tally:
        leaf = x[:2].clone().requires_grad_()
        torch.autograd.grad(counter.model(leaf).sum(), leaf)
    assert tally.find_non_finite() == {0, 1, 2}, "whose rows these are is unknown"
    assert not leaf._backward_hooks
    with counter.count(3) as tally:
        leaf = (x + 1).requires_grad_()
        torch.autograd.grad(counter.model(leaf)[0].sum(), leaf)
    assert tally.find_non_finite() == set()
