"""The cost model: bytes, operations and launches of each dataflow over a few measured constants of a machine.

    B rows, K x L points, M_out x M_in nodes, T kernel offsets;  W = K L T,  N = M_out M_in T
    gemm(B, S)   = max(2 S (B + rows_half) / gemm_rate, bytes of weight and activations / gemm_bandwidth) + launch

    materialize  forward    N -> W sampled, gemm(B, W)
                 backward   gemm(B, W) for dx and for dW, W -> N gathered
    factored     forward    x spread from L to M_in, gemm(B, N), y' interpolated from M_out to K
                 backward   the same two passes and gemm(B, N) twice
    fused        forward    one launch: 2 B N operations, activations moved once, nodes once for each 64 rows
                 backward   one launch (a convolution: two): 4 B N operations, nodes read and their gradient written

A GEMM of few rows does not reach the machine's rate: `rows_half` is the number of rows at which it reaches half of
it. One of a single row is a matrix-vector product and streams its weight.
Nodes that are not in the compute dtype are cast once more in `factored`. The model ranks dataflows; it does not predict
times to better than a few tens of percent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Machine:
    """Constants of a machine: bytes/s, flop/s, seconds, rows."""

    sampler_read_bandwidth: float  # discretize and its adjoint, bytes read
    sampler_write_bandwidth: float  # and bytes written, into memory that is fresh for every call
    interpolate_bandwidth: float  # interpolate and spread along the last dimension, bytes read + written
    gemm_rate: float  # a GEMM of many rows
    rows_half: float  # rows at which a GEMM reaches half that rate
    gemm_bandwidth: float  # bytes streamed by a GEMM of one row
    convolution_rate: float  # a convolution of many channels
    launch: float  # one operation, dispatch included
    fused_bandwidth: float = 1.0  # the fused kernels' memory traffic; 1: there are none
    fused_rate: float = 1.0  # their products: a linear layer's
    fused_input_rate: float = 1.0  # .. dx
    fused_node_rate: float = 1.0  # .. and d_nodes
    fused_convolution_rate: float = 1.0  # a convolution's
    fused_convolution_input_rate: float = 1.0
    fused_convolution_node_rate: float = 1.0
    float32_share: float = 1.0  # of the three rates that float32 operands reach, where rates are bfloat16's


# Fitted to the times of whole layers on two cores of an AMD EPYC (Zen 5), in which operations find each other's data in
# the caches; and a model of an H100 that no GPU has confirmed yet.
CPU = Machine(
    sampler_read_bandwidth=41e9,
    sampler_write_bandwidth=14e9,
    interpolate_bandwidth=200e9,
    gemm_rate=155e9,
    rows_half=28,
    gemm_bandwidth=28e9,
    convolution_rate=270e9,
    launch=13e-6,
)
GPU = Machine(
    sampler_read_bandwidth=2.4e12,
    sampler_write_bandwidth=2.4e12,
    interpolate_bandwidth=2.4e12,
    gemm_rate=640e12,
    rows_half=0,
    gemm_bandwidth=2.4e12,
    convolution_rate=450e12,
    launch=4e-6,
    fused_bandwidth=2.2e12,
    fused_rate=120e12,
    fused_input_rate=120e12,
    fused_node_rate=120e12,
    fused_convolution_rate=120e12,
    fused_convolution_input_rate=120e12,
    fused_convolution_node_rate=120e12,
    float32_share=0.08,  # 50 TFLOP/s without TF32
)


_FUSED_ROWS = 64  # rows of x in a tile of the fused kernels, at most


class Shape(NamedTuple):
    """Sizes of one integral layer call. A convolution's rows are batch times output positions."""

    rows: int
    out_points: int
    in_points: int
    out_nodes: int
    in_nodes: int
    offsets: int = 1  # kernel offsets that ride along
    node_bytes: int = 4  # an element of the nodes
    value_bytes: int = 4  # an element of the compute dtype
    convolution: bool = False
    training: bool = True


class Cost(NamedTuple):
    """Counted work of one step and the seconds the model makes of it."""

    bytes: int
    flops: int
    launches: int
    seconds: float


def estimate(shape: Shape, machine: Machine, fusable: bool = False) -> dict[str, Cost]:
    """Counted work and modelled time of each dataflow, forward or (training) forward and backward."""
    costs = {"materialize": _materialize(shape, machine), "factored": _factored(shape, machine)}
    return costs | {"fused": _fused(shape, machine)} if fusable else costs


def dense(s: Shape, machine: Machine) -> Cost:
    """The ordinary layer of the discretized size, with autocast's cast of its weight where dtypes differ."""
    weights = s.out_points * s.in_points * s.offsets
    parts = [(3 if s.training else 1, _gemm(s, weights, s.in_points, s.out_points, machine))]
    if s.node_bytes != s.value_bytes:
        parts.append((1, _pass(weights * s.node_bytes, weights * s.value_bytes, s.training, machine)))
    return _total(*parts)


def _materialize(s: Shape, machine: Machine) -> Cost:
    weights = s.out_points * s.in_points * s.offsets
    passes = 2 if s.training else 1
    nodes = s.out_nodes * s.in_nodes * s.offsets
    sampling = _pass(nodes * s.node_bytes, weights * s.value_bytes, s.training, machine)
    return _total((1, sampling), (2 * passes - 1, _gemm(s, weights, s.in_points, s.out_points, machine)))


def _factored(s: Shape, machine: Machine) -> Cost:
    nodes = s.out_nodes * s.in_nodes * s.offsets
    passes = 2 if s.training else 1
    features = 1 if s.convolution else s.offsets  # a convolution's offsets do not multiply its channels
    moved = s.rows * ((s.in_points + s.in_nodes) * features + s.out_points + s.out_nodes) * s.value_bytes
    along = Cost(moved, 0, 2, moved / machine.interpolate_bandwidth + 2 * machine.launch)
    parts = [(passes, along), (2 * passes - 1, _gemm(s, nodes, s.in_nodes, s.out_nodes, machine))]
    if s.node_bytes != s.value_bytes:
        parts.append((1, _pass(nodes * s.node_bytes, nodes * s.value_bytes, s.training, machine)))
    return _total(*parts)


def _fused(s: Shape, machine: Machine) -> Cost:
    nodes = s.out_nodes * s.in_nodes * s.offsets

    tiles = max(-(-s.rows // _FUSED_ROWS), 1)  # each tile of rows streams the nodes again
    if s.convolution:
        rates = (
            machine.fused_convolution_rate, machine.fused_convolution_input_rate, machine.fused_convolution_node_rate
        )  # fmt: skip
    else:
        rates = machine.fused_rate, machine.fused_input_rate, machine.fused_node_rate

    def launches(count: int, products: Sequence[float], activations: int) -> Cost:
        moved = len(products) * tiles * nodes * s.node_bytes + activations * s.rows * s.value_bytes
        flops = 2 * s.rows * nodes
        busy = sum(flops / rate for rate in products) / _share(s, machine)
        seconds = max(busy, moved / machine.fused_bandwidth) + count * machine.launch
        return Cost(moved, len(products) * flops, count, seconds)

    # A convolution's kernel interpolates each pixel's channels anew for every offset.
    channels_in, channels_out = s.in_points * s.offsets, s.out_points * (s.offsets if s.convolution else 1)
    forward = launches(1, rates[:1], channels_in + s.out_points)
    if not s.training:
        return forward
    backward = launches(2 if s.convolution else 1, rates[1:], 2 * (channels_in + channels_out))
    return _total((1, forward), (1, backward))


def _pass(read: int, written: int, training: bool, machine: Machine) -> Cost:
    """A pass over memory and, training, the one back."""

    def one(read: int, written: int) -> Cost:
        seconds = read / machine.sampler_read_bandwidth + written / machine.sampler_write_bandwidth
        return Cost(read + written, 0, 1, seconds + machine.launch)

    return _total((1, one(read, written)), (1 if training else 0, one(written, read)))


def _gemm(s: Shape, weights: int, in_channels: int, out_channels: int, machine: Machine) -> Cost:
    features = 1 if s.convolution else s.offsets
    moved = (weights + s.rows * (in_channels * features + out_channels)) * s.value_bytes
    flops = 2 * s.rows * weights
    rate = (machine.convolution_rate if s.convolution else machine.gemm_rate) * _share(s, machine)
    half = machine.rows_half if s.rows > 1 else 0  # a single row is a matrix-vector product, which streams the weight
    seconds = max(2 * weights * (s.rows + half) / rate, moved / machine.gemm_bandwidth)
    return Cost(moved, flops, 1, seconds + machine.launch)


def _share(s: Shape, machine: Machine) -> float:
    return machine.float32_share if s.value_bytes >= 4 else 1.0


def _total(*parts: tuple[int, Cost]) -> Cost:
    sums = [sum(times * cost[i] for times, cost in parts) for i in range(4)]
    return Cost(int(sums[0]), int(sums[1]), int(sums[2]), sums[3])


def settings_path() -> Path:
    """Where calibrated constants are kept: INN_KERNELS_MACHINE, or a file in the user's cache folder."""
    chosen = os.environ.get("INN_KERNELS_MACHINE")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "inn_kernels" / "machine.json"


def load_machines(path: Path | None = None) -> dict[str, Machine]:
    """The constants of each kind of device: calibrated ones where there are any, else the shipped defaults."""
    machines = {"cpu": CPU, "cuda": GPU}
    path = path or settings_path()
    try:
        saved = json.loads(path.read_text())
        machines |= {
            kind: Machine(**{f.name: float(saved[kind].get(f.name, f.default)) for f in fields(Machine)})
            for kind in saved
        }
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold machine constants ({error!r}); delete it or calibrate anew") from None
    return machines


def save_machine(kind: str, machine: Machine, path: Path | None = None) -> Path:
    """Keep calibrated constants for the processes to come. Returns the file."""
    path = path or settings_path()
    saved = {} if not path.exists() else json.loads(path.read_text())
    saved[kind] = asdict(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved, indent=1) + "\n")
    return path
