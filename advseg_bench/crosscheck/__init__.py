"""Cross-validation: do two implementations of an attack compute the same, and if not, why?"""

from advseg_bench.crosscheck.judge import Difference, StepVerdict, compare, judge_steps
from advseg_bench.crosscheck.trace import Trace, trace
from advseg_bench.crosscheck.verdict import SOUND, Case, Effect, Finding, judge, measure_effect

__all__ = [
    "SOUND",
    "Case",
    "Difference",
    "Effect",
    "Finding",
    "StepVerdict",
    "Trace",
    "compare",
    "judge",
    "judge_steps",
    "measure_effect",
    "trace",
]
