"""Checkpoints of Transformers, whose files keep the names of older releases: the package itself translates them."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn


def load_renamed(content: object, net: nn.Module) -> dict[str, Tensor] | None:
    """Have Transformers rename the tensors of a file for one of its networks.

    The package is given what was read, no file. Another network of the same class is made for it.

    Args:
        content: Of the file; only a plain state dict is translated.
        net: The bare network, or a module that holds one and nothing else.

    Returns:
        The state dict, without tensors that the file lacks, in the shapes of the file, and with those that the network
        has no place for; None if the network or the file is of another type, or the package cannot load it.
    """
    children = list(net.named_children())
    own = _is_own(net)
    if not own and len(children) == 1 and _is_own(children[0][1]):
        inner = load_renamed(content, children[0][1])
        return None if inner is None else {f"{children[0][0]}.{name}": tensor for name, tensor in inner.items()}
    if not own or not isinstance(content, Mapping):
        return None
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if len(state) < len(content):
        return None
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    network: Any = net
    options = {"config": network.config, "state_dict": dict(state), "output_loading_info": True}
    try:
        with torch.random.fork_rng(devices=()), redirect_stderr(io.StringIO()):  # it prints the progress of a bar
            loaded, info = type(network).from_pretrained(None, ignore_mismatched_sizes=True, **options)
    except Exception:  # the caller describes how the file and the network differ
        return None
    finally:
        logger.setLevel(level)
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in info["missing_keys"]}
    found |= {name: torch.empty(shape) for name, shape, *_ in info["mismatched_keys"]}
    return found | {name: state.get(name, torch.empty(0)) for name in info["unexpected_keys"]}


def _is_own(net: nn.Module) -> bool:
    """Whether a network is of Transformers."""
    return type(net).__module__.startswith("transformers.") and hasattr(type(net), "from_pretrained")
