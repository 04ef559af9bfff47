"""The route of each attack class of ART to a segmentation model; `measure_support` verifies every class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from advseg_adapters.foreign import Route
from advseg_bench.types import Norm

_STARTS: dict[str, Any] = {"random": True, "random_by": ("num_random_init",)}
_STEPS = {"eps_step": "0.25*eps", "max_iter": 10}
_AUTO = {"eps_step": "2*eps", "max_iter": 20, "nb_random_init": 1}
_PATCH = {"scale_min": 0.3, "scale_max": 0.5, "max_iter": 20}
_BOTH: tuple[Norm, ...] = ("linf", "l2")
_PLACED = "Learns a patch for each image and places it at random; its projection into the budget is scored."
_DETECTION = "it is for object detection: its labels are boxes"
_AUDIO = "it is for speech recognition"


def _gated(norms: tuple[Norm, ...] = ("l2",), /, **rest: Any) -> Route:
    """Return the route of a class that stops at success or searches for a minimal perturbation."""
    return Route(**{"view": "margin", "objective": "success-gated", "norms": norms, "eps": None} | rest)


def _none(reason: str) -> Route:
    """Return the route of a class that cannot run."""
    return Route(reason=reason, eps=None)


ROUTES: dict[str, Route] = {
    # Increase the loss on an estimator with masks as labels.
    "FastGradientMethod": Route(view="native", norms=_BOTH, **_STARTS),
    "BasicIterativeMethod": Route(view="native", settings=_STEPS),
    "ProjectedGradientDescent": Route(view="native", norms=_BOTH, settings=_STEPS, **_STARTS),
    "ProjectedGradientDescentNumpy": Route(view="native", norms=_BOTH, settings=_STEPS, **_STARTS),
    "MomentumIterativeMethod": Route(view="native", norms=_BOTH, settings=_STEPS),
    "SquareAttack": Route(
        view="native",
        norms=_BOTH,
        settings={"max_iter": 200},
        random=True,
        dims=(2,),
        note="Does not stop at success, since its success criterion is set to be never met.",
        gradient=False,
    ),
    "FeatureAdversariesPyTorch": Route(
        view="native",
        objective="own loss",
        eps="delta",
        settings={"step_size": "0.25*eps", "max_iter": 10},
        note="Moves the features of a layer towards those of the image rotated by 180 degrees.",
    ),
    # Increase the loss through a view.
    "ProjectedGradientDescentPyTorch": Route(norms=_BOTH, settings=_STEPS, **_STARTS),
    "AdversarialPatch": Route(
        eps=None,
        settings=_PATCH | {"targeted": False, "learning_rate": 0.1},
        random=True,
        objective="own loss",
        dims=(2,),
        norms=_BOTH,
        note=_PLACED,
    ),
    "AdversarialPatchPyTorch": Route(
        eps=None,
        settings=_PATCH | {"targeted": False, "learning_rate": 0.1},
        random=True,
        objective="own loss",
        dims=(2,),
        norms=_BOTH,
        note=_PLACED,
    ),
    "AdversarialPatchNumpy": _gated(
        _BOTH, settings=_PATCH | {"learning_rate": 50.0}, objective="own loss", random=True, dims=(2,), note=_PLACED
    ),
    # Stop at success within a budget.
    "AutoProjectedGradientDescent": _gated(_BOTH, eps="eps", settings=_AUTO, random=True),
    "AutoConjugateGradient": _gated(_BOTH, eps="eps", settings=_AUTO, random=True),
    "RescalingAutoConjugateGradient": _gated(_BOTH, eps="eps", settings=_AUTO, random=True),
    "UniversalPerturbation": _gated(
        _BOTH,
        eps="eps",
        settings={"max_iter": 3, "attacker_params": {"verbose": False, "max_iter": 20, "epsilon": 0.02}},
        random=True,
        note="Computed for one image at a time, so the perturbation is not universal.",
    ),
    "TargetedUniversalPerturbation": _gated(
        ("linf",),
        eps="eps",
        settings={"max_iter": 3, "attacker_params": {"eps": "1*eps", "targeted": True}},
        random=True,
        note="Computed for one image at a time; its target is the class of failed segmentations.",
    ),
    # Search for a minimal perturbation, or take no budget: the result is projected.
    "DeepFool": _gated(settings={"max_iter": 50, "epsilon": 0.02}),
    "CarliniL2Method": _gated(settings={"binary_search_steps": 5}),
    "CarliniLInfMethod": _gated(("linf",), settings={"const_factor": 10.0, "decrease_factor": 0.8}),
    "CarliniL0Method": _gated(settings={"binary_search_steps": 3, "initial_const": 1.0}),
    "ElasticNet": _gated(settings={"binary_search_steps": 3, "initial_const": 1.0, "max_iter": 30}),
    "NewtonFool": _gated(settings={"max_iter": 50}),
    "SaliencyMapMethod": _gated(settings={"gamma": 0.05}, note="Its target is the class of failed segmentations."),
    "BoundaryAttack": _gated(settings={"targeted": False, "max_iter": 30}, random=True, gradient=False),
    "HopSkipJump": _gated(
        _BOTH, settings={"max_iter": 5, "max_eval": 500, "init_eval": 50}, random=True, gradient=False
    ),
    "GeoDA": _gated(_BOTH, settings={"max_iter": 500}, random=True, dims=(2,), gradient=False),
    "SignOPTAttack": _gated(
        settings={"targeted": False, "max_iter": 3, "k": 20, "num_trial": 10}, random=True, gradient=False
    ),
    "SimBA": _gated(
        ("linf",), settings={"attack": "px", "max_iter": 300, "epsilon": "1*eps"}, random=True, gradient=False
    ),
    "PixelAttack": _gated(settings={"th": 50, "max_iter": 10}, random=True, dims=(2,), gradient=False),
    "SpatialTransformation": _gated(
        _BOTH,
        settings={"max_translation": 10.0, "num_translations": 3, "max_rotation": 10.0, "num_rotations": 3},
        dims=(2,),
        note="Moves the image but not its mask.",
        gradient=False,
    ),
    "Wasserstein": _gated(
        _BOTH,
        settings={"norm": "inf", "eps_step": 0.02, "max_iter": 10, "projected_sinkhorn_max_iter": 50},
        dims=(2,),
        note="Takes signed steps, projected into a Wasserstein ball.",
    ),
    "ShadowAttack": _gated(
        _BOTH, objective="own loss", settings={"nb_steps": 30, "batch_size": 8, "sigma": 0.05}, random=True, dims=(2,)
    ),
    # Cannot run.
    "VirtualAdversarialMethod": _none("omitted for its cost: about 4,000 evaluations, up to a minute per image"),
    "ZooAttack": _none("omitted for its cost: about 2,600 evaluations, 15 s per image"),
    "ThresholdAttack": _none("omitted for its cost: about 8,000 evaluations, about a minute per image"),
    "AutoAttack": _none("its difference-of-logits-ratio part needs three classes; a view has two"),
    "FeatureAdversariesNumpy": _none("it does not use gradients: each step evaluates the model once for every pixel"),
    "CompositeAdversarialAttackPyTorch": _none("it supports only colour images of 32 x 32 pixels"),
    "GRAPHITEBlackbox": _none("it needs OpenCV, which ART does not install, and photographs of road signs"),
    "GRAPHITEWhiteboxPyTorch": _none("it needs OpenCV, which ART does not install, and photographs of road signs"),
    "BrendelBethgeAttack": _none("it requires numba, which ART does not install"),
    "LaserAttack": _none("it takes colour images with channels last"),
    "FrameSaliencyAttack": _none("it is for videos: it selects frames for another attack"),
    "OverTheAirFlickeringPyTorch": _none("it is for videos"),
    "AdversarialTexturePyTorch": _none("it is for videos of tracked objects"),
    "LowProFool": _none("it is for tabular data: each input is a row of features"),
    "DecisionTreeAttack": _none("it is for decision trees"),
    "HighConfidenceLowUncertainty": _none("it is for Gaussian processes"),
    "MalwareGDTensorFlow": _none("it is for executable files"),
    "AdversarialPatchTensorFlowV2": _none("it requires a TensorFlow model"),
    "FeatureAdversariesTensorFlowV2": _none("it requires a TensorFlow model"),
    "ProjectedGradientDescentTensorFlowV2": _none("it requires a TensorFlow model"),
    "DPatch": _none(_DETECTION),
    "RobustDPatch": _none(_DETECTION),
    "OverloadPyTorch": _none(_DETECTION),
    "SNAL": _none(_DETECTION),
    "ShapeShifter": _none(_DETECTION),
    "CarliniWagnerASR": _none(_AUDIO),
    "ImperceptibleASR": _none(_AUDIO),
    "ImperceptibleASRPyTorch": _none(_AUDIO),
}
"""How each class attacks a segmentation model, or why it cannot; by name of the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a class is called.

    Attributes:
        label: The label of an image: 0 for a good segmentation; 1 for a failed one, for classes that support only
            targeted attacks; None for the predicted class, which is 0.
        probabilities: Whether it requires probabilities instead of logits.
        start: Noise that is a successful starting point, if it requires one. "uniform": its own noise comes from a
            generator that cannot be seeded. "extreme": its own search would never end without success.
        writes: Whether it writes and reads a file in the current folder.
        rounds: Whether it converts to 8-bit values and back, which changes the last bits of an unchanged image.
        third: Whether it rejects two classes; it then gets a third one that never wins.
        wide: Whether it requires bounds in float64.
        patch: Whether it returns a patch, which is then placed on the image.
        best: Whether it keeps the best iterate in `x_max` and returns another one.
        norm: Whether its parameter `norm` is the norm of the budget.
    """

    label: Literal[0, 1] | None = 0
    probabilities: bool = False
    start: Literal["uniform", "extreme"] | None = None
    writes: bool = False
    rounds: bool = False
    third: bool = False
    wide: bool = False
    patch: bool = False
    best: bool = False
    norm: bool = True


MANNERS: Mapping[str, Manner] = {
    "AdversarialPatch": Manner(patch=True),
    "AdversarialPatchPyTorch": Manner(patch=True),
    "AdversarialPatchNumpy": Manner(patch=True, label=1, wide=True),
    "AutoProjectedGradientDescent": Manner(best=True),
    "AutoConjugateGradient": Manner(best=True),
    "RescalingAutoConjugateGradient": Manner(best=True),
    "TargetedUniversalPerturbation": Manner(label=1),
    "PixelAttack": Manner(label=None, rounds=True),
    "ShadowAttack": Manner(label=None),
    "SignOPTAttack": Manner(third=True),
    "SaliencyMapMethod": Manner(label=1),
    "NewtonFool": Manner(probabilities=True),
    "SimBA": Manner(probabilities=True),
    "BoundaryAttack": Manner(start="uniform"),
    "HopSkipJump": Manner(start="uniform"),
    "GeoDA": Manner(writes=True, start="extreme"),
    "Wasserstein": Manner(norm=False),
}
