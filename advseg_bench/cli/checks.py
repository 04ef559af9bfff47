"""The commands that examine attacks: `crosscheck`, `throughput` and `check-attack`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from advseg_bench.cli.common import console, split_names
from advseg_bench.registry import catalogue

Reference = Annotated[str, typer.Argument(help="The reference: fgsm, bim, pgd or mifgsm.")]
SomeModels = Annotated[str, typer.Option(help="Names of some of its models; by default all.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Attack steps (reference and toolkits).")]
AGAINST = "Toolkits, or names of attacks; comma-separated."


def crosscheck_command(
    attack: Reference,
    against: Annotated[str, typer.Option(help=AGAINST)],
    suite: Annotated[str, typer.Option(help="Suite that provides models and images.")] = "quick",
    models: SomeModels = "",
    untrained: Annotated[str, typer.Option(help='Additional networks with random weights, as "smp.Unet:vgg13".')] = "",
    tasks: Annotated[str, typer.Option(help="Task types for each network.")] = ",".join(catalogue.ALL_KINDS),
    losses: Annotated[str, typer.Option(help="Attack losses.")] = "bce,ce,dice,focal,dice_focal",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    eps: Annotated[str, typer.Option(help="Perturbation radii in image units.")] = "",
    steps: Steps = None,
    images: Annotated[int, typer.Option(min=1, help="Test images per batch.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default runs/crosscheck-ATTACK.")] = None,
) -> None:
    """Compare implementations of an attack with the reference, bit by bit, and explain the differences."""
    from advseg_bench.crosscheck import command
    from advseg_bench.suite.suite import Suite

    options = command.Options(
        reference=attack,
        against=split_names(against),
        suite=Suite.load(suite),
        models=split_names(models),
        untrained=split_names(untrained),
        kinds=split_names(tasks),
        losses=split_names(losses),
        norm=norm,
        eps=split_names(eps),
        steps=steps,
        images=images,
    )
    if not command.run(options, out or Path("runs") / f"crosscheck-{attack}", console):
        raise typer.Exit(1)


def throughput_command(
    suite: Annotated[str, typer.Option(help="Suite that provides models and image size.")] = "quick",
    models: SomeModels = "",
    attack: Annotated[str, typer.Option(help="The reference: fgsm, bim, pgd or mifgsm.")] = "fgsm",
    steps: Steps = None,
    loss: Annotated[str, typer.Option(help="Attack loss.")] = "bce",
    against: Annotated[str, typer.Option(help=AGAINST)] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes; comma-separated.")] = "4",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16; comma-separated.")] = "float32",
    prepare: Annotated[
        str, typer.Option(help='How the reference\'s model is prepared: "raw", "lean", "fold+lean", "auto" ...')
    ] = "raw,lean",
    size: Annotated[int | None, typer.Option(min=8, help="Image size in pixels; by default the suite's.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Logit channels; by default 3, or 1 for a binary task.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timed calls per implementation.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="Threads; by default the suite's.")] = None,
    device: Annotated[str | None, typer.Option(help="Device; by default the accelerator, if there is one.")] = None,
    largest_batch: Annotated[bool, typer.Option("--largest-batch", help="Find the largest batch that fits.")] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/throughput"),
) -> None:
    """Time implementations of an attack side by side, relative to the bare limit of the model."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns of memory from before, as it always is
    from advseg_bench.suite.suite import Suite
    from advseg_bench.throughput import command

    options = command.Options(
        suite=Suite.load(suite),
        models=split_names(models),
        attack=attack,
        steps=steps,
        loss=loss,
        against=split_names(against),
        classes=classes,
        size=size,
        batches=split_names(batch),
        precisions=split_names(precision),
        prepare=split_names(prepare),
        device=device,
        rounds=rounds,
        threads=threads,
        largest=largest_batch,
    )
    command.run(options, out, console)


def check_attack_command(
    name: Annotated[str, typer.Argument(help="A shipped attack, a plug-in's, or package.module:object.")],
    loss: Annotated[str | None, typer.Option(help="Attack loss; by default bce, or ce for multiclass.")] = None,
    settings: Annotated[list[str] | None, typer.Option(help="Constructor argument, as steps=10; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="Device to test on.")] = "cpu",
) -> None:
    """Check an attack against the contract, one line per rule; exit code 1 if it breaks one."""
    from advseg_bench.testing import command

    if not command.run(name, loss, settings or (), device, console):
        raise typer.Exit(1)
