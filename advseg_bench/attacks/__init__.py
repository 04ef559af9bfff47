"""How is an image perturbed? The reference attacks as classes; `registry.catalogue.ATTACKS` lists them by name.

```
x_adv = ab.attacks.PGD(loss="dice", steps=20)(model, ab.Batch.of(x, y, task="multilabel"), eps=4 / 255)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.attacks.apgd import APGD
    from advseg_bench.attacks.ascent import ProjectedAscent
    from advseg_bench.attacks.base import BaseAttack, image_generators
    from advseg_bench.attacks.bim import BIM
    from advseg_bench.attacks.cospgd import CosPGD
    from advseg_bench.attacks.gradient import FGSM, OneGradientAttack
    from advseg_bench.attacks.mifgsm import MIFGSM
    from advseg_bench.attacks.nifgsm import NIFGSM
    from advseg_bench.attacks.noise import RandomSign, ShuffledSign, UniformNoise
    from advseg_bench.attacks.padam import PAdam
    from advseg_bench.attacks.pgd import PGD
    from advseg_bench.attacks.released import ReleasedFGSM
    from advseg_bench.attacks.segpgd import SegPGD
    from advseg_bench.attacks.square import Square
    from advseg_bench.attacks.stepping import Query, SteppedAttack
    from advseg_bench.attacks.transfer import Transfer
    from advseg_bench.attacks.tsallis import TsallisPGD

__all__ = [
    "APGD",
    "BIM",
    "FGSM",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "BaseAttack",
    "CosPGD",
    "OneGradientAttack",
    "PAdam",
    "ProjectedAscent",
    "Query",
    "RandomSign",
    "ReleasedFGSM",
    "SegPGD",
    "ShuffledSign",
    "Square",
    "SteppedAttack",
    "Transfer",
    "TsallisPGD",
    "UniformNoise",
    "image_generators",
]

__getattr__, __dir__ = export_lazily(
    __name__,
    {
        "APGD": "apgd",
        "BIM": "bim",
        "BaseAttack": "base",
        "CosPGD": "cospgd",
        "FGSM": "gradient",
        "MIFGSM": "mifgsm",
        "NIFGSM": "nifgsm",
        "OneGradientAttack": "gradient",
        "PAdam": "padam",
        "PGD": "pgd",
        "ProjectedAscent": "ascent",
        "Query": "stepping",
        "RandomSign": "noise",
        "ReleasedFGSM": "released",
        "SegPGD": "segpgd",
        "ShuffledSign": "noise",
        "Square": "square",
        "SteppedAttack": "stepping",
        "Transfer": "transfer",
        "TsallisPGD": "tsallis",
        "UniformNoise": "noise",
        "image_generators": "base",
    },
)
