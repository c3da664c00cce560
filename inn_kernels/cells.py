"""Cells: the weight function integrated exactly over the cells that cut an axis, instead of sampled at points.

Edges 0 <= e_0 < .. < e_K <= 1 bound K cells. With F of the nodes as `basis` makes it, node i at (i + 1/2)/M,

    sampled       W[k] = 1/(e_{k+1} - e_k) int F dx over cell k       the mean
    integrated    W[l] = scale int F dx over cell l                   exact against activations that are constant there

A cell is cut at the knots of F into parts. On a part F is one cubic polynomial of a few nodes, whose mean has a closed
form; the cell's is the sum of those by the parts' shares of its width. So nothing cancels, whatever the widths, rows
sum to 1, and both are differentiable in the edges, twice. A row needs about M/K + 3 nodes.

Sampling at points sees F at one place a point: with fewer points than nodes it aliases. A mean over cells is the
low-pass filter that was missing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels import transforms
from inn_kernels.basis import Basis, windows
from inn_kernels.tensors import is_readable


class Parts(NamedTuple):
    """The parts of K cells between knots, J each: some are empty."""

    piece: Tensor  # int64 [K] piece of the first part
    middle: Tensor  # [K, J] in units of pieces, from the start of the part's own
    half: Tensor  # [K, J] half of its width
    share: Tensor  # [K, J] of the cell's width


def mean_windows(parts: Parts, nodes: int, basis: Basis, width: int) -> tuple[Tensor, Tensor]:
    """Start int32 [K] and weight [K, T] of the mean of F over each cell."""
    means = parts.share[..., None] * basis.mean(parts.middle, parts.half)  # [K, J, heard]
    heard = basis.heard
    shifted = [torch.nn.functional.pad(means[..., i], (i, heard - 1 - i)) for i in range(heard)]
    values = torch.stack(shifted).sum(0)  # [K, J + heard - 1]
    return windows(parts.piece, values, nodes, basis.boundary, width)


def parts_of_equal(cells: int, nodes: int, basis: Basis, device: torch.device | str | None) -> Parts:
    """The parts of K equal cells, whose edges are fractions: k M / K in units of nodes. Exact in int64."""
    size = 2 * cells  # of a piece; a cell is 2 M
    begin = 2 * nodes * torch.arange(cells, device=device) - _offset(cells, basis)
    piece = begin.div(size, rounding_mode="floor")
    most = most_parts(cells, nodes, basis)
    knot = (piece[:, None] + torch.arange(most, device=device)) * size  # [K, J]
    low, high = torch.maximum(begin[:, None], knot), torch.minimum(begin[:, None] + 2 * nodes, knot + size)
    width = (high - low).clamp(min=0)
    return Parts(
        piece,
        (low + high - 2 * knot).double() / (2 * size),
        width.double() / (2 * size),
        width.double() / (2 * nodes),
    )


def _offset(cells: int, basis: Basis) -> int:
    """Where pieces begin, half a node after nodes' cells, in units of 1/(2K) of a node."""
    return 0 if basis.knots_between_nodes else cells


def most_parts(cells: int, nodes: int, basis: Basis) -> int:
    """J, the most knots that an equal cell holds, and one."""
    size = 2 * cells
    if transforms.tracing():  # sizes may be symbols: a bound
        return -(-nodes // cells) + 1
    step = math.gcd(2 * nodes, size)  # what remains of a cell's begin, after whole pieces, goes in such steps
    last = size - step + -_offset(cells, basis) % step
    return -(-(last + 2 * nodes) // size)


def parts_of(edges: Tensor, nodes: int, basis: Basis) -> Parts:
    """The parts of cells with any edges [K + 1], differentiable in them.

    How many a cell has is read off the edges: on a GPU that waits for them. Where they cannot be read (a traced graph,
    under vmap) there are as many parts as pieces.
    """
    position = edges.double() * nodes - (0.0 if basis.knots_between_nodes else 0.5)  # in units of pieces
    to_knot = position.detach().round() - position.detach()
    position = position + torch.where(to_knot.abs() <= nodes * 2.0**-52, to_knot, 0.0)  # within round-off of it: on it
    width = edges.double().diff() * nodes  # of edges, not of positions, which are rounded
    piece = position.detach()[:-1].floor().clamp(-1, nodes - 1)
    begin = position[:-1] - piece  # [K]
    final = (begin.detach() + width.detach()).ceil() - 1  # the last part of each cell
    final = final.clamp(min=0)
    most = int(final.max()) + 1 if is_readable(edges) else nodes + 1
    j = torch.arange(most, device=edges.device, dtype=torch.float64)  # [J]
    begin, width, final = begin[:, None], width[:, None], final[:, None]
    low = torch.where(j == 0, begin, j)
    # The last part takes what the others leave, so that the parts of a cell make up its width to the last bit.
    inner = torch.where(j < final, j + 1 - low, 0.0)
    own = torch.where(j < final, inner, torch.where(j == final, torch.where(j == 0, width, width - (j - begin)), 0.0))
    share = torch.where((j == 0) & (final == 0), 1.0, own / width)  # an only part has no share to differentiate
    return Parts(piece.to(torch.int64), low + own / 2 - j, own / 2, share)
