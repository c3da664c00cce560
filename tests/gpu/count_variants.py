"""Counts the variants Triton would compile over random widths, with a stand-in driver and no GPU; prints JSON.

Launchers get meta tensors; each launch reaches Triton's own specialization and stops at the compiler's door.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import defaultdict
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget

from inn_kernels.gpu import (
    conv,
    conv_node_gradient,
    discretize,
    discretize_adjoint,
    discretize_tap_gradient,
    foreach,
    foreach_adjoint,
    foreach_table,
    interpolate,
    linear,
    linear_backward,
    sampler_tile,
    split_sum,
)
from inn_kernels.taps import Taps

WIDTHS = 50
ROWS = ((1, 16), (17, 32), (33, 5000))
"""Size classes of the fused kernels."""


class Driver:
    """One H100 that is not there."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


variants: dict[str, set[str]] = defaultdict(set)


def stop(*, key: str, fn: object, **_: object) -> bool:
    """Note what would be compiled; True: do not."""
    variants[fn.name].add(str(key))  # type: ignore[attr-defined]
    return True


def taps(points: int, nodes: int, count: int = 4) -> Taps:
    start = torch.empty(points, dtype=torch.int32, device="meta")
    return Taps(start, torch.empty(points, count, device="meta"), nodes)


def cell_taps(points: int, nodes: int) -> Taps:
    """Cells see M/K + 4 nodes and fewer, rounded up."""
    return taps(points, nodes, next(n for n in (6, 8) if n >= min(-(-nodes // points) + 4, 8)))


def one_width(taps: Callable[[int, int], Taps], least: float) -> None:
    """The samplers on random sizes from a share of the nodes on."""
    m_out, m_in = random.randint(4, 5000), random.randint(4, 5000)
    k, n = (random.randint(max(4, int(least * m)), m) for m in (m_out, m_in))
    out, in_ = taps(k, m_out), taps(n, m_in)
    along = (*out[:2], *in_[:2])
    nodes = torch.empty(m_out, m_in, device="meta")
    grad = torch.empty(k, n, device="meta", dtype=torch.bfloat16)
    discretize.discretize(nodes, *along, torch.bfloat16)
    discretize_adjoint.discretize_adjoint(grad, *along, m_out, m_in, torch.float32)
    discretize_tap_gradient.discretize_tap_gradient(nodes, grad, *along, True, True)
    x = torch.empty(random.randint(1, 5000), m_in, device="meta", dtype=torch.bfloat16)
    y = interpolate.interpolate(x, *in_[:2], 1, torch.bfloat16)
    interpolate.spread(y, *in_[:2], m_in, 1, torch.bfloat16)
    foreach.discretize_layers([nodes, nodes[0]], [(out, in_), (in_, None)], torch.bfloat16)
    sides = [out.start, in_.start], [out.weight, in_.weight], [m_out, m_in], [0, 1], [1, -1]
    foreach_adjoint.discretize_foreach_adjoint([grad, grad[0]], *sides, torch.float32)


def one_fused_width(rows: int) -> None:
    """The fused kernels on widths as `resample` draws them; the nodes stay what they are, aligned."""
    m_out, m_in = 16 * random.randint(1, 300), 16 * random.randint(1, 300)
    k, n = random.randint(m_out // 2, m_out), random.randint(m_in // 2, m_in)
    along = (*taps(k, m_out)[:2], *taps(n, m_in)[:2])
    x, dy = (torch.empty(rows, size, device="meta", dtype=torch.bfloat16) for size in (n, k))
    nodes = torch.empty(m_out, m_in, device="meta")
    linear.linear(x, nodes, nodes[:, 0], *along)
    linear_backward.linear_backward(dy, x, nodes, *along, True, True, True)
    size = (1, rows)
    x, dy = (torch.empty(1, channels, *size, device="meta", dtype=torch.bfloat16) for channels in (n, k))
    nodes, window = nodes[:, :, None, None], ((1, 1), (0, 0), (1, 1))
    conv.conv(x, nodes, nodes[:, 0, 0, 0], *along, *window)
    conv.conv_input_gradient(dy, nodes, *along, size, *window)
    conv_node_gradient.conv_node_gradient(dy, x, nodes, *along, *window, True, True)


def counted() -> dict[str, int]:
    """Variants of each kernel since the last count."""
    found = {name: len(keys) for name, keys in variants.items()}
    variants.clear()
    return found


def main() -> None:
    random.seed(0)
    triton.runtime.driver.set_active(Driver())
    triton.knobs.runtime.jit_cache_hook = stop
    for module in (
        discretize,
        discretize_adjoint,
        discretize_tap_gradient,
        foreach_table,
        linear,
        linear_backward,
        conv,
        conv_node_gradient,
    ):
        module.guard = lambda _: contextlib.nullcontext()
    sampler_tile.processors = foreach_table.processors = split_sum.processors = lambda _: 132
    for i in range(WIDTHS):
        one_width(taps, 0)
        one_fused_width(random.randint(*ROWS[i % len(ROWS)]))
    print(json.dumps(counted()))
    for _ in range(WIDTHS):
        one_width(cell_taps, 0.25)
    print(json.dumps(counted()))


if __name__ == "__main__":
    main()
