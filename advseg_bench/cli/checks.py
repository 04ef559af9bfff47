"""The commands `crosscheck`, `throughput` and `check-attack`, which test and time attacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from advseg_bench.cli.common import console, split_names
from advseg_bench.registry import catalogue

Reference = Annotated[
    str,
    typer.Argument(metavar="ATTACK", help="Reference attack: fgsm, bim, pgd, mifgsm, nifgsm, segpgd, cospgd or apgd."),
]
SomeModels = Annotated[str, typer.Option(help="Models of the suite, comma-separated; by default all.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of reference and toolkits; by default those of the reference.")
]
AGAINST = "Toolkits or attacks to compare with the reference, comma-separated."


def crosscheck_command(
    attack: Reference,
    against: Annotated[str, typer.Option(help=AGAINST)],
    suite: Annotated[
        str, typer.Option(help="Suite that provides the models and images: a shipped one, or a TOML file.")
    ] = "quick",
    models: SomeModels = "",
    untrained: Annotated[
        str, typer.Option(help='Additional networks with random weights, such as "smp.Unet:vgg13", comma-separated.')
    ] = "",
    tasks: Annotated[str, typer.Option(help="Task types that each network is adapted to, comma-separated.")] = ",".join(
        catalogue.ALL_KINDS
    ),
    losses: Annotated[
        str,
        typer.Option(
            help="Attack losses, comma-separated; by default that of the attack, or bce,ce,dice,focal,dice_focal."
        ),
    ] = "",
    norm: Annotated[str, typer.Option(help="Norm of the budget: linf or l2.")] = "linf",
    eps: Annotated[
        str, typer.Option(help="Radii in image units, comma-separated; by default 1/255,4/255, or 0.5 for l2.")
    ] = "",
    steps: Steps = None,
    images: Annotated[int, typer.Option(min=1, help="Number of test images, attacked as one batch.")] = 4,
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
    suite: Annotated[
        str, typer.Option(help="Suite that provides the models and image size: a shipped one, or a TOML file.")
    ] = "quick",
    models: SomeModels = "",
    attack: Annotated[str, typer.Option(help="Reference attack: fgsm, bim, pgd or mifgsm.")] = "fgsm",
    steps: Steps = None,
    loss: Annotated[str, typer.Option(help="Attack loss.")] = "bce",
    against: Annotated[str, typer.Option(help=AGAINST)] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "4",
    precision: Annotated[
        str, typer.Option(help="Precisions, comma-separated: float32, bfloat16, float16.")
    ] = "float32",
    prepare: Annotated[
        str,
        typer.Option(
            help='Preparations of the reference\'s model, comma-separated: "raw", "lean", "fold+lean", "auto" ...'
        ),
    ] = "raw,lean",
    size: Annotated[
        int | None, typer.Option(min=8, help="Edge length of the images in pixels; by default the suite's.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes; by default 3, or 1 for a binary task.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Number of timed calls per implementation.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads; by default the suite's.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Device, such as cpu or cuda; by default the accelerator, if there is one.")
    ] = None,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="Also find the largest batch that fits in memory.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/throughput"),
) -> None:
    """Time implementations of an attack, relative to one bare forward and backward pass of the model."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # silences a warning of its profiler that is always printed
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
    name: Annotated[
        str, typer.Argument(metavar="ATTACK", help="Shipped attack, one of a plug-in, or package.module:object.")
    ],
    loss: Annotated[str | None, typer.Option(help="Attack loss; by default bce, or ce for multiclass tasks.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option(help="Constructor argument of the attack, such as steps=10; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to test on, such as cpu or cuda.")] = "cpu",
) -> None:
    """Check an attack against the attack contract; print one line per rule, and exit with 1 if a rule is broken."""
    from advseg_bench.testing import command

    if not command.run(name, loss, settings or (), device, console):
        raise typer.Exit(1)
