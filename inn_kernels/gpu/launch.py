"""What every kernel file shares: how a configuration is written down, how outputs are allocated, where a launch runs.

A kernel file declares each kernel once for the ahead-of-time harness (`compile.py`):

    KERNELS = [
        KernelSpec(
            _discretize_kernel,
            signature={"p_nodes": "*fp32", "p_out": "*bf16", ..., "out_nodes": "i32"},
            configs=[Config("wide", {"SUB": 4}, num_warps=4), Config("narrow", {"SUB": 1}, num_warps=4)],
            variant="fp32-bf16",
        ),
    ]

`signature` gives the type of every run-time argument, in any order; `Config.constants` the value of every constexpr.
The same `Config` objects drive the launchers, so what is compiled and inspected is what runs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter: on CPU tensors, slowly, with the same launchers."""

TRITON_TYPE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Storage dtypes of the kernels, as Triton writes them in a signature."""


ALL_TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
ONE_TARGET = ("sm_90",)
"""Where the harness compiles a kernel: its main dtypes everywhere; others, which differ by a conversion, once."""


class Config(NamedTuple):
    """One launch configuration: constexpr values and the warps and pipeline stages of a program."""

    name: str
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    resident: int = 0  # programs a multiprocessor holds at once on sm_90, where a launcher sizes its grid by it
    max_registers: int | None = None  # bound for the compiler, NVIDIA only
    instead: Mapping[str, Mapping[str, Any]] = {}  # by target, fields and constants that differ there

    def on(self, target: str) -> Config:
        """The configuration as a target (one of ALL_TARGETS) takes it."""
        if target not in self.instead:
            return self
        changes = dict(self.instead[target])
        fields = {name: changes.pop(name) for name in self._fields if name in changes}
        return self._replace(constants={**self.constants, **changes}, instead={}, **fields)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a launch. Fused multiply-add is asked for: its default differs between releases."""
        fixed = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        bound = {"maxnreg": self.max_registers} if self.max_registers and torch.version.hip is None else {}
        return {**self.constants, **fixed, **bound}


@dataclass(frozen=True)
class KernelSpec:
    """A kernel, the types it is launched with and its configurations, as the ahead-of-time harness compiles them."""

    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]  # type of each run-time argument: "*fp32", "*bf16", "i32", "i64", "fp32"
    configs: Sequence[Config]
    variant: str = ""  # tells specs of one kernel apart, usually by dtype
    divisible: Sequence[str] = ()  # arguments promised to be multiples of 16 (pointers: 16-byte aligned)
    barrier_free_loops: bool = False  # the harness checks that no loop holds a barrier
    tensor_cores: bool = False  # the harness checks that the kernel uses them
    targets: Sequence[str] = ALL_TARGETS

    @property
    def name(self) -> str:
        """Name of the kernel in tables."""
        return self.kernel.__name__.strip("_").removesuffix("_kernel")


def with_constants(configs: Sequence[Config], **choices: Sequence[Any]) -> list[Config]:
    """Every configuration with every combination of further constexpr values, as a launcher may pick them."""
    made = []
    for values in itertools.product(*choices.values()):
        extra = dict(zip(choices, values))
        suffix = "".join(f" {name}={value}" for name, value in extra.items() if len(choices[name]) > 1)
        made += [c._replace(name=c.name + suffix, constants={**c.constants, **extra}) for c in configs]
    return made


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


@functools.cache
def target_of(device: torch.device) -> str:
    """The target of ALL_TARGETS nearest to a device; sm_90 where there is none."""
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
