"""Every launcher, of tensors in memory layouts a caller may pass: as of contiguous ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from inn_kernels import gpu
from inn_kernels.gpu.foreach import discretize_layers
from inn_kernels.taps import Taps
from sampler_cases import random, taps

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2],
    "offset": lambda x: torch.cat([x.new_ones(1), x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
}
WINDOW = ((1, 1), (1, 1), (1, 1))
SIZES = {  # points and nodes of each side; a table of the fused kernels holds at least four points
    "more": ((7, 5), (6, 9)),
    "few": ((3, 2), (6, 9)),
    "one": ((1, 1), (1, 1)),
}


def arguments(operation: str, size: str) -> tuple:
    """Arguments of an operation, contiguous."""
    torch.manual_seed(0)
    (k, n), (m_out, m_in) = SIZES[size]
    out, in_ = taps("random", k, m_out), taps("random", n, m_in, weighted=True)
    along, image, f32 = (*out[:2], *in_[:2]), (3, 4), torch.float32
    nodes, d_weight, x, dy, x_nodes = (
        random(shape, f32)
        for shape in ((m_out, m_in, 3, 3), (k, n, 3, 3), (2, n, *image), (2, k, *image), (2, m_in, *image))
    )
    matrix, bias, rows, d_rows = (random(shape, f32) for shape in ((m_out, m_in), (m_out,), (4, n), (4, k)))
    return {
        "discretize": (nodes, *along, f32),
        "discretize_adjoint": (d_weight, *along, m_out, m_in, f32),
        "discretize_tap_gradient": (nodes, d_weight, *along, True, True),
        "interpolate": (x_nodes, *in_[:2], 1, f32),
        "spread": (x, *in_[:2], m_in, 1, f32),
        "interpolate_tap_gradient": (x_nodes, x, in_.start, 4, 1),
        "linear": (rows, matrix, bias, *along),
        "linear_backward": (d_rows, rows, matrix, *along, True, True, True),
        "conv": (x, nodes, bias, *along, *WINDOW),
        "conv_input_gradient": (dy, nodes, *along, image, *WINDOW),
        "conv_node_gradient": (dy, x, nodes, *along, *WINDOW, True, True),
    }[operation]


def values(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", [name for name in gpu._FILES if "foreach" not in name])
def test_layout_does_not_matter(operation: str, size: str, layout: str) -> None:
    given = [LAYOUTS[layout](a) if isinstance(a, Tensor) else a for a in arguments(operation, size)]
    plain = [a.clone(memory_format=torch.contiguous_format) if isinstance(a, Tensor) else a for a in given]
    launch = gpu.launcher(operation)
    for value, wanted in zip(values(launch(*given)), values(launch(*plain)), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)  # the layout may be the order of a sum


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter_to_foreach(layout: str) -> None:
    torch.manual_seed(0)
    change, f32 = LAYOUTS[layout], torch.float32
    nodes = [change(random(shape, f32)) for shape in ((6, 9, 3, 3), (6, 9), (6,))]
    sides = [taps("random", k, m) for k, m in ((7, 6), (5, 9))]
    out, in_ = (Taps(change(side.start), change(side.weight), side.nodes) for side in sides)
    plain = [Taps(side.start.contiguous(), side.weight.contiguous(), side.nodes) for side in (out, in_)]
    made = discretize_layers(nodes, [(out, in_), (out, in_), (out, None)], f32)
    wanted = discretize_layers([x.contiguous() for x in nodes], [plain, plain, (plain[0], None)], f32)
    for value, expected in zip(made, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
