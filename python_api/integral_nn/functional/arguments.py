"""Checks and conversions shared by the public functions: everything wrong is said before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inn_kernels import dispatch, transforms
from inn_kernels.quadrature import Quadrature
from inn_kernels.taps import Basis, Partition, Taps, accumulate_dtype, check_basis, taps_for
from integral_nn.functional.checks import FLOATS


def check_floating(value: object, name: str) -> None:
    """Raise TypeError unless `value` is a dense, real floating-point tensor of 16 bits or more a value."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point tensor of 16 bits or more, got dtype {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")


def check_nodes(nodes: object, ranks: Sequence[int], layout: str, name: str = "nodes") -> None:
    """Raise unless `nodes` is a floating-point tensor of one of the ranks, no continuous dimension empty."""
    check_floating(nodes, name)
    assert isinstance(nodes, Tensor)
    if nodes.dim() not in ranks:
        raise ValueError(f"{name} must have shape {layout}, got shape {list(nodes.shape)}")
    if 0 in nodes.shape:
        raise ValueError(f"{name} must not be empty, got shape {list(nodes.shape)}")


def check_device(value: Tensor, nodes: Tensor, name: str) -> None:
    """Raise unless `value` is on the nodes' device."""
    if value.device != nodes.device:
        raise ValueError(f"{name} must be on the nodes' device {nodes.device}, got {value.device}")


def check_bias(bias: object, nodes: Tensor) -> None:
    """Raise unless `bias` is None or a floating-point tensor [M_out] on the nodes' device."""
    if bias is None:
        return
    check_nodes(bias, (1,), "[M_out]", "bias")
    assert isinstance(bias, Tensor)
    if bias.shape[0] != nodes.shape[0]:
        raise ValueError(f"bias must have shape [{nodes.shape[0]}], one value an output node, got {list(bias.shape)}")
    check_device(bias, nodes, "bias")


def check_dataflow(dataflow: object) -> None:
    """Raise unless `dataflow` is a known name."""
    if dataflow not in dispatch.DATAFLOWS:
        raise ValueError(f"dataflow must be one of {list(dispatch.DATAFLOWS)}, got {dataflow!r}")


def check_scale(scale: object) -> None:
    """Raise unless `scale` is a finite number."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a float, got {type(scale).__name__}")
    if not -math.inf < scale < math.inf:  # a comparison can be traced
        raise ValueError(f"scale must be finite, got {scale}")


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a layer computes in: autocast's where it is on (never for float64), else the input's."""
    kind = x.device.type
    if x.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def records_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will run backward through an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def capturing(device: torch.device) -> bool:
    """Whether calls are recorded into a CUDA graph: what they make holds numbers when it is replayed, not now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def working_dtype(nodes: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype taps are kept in: float64 as soon as nodes or result are float64."""
    return accumulate_dtype(torch.float64 if torch.float64 in (nodes.dtype, dtype) else dtype)


_SETTINGS = {int, float, str, type(None)}
_TENSORS = {Tensor, torch.nn.Parameter, type(None)}


def signature(tensors: Sequence[Tensor | None], settings: tuple) -> tuple | None:
    """All that decides how a call is checked and computed: alike for two calls, if only numbers in tensors differ.

    None where more would: for partitions and rules that are tensors or callables, where PyTorch traces or transforms.
    """
    kinds = (*map(type, settings),)  # True is no 1, nor is 1.0
    if not (_SETTINGS.issuperset(kinds) and _TENSORS.issuperset(map(type, tensors)) and transforms.immediate()):
        return None
    of_tensors = [t if t is None else (t.shape, t.dtype, t.device, t.layout, t.requires_grad) for t in tensors]
    first = tensors[0]
    compute = None if first is None else compute_dtype(first)
    return (*of_tensors, compute, torch.is_grad_enabled(), kinds, settings)


def weight_taps(
    nodes: Tensor,
    out_partition: Partition | None,
    in_partition: Partition | None,
    spatial_partitions: Sequence[Partition | None] | None,
    quadrature: Quadrature,
    scale: float,
    basis: Basis,
    dtype: torch.dtype,
) -> list[Taps | None]:
    """Checked taps of every dimension of `nodes`: input and spatial ones are integrated, the first of them scaled."""
    check_basis(basis)
    check_scale(scale)
    partitions: list[Partition | None] = [out_partition, in_partition][: nodes.dim()]
    names = ["out_partition", "in_partition"]
    if nodes.dim() == 1 and in_partition is not None:
        raise ValueError(f"in_partition needs nodes of rank 2 or more, got shape {list(nodes.shape)}")
    if spatial_partitions is not None:
        if not isinstance(spatial_partitions, Sequence) or len(spatial_partitions) != nodes.dim() - 2:
            raise ValueError(
                f"spatial_partitions must be a sequence of {nodes.dim() - 2} partitions, one for each dimension of "
                f"nodes after the first two, got {spatial_partitions!r}"
            )
        partitions += spatial_partitions
        names += [f"spatial_partitions[{i}]" for i in range(len(spatial_partitions))]
    result: list[Taps | None] = []
    for dim, (partition, name) in enumerate(zip(partitions, names)):
        if partition is None:
            result.append(None)
            continue
        rule = quadrature
        if dim != 1 and not isinstance(quadrature, str):  # weights of one's own belong to the input dimension
            rule = "trapezoid"
        taps = taps_for(
            partition,
            nodes.shape[dim],
            basis,
            quadrature=rule,
            weighted=dim > 0,
            scale=float(scale) if dim > 0 else 1.0,
            dtype=dtype,
            device=nodes.device,
            name=name,
        )
        if dim > 0:
            scale = 1.0
        result.append(taps)
    return result
