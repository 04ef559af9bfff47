"""The claims of arXiv 2401.11224, each with the question that a run is asked; both were fixed before the data."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.claims.associations import NO_CORRELATION


@dataclass(frozen=True, slots=True)
class Question:
    """A claim of the study, and what exactly is asked of a run.

    Attributes:
        name: Short name, for anchors and files.
        statement: The claim in a sentence.
        text: Of which arms, by which rule.
    """

    name: str
    statement: str
    text: str


VULNERABLE = Question(
    "vulnerable",
    "Medical segmentation models are vulnerable to FGSM.",
    "On every model, does FGSM with the training loss (where that was not run, the first of the suite) lower Dice "
    "more than each noise of equal L_inf norm? "
    "Supported if every difference is significant, so that p is the largest of them; contradicted if on a model a "
    "noise is significantly the worse (Holm).",
)

SIZE = Question(
    "size",
    "The number of parameters and attack success are nearly uncorrelated.",
    f"Is the correlation of log parameters with Diff within +-{NO_CORRELATION:g} (two one-sided tests)? "
    "Contradicted if the rank correlation is significant (exact for up to 8 models).",
)

BCE = Question(
    "bce",
    "BCE as the attack loss succeeds more than the loss used for training.",
    "On the mean over models, does FGSM with BCE lower Dice more than FGSM with the training loss? Losses called "
    "as they are defined, additive step, true labels.",
)

BEST = Question(
    "best",
    "The model with the best clean score can be the most vulnerable.",
    "Does the model with the best clean Dice lose a larger share of it beyond random noise of equal norm than "
    "every other model? A share, since who has more can lose more. Supported if every difference is significant, "
    "so that p is the largest of them; contradicted, as far as these data go, if another model loses a "
    "significantly larger share (Holm).",
)
