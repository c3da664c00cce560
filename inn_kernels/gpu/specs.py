"""What the ahead-of-time harness (`compile`) compiles: each kernel's argument types and configurations.

A kernel file declares its kernels once:

    KERNELS = [
        KernelSpec(
            discretize_kernel,
            signature={"p_nodes": "*fp32", "p_out": "*bf16", ..., "out_nodes": "i32"},
            configs=[Config("wide", {"SUB": 4}, num_warps=4), Config("narrow", {"SUB": 1}, num_warps=4)],
            variant="fp32-bf16",
        ),
    ]

`signature` gives the type of every run-time argument, in any order; `Config.constants` the value of every constexpr.
The same `Config` objects drive the launchers, so what is compiled and inspected is what runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import triton

from inn_kernels.gpu.axis_table import CONTRIBUTORS
from inn_kernels.gpu.gemm_configs import DOT_TYPE, ConfigTable, flags
from inn_kernels.gpu.launch import Config

ALL_TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
ONE_TARGET = ("sm_90",)
"""Where the harness compiles a kernel: its main dtypes everywhere; others, which differ by a conversion, once."""


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


def gemm_specs(
    kernel: triton.JITFunction,
    table: ConfigTable,
    contributors: Sequence[str],
    sizes: Sequence[str],
    label: str = "",
    **fixed: object,
) -> list[KernelSpec]:
    """What the ahead-of-time harness compiles: every configuration of every dtype.

    The usual pair, bfloat16 on float32 nodes, and float32 for every target. For one target the other pairs, which
    differ by a conversion, and of the usual pair every class of `contributors`, rows of nodes that are not aligned and
    windows of more taps, with the class that goes with half and a quarter of the points.
    """
    usual, full = ("bf16", "fp32"), ("fp32", "fp32")
    pairs = {"half": [usual, ("fp16", "fp32"), ("bf16", "bf16")]}
    first = (6, True, 4)  # NT, aligned, taps
    others = [(nt, True, 4) for nt in CONTRIBUTORS if nt != 6] + [(6, False, 4)]
    if "TAPS" in kernel.arg_names:
        others += [(6, True, 6), (4, True, 8)]
    specs = []
    for kind, pair in [(k, pair) for k in table for pair in pairs.get(k, [full])]:
        x, nodes = pair
        types = {"p_nodes": nodes, "p_bias": nodes, "p_d_nodes": nodes, "p_d_bias": nodes}
        types |= {"p_x": x, "p_y": x, "p_dx": x, "p_dy": x}
        pointers = {name: "*" + types.get(name, _table_type(name)) for name in kernel.arg_names if name[:2] == "p_"}
        for variant in [first, *(others if pair == usual else [])]:
            nt, aligned, taps = variant
            constants = {**dict.fromkeys(contributors, nt), **flags(kind, DOT_TYPE[x], aligned)._asdict(), **fixed}
            if "TAPS" in kernel.arg_names:
                constants["TAPS"] = taps
            name = (f"{x}-{nodes}" if kind == "half" else kind) + label
            name += ("" if nt == 6 else f"-points{nt}") + ("" if aligned else "-unaligned")
            name += "" if taps == 4 else f"-taps{taps}"
            specs.append(
                KernelSpec(
                    kernel,
                    pointers | {name: "i32" for name in sizes if name in kernel.arg_names},
                    [c._replace(constants={**c.constants, **constants}) for _, c in table[kind]],
                    variant=name,
                    divisible=[name for name in pointers if name not in fixed],
                    tensor_cores=kind != "ieee",
                    targets=ALL_TARGETS if pair in (usual, full) and variant == first else ONE_TARGET,
                )
            )
    return specs


def _table_type(name: str) -> str:
    return "fp32" if name.endswith(("weight", "coefficient", "partial")) else "i32"
