"""Counts the variants Triton would compile over random widths, with a stand-in driver and no GPU; prints JSON.

Launchers get meta tensors; each launch reaches Triton's own specialization and stops at the compiler's door.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import defaultdict

import torch
import triton
from triton.backends.compiler import GPUTarget

from inn_kernels.gpu import discretize, discretize_adjoint, discretize_tap_gradient, foreach, interpolate, tiles
from inn_kernels.taps import Taps

WIDTHS = 50


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


def taps(points: int, nodes: int) -> Taps:
    start = torch.empty(points, dtype=torch.int32, device="meta")
    return Taps(start, torch.empty(points, 4, device="meta"), nodes)


def one_width() -> None:
    m_out, m_in = random.randint(4, 5000), random.randint(4, 5000)
    k, n = random.randint(4, m_out), random.randint(4, m_in)
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
    foreach.discretize_foreach([nodes, nodes[0]], [(out, in_), (in_, None)], torch.bfloat16)


def main() -> None:
    random.seed(0)
    triton.runtime.driver.set_active(Driver())
    triton.knobs.runtime.jit_cache_hook = stop
    for module in (discretize, discretize_adjoint, discretize_tap_gradient, foreach):
        module.guard = lambda _: contextlib.nullcontext()
    tiles.processors = foreach.processors = lambda _: 132
    for _ in range(WIDTHS):
        one_width()
    print(json.dumps({name: len(keys) for name, keys in variants.items()}))


if __name__ == "__main__":
    main()
