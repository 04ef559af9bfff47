"""Calling constructors of networks: their settings, and their errors on one line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from advseg_bench.errors import SpecError, UserError, expected, one_line, unknown
from advseg_bench.models.checkpoints.places import describe_failure, hub_access
from advseg_bench.suite.specs import ModelSpec

FROM_DATA = "It follows from the data: remove it."
"""Reason why a setting is fixed, with the remedy."""

FIXED: dict[str, str] = {
    **dict.fromkeys(("in_channels", "classes", "out_channels", "in_chans"), FROM_DATA),
    "spatial_dims": FROM_DATA,
    "encoder_name": "Use the key `encoder` of the model.",
    "backbone": "Use the key `encoder` of the model.",
    "activation": "Attacks and losses need raw logits: remove it.",
    "aux_params": "A second output is not used: remove it.",
    **dict.fromkeys(("encoder_weights", "pretrained"), "Use the key `encoder_weights` of the model."),
    **dict.fromkeys(
        ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"),
        "Settings download nothing: set the key `weights` of the model to a file.",
    ),
}
"""Arguments of the libraries' networks that are not settings -> reason and remedy."""


def demand_encoder(where: str, spec: ModelSpec) -> str:
    """Return the encoder's name; there is no default, so that a record always names it.

    Raises:
        SpecError: If the specification has none.
    """
    if spec.encoder is None:
        raise SpecError(expected(where, f"an `encoder` for {spec.architecture}", None, 'Try encoder = "resnet18".'))
    return spec.encoder


def check_settings(where: str, spec: ModelSpec, known: Collection[str], fixed: Mapping[str, str]) -> None:
    """Check that settings are neither fixed nor unknown to the constructor.

    Args:
        where: Start of the message.
        spec: The specification with the settings.
        known: Arguments of the constructor.
        fixed: Arguments that are not settings -> reason and remedy.

    Raises:
        SpecError: If a setting is fixed or unknown; the message names the first.
    """
    for key, value in spec.settings.items():
        if key in fixed:
            raise SpecError(expected(where, f"no setting {key!r}", value, fixed[key]))
        if key not in known:
            raise SpecError(unknown(where, f"setting of {spec.architecture}", key, set(known) - fixed.keys()))


def construct(where: str, spec: ModelSpec, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a constructor.

    Args:
        where: Start of the message.
        spec: The specification.
        make: The constructor.
        arguments: Its arguments.

    Returns:
        The object that it constructs.

    Raises:
        SpecError: If it fails; the message contains its error.
    """
    try:
        return make(**arguments)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code may stop with SystemExit and its like
        raise SpecError(
            f"{where}: {spec.architecture} could not be built: {one_line(error)}. Check `encoder` and `settings`."
        ) from error


def as_tuples(value: Any) -> Any:
    """Copy settings from TOML with lists replaced by tuples, which the libraries expect."""
    if isinstance(value, Mapping):
        return {key: as_tuples(entry) for key, entry in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value


def construct_pretrained(
    where: str, spec: ModelSpec, make: Callable[..., Any], arguments: Mapping[str, Any], key: str, value: Any
) -> Any:
    """Call a constructor that fetches the weights of its encoder, after the same call without them has worked.

    Args:
        where: Put before the message.
        spec: What is built.
        make: The constructor.
        arguments: Of it, without pretrained weights.
        key: The argument that asks for pretrained weights.
        value: Of that argument.

    Returns:
        Whatever it makes.

    Raises:
        SpecError: With the reason why the weights could not be fetched, in one line.
    """
    construct(where, spec, make, arguments)
    try:
        with hub_access():
            return make(**{**arguments, key: value})
    except Exception as error:
        remedy = "Connect to the network once, or set `weights`, or remove the key."
        what, found = f"encoder_weights = {spec.encoder_weights!r} of {spec.encoder}", describe_failure(error)
        raise SpecError(f"{where}: expected {what} to be fetched, got {found}. {remedy}") from None
