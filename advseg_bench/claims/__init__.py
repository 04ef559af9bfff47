"""Do the claims of arXiv 2401.11224 hold on a run? Rows -> tests over subjects -> verdicts. No model is run."""

from advseg_bench.claims.associations import NO_CORRELATION, PROPERTIES, Association, associate
from advseg_bench.claims.crossing import Crossing, compare_orders, cross
from advseg_bench.claims.evidence import Contrast, Evidence, average, make_arm, name_arm
from advseg_bench.claims.findings import ALPHA, Finding, Shortage
from advseg_bench.claims.judge import Claim, judge, judge_claims

__all__ = [
    "ALPHA",
    "NO_CORRELATION",
    "PROPERTIES",
    "Association",
    "Claim",
    "Contrast",
    "Crossing",
    "Evidence",
    "Finding",
    "Shortage",
    "associate",
    "average",
    "compare_orders",
    "cross",
    "judge",
    "judge_claims",
    "make_arm",
    "name_arm",
]
