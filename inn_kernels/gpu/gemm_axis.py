"""What the fused GEMMs share: an axis's contributor table, the prologue, the epilogue and the sum over splits.

A fused kernel never forms W_q = S_out nodes S_in^T. It multiplies by the nodes and interpolates activations:

    prologue   x'[b, j] = sum_l x[b, l] S[l, j]          points -> nodes, on the operand of the tensor core
    epilogue   y[b, k]  = sum_t weight[k, t] y'[b, start[k] + t]      nodes -> points, on its accumulator

S has four non-zeros a row and points are sorted, so node j hears the points of one contiguous range lo[j] <= l < hi[j].
The prologue is then a gather without masks or searches:

    x'[b, j] = sum_{n < NT} coefficient[n, j] x[b, lo[j] + n]

NT covers 4K/M + 1 points, the most a node hears of evenly spread points. Where points cluster, a node may hear more:
those nodes lie in [crowded[0], crowded[1]), and kernels add what the table left out in a second loop over that range
alone, empty for uniform partitions. (A loop of varying length inside the main one would keep it from being pipelined.)
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.launch import (
    ALL_TARGETS,
    INTERPRETED,
    ONE_TARGET,
    TRITON_TYPE,
    Config,
    KernelSpec,
    empty,
    processors,
    target_of,
)

CONTRIBUTORS = (4, 6, 8, 12)
"""NT, by class. Each is a compiled variant: 6 at K = M, 4 for fewer points, 8 and 12 for more points than nodes."""

PAD = 64
"""Tables are padded to a multiple of the widest tile, so that kernels read them without masks."""


class AxisTable(NamedTuple):
    """The points of one axis as a fused GEMM reads them. K points, M nodes, M' = M rounded up to PAD."""

    start: Tensor  # int32 [K]
    weight: Tensor  # float32 [K, 4]
    first: Tensor  # int32 [M + 1]         points whose taps start before node i
    lo: Tensor  # int32 [M']               first point of node j's NT; lo + NT <= max(K, NT)
    hi: Tensor  # int32 [M']               after the last point node j hears
    coefficient: Tensor  # float32 [NT, M']
    crowded: Tensor  # int32 [2]           nodes with hi > lo + NT lie in this range

    @property
    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """What an epilogue reads, which turns nodes into points."""
        return self.start, self.weight, self.first

    @property
    def nodes(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a prologue reads, which turns points into nodes."""
        return self.start, self.weight, self.lo, self.hi, self.coefficient, self.crowded

    @property
    def contributors(self) -> int:
        """NT."""
        return self.coefficient.shape[0]


def contributor_class(points: int, nodes: int) -> int:
    """NT of K evenly spread points on M nodes: the smallest class of at least 4K/M + 1, else the largest."""
    wanted = -(-4 * points // nodes) + 1
    return next((nt for nt in CONTRIBUTORS if nt >= wanted), CONTRIBUTORS[-1])


def axis_table(start: Tensor, weight: Tensor, nodes: int) -> AxisTable:
    """The table of an axis from its taps, in a few operations on their device and without waiting for it.

    Args:
        start: int32 [K], non-decreasing.
        weight: [K, 4].
        nodes: M.
    """
    points, nt, device = start.shape[0], contributor_class(start.shape[0], nodes), start.device
    start, weight = start.contiguous(), weight.detach().float().contiguous()
    first = torch.searchsorted(start, torch.arange(nodes + 1, device=device, dtype=torch.int32), out_int32=True)
    node = torch.arange(-(-nodes // PAD) * PAD, device=device)  # [M']
    # Windows are pushed inside at the ends, where their outer weights are 0: points of weight 0 are not heard.
    point = torch.arange(points, device=device)[:, None].expand(-1, 4)  # [K, 4]
    touched = start.long()[:, None] + torch.arange(4, device=device)  # [K, 4]
    touched = torch.where(weight != 0, touched, node.numel()).clamp(max=node.numel()).flatten()
    lo, hi = (
        torch.full([node.numel() + 1], empty, device=device).scatter_reduce(0, touched, ends.flatten(), how)[:-1]
        for empty, ends, how in ((points, point, "amin"), (0, point + 1, "amax"))
    )
    lo = lo.clamp(max=max(points - nt, 0))
    point = lo + torch.arange(nt, device=device)[:, None]  # [NT, M']
    inside = point.clamp(max=points - 1)
    tap = node - start[inside]
    heard = (tap >= 0) & (tap < 4) & (point < points) & (node < nodes)
    coefficient = torch.where(heard, weight[inside, tap.clamp(0, 3)], 0.0)
    more = hi > lo + nt
    crowded = torch.stack([torch.where(more, node, nodes).min(), torch.where(more, node + 1, 0).max()])
    return AxisTable(start, weight, first, lo.int(), hi.int(), coefficient, crowded.int())


def stream_of(device: torch.device) -> tuple[int, bool]:
    """The current stream of a device, and whether it is being captured into a CUDA graph."""
    if device.type != "cuda":
        return 0, False
    with torch.cuda.device(device):
        return torch.cuda.current_stream().cuda_stream, torch.cuda.is_current_stream_capturing()


# By taps and then by stream: a table is only read on the stream that made it, so that none is read half made. Graphs
# replay at any time: what they captured is kept for good.
_tables: dict[tuple, dict[int, AxisTable]] = {}
_captured: list[AxisTable] = []
_TABLES_KEPT = 1024


def cached_table(start: Tensor, weight: Tensor, nodes: int) -> AxisTable:
    """`axis_table`, made once while the same two tensors come back unchanged, as those of fixed partitions do."""
    if weight.requires_grad or start.is_inference() or weight.is_inference():
        return axis_table(start, weight, nodes)
    stream, capturing = stream_of(start.device)
    key = (id(start), id(weight), start._version, weight._version, nodes)
    found = _tables.get(key, {})
    table = next(iter(found.values()), None) if capturing else found.get(stream)
    if table is None:
        table = axis_table(start, weight, nodes)
        if not capturing:
            if key not in _tables:
                while len(_tables) >= _TABLES_KEPT:
                    _tables.pop(next(iter(_tables)))
                for tensor in (start, weight):  # another tensor may then have its id
                    weakref.finalize(tensor, _tables.pop, key, None)
            _tables.setdefault(key, {})[stream] = table
    elif capturing:
        _captured.append(table)
    return table


@triton.jit
def gather_table(p_rows, p_lo, p_coefficient, i_node, n_padded, NT: tl.constexpr):
    """x'[b, j] from the table. p_rows [R, 1] points at the rows, i_node [N] -> float32 [R, N]."""
    p_point = p_rows + tl.load(p_lo + i_node)[None, :]  # [R, N]
    b_sum = tl.load(p_coefficient + i_node)[None, :] * tl.load(p_point).to(tl.float32)
    for n in tl.static_range(1, NT):
        b_coefficient = tl.load(p_coefficient + n * n_padded + i_node)  # [N]
        b_sum += b_coefficient[None, :] * tl.load(p_point + n).to(tl.float32)
    return b_sum


@triton.jit
def crowd(p_lo, p_hi, i_node, NT: tl.constexpr):
    """The most points beyond NT that one of the nodes i_node [N] hears; 0 or less where none is crowded."""
    return tl.max(tl.load(p_hi + i_node) - tl.load(p_lo + i_node), axis=0) - NT


@triton.jit
def gather_rest(b_sum, p_rows, p_start, p_weight, p_lo, p_hi, i_node, n_more, NT: tl.constexpr):
    """b_sum [R, N] and what `gather_table` leaves out: up to n_more = crowd(...) points a node."""
    for n in range(NT, NT + n_more):
        b_point = tl.load(p_lo + i_node) + n  # [N]
        b_heard = b_point < tl.load(p_hi + i_node)
        b_tap = i_node - tl.load(p_start + b_point, mask=b_heard, other=0)
        b_weight = tl.load(p_weight + 4 * b_point + b_tap, mask=b_heard, other=0.0)
        b_x = tl.load(p_rows + b_point[None, :], mask=b_heard[None, :], other=0.0)  # [R, N]
        b_sum += b_weight[None, :] * b_x.to(tl.float32)
    return b_sum


@triton.jit
def sum_splits(b_acc, p_partial, p_ticket, i_tile, i_split, n_split, R: tl.constexpr, C: tl.constexpr):
    """Sum b_acc [R, C] over the n_split programs of a tile, in their order. The last to arrive gets (sum, True).

    Memory ordering: the barrier puts every thread's stores before the ticket of thread 0, which releases them to the
    device; the last ticket acquires all earlier ones, and the barrier that hands its value to the other threads puts
    their loads after it. The loads skip L1. Whoever comes last, the order of the sum is that of the splits, so the
    result does not depend on it. The ticket returns to zero for the next launch on the stream.
    """
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


class Workspace(NamedTuple):
    """Where the splits of a tile meet: partial sums, and tickets that are zero between launches."""

    partial: Tensor  # float32
    ticket: Tensor  # int32


_workspaces: dict[tuple, Workspace] = {}


def workspace(device: torch.device, splits: int, tiles: int, tile_numel: int) -> Workspace:
    """Tickets for `tiles` tiles and partial sums of their `splits`, one workspace a stream: its launches take turns.

    A CUDA graph gets its own, zeroed in the graph: its replays may run beside the stream that captured it.
    """
    stream, capturing = stream_of(device)
    partial, tickets = (splits * tiles * tile_numel, tiles) if splits > 1 else (0, 0)
    found = None if capturing else _workspaces.get((device, stream))
    if found is None or found.ticket.numel() < tickets or found.partial.numel() < partial:
        if not capturing:  # room to spare, so that it seldom grows
            partial, tickets = max(partial, 1 << 18), max(tickets, 1 << 10)
        ticket = torch.zeros(tickets, dtype=torch.int32, device=device)
        found = Workspace(empty((partial,), torch.float32, device), ticket)
        if not capturing:
            _workspaces[device, stream] = found
    return found


PROGRAMS = 2
"""Programs of an SM that splitting aims at where there are few tiles."""


def split_count(tiles: int, steps: int, device: torch.device) -> int:
    """How many programs share the `steps` of a tile: enough to give every SM PROGRAMS, each with at least two steps.

    One on AMD, whose barrier does not wait for the stores to device memory of other waves.
    """
    if torch.version.hip is not None:
        return 1
    wanted = min(PROGRAMS * processors(device) // max(tiles, 1), steps // 2)
    return triton.cdiv(steps, triton.cdiv(steps, wanted)) if wanted > 1 else 1


def pad_points(x: Tensor, table: AxisTable) -> Tensor:
    """x [B, L, ...], contiguous, and with points of zeros up to NT where there are fewer: a table always reads NT."""
    missing = table.contributors - x.shape[1]
    if missing > 0:  # keeps channels_last
        x = torch.nn.functional.pad(x, [0, 0] * (x.dim() - 2) + [0, missing])
    return x.contiguous()


def fp32_precision() -> str:
    """How float32 operands are multiplied, "tf32" or "ieee", as PyTorch is told to."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


_DOT_TYPE = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """What `tl.dot` multiplies. Triton's interpreter multiplies the bits of bfloat16: there its values, in float32."""
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else _DOT_TYPE[TRITON_TYPE[dtype]]


ANY = 1 << 62
"""Any number of rows, in a table of configurations."""

Table = Mapping[str, Sequence[tuple[int, Config]]]
"""By kind of multiplication, (most rows, configuration), fewest first."""


def select(table: Table, x: Tensor, nodes: Tensor, rows: int) -> tuple[Config, dict[str, object]]:
    """The first configuration for so many rows, and the compile-time arguments that follow from the tensors."""
    kind = fp32_precision() if x.dtype == torch.float32 else "half"
    config = next(config for most, config in table[kind] if rows <= most).on(target_of(x.device))
    return config, _flags(kind, compute_dtype(x.dtype), nodes.shape[1:].numel() % 16 == 0)


def _flags(kind: str, compute: tl.dtype, aligned: bool) -> dict[str, object]:
    return {"ALIGNED": aligned, "COMPUTE": compute, "PRECISION": "tf32" if kind == "tf32" else "ieee"}


def gemm_specs(
    kernel: triton.JITFunction,
    table: Table,
    contributors: Sequence[str],
    sizes: Sequence[str],
    label: str = "",
    **fixed: object,
) -> list[KernelSpec]:
    """What the ahead-of-time harness compiles: every configuration of every dtype.

    The usual pair, bfloat16 on float32 nodes, and float32 for every target. For one target the other pairs, which
    differ by a conversion, and of the usual pair every class of `contributors` and rows of nodes that are not aligned.
    """
    usual, full = ("bf16", "fp32"), ("fp32", "fp32")
    pairs = {"half": [usual, ("fp16", "fp32"), ("bf16", "bf16")]}
    others = [(nt, True) for nt in CONTRIBUTORS if nt != 6] + [(6, False)]
    specs = []
    for kind, pair in [(k, pair) for k in table for pair in pairs.get(k, [full])]:
        x, nodes = pair
        types = {"p_nodes": nodes, "p_bias": nodes, "p_d_nodes": nodes, "p_d_bias": nodes}
        types |= {"p_x": x, "p_y": x, "p_dx": x, "p_dy": x}
        pointers = {name: "*" + types.get(name, _table_type(name)) for name in kernel.arg_names if name[:2] == "p_"}
        for nt, aligned in [(6, True), *(others if pair == usual else [])]:
            flags = {**dict.fromkeys(contributors, nt), **_flags(kind, _DOT_TYPE[x], aligned), **fixed}
            name = (f"{x}-{nodes}" if kind == "half" else kind) + label
            name += ("" if nt == 6 else f"-points{nt}") + ("" if aligned else "-unaligned")
            specs.append(
                KernelSpec(
                    kernel,
                    pointers | {name: "i32" for name in sizes if name in kernel.arg_names},
                    [c._replace(constants={**c.constants, **flags}) for _, c in table[kind]],
                    variant=name,
                    divisible=list(pointers),
                    tensor_cores=kind != "ieee",
                    targets=ALL_TARGETS if pair in (usual, full) and (nt, aligned) == (6, True) else ONE_TARGET,
                )
            )
    return specs


def _table_type(name: str) -> str:
    return "fp32" if name.endswith(("weight", "coefficient", "partial")) else "i32"
