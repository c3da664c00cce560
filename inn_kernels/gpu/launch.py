"""What a launch takes: a configuration, outputs, the device it runs on and what is known of it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from inn_kernels.gpu.record import recorder

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter: on CPU tensors, slowly, with the same launchers."""

TRITON_TYPE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Storage dtypes of the kernels, as Triton writes them in a signature."""


class Config(NamedTuple):
    """One launch configuration: constexpr values and the warps and pipeline stages of a program."""

    name: str
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    resident: int = 0  # programs a multiprocessor holds at once on sm_90, where a launcher sizes its grid by it
    programs: int = 2  # a multiprocessor gets where a tile of a product is shared, for there are few
    max_registers: int | None = None  # bound for the compiler, NVIDIA only
    instead: Mapping[str, Mapping[str, Any]] = {}  # by target, fields and constants that differ there

    def on(self, target: str) -> Config:
        """The configuration as a target (`specs.ALL_TARGETS`) takes it."""
        if target not in self.instead:
            return self
        changes = dict(self.instead[target])
        fields = {name: changes.pop(name) for name in self._fields if name in changes}
        return self._replace(constants={**self.constants, **changes}, instead={}, **fields)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a launch. Fused multiply-add is asked for: its default differs between releases."""
        fixed = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        bound = {"maxnreg": self.max_registers} if self.max_registers and torch.version.hip is None else {}
        return {**self.constants, **fixed, **bound}


allocate = torch.empty
"""Makes every output and scratch tensor of the kernels; tests put one here that fills them with NaN."""


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format | None = None
) -> Tensor:
    """An output or scratch tensor of a kernel."""
    return allocate(shape, dtype=dtype, device=device, memory_format=memory_format or torch.contiguous_format)


def empty_like_layout(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty result in the layout of `x`: channels_last if x is and is not also contiguous, else contiguous."""
    return empty(shape, dtype, x.device, torch.channels_last if is_channels_last(x) else None)


def is_channels_last(x: Tensor) -> bool:
    """Whether x is a rank-4 channels_last tensor and not also contiguous."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def guard(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes x's device the current one for a launch; raises if kernels cannot run there."""
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if INTERPRETED and x.device.type == "cpu":
        return contextlib.nullcontext()
    raise RuntimeError(
        f"Triton kernels run on a GPU, got a tensor on {x.device} (TRITON_INTERPRET=1 runs them on CPU tensors)"
    )


def cdiv(n: int, size: int) -> int:
    """How many pieces of a size hold n. (Triton's takes microseconds on the host.)"""
    return -(-n // size)


@functools.cache
def target_of(device: torch.device) -> str:
    """The target (`specs.ALL_TARGETS`) nearest to a device; sm_90 where there is none."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx942"
    return {8: "sm_80", 9: "sm_90"}.get(torch.cuda.get_device_capability(device)[0], "sm_100")


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; few in the interpreter, so that small cases still use several programs."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def stream_of(device: torch.device) -> tuple[int, bool]:
    """The current stream of a device, and whether it is being captured into a CUDA graph."""
    if device.type != "cuda":
        return 0, False
    with torch.cuda.device(device):
        return torch.cuda.current_stream().cuda_stream, torch.cuda.is_current_stream_capturing()


class _Compiled(NamedTuple):
    """A kernel that was compiled for arguments of some kind, as its own launcher takes it."""

    run: Any
    function: Any
    metadata: Any
    constants: tuple
    kernel: Any


_compiled: dict[tuple, _Compiled] = {}
LIMIT = 2**31
"""Integers below are int32 to a kernel, others int64."""


class Launch:
    """kernel[grid](*tensors, *numbers, **options): all that shapes decide of a launch, made once and kept.

    Triton binds and inspects every argument anew. Here a kernel, once compiled, is looked up by what it was specialized
    for and called directly, in a tenth of the time. A profiler's hooks are not passed by.
    """

    __slots__ = ("across", "grid", "kernel", "kind", "numbers", "options", "ready")

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: Sequence[int], options: Mapping[str, Any]) -> None:
        self.kernel, self.grid, self.numbers, self.options = kernel, grid, tuple(numbers), dict(options)
        self.across = (*grid, 1, 1)[:3]
        self.ready: dict[tuple, _Compiled] = {}  # by device, dtypes and alignment of the tensors
        # What else a kernel is compiled for: constants and options, and the width of integers.
        self.kind = (kernel, *options, *options.values(), *(-LIMIT <= n < LIMIT for n in self.numbers))

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch it on the current stream of the current device (see `guard`)."""
        kernel = self.kernel
        recording = recorder()
        if INTERPRETED or torch.version.hip is not None or _hooked(kernel):
            if recording is not None:
                recording.refuse("somebody listens to launches")
            kernel[self.grid](*tensors, *self.numbers, **self.options)
            return
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        kinds = (device, *[x if x is None else (x.dtype if x.data_ptr() % 16 == 0 else (x.dtype,)) for x in tensors])
        found = self.ready.get(kinds)
        if found is None:
            found = _compiled.get((self.kind, kinds))
            if found is None:
                self._compile(kinds, tensors)
                if recording is not None:
                    recording.refuse("it was compiled meanwhile")
                return
            self.ready[kinds] = found
        if recording is not None:
            recording.launched(found.kernel, kernel.arg_names, (*tensors, *self.numbers, *found.constants), self.across)
        x, y, z = self.across
        found.run(
            x, y, z, driver.get_current_stream(device), found.function, found.metadata,
            None, None, None, *tensors, *self.numbers, *found.constants,
        )  # fmt: skip

    def _compile(self, kinds: tuple, tensors: Sequence[Tensor | None]) -> None:
        """The launch by Triton, and note what it compiled, if kinds are all that it looks at."""
        made = self.kernel[self.grid](*tensors, *self.numbers, **self.options)
        if made is None:  # a hook of Triton's kept it from being compiled
            return
        given = len(tensors) + len(self.numbers)
        names = self.kernel.arg_names[given:]
        general = all(p.do_not_specialize for p in self.kernel.params[len(tensors) : given])
        if general and set(names) <= set(self.options):
            constants = tuple(self.options[name] for name in names)
            _compiled[self.kind, kinds] = _Compiled(made.run, made.function, made.packed_metadata, constants, made)


def _hooked(kernel: Any) -> bool:
    """Whether somebody listens to launches, or changes what is compiled."""
    runtime = triton.knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", hook):
            return True
    return runtime.add_stages_inspection_hook is not None or bool(kernel.pre_run_hooks)
