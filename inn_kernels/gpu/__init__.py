"""Triton kernels, one file an operation, registered as the CUDA implementation of `torch.ops.inn_kernels.*`.

    discretize               nodes to a weight in the compute dtype, both axes and the quadrature in one pass
    discretize_adjoint       its adjoint: the gradient of the nodes
    discretize_tap_gradient  the gradients of both axes' tap weights
    interpolate              one axis sampled, its adjoint, and the gradient of its weights
    linear, conv             the fused dataflow: sampling inside the matrix product, one launch forward
    linear_backward, conv_node_gradient    and the gradients that are not a forward pass of other nodes
    foreach, foreach_adjoint every layer of a network discretized by one launch, and the gradients of all nodes

What they share:

    sampler_tile             columns and runs of rows of a program, for everything that samples weights and activations
    adjoint_tile             rows of a weight's gradient under rows of nodes, for everything that brings them back
    gemm_tile                the product with sampling in its prologue and epilogue, for linear and conv
    axis_table               which points each node of an axis hears, for that prologue
    split_sum                several programs on one tile of a product, and the sum of their parts
    gemm_configs             the choice of a product's launch configuration; the samplers' is `sampler_tile.plan`
    foreach_table            which tile of which layer a program of those computes
    launch                   configurations, allocation, the device and its stream
    record, replay           a call noted while it runs, and handed to C++, which does it again without Python
    specs, compile           what is compiled ahead of time, and the harness that does so for each target, with no GPU

The mathematics stand on top of each operation's file, its launch configurations right below.

An operator's call reaches the launchers below twice for each kind of arguments. From then on csrc/launcher, which is
what is registered for GPUs, replays it: outputs allocated, kernels launched by the driver, no Python entered.

Importing this package imports neither Triton nor a kernel: the first call of an operation on a GPU does. Where Triton
is missing, for dtypes the kernels do not store (float64) and for more taps a point than the fused kernels take,
operations run as `reference`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch

from inn_kernels import ops, reference
from inn_kernels.gpu import replay


def _missing() -> str | None:
    try:
        found = importlib.util.find_spec("triton")
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return None if found else "Triton is not installed"


missing: str | None = _missing()
"""Why there are no Triton kernels here, or None."""

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes the kernels read and write; sums are float32."""

FUSED_TAPS = 8
"""Most taps a point in the fused kernels: windows straddle tiles of 64 nodes, which overlap by one node less."""

_FILES = {
    "discretize": "discretize",
    "discretize_adjoint": "discretize_adjoint",
    "discretize_tap_gradient": "discretize_tap_gradient",
    "interpolate": "interpolate",
    "spread": "interpolate",
    "interpolate_tap_gradient": "interpolate",
    "discretize_foreach": "foreach",
    "discretize_foreach_adjoint": "foreach_adjoint",
    "linear": "linear",
    "linear_backward": "linear_backward",
    "conv": "conv",
    "conv_input_gradient": "conv",
    "conv_node_gradient": "conv_node_gradient",
}


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on tensors of this device and dtype, or None."""
    if missing is not None:
        return missing
    if device.type != "cuda":
        return f"it runs on GPU tensors, got a tensor on {device}"
    if dtype not in STORAGE:
        return f"it takes {', '.join(str(d) for d in STORAGE)}, got {dtype}"
    return None


@functools.cache
def launcher(name: str) -> Callable[..., Any]:
    """The launcher of an operation; imports Triton and its kernels."""
    return getattr(importlib.import_module(f"inn_kernels.gpu.{_FILES[name]}"), name)


def _implementation(name: str) -> Callable[..., Any]:
    plain = getattr(reference, name)
    parameters = inspect.signature(plain).parameters.values()
    tensors = [i for i, given in enumerate(parameters) if given.annotation in ("Tensor", "Tensor | None")]
    results = [i for i, given in enumerate(parameters) if given.name == "dtype"]
    fused = _FILES[name].startswith(("linear", "conv"))
    weights = [i for i, given in enumerate(parameters) if fused and given.name in ("out_weight", "in_weight")]

    @functools.wraps(plain)
    def run(*arguments: Any) -> Any:
        # Kernels take tensors of float32 and narrower (and int32 starts), and make such.
        taken = all([arguments[i] is None or arguments[i].dtype in _TAKEN for i in tensors])
        taken = taken and all([arguments[i] in _TAKEN for i in results])
        if taken and all([arguments[i].shape[-1] <= FUSED_TAPS for i in weights]):
            return launcher(name)(*arguments)
        return plain(*arguments)

    return run


_TAKEN = {*STORAGE, torch.int32}


def _take(key: str, **how: Any) -> str | None:
    """Make the kernels the operators' implementation for a dispatch key. Returns None, or why C++ replays no call."""
    why = replay.install(key, **how)
    if why is None:
        _tell()
    for name in _FILES:
        if why is not None or not replay.takes(name):
            _library.impl(name, _implementation(name), key, allow_override=True)
    return why


@functools.cache
def _tell() -> torch.library.Library:
    """What C++ calls where it has no recording: each operator as it is, and as an overload that is recorded."""
    library = torch.library.Library("inn_kernels_triton", "DEF")
    for schema, name in zip(ops._SCHEMAS, ops.NAMES):
        if name in _FILES:
            parameters = list(inspect.signature(getattr(reference, name)).parameters)
            fused = _FILES[name].startswith(("linear", "conv"))
            for overload, taps in (("", None), (".recorded", [parameters.index(n) for n in _TAPS] if fused else [])):
                library.define(schema.replace("(", f"{overload}(", 1))
                library.impl(name + overload, replay.told(_implementation(name), taps), "CompositeExplicitAutograd")
    return library


_TAPS = ("out_start", "out_weight", "in_start", "in_weight")
_library = torch.library.Library("inn_kernels", "IMPL")
replays_missing: str | None = _take("CUDA") if missing is None else missing
"""Why no call is replayed by C++, or None."""
