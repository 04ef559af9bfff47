"""How certain is a mean? Statistics with the subject as the unit: all images of one patient are one observation.

Importing it does not load torch.
"""

from advseg_bench.stats.correlation import Coefficient, Correlation, correlate
from advseg_bench.stats.equivalence import Equivalence, equivalence, equivalent_correlation
from advseg_bench.stats.family import Verdict, decide, holm, holm_level
from advseg_bench.stats.intervals import (
    FEWEST_SUBJECTS,
    Interval,
    group_intervals,
    subject_interval,
    subject_intervals,
    subject_means,
)
from advseg_bench.stats.paired import PairedTest, compare_paired, joint_sign_flip_ps, sign_flip_ps

__all__ = [
    "FEWEST_SUBJECTS",
    "Coefficient",
    "Correlation",
    "Equivalence",
    "Interval",
    "PairedTest",
    "Verdict",
    "compare_paired",
    "correlate",
    "decide",
    "equivalence",
    "equivalent_correlation",
    "group_intervals",
    "holm",
    "holm_level",
    "joint_sign_flip_ps",
    "sign_flip_ps",
    "subject_interval",
    "subject_intervals",
    "subject_means",
]
