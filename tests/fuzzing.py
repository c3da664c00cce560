"""Random calls of the public operators (`programs.Call`).

Strategies draw the expressions of a program, so that hypothesis shrinks them, and look at nothing but plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, reject
from hypothesis import strategies as st
from torch import Tensor

import oracle
from common import BOUNDARIES, DTYPES, QUADRATURES
from inn_kernels.basis import KERNELS
from programs import Call, value

# Tensors ----------------------------------------------------------------------------------------------------

SIZES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 37, 64, 67)
LAYOUTS = ("contiguous", "contiguous", "transposed", "expanded", "sliced", "strided", "offset", "channels_last")
seeds = st.integers(0, 9)
dtypes = st.sampled_from(DTYPES)


def stored(backend: str | None) -> st.SearchStrategy[torch.dtype]:
    """What a backend's tensors may be of; partitions may be of any dtype."""
    return st.sampled_from(DTYPES[1:]) if backend == "triton" else dtypes


def text(shape: tuple[int, ...]) -> str:
    return "".join(f", {n}" for n in shape)


@st.composite
def tensor(draw: Any, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Normal values of a shape and dtype, in any layout."""
    seed, layout, to = draw(seeds), draw(st.sampled_from(LAYOUTS)), f".to({dtype})"
    base = f"randn({seed}{text(shape)}){to}"
    if layout == "transposed" and len(shape) > 1:
        return f"{base}.transpose(0, -1).contiguous().transpose(0, -1)"
    if layout == "expanded":
        dim = draw(st.integers(0, len(shape) - 1))
        return f"randn({seed}{text((*shape[:dim], 1, *shape[dim + 1 :]))}){to}.expand({text(shape)[2:]})"
    if layout == "sliced":
        return f"randn({seed}{text(tuple(n + 2 for n in shape))}){to}[{', '.join(['1:-1'] * len(shape))}]"
    if layout == "strided":
        return f"randn({seed}{text((*shape[:-1], 2 * shape[-1]))}){to}[..., 1::2]"
    if layout == "offset":
        return f"randn({seed}, {1 + torch.Size(shape).numel()}){to}[1:].view({text(shape)[2:]})"
    if layout == "channels_last" and len(shape) in (4, 5):
        return f"{base}.contiguous(memory_format=torch.channels_last{'_3d' if len(shape) == 5 else ''})"
    return base


GRADS = (
    "randn(77, *y.shape).to(y.dtype)",
    "torch.ones((), dtype=y.dtype).expand(y.shape)",
    "randn(78, *y.shape[::-1]).to(y.dtype).permute(*range(y.dim())[::-1])",
    "randn(79, *y.shape, 2).to(y.dtype)[..., 1]",
    "channels_last(randn(80, *y.shape).to(y.dtype))",
)


# Partitions -------------------------------------------------------------------------------------------------


@st.composite
def partition(draw: Any, n: int, nodes: int, rule: str, fewest: int = 1) -> str:
    """At least `fewest` increasing points, about n, on an axis of `nodes`; or n itself. An expression.

    For "cells" they are edges, two at least.
    """
    dtype, seed, start = draw(dtypes), draw(seeds), draw(st.sampled_from([0.25, 0.37, 0.5]))
    if rule == "gauss-legendre" and n > 7:
        legendre = f"inn.gauss_legendre_partition({n}, dtype=torch.float64)"
        return draw(st.sampled_from([f"{n}", legendre if n <= oracle.MOST else f"{n}"]))
    sits = f"((torch.arange({nodes}).double() + 0.5) / {nodes})"
    if rule == "cells":  # edges of the cells of nodes, and their middles
        sits = f"(torch.arange({2 * nodes + 1}).double() / {2 * nodes})"
    elif rule != "midpoint":
        sits = f"(torch.arange({nodes}).double() / {max(nodes - 1, 1)})"
    drawn = draw(
        st.sampled_from(
            [
                f"{n}",
                f"inn.uniform_partition({n}, dtype={dtype}).unique()",
                f"inn.midpoint_partition({n}, dtype={dtype}).unique()",
                f"inn.gauss_legendre_partition({n}, dtype={dtype}).unique()",
                f"inn.partition_from_deltas(randn({seed}, {max(n, 2)})).to({dtype}).unique()",
                f"rand({seed}, {n}).to({dtype}).unique()",
                f"(0.4 * rand({seed}, {n})).to({dtype}).unique()",
                f"(0.37 + 0.01 * rand({seed}, {n})).to({dtype}).unique()",
                f"torch.cat([0.01 * rand({seed}, {n}), 1 - 0.01 * rand({seed}, {n})]).to({dtype}).unique()",
                f"step(torch.full([{n}], {start}, dtype={dtype}), range({n})).unique()",
                f"{sits}.to({dtype}).unique()[{seed % 3}::{1 + nodes // n}]",
                f"beside({sits}.to({dtype})).unique()[{seed % 3}::{1 + 3 * nodes // n}]",
                f"rand({seed}, {20 * n if n < 20 else n}).to({dtype}).unique()",
            ]
        )
    )
    return drawn if points(drawn) >= fewest and stable(rule, drawn) else f"{max(n, fewest)}"


def stable(rule: str, expression: str) -> bool:
    """Whether a rule has weights of moderate size on a partition: those through many points have not on all of them."""
    p = value(expression)
    if not isinstance(p, Tensor) or rule not in ("gauss-legendre", "simpson"):
        return True
    return p.shape[0] < (30 if rule == "simpson" else 8) and float(oracle.quadrature_size(rule, p).sum()) < 100


def points(expression: str, cells: bool = False) -> int:
    """How many points, or cells between edges, an expression makes."""
    made = value(expression)
    return made.shape[0] - cells if isinstance(made, Tensor) else made


# Calls ------------------------------------------------------------------------------------------------------


@st.composite
def quadrature(draw: Any, tensors: dict[str, str], names: tuple[str, ...] = (*QUADRATURES, "cells", "cells")) -> str:
    """A rule: a name, "tensor", or the expression of a callable. How common parameters of a basis are drawn, too."""
    return draw(st.sampled_from([*(repr(name) for name in names), "tensor", *CALLABLES]))


CALLABLES = ("lambda p: p.double().square() + 1", "lambda p: torch.full_like(p, 0.25)")


@st.composite
def sampling(draw: Any, shape: tuple[int, ...], sizes: tuple[int, ...], backend: str | None) -> tuple[dict, dict]:
    """Partitions of nodes of a shape, about `sizes` points, and the options of the basis: tensors and options."""
    tensors: dict[str, str] = {}
    options: dict[str, str] = {"backend": repr(backend)}
    rule = draw(quadrature(tensors))
    spatial = []
    for dim, (nodes, n) in enumerate(zip(shape, sizes)):
        if draw(st.integers(0, 7)) == 7:
            spatial.append("None")
            continue
        cells = rule == "'cells'"
        closed = cells or rule in ("'trapezoid'", "'simpson'") or (dim > 1 and not rule.startswith("'"))
        name = ("out_partition", "in_partition")[dim] if dim < 2 else f"spatial_partition_{dim - 2}"
        named = rule.strip("'") if dim or cells else ""
        tensors[name] = draw(partition(n, nodes, named, 2 if closed and (dim or cells) else 1))
        spatial.append(name)
    if len(spatial) > 2:
        options["spatial_partitions"] = f"[{', '.join(spatial[2:])}]"
    if rule == "tensor" and "in_partition" in tensors:
        count = points(tensors["in_partition"])
        tensors["quadrature"] = draw(tensor((count,), draw(stored(backend))))
    elif rule != "tensor":
        options["quadrature"] = rule
    options["scale"] = repr(draw(st.sampled_from([1.0, -2.5, 3, 0.001, 0.0])))
    options["a"] = repr(draw(st.sampled_from([-0.75, -0.5, 0, 1.3])))
    options["boundary"] = repr(draw(st.sampled_from(BOUNDARIES)))
    options["kernel"] = repr(draw(st.sampled_from(("cubic", *KERNELS))))
    return tensors, options


def count(tensors: dict[str, str], options: dict[str, str], name: str, nodes: int) -> int:
    """Points or cells of a dimension: the nodes' own where it is discrete."""
    return points(tensors[name], options.get("quadrature") == "'cells'") if name in tensors else nodes


@st.composite
def sizes(draw: Any, backend: str | None, rows: int = 0) -> tuple[int, int, int, int]:
    """Nodes [M, N] and points [K, L]: mostly small, sometimes a long axis or, once in `rows`, rows of several tiles."""
    interpreted = backend == "triton"
    small = st.sampled_from(SIZES[:8] if interpreted else SIZES)
    shape = [draw(small) for _ in range(4)]
    if rows and not interpreted and draw(st.integers(1, rows)) == rows:
        shape[1::2] = draw(st.sampled_from([(1500, 700), (142, 256), (3000, 5), (67, 2100)]))
    if not interpreted and draw(st.integers(1, 16)) == 16:
        shape[::2] = draw(st.sampled_from([(4096, 5), (2, 300), (257, 193)]))
        assume(shape[1] * shape[3] < 10000)
    return tuple(shape)


def finish(draw: Any, function: str, tensors: dict[str, str], options: dict[str, str]) -> Call:
    """A call with a random share of its tensors trained."""
    floating = [name for name in tensors if isinstance(value(tensors[name]), Tensor)]
    if options.get("kernel") in ("'linear'", "'conservative'") and options.get("quadrature") != "'cells'":
        floating = [name for name in floating if "partition" not in name]  # F has kinks: at a point on one, two slopes
    trained = tuple(name for name in floating if draw(st.booleans()))
    return Call(function, tensors, options, trained, draw(st.sampled_from(GRADS)), draw(st.sampled_from([1, 1, 1, 2])))


@st.composite
def discretize(draw: Any, backend: str | None, rows: int = 16) -> Call:
    """Weights, of any rank."""
    m, n, k, l = draw(sizes(backend, rows))
    rest = draw(st.sampled_from([(), (), (3,), (8,), (3, 3), (2, 3, 2)]))
    if m * n * len(rest) > 10**5:
        rest = ()
    shape = (m, n, *rest)
    if draw(st.integers(0, 7)) == 7:
        shape = shape[:1]  # a bias
    spatial = draw(st.integers(0, 4)) == 4 and m * n < 10**4
    partitions, options = draw(sampling(shape if spatial else shape[:2], (k, l, 2, 3, 4), backend))
    tensors = {"nodes": draw(tensor(shape, draw(stored(backend)))), **partitions}
    if draw(st.booleans()):
        options["dtype"] = str(draw(stored(backend)))
    return finish(draw, "discretize", tensors, options)


def fusable(tensors: dict[str, str], options: dict[str, str], nodes: tuple[int, int]) -> bool:
    """Whether outputs and inputs are both sampled, and no point of theirs sees more than eight nodes."""
    sides = [tensors.get("out_partition"), tensors.get("in_partition")]
    if options.get("quadrature") != "'cells'":
        return None not in sides
    return all(side is not None and side.isdigit() and 3 * int(side) >= m for side, m in zip(sides, nodes))


@st.composite
def linear(draw: Any, backend: str | None) -> Call:
    """Layers with and without taps, any leading dimensions."""
    m, n, k, l = draw(sizes(backend, 16))
    taps = draw(st.sampled_from([1, 1, 1, 4]))
    partitions, options = draw(sampling((m, n), (k, l), backend))
    width = count(partitions, options, "in_partition", n) * taps
    rows = draw(st.sampled_from([(3,), (1,), (16,), (0,), (), (2, 3)]))
    nodes, x = draw(stored(backend)), draw(stored(backend))
    tensors = {"x": draw(tensor((*rows, width), x)), "nodes": draw(tensor((m, n, taps) if taps > 1 else (m, n), nodes))}
    if draw(st.booleans()):
        tensors["bias"] = draw(tensor((m,), draw(st.sampled_from([x, nodes, torch.float32]))))
    flows = ["auto", "materialize", "factored"]
    flows += ["fused"] * 3 * (backend == "triton" and taps == 1 and fusable(partitions, options, (m, n)))
    options["dataflow"] = repr(draw(st.sampled_from(flows)))
    return finish(draw, "integral_linear", {**tensors, **partitions}, options)


@st.composite
def convolution(draw: Any, backend: str | None, ranks: tuple[int, ...] = (1, 2, 3)) -> Call:
    """Layers of each rank, grouped ones and kernels that are continuous in space too."""
    rank = draw(st.sampled_from(ranks))
    m, n, k, l = draw(sizes(backend))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilation, stride = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = draw(st.sampled_from(["0", "1", "2", "'valid'", "'same'"]))
    stride = 1 if padding == "'same'" else stride
    spatial = draw(st.integers(0, 5)) == 5
    partitions, options = draw(sampling((m, n, *kernel) if spatial else (m, n), (k, l, 2, 3, 2), backend))
    outputs = count(partitions, options, "out_partition", m)
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3, outputs) if outputs % g == 0 and g < 20]))
    channels = count(partitions, options, "in_partition", n) * groups
    reach = [count(partitions, options, f"spatial_partition_{i}", size) for i, size in enumerate(kernel)]
    space = tuple(dilation * (size - 1) + 1 + draw(st.integers(0, 3)) for size in reach)
    if channels * torch.Size(space).numel() * outputs > 10**5:
        reject()
    batch = draw(st.sampled_from([(2,), (1,), (0,), ()]))
    nodes, x = draw(stored(backend)), draw(stored(backend))
    tensors = {"x": draw(tensor((*batch, channels, *space), x)), "nodes": draw(tensor((m, n, *kernel), nodes))}
    if draw(st.booleans()):
        tensors["bias"] = draw(tensor((m,), draw(st.sampled_from([x, nodes, torch.float32]))))
    options |= {"stride": str(stride), "padding": padding, "dilation": str(dilation), "groups": str(groups)}
    flows = ["auto", "materialize"] + (["factored"] if groups == 1 and not spatial else [])
    fused = backend == "triton" and rank < 3 and "factored" in flows and not padding.startswith("'")
    flows += ["fused"] * 3 * (fused and fusable(partitions, options, (m, n)))
    options["dataflow"] = repr(draw(st.sampled_from(flows)))
    return finish(draw, f"integral_conv{rank}d", {**tensors, **partitions}, options)


def calls(backend: str | None) -> st.SearchStrategy[Call]:
    """Any call of the operators."""
    return st.one_of(discretize(backend), linear(backend), convolution(backend))
