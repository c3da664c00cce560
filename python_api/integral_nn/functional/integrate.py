"""Multiple integrals of any function by the same quadratures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Union

import torch
from torch import Tensor

from inn_kernels import quadrature as rules
from inn_kernels.quadrature import Quadrature
from inn_kernels.taps import Partition, check_partition
from inn_kernels.tensors import FLOATING, describe


def integrate(
    function: Callable[..., Tensor],
    partitions: Union[Partition, Sequence[Partition]],
    *,
    quadrature: Union[Quadrature, Sequence[Quadrature]] = "trapezoid",
) -> Tensor:
    """The integral of `function` over the unit cube [0, 1]^d: the sum over grid points of weights times values.

    Args:
        function: takes d coordinate tensors that broadcast to [n_1, ..., n_d], returns values [n_1, ..., n_d, *rest].
        partitions: for each of the d variables, [n] increasing points in [0, 1], or n. One alone means d = 1.
        quadrature: one for all variables, or one each; see `quadrature_weights`.

    Returns:
        [*rest], differentiable in what `function` and the partitions depend on, in the widest of their dtypes. Weights
        are computed in float64 and rounded to it.

    Raises:
        ValueError, TypeError: bad partitions or quadratures, or values whose first d dimensions are not the grid.

    Source: paper, Eq. 1 (and its product over several variables).

    >>> import integral_nn as inn
    >>> inn.integrate(lambda x, y: x * y**2, [3, 4], quadrature="gauss-legendre")
    tensor(0.1667, dtype=torch.float64)
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    points, weights, dtypes = _grid(partitions, quadrature)
    shape = [q.shape[0] for q in weights]
    d = len(shape)
    place = [[-1 if j == i else 1 for j in range(d)] for i in range(d)]
    values = function(*(p.reshape(to) for p, to in zip(points, place)))
    if not isinstance(values, Tensor):
        raise TypeError(f"function must return a tensor, got {type(values).__name__}")
    if values.layout != torch.strided:
        raise TypeError(f"function must return a dense tensor, got layout {values.layout}")
    if values.is_floating_point() and values.dtype not in FLOATING:
        raise TypeError(f"function must return values of a dtype that PyTorch computes in, got {values.dtype}")
    if values.device != weights[0].device:
        raise ValueError(f"function must return values on the points' device {weights[0].device}, got {values.device}")
    if values.dim() < d or any(have not in (1, want) for have, want in zip(values.shape, shape)):
        raise ValueError(f"function must return values of shape {shape} and more, got {list(values.shape)}")
    dtype = functools.reduce(torch.promote_types, dtypes, values.dtype)
    values = values.expand([*shape, *values.shape[d:]]).to(dtype)
    for q in weights:
        values = torch.tensordot(q.to(dtype), values, ([0], [0]))
    return values


def _grid(
    partitions: Union[Partition, Sequence[Partition]], quadrature: Union[Quadrature, Sequence[Quadrature]]
) -> tuple[list[Tensor], list[Tensor], list[torch.dtype]]:
    """Checked points and weights of every variable, and the dtypes that the integral is at least as wide as."""
    if isinstance(partitions, (Tensor, int, torch.SymInt)):
        partitions = [partitions]
    if not isinstance(partitions, Sequence) or isinstance(partitions, str):
        raise TypeError(f"partitions must be points, an int or a sequence of them, got {describe(partitions)}")
    if len(partitions) == 0:
        raise ValueError("partitions must name at least one variable, got an empty sequence")
    if isinstance(quadrature, (str, Tensor)) or callable(quadrature):
        rules.check_quadrature(quadrature)
        quadrature = [quadrature] * len(partitions)
    if not isinstance(quadrature, Sequence):
        raise TypeError(f"quadrature must be a name, a tensor, a callable or some of them, got {describe(quadrature)}")
    if len(quadrature) != len(partitions):
        raise ValueError(f"quadrature must be one for each of {len(partitions)} variables, got {len(quadrature)}")
    points, weights, dtypes = [], [], []
    for i, (partition, rule) in enumerate(zip(partitions, quadrature)):
        if partition is None:
            raise TypeError(f"partitions[{i}] must be a tensor of points or an int, got None")
        check_partition(partition, f"partitions[{i}]")
        rules.check_quadrature(rule, f"quadrature[{i}]")
        if rules.is_cells(rule):
            raise ValueError(f"quadrature[{i}] must weight values at points, got 'cells', which integrates over nodes")
        if isinstance(partition, Tensor):
            q = rules.weights(rule, partition)
        else:
            partition, q = rules.rule_for(rule, partition)
        points.append(partition)
        weights.append(q)
        dtypes += [partition.dtype, q.dtype] if isinstance(rule, Tensor) else [partition.dtype]
    return points, weights, dtypes


def quadrature_weights(name: Quadrature, partition: Tensor) -> Tensor:
    """The weights q of a quadrature on a partition: sum_l q[l] f(partition[l]) approximates the integral of f.

    Args:
        name: "left", "right" (order 1), "trapezoid", "midpoint" (order 2), "simpson" (order 4, any count),
            "gauss-legendre" (exact on polynomials), a tensor of weights [n], or a callable points -> weights,
            which gets the points in float64. Of "cells" they are the widths.
        partition: [n] increasing points in [0, 1]; the n + 1 edges of "cells".

    Returns:
        [n] weights, differentiable in the partition, computed in float64 and rounded to its dtype. A tensor of weights
        is returned as it is.

    Raises:
        ValueError, TypeError: unknown name, a bad partition, one point for a closed rule, weights of another shape.

    >>> import integral_nn as inn
    >>> inn.quadrature_weights("trapezoid", inn.uniform_partition(5))
    tensor([0.1250, 0.2500, 0.2500, 0.2500, 0.1250])
    """
    if not isinstance(partition, Tensor):
        raise TypeError(f"partition must be a tensor of points, got {type(partition).__name__}")
    check_partition(partition, "partition", edges=rules.is_cells(name))
    q = rules.weights(name, partition)
    return q if isinstance(name, Tensor) else q.to(partition.dtype)
