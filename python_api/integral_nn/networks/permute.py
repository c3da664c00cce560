"""Reorder the channels of an axis so that its weights become smooth functions (paper, section 4, Eq. 7).

    minimize over orders s    sum_i d(s(i), s(i+1)),      d(i, j) = sum |W[i] - W[j]|

The sum runs over everything the axis ties at once: the rows of the layers that make it, the columns of those that
read it, biases and norms. This is the travelling salesman's problem for an open path, which becomes the closed one
by adding a city at distance 0 from all others; `fast_tsp` solves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from integral_nn.coupling.axis_set import AxisSet
from integral_nn.layers.channels import Tie

_EXACT_PER_SECOND, _PRODUCTS_PER_SECOND = 1e9, 2e10  # of one core, for distances
_LEAST_FEATURES = 256
_SECONDS_A_CITY = 2e-3  # of the solver; twenty times as long finds paths a ten-thousandth shorter, for 32 to 512 cities
_LARGEST_DISTANCE = 60000  # the solver's distances are 16 bits wide


@dataclass(frozen=True)
class Reordering:
    """A new order of an axis's channels, and the total variation it saves."""

    order: Tensor  # int64 [M], the old channel at each new place
    before: float
    after: float


def total_variation(features: Tensor) -> float:
    """sum_i sum |W[i] - W[i+1]| of channels [M, F]."""
    if features.shape[0] < 2:
        return 0.0
    step = max(1, 2**22 // max(features.shape[1], 1))
    total = 0.0
    for start in range(0, features.shape[0] - 1, step):
        rows = features[start : start + step + 1]
        total += float((rows[1:] - rows[:-1]).abs().sum(dtype=torch.float64))
    return total


def axis_features(tensors: Mapping[str, Tensor], ties: Sequence[Tie], axis: str) -> Tensor:
    """Everything an axis ties, as one row a channel. Float32 [M, F]."""
    rows = [
        part.float()
        for tie in ties
        if axis in tie.axes and tie.tensor in tensors
        for part in tie.layout.channels(tensors[tie.tensor].detach(), tie.dim, axis)
    ]
    return torch.cat(rows, 1)


def distances(features: Tensor, seconds: float = 2.0) -> Tensor:
    """Pairwise distances of channels [M, F] -> [M, M].

    L1, as total variation asks; where that would take longer than `seconds`, the Euclidean distance, which for many
    features is nearly proportional to it and is one matrix product; of as many random sums of features as there is time
    for.
    """
    m, f = features.shape
    if m * m * f <= _EXACT_PER_SECOND * seconds:
        return torch.cdist(features, features, p=1)
    most = max(int(_PRODUCTS_PER_SECOND * seconds / m**2), _LEAST_FEATURES)
    centred = _sketch(features - features.mean(0), most) if f > most else features - features.mean(0)
    square = centred.square().sum(1)
    gram = square[:, None] + square[None, :] - 2 * centred @ centred.T
    return gram.clamp(min=0).sqrt()


def _sketch(features: Tensor, count: int) -> Tensor:
    """So many sums of features under random signs: squared distances stay what they are but for sqrt(2 / count)."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (features.shape[1],), generator=generator).to(features) * 2 - 1
    sums = torch.randint(count, (features.shape[1],), generator=generator).to(features.device)
    return torch.zeros(features.shape[0], count).to(features).index_add_(1, sums, features * signs)


def shortest_path(distance: Tensor, seed: int = 0, time_limit: float = 2.0) -> Tensor:
    """An order of M cities whose open path is short.

    Args:
        distance: [M, M], symmetric, not negative; zeros (equal channels) are welcome.
        seed: the order in which the solver meets the cities.
        time_limit: seconds; the solver stops sooner when it finds no improvement, and after 2 ms a city.

    Returns:
        int64 [M]. Up to 20 cities it is the shortest path.

    Raises:
        ImportError: `fast_tsp` is not installed.
    """
    m = distance.shape[0]
    if m < 3:
        return torch.arange(m)
    try:
        import fast_tsp
    except ImportError as error:
        raise ImportError(
            "permuting channels needs the solver fast-tsp: pip install fast-tsp (or convert with permute=False)"
        ) from error
    shuffle = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    largest = float(distance.max())
    if not 0 < largest < float("inf"):
        return torch.arange(m)
    scaled = (distance.cpu()[shuffle][:, shuffle].double() * (_LARGEST_DISTANCE / largest)).round().to(torch.int64)
    scaled = torch.maximum(scaled, scaled.T).fill_diagonal_(0)
    cities = torch.zeros(m + 1, m + 1, dtype=torch.int64)
    cities[:m, :m] = scaled  # city m is next to everyone: the path opens there
    seconds = min(time_limit, _SECONDS_A_CITY * m)
    tour = torch.tensor(fast_tsp.find_tour(cities.numpy(), seconds, stop_when_converged=True))
    start = int((tour == m).nonzero())
    return shuffle[torch.cat([tour[start + 1 :], tour[:start]])]


def reorder(features: Tensor, *, blocks: int = 1, seed: int = 0, time_limit: float = 2.0) -> Reordering:
    """The smoothest order found for channels [M, F], each of `blocks` equal blocks reordered within itself.

    Half of `time_limit`, in seconds, is for distances, half for the solver.
    The order is the old one where the solver finds none that is better.
    """
    m = features.shape[0]
    before = total_variation(features)
    parts = []
    for block, start in enumerate(range(0, m, m // blocks)):
        rows = features[start : start + m // blocks]
        second = time_limit / blocks / 2
        path = shortest_path(distances(rows, second), seed + block, second)
        parts.append(start + path)
    order = torch.cat(parts)
    if blocks > 1:
        order = _oriented(features, [p.tolist() for p in parts])
    after = total_variation(features[order])
    if after >= before:
        return Reordering(torch.arange(m), before, before)
    return Reordering(order, before, after)


def _oriented(features: Tensor, parts: list[list[int]]) -> Tensor:
    """Turn each block's path round where that brings its start nearer to the end of the one before."""
    done = list(parts[0])
    for part in parts[1:]:
        ends = features[[part[0], part[-1]]] - features[done[-1]]
        forward, backward = ends.abs().sum(1).tolist()
        done += part if forward <= backward else part[::-1]
    return torch.tensor(done)


def reorder_axes(
    tensors: Mapping[str, Tensor],
    axes: AxisSet,
    *,
    seed: int = 0,
    time_limit: float = 12.0,
    progress: bool = False,
) -> dict[str, Reordering]:
    """`reorder` for every axis, in `time_limit` seconds together; no order changes another's problem."""
    found = {}
    second = time_limit / sum(spec.nodes for spec in axes.specs.values())
    for name, spec in _watched(axes.specs, progress):
        features = axis_features(tensors, axes.ties, name)
        found[name] = reorder(features, blocks=spec.blocks, seed=seed, time_limit=second * spec.nodes)
    return found


def apply_orders(tensors: Mapping[str, Tensor], axes: AxisSet, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the channels of each axis replaced by `orders[axis]`: reordered, or a selection of them."""
    done = dict(tensors)
    for tie in axes.ties:
        live = {a: orders[a] for a in tie.axes if a in orders}
        if live and tie.tensor in done:
            tensor = done[tie.tensor]
            done[tie.tensor] = tensor.index_select(tie.dim, tie.layout.source(live).to(tensor.device))
    return done


def _watched(specs: Mapping, progress: bool) -> Sequence:
    items = list(specs.items())
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, "reordering channels", mininterval=0.5)
