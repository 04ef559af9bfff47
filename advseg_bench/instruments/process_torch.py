"""State of torch, and functions of libraries, that code can leave changed: a table of entries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as _pop_function_mode
from torch.overrides import _push_mode as _push_function_mode
from torch.utils import _python_dispatch as dispatch

from advseg_bench.instruments.process_entry import Entry

PATCHED = (
    "torch",
    "torch.Tensor",
    "torch.nn.functional",
    "torch.nn.Module",
    "torch.autograd",
    "torch.linalg",
    "torch.random",
    "numpy",
    "builtins",
    "math",
    "random",
    "time",
    "advseg_bench.geometry",
    "advseg_bench.metrics",
    "advseg_bench.batches",
    "advseg_bench.checks.results",
    "advseg_bench.attacks.base",
    "advseg_bench.attacks.gradient",
    "advseg_bench.attacks.ascent",
    "advseg_bench.losses.pixel",
    "advseg_bench.losses.region",
)
"""Modules and classes whose functions are compared by identity, once they are imported."""

DEVICES = tuple(name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name))
"""Types of devices with an autocast state."""

_FOLLOWING = "Storage"
"""A class in torch that follows the default dtype."""

_TINY, _HALF = sys.float_info.min, 0.5
_kept: list[Any] = []
"""Guards of inference mode that must live as long as the process."""


class _Functions(dict[str, Any]):
    """The entries of a module or class; equal to another if each function in it is still the same object."""

    __hash__ = None

    def __init__(self, owner: Any) -> None:
        super().__init__(vars(owner))
        self.owner = owner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Functions) and not self.find_changed(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def find_changed(self, now: dict[str, Any]) -> list[str]:
        """Names of the functions that are others `now`, of those before; a class's new ones count if they override."""
        is_class = isinstance(self.owner, type)
        changed = [
            name
            for name, value in self.items()
            if (is_class or callable(value)) and name != _FOLLOWING and now.get(name, self) is not value
        ]
        if is_class:
            bases = self.owner.__mro__[1:]
            changed += [n for n in now.keys() - self.keys() if any(n in vars(base) for base in bases)]
        return changed


_last: dict[str, _Functions] = {}


def _functions_of(name: str) -> Entry:
    """The entry of a module or class."""

    def find() -> Any:
        if name in sys.modules:
            return sys.modules[name]
        module, _, member = name.rpartition(".")
        return getattr(sys.modules[module], member) if module in sys.modules and member[:1].isupper() else None

    def read() -> _Functions | None:
        owner = find()
        if owner is None:
            return None
        known = _last.get(name)
        there = vars(owner) if isinstance(owner, ModuleType) else dict(vars(owner))
        if known is None or known.owner is not owner or not dict.__eq__(known, there):
            known = _last[name] = _Functions(owner)
        return known

    def write(before: _Functions | None) -> None:
        if before is None:
            return
        for each in before.find_changed(dict(vars(before.owner))):
            if each in before:
                setattr(before.owner, each, before[each])
            else:
                delattr(before.owner, each)

    return Entry(f"functions of {name}", read, write)


def _read_device() -> torch.device | None:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _read_modes() -> tuple[list[Any], list[Any]]:
    functions = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    default = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)  # the mode of the default device
    return [mode for mode in functions if mode is not default], dispatch._get_current_dispatch_mode_stack()


def _write_modes(before: tuple[list[Any], list[Any]]) -> None:
    now = _read_modes()
    ways: Any = ((_pop_function_mode, _push_function_mode), (dispatch._pop_mode, dispatch._push_mode))
    for old, new, (pop, push) in zip(before, now, ways, strict=True):
        same = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] is not pair[1]), None)
        same = min(len(old), len(new)) if same is None else same
        for _ in new[same:]:
            pop()
        for mode in old[same:]:
            push(mode)


def _write_inference(before: bool) -> None:
    guard = torch._C._InferenceMode(before)
    guard.__enter__()  # type: ignore[no-untyped-call]
    _kept.append(guard)


def _count_nesting() -> int:
    count = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return count - 1


def _read_autocast() -> tuple[Any, ...]:
    states = ((torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in DEVICES)
    return *states, torch.is_autocast_cache_enabled(), _count_nesting()


def _write_autocast(before: tuple[Any, ...]) -> None:
    *states, cached, nesting = before
    for name, (enabled, dtype) in zip(DEVICES, states, strict=True):
        torch.set_autocast_enabled(name, enabled)
        torch.set_autocast_dtype(name, dtype)
    torch.set_autocast_cache_enabled(cached)
    torch.clear_autocast_cache()
    while (now := _count_nesting()) != nesting:
        (torch.autocast_increment_nesting if now < nesting else torch.autocast_decrement_nesting)()


def _read_anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _read_deterministic() -> tuple[bool, bool, bool]:
    enabled = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    return enabled, warn, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def _write_deterministic(before: tuple[bool, bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]


def _attributes(name: str, owner: Any, *names: str) -> Entry:
    """The entry of some attributes of an object, where it has them."""
    there = [each for each in names if hasattr(owner, each)]

    def write(before: list[Any]) -> None:
        for each, value in zip(there, before, strict=True):
            setattr(owner, each, value)

    return Entry(name, lambda: [getattr(owner, each) for each in there], write)


PRECISIONS = (
    ("generic", "all"),
    *((kind, op) for kind in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")),
)
"""Backends and operators with a precision of float32 of their own, TF32 among them."""


def _read_precision() -> tuple[Any, ...]:
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return torch.get_float32_matmul_precision(), *flags
    return tuple(torch._C._get_fp32_precision_getter(*each) for each in PRECISIONS)


def _write_precision(before: tuple[Any, ...]) -> None:
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]
        return
    for each, value in zip(PRECISIONS, before, strict=True):
        torch._C._set_fp32_precision_setter(*each, value)


def _read_attention() -> tuple[bool, ...]:
    cuda: Any = torch.backends.cuda
    flags = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()
    return *flags, cuda.cudnn_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()


def _write_attention(before: tuple[bool, ...]) -> None:
    cuda = torch.backends.cuda
    switches = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp
    for switch, value in zip((*switches, torch.backends.mha.set_fastpath_enabled), before, strict=True):
        switch(value)


def _keeps_denormals() -> bool:
    return _TINY * _HALF > 0


_REGISTRIES = [
    value
    for name, value in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(value, dict)
]


def _write_module_hooks(before: list[dict[Any, Any]]) -> None:
    for registry, hooks in zip(_REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(hooks)


def _read_device_random() -> tuple[bytes, ...]:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ()
    return tuple(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())


def _write_device_random(before: tuple[bytes, ...]) -> None:
    for device, state in enumerate(before):
        torch.cuda.set_rng_state(_tensor(state), device)


def _read_cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


def _write_cuda_device(before: int | None) -> None:
    if before is not None:
        torch.cuda.set_device(before)


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _list_torch() -> Iterator[Entry]:
    for name in PATCHED:
        yield _functions_of(name)
    backends = torch.backends
    yield from (
        Entry("default device", _read_device, torch.set_default_device),
        Entry("tensor modes", _read_modes, _write_modes),
        Entry("inference mode", torch.is_inference_mode_enabled, _write_inference),
        Entry("gradient mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
        Entry("autocast", _read_autocast, _write_autocast),
        Entry("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Entry("anomaly detection", _read_anomaly, lambda before: torch.autograd.set_detect_anomaly(*before)),
        Entry("deterministic algorithms", _read_deterministic, _write_deterministic),
        Entry("multithreaded backward", torch._C._is_multithreading_enabled, torch._C._set_multithreading_enabled),
        Entry("torch threads", torch.get_num_threads, torch.set_num_threads),
        Entry("torch interop threads", torch.get_num_interop_threads, None),
        Entry("float32 precision", _read_precision, _write_precision),
        _attributes("oneDNN", backends.mkldnn, "enabled", "deterministic"),
        _attributes("cuDNN", backends.cudnn, "enabled", "benchmark", "benchmark_limit", "deterministic"),
        _attributes(
            "cuBLAS",
            backends.cuda.matmul,
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
            "allow_fp16_accumulation",
        ),
        Entry("attention kernels", _read_attention, _write_attention),
        Entry("denormal numbers", _keeps_denormals, lambda before: torch.set_flush_denormal(not before)),
        Entry("hooks of all modules", lambda: [dict(registry) for registry in _REGISTRIES], _write_module_hooks),
        Entry("CUDA device", _read_cuda_device, _write_cuda_device),
        Entry(
            "random numbers of torch",
            lambda: torch.get_rng_state().numpy().tobytes(),
            lambda before: torch.set_rng_state(_tensor(before)),
            "restored",
        ),
        Entry("random numbers of devices", _read_device_random, _write_device_random, "restored"),
    )


TORCH = tuple(_list_torch())
"""The entries, restored in this order: patched functions and modes first, since the others may depend on them."""
