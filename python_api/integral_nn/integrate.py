"""Multiple integrals of any function by the same quadratures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import torch
from torch import Tensor

from inn_kernels import quadrature as rules
from inn_kernels.quadrature import Quadrature
from inn_kernels.taps import Partition, check_partition


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
        [*rest], differentiable in what `function` and the partitions depend on.

    Raises:
        ValueError, TypeError: bad partitions or quadratures, or values whose first d dimensions are not the grid.

    Source: paper, Eq. 1 (and its product over several variables).

    >>> import integral_nn as inn
    >>> inn.integrate(lambda x, y: x * y**2, [3, 4], quadrature="gauss-legendre")
    tensor(0.1667, dtype=torch.float64)
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    if isinstance(partitions, (Tensor, int)):
        partitions = [partitions]
    if len(partitions) == 0:
        raise ValueError("partitions must name at least one variable, got an empty sequence")
    if isinstance(quadrature, (str, Tensor)) or callable(quadrature):
        quadrature = [quadrature] * len(partitions)
    if len(quadrature) != len(partitions):
        raise ValueError(f"quadrature must be one for each of {len(partitions)} variables, got {len(quadrature)}")
    d = len(partitions)
    points, weights = [], []
    for i, (partition, rule) in enumerate(zip(partitions, quadrature)):
        check_partition(partition, f"partitions[{i}]")
        rules.check_quadrature(rule)
        if isinstance(partition, Tensor):
            q = rules.weights(rule, partition)
        else:
            partition, q = rules.rule_for(rule, partition)
        place = [1] * i + [-1] + [1] * (d - 1 - i)
        points.append(partition.reshape(place))
        weights.append(q)
    values = function(*points)
    if not isinstance(values, Tensor):
        raise TypeError(f"function must return a tensor, got {type(values).__name__}")
    grid = [q.shape[0] for q in weights]
    if values.dim() < d or any(have not in (1, want) for have, want in zip(values.shape, grid)):
        raise ValueError(f"function must return values of shape {grid} and more, got {list(values.shape)}")
    values = values.expand([*grid, *values.shape[d:]])
    for q in weights:
        dtype = torch.promote_types(q.dtype, values.dtype)
        values = torch.tensordot(q.to(dtype), values.to(dtype), ([0], [0]))
    return values


def quadrature_weights(name: Quadrature, partition: Tensor) -> Tensor:
    """The weights q of a quadrature on a partition: sum_l q[l] f(partition[l]) approximates the integral of f.

    Args:
        name: "left", "right" (order 1), "trapezoid", "midpoint" (order 2), "simpson" (order 4, any count),
            "gauss-legendre" (exact on polynomials), a tensor of weights [n], or a callable partition -> weights.
        partition: [n] increasing points in [0, 1].

    Returns:
        [n] weights in the partition's dtype, differentiable in it.

    Raises:
        ValueError, TypeError: unknown name, a bad partition, one point for a closed rule, weights of another shape.

    >>> import integral_nn as inn
    >>> inn.quadrature_weights("trapezoid", inn.uniform_partition(5))
    tensor([0.1250, 0.2500, 0.2500, 0.2500, 0.1250])
    """
    if not isinstance(partition, Tensor):
        raise TypeError(f"partition must be a tensor of points, got {type(partition).__name__}")
    check_partition(partition, "partition")
    return rules.weights(name, partition)
