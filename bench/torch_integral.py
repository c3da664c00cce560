"""The authors' own package as a provider where it is installed (https://github.com/TheStageAI/TorchIntegral, 2024).

Its parametrizations keep the nodes as [1, kernel offsets, M_out, M_in] and call grid_sample on them. Its grids run from
-1 to 1 and its volume factor is (M_in - 1) / 2, so that the weight is ours with the scale M_in - 1.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from torch import Tensor

NAME = "TorchIntegral"


def installed() -> bool:
    """Whether the package can be imported."""
    return importlib.util.find_spec("torch_integral") is not None


def weights(
    nodes: tuple[int, int], points: tuple[int, int], kernel: list[int]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Functions that sample nodes [M_out, M_in, *kernel] -> [K, L, *kernel] and a bias [M_out] -> [K]."""
    from torch_integral.grid import GridND, RandomUniformGrid1D, UniformDistribution
    from torch_integral.parametrizations.interpolation_weights import GridSampleWeights1D, GridSampleWeights2D
    from torch_integral.quadrature import TrapezoidalQuadrature

    rows, columns = (RandomUniformGrid1D(UniformDistribution(size, size)) for size in points)
    both = GridND({"0": rows, "1": columns})
    weight = GridSampleWeights2D(both, TrapezoidalQuadrature([1]), list(nodes), kernel or None)
    weight.train_volume = (nodes[1] - 1) / 2
    bias = GridSampleWeights1D(GridND({"0": rows}), None, nodes[0])

    def sample(values: Tensor) -> Tensor:
        planes = values.permute(*range(2, values.dim()), 0, 1)
        return weight(planes.reshape(1, -1, *nodes))

    def sample_bias(values: Tensor) -> Tensor:
        return bias(values.reshape(1, 1, -1, 1))

    return sample, sample_bias


def as_they_keep_it(nodes: Tensor) -> Tensor:
    """The same nodes [M_out, M_in, *kernel] with memory in the order of their parameter."""
    offsets = range(2, nodes.dim())
    back = (nodes.dim() - 2, nodes.dim() - 1, *range(nodes.dim() - 2))
    return nodes.permute(*offsets, 0, 1).contiguous().permute(back)
