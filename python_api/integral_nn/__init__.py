"""Integral neural networks in PyTorch: layers whose weights are continuous functions, sampled at any width."""

from inn_kernels import __version__ as __version__
from inn_kernels.quadrature import (
    gauss_legendre_partition,
    midpoint_partition,
    partition_from_deltas,
    uniform_partition,
)
from integral_nn.coupling.axis_set import AxisSet
from integral_nn.coupling.calls import ConversionError
from integral_nn.coupling.find import find_axes
from integral_nn.functional.conv import integral_conv1d, integral_conv2d, integral_conv3d
from integral_nn.functional.discretize import discretize
from integral_nn.functional.integrate import integrate, quadrature_weights
from integral_nn.functional.linear import integral_linear
from integral_nn.functional.nodes_from import nodes_from
from integral_nn.layers.axis import Axis
from integral_nn.layers.conv import IntegralConv1d, IntegralConv2d, IntegralConv3d
from integral_nn.layers.linear import IntegralLinear
from integral_nn.networks.capacity import capacity, spectrum
from integral_nn.networks.changes import LayerChange, LayerChanges
from integral_nn.networks.convert import Report, convert
from integral_nn.networks.count import Count, count
from integral_nn.networks.network import IntegralNetwork
from integral_nn.networks.norms import recalibrate
from integral_nn.networks.snapshots import Snapshots
from integral_nn.networks.tune import compressed_sizes, curvature_partition, tune_partitions
from integral_nn.networks.warmup import warmup
from integral_nn.training.agreement import check_sizes
from integral_nn.training.captured import CapturedSteps
from integral_nn.training.checkpoints import check_checkpoint
from integral_nn.training.groups import parameter_groups
from integral_nn.training.points import replicate_points

__all__ = [
    "Axis",
    "AxisSet",
    "CapturedSteps",
    "ConversionError",
    "Count",
    "IntegralConv1d",
    "IntegralConv2d",
    "IntegralConv3d",
    "IntegralLinear",
    "IntegralNetwork",
    "LayerChange",
    "LayerChanges",
    "Report",
    "Snapshots",
    "capacity",
    "check_checkpoint",
    "check_sizes",
    "compressed_sizes",
    "convert",
    "count",
    "curvature_partition",
    "discretize",
    "find_axes",
    "gauss_legendre_partition",
    "integral_conv1d",
    "integral_conv2d",
    "integral_conv3d",
    "integral_linear",
    "integrate",
    "midpoint_partition",
    "nodes_from",
    "parameter_groups",
    "partition_from_deltas",
    "quadrature_weights",
    "recalibrate",
    "replicate_points",
    "spectrum",
    "tune_partitions",
    "uniform_partition",
    "warmup",
]
