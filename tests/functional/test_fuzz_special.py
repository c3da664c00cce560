"""Random calls with NaN or an infinity in one element of an argument.

What is not finite goes wherever the definition multiplies it by a weight that is not zero, and nowhere but to outputs
whose window of four nodes holds it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_fuzz import PARTITIONS, arguments_of, run
from torch import Tensor

import fuzzing
import oracle
import programs
from programs import Call

# What an index of each dimension names: a batch row, output point k or node i, input point l or node j.
LABELS = {"x": "bl", "nodes": "ij", "bias": "i", "quadrature": "l", "out_partition": "k", "in_partition": "l"}
SIDE = {"b": "rows", "k": "out", "i": "out", "l": "in", "j": "in"}
DEPENDS = {  # each gradient, besides the incoming gradient; the value depends on everything
    "x": ("nodes",),
    "nodes": ("x",),
    "bias": (),
    "quadrature": ("x", "nodes"),
    "out_partition": ("x", "nodes", "bias"),
    "in_partition": ("x", "nodes"),
}


def windows(dimension: oracle.Dimension, p: Tensor) -> Tensor:
    """Whether node i is among the four consecutive ones around point k, [K, M]; beside a node, of either cell."""
    nodes = dimension.nodes
    s, i = (p * nodes - 0.5 if dimension.basis["centred"] else p * (nodes - 1)), torch.arange(nodes)
    s = s + 0.5 if dimension.basis["kernel"] == "conservative" else s
    held = torch.zeros(p.shape[0], nodes, dtype=torch.bool)
    for slack in (-nodes * 2.0**-20, nodes * 2.0**-20):
        first = (torch.floor(s + slack) - 1).clamp(0, max(nodes - 4, 0))[:, None]
        held |= (i >= first) & (i < first + 4)
    return held


class Reach:
    """Where an element of one tensor may, and where it must, show in another."""

    def __init__(self, call: Call, arguments: dict[str, Any], anywhere: bool):
        self.rule = arguments.get("quadrature", "trapezoid")
        self.labels = LABELS | {"y": "kl" if call.function == "discretize" else "bk"}
        self.labels["grad"] = self.labels["y"]
        every = [torch.eye(n).bool() for n in arguments["nodes"].shape[:2]]
        self.may, self.must = (dict(zip(("out", "in"), every)) for _ in range(2))
        for d in oracle.dimensions(arguments):
            p, side = oracle.points(arguments, d), ("out", "in")[d.dim]
            self.may[side], self.must[side] = windows(d, p) | anywhere, d.sampling(p).abs() > 1e-9

    def mask(self, source: str, index: tuple[int, ...], target: str, shape: torch.Size, strict: bool) -> Tensor:
        """Elements of the target that an element of the source may (`strict`: must) reach."""
        matrices = self.must if strict else self.may
        at = dict(zip(self.labels[source], index))
        result = torch.ones(shape, dtype=torch.bool)
        for dim, label in enumerate(self.labels[target][: len(shape)]):
            partner = next((m for m in at if SIDE[m] == SIDE[label]), None)
            if partner is not None:
                along = self.along(partner, at[partner], label, shape[dim], matrices)
            elif strict and label in "ij":  # some point must carry it there
                along = matrices[SIDE[label]].any(0)
            else:
                continue
            if target == "in_partition" and isinstance(self.rule, str):  # weights are made of neighbouring points
                reach = shape[dim] if self.rule == "gauss-legendre" else 2
                along = torch.stack([along.roll(by) for by in range(-reach, reach + 1)]).any(0)
            result &= along.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        if strict and any(m in "ij" and not matrices[SIDE[m]][:, at[m]].any() for m in at):
            result[...] = False  # no point reads the node
        return result

    def along(self, source: str, at: int, label: str, size: int, matrices: dict[str, Tensor]) -> Tensor:
        """The same for one dimension."""
        if source == label:
            return torch.arange(size) == at
        matrix = matrices[SIDE[label]]
        return matrix[at] if source in "kl" else matrix[:, at]


def plane(name: str, t: Tensor, call: Call) -> Tensor:
    """The elements that are not finite, one for each row and channel."""
    bad = ~t.isfinite()
    if name in ("x", "y") and call.function == "integral_linear":
        return bad.reshape(-1, t.shape[-1])
    if name in ("x", "y") and call.function != "discretize":
        bad = bad if t.dim() == int(call.function[-2]) + 2 else bad.unsqueeze(0)
    return bad.flatten(2).any(-1) if bad.dim() > 2 else bad


def check_spread(reach: Reach, call: Call, name: str, index: tuple[int, ...], found: dict[str, Tensor]) -> None:
    """Every value and gradient that is not finite may be so, and every one that must is."""
    found = {n: plane(n, t, call) for n, t in found.items()}
    for target, bad in found.items():
        depends = target == "y" or name == "grad" or name in DEPENDS[target]
        depends = depends and (target, name) != ("y", "grad")
        may = reach.mask(name, index, target, bad.shape, strict=False) & depends
        assert not bool((bad & ~may).any()), f"{target} is not finite at {(bad & ~may).nonzero()[0].tolist()}"
        # An element of a convolution may lie under no window, or over padding alone.
        sure = target not in PARTITIONS and ("conv" not in call.function or name == "bias")
        must = reach.mask(name, index, target, bad.shape, strict=True) & may & (sure and bad.numel() > 0)
        assert not bool((must & ~bad).any()), f"{target} is finite at {(must & ~bad).nonzero()[0].tolist()}"


def check_not_finite(draw: Any, backend: str, anywhere: bool = False) -> None:
    """Partitions and weights are refused by name; others reach what their windows touch, or all of an axis."""
    call = draw(fuzzing.calls(backend))
    floating = tuple(n for n, e in call.tensors.items() if isinstance(programs.value(e), Tensor))
    plain = "spatial_partitions" not in call.options and call.options.get("groups", "1") == "1"
    taps = call.function == "integral_linear" and programs.value(call.tensors["nodes"]).dim() == 3
    cells = call.options.get("quadrature") == "'cells'"  # whose windows are of many lengths: tests of the operators
    assume(plain and not taps and not cells)
    call = call._replace(trained=floating)
    with programs.reported(call.program):
        scope = run(call)
        exec(call.backward(), scope)
    assume(scope["y"].numel() > 0)
    assume(all(bool(t.isfinite().all()) for t in (scope["y"], *scope["gradients"])))
    name = draw(st.sampled_from([*floating, "grad"]))
    element = draw(st.integers(0, scope[name].numel() - 1))
    index = torch.unravel_index(torch.tensor(element), scope[name].shape)
    bad = draw(st.sampled_from(["float('nan')", "float('inf')", "-float('inf')"]))
    call = call.with_value(name, element, bad)
    with programs.reported(call.program):
        if name in (*PARTITIONS, "quadrature"):
            with pytest.raises(ValueError, match=f"{name} must .*finite"):
                run(call)
            return
        scope = run(call)
        exec(call.backward(), scope)
        at = [int(i) for i in index]
        if call.function == "integral_linear" and name in ("x", "grad"):
            at = [element // scope[name].shape[-1], at[-1]]
        elif name in ("x", "grad") and call.function != "discretize" and len(at) == int(call.function[-2]) + 1:
            at = [0, *at]
        found = {"y": scope["y"].detach(), **dict(zip(floating, scope["gradients"]))}
        check_spread(Reach(call, arguments_of(call, scope), anywhere), call, name, tuple(at), found)


@given(data=st.data())
def test_not_finite(backend, data):
    check_not_finite(data.draw, backend)
