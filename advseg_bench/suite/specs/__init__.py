"""What does a suite contain? Frozen specifications of data, models, training, attacks and compute."""

from advseg_bench.suite.specs.base import Spec
from advseg_bench.suite.specs.battery import BatteryChoice, BatterySpec
from advseg_bench.suite.specs.data import (
    PLUGIN_TAG,
    DataSpec,
    DecathlonData,
    FolderData,
    LggData,
    Mni152Data,
    NnunetData,
    PhantomData,
    PhantomFolder,
    PluginData,
    SliceData,
    UwMadisonData,
)
from advseg_bench.suite.specs.defence import DefenceSpec
from advseg_bench.suite.specs.experiment import (
    RECIPES,
    AttackSpec,
    Compute,
    Inference,
    Recipe,
    Scoring,
    describe_inference,
    list_starts,
)
from advseg_bench.suite.specs.images import FileData, Fit, ImageData, Normalisation, Scale, SplitData
from advseg_bench.suite.specs.model import ModelSpec
from advseg_bench.suite.specs.shapes import check_shapes, use_single_volumes
from advseg_bench.suite.specs.splits import check_split, use_all_subjects

__all__ = [
    "PLUGIN_TAG",
    "RECIPES",
    "AttackSpec",
    "BatteryChoice",
    "BatterySpec",
    "Compute",
    "DataSpec",
    "DecathlonData",
    "DefenceSpec",
    "FileData",
    "Fit",
    "FolderData",
    "ImageData",
    "Inference",
    "LggData",
    "Mni152Data",
    "ModelSpec",
    "NnunetData",
    "Normalisation",
    "PhantomData",
    "PhantomFolder",
    "PluginData",
    "Recipe",
    "Scale",
    "Scoring",
    "SliceData",
    "Spec",
    "SplitData",
    "UwMadisonData",
    "check_shapes",
    "check_split",
    "describe_inference",
    "list_starts",
    "use_all_subjects",
    "use_single_volumes",
]
