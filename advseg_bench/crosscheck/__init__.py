"""Do two implementations of an attack compute the same, and if not, why?"""

from advseg_bench.crosscheck.certificate import certify, count_verdicts, is_sound
from advseg_bench.crosscheck.decision import judge
from advseg_bench.crosscheck.example import Example, load_example, save_example
from advseg_bench.crosscheck.grid import Pair, crosscheck
from advseg_bench.crosscheck.judge import Difference, StepVerdict, compare, judge_steps
from advseg_bench.crosscheck.plan import Place, Plan, Subject
from advseg_bench.crosscheck.trace import Trace, run_traced
from advseg_bench.crosscheck.verdict import SOUND, Case, Effect, Finding, measure_effect

__all__ = [
    "SOUND",
    "Case",
    "Difference",
    "Effect",
    "Example",
    "Finding",
    "Pair",
    "Place",
    "Plan",
    "StepVerdict",
    "Subject",
    "Trace",
    "certify",
    "compare",
    "count_verdicts",
    "crosscheck",
    "is_sound",
    "judge",
    "judge_steps",
    "load_example",
    "measure_effect",
    "run_traced",
    "save_example",
]
