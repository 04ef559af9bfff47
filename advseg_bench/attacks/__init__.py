"""How is an image perturbed? The reference attacks as classes; `registry.catalogue.ATTACKS` lists them by name.

```
x_adv = ab.attacks.PGD(loss="dice", steps=20)(model, ab.Batch.of(x, y, task="multilabel"), eps=4 / 255)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advseg_bench.lazy import export_lazily

if TYPE_CHECKING:
    from advseg_bench.attacks.ascent import BIM, MIFGSM, PGD, ProjectedAscent
    from advseg_bench.attacks.base import BaseAttack, image_generators
    from advseg_bench.attacks.gradient import FGSM, OneGradientAttack
    from advseg_bench.attacks.noise import RandomSign, ShuffledSign, UniformNoise
    from advseg_bench.attacks.released import ReleasedFGSM
    from advseg_bench.attacks.square import Square
    from advseg_bench.attacks.stepping import Query, SteppedAttack

__all__ = [
    "BIM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "BaseAttack",
    "OneGradientAttack",
    "ProjectedAscent",
    "Query",
    "RandomSign",
    "ReleasedFGSM",
    "ShuffledSign",
    "Square",
    "SteppedAttack",
    "UniformNoise",
    "image_generators",
]

__getattr__, __dir__ = export_lazily(
    __name__,
    {
        "BIM": "ascent",
        "BaseAttack": "base",
        "FGSM": "gradient",
        "MIFGSM": "ascent",
        "OneGradientAttack": "gradient",
        "PGD": "ascent",
        "ProjectedAscent": "ascent",
        "Query": "stepping",
        "RandomSign": "noise",
        "ReleasedFGSM": "released",
        "ShuffledSign": "noise",
        "Square": "square",
        "SteppedAttack": "stepping",
        "UniformNoise": "noise",
        "image_generators": "base",
    },
)
