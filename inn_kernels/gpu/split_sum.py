"""Several programs share the columns of a tile, and the last to arrive adds their partial sums in fixed order.

A product of few rows has few tiles, and a tile alone cannot stream nodes as fast as memory gives them. Splitting its
columns fills the chip without a second launch, and without sums in an order that differs from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.launch import Launch, cdiv, empty, processors, stream_of
from inn_kernels.gpu.record import recorder


@triton.jit
def sum_splits(b_acc, p_partial, p_ticket, i_tile, i_split, n_split):
    """Sum b_acc [R, C] over the n_split programs of a tile, in their order. The last to arrive gets (sum, True).

    Memory ordering: the barrier puts every thread's stores before the ticket of thread 0, which releases them to the
    device; the last ticket acquires all earlier ones, and the barrier that hands its value to the other threads puts
    their loads after it. The loads skip L1. Whoever comes last, the order of the sum is that of the splits, so the
    result does not depend on it. The ticket returns to zero for the next launch on the stream.
    """
    last = n_split == 1
    if n_split > 1:
        R: tl.constexpr = b_acc.shape[0]
        C: tl.constexpr = b_acc.shape[1]
        b_cell = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]  # [R, C]
        p_tile = p_partial + i_tile.to(tl.int64) * n_split * (R * C)
        tl.store(p_tile + i_split * (R * C) + b_cell, b_acc)
        tl.debug_barrier()
        arrived = tl.atomic_add(p_ticket + i_tile, 1, sem="acq_rel", scope="gpu")
        last = arrived == n_split - 1
        if last:
            b_acc = tl.zeros([R, C], tl.float32)
            for s in range(n_split):
                b_acc += tl.load(p_tile + s * (R * C) + b_cell, cache_modifier=".cg")
            tl.store(p_ticket + i_tile, 0)
    return b_acc, last


def split_count(tiles: int, steps: int, programs: int, device: torch.device) -> int:
    """How many programs share the `steps` of a tile: enough to give every SM `programs`, each with at least two steps.

    One on AMD, whose barrier does not wait for the stores to device memory of other waves.
    """
    if torch.version.hip is not None:
        return 1
    wanted = min(programs * processors(device) // max(tiles, 1), steps // 2)
    return cdiv(steps, cdiv(steps, wanted)) if wanted > 1 else 1


@triton.jit
def share_of(i_share, n_share, n_step, STEP: tl.constexpr):
    """Where the share of a program in n_step steps of STEP begins and ends."""
    each = tl.cdiv(n_step, n_share) * STEP
    return i_share * each, tl.minimum(i_share * each + each, n_step * STEP)


class Work(NamedTuple):
    """A launch, and what its programs share: float32 partial sums and tickets."""

    launch: Launch
    partial: int
    tickets: int


class Workspace(NamedTuple):
    """Where the splits of a tile meet: partial sums, and tickets that are zero between launches."""

    partial: Tensor  # float32
    ticket: Tensor  # int32


_workspaces: dict[tuple, Workspace] = {}


def workspace(device: torch.device, partial: int, tickets: int) -> Workspace:
    """So many partial sums and tickets or more, one workspace a stream: its launches take turns.

    A CUDA graph gets its own, zeroed in the graph: its replays may run beside the stream that captured it.
    """
    recording = recorder()
    if recording is None:
        return _kept_workspace(device, partial, tickets)
    space = recording.aside(lambda: _kept_workspace(device, partial, tickets))
    recording.kept(space)
    return space


def _kept_workspace(device: torch.device, partial: int, tickets: int) -> Workspace:
    stream, capturing = stream_of(device)
    found = None if capturing else _workspaces.get((device, stream))
    if found is None or found.ticket.numel() < tickets or found.partial.numel() < partial:
        if not capturing:  # room to spare, so that it seldom grows
            partial, tickets = max(partial, 1 << 18), max(tickets, 1 << 10)
        ticket = torch.zeros(tickets, dtype=torch.int32, device=device)
        found = Workspace(empty((partial,), torch.float32, device), ticket)
        if not capturing:
            _workspaces[device, stream] = found
    return found


def shared(tiles: int, splits: int, tile_numel: int) -> tuple[int, int]:
    """Partial sums and tickets of tiles that so many programs share."""
    return (tiles * splits * tile_numel, tiles) if splits > 1 else (0, 0)
