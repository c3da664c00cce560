"""Integral neural networks in PyTorch: layers whose weights are continuous functions, sampled at any width."""

from inn_kernels.quadrature import (
    gauss_legendre_partition,
    midpoint_partition,
    partition_from_deltas,
    uniform_partition,
)
from integral_nn.axis import Axis
from integral_nn.conv import (
    IntegralConv1d,
    IntegralConv2d,
    IntegralConv3d,
    integral_conv1d,
    integral_conv2d,
    integral_conv3d,
)
from integral_nn.discretize import discretize
from integral_nn.integrate import integrate, quadrature_weights
from integral_nn.linear import IntegralLinear, integral_linear

__all__ = [
    "Axis",
    "IntegralConv1d",
    "IntegralConv2d",
    "IntegralConv3d",
    "IntegralLinear",
    "discretize",
    "gauss_legendre_partition",
    "integral_conv1d",
    "integral_conv2d",
    "integral_conv3d",
    "integral_linear",
    "integrate",
    "midpoint_partition",
    "partition_from_deltas",
    "quadrature_weights",
    "uniform_partition",
]
