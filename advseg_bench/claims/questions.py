"""The claims of arXiv 2401.11224 and the question that tests each one; both were fixed before the data."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.claims.associations import NO_CORRELATION


@dataclass(frozen=True, slots=True)
class Question:
    """A claim of the study and the exact question that tests it on a run.

    Attributes:
        name: Short name, for anchors and files.
        statement: The claim in one sentence.
        text: The question, with its arms and its decision rule.
    """

    name: str
    statement: str
    text: str


VULNERABLE = Question(
    "vulnerable",
    "Medical segmentation models are vulnerable to FGSM.",
    "On every model, does FGSM with the training loss (or, if that was not run, the first loss of the suite) lower "
    "Dice more than each noise baseline of equal L_inf norm? "
    "Supported if every difference is significant, so that p is the largest of them; contradicted if on any model a "
    "noise baseline lowers Dice significantly more (Holm).",
)

SIZE = Question(
    "size",
    "The number of parameters and attack success are nearly uncorrelated.",
    f"Is the correlation of the log number of parameters with Diff within +-{NO_CORRELATION:g} (two one-sided tests)? "
    "Contradicted if the rank correlation is significant (exact test for up to 8 models).",
)

BCE = Question(
    "bce",
    "BCE as the attack loss succeeds more than the loss used for training.",
    "Averaged over models, does FGSM with BCE lower Dice more than FGSM with the training loss? Arguments of the "
    "losses as defined, additive step, true labels.",
)

BEST = Question(
    "best",
    "The model with the best clean score can be the most vulnerable.",
    "Does the model with the best clean Dice lose a larger share of its Dice, beyond the most harmful noise of equal "
    "norm, than every other model? Shares are compared because a higher clean Dice leaves more to lose. Supported if "
    "every difference is significant, so that p is the largest of them; contradicted on these data if another model "
    "loses a significantly larger share (Holm).",
)
