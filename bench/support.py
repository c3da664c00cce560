"""Try every operator with every backend, dtype and derivative, and write docs/support.md: python -m bench.support.

A cell says yes if the call returned what the reference returns in float64, within what its dtype can tell.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import integral_nn as inn
from bench.harness import ROOT

PAGE = ROOT / "docs" / "support.md"
BEGIN, END = "<!-- support: written by bench/support.py -->", "<!-- end of support -->"
BACKENDS = ("reference", "cpp", "triton", None)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DERIVATIVES = ("value", "gradient", "gradient in points", "second", "forward mode", "vmap")
YES, UNTRIED = "yes", "GPU"
Inputs = dict[str, Tensor]


def discretized(inputs: Inputs, backend: str | None) -> Tensor:
    """A weight from nodes."""
    return inn.discretize(inputs["nodes"], inputs["out"], inputs["in"], backend=backend)


def linear(inputs: Inputs, backend: str | None, dataflow: str) -> Tensor:
    """A linear layer."""
    return inn.integral_linear(
        inputs["x"], inputs["nodes"], inputs["bias"], inputs["out"], inputs["in"], backend=backend, dataflow=dataflow
    )


def conv(inputs: Inputs, backend: str | None, rank: int) -> Tensor:
    """A convolution of kernel size 2."""
    function = (inn.integral_conv1d, inn.integral_conv2d, inn.integral_conv3d)[rank - 1]
    nodes = inputs["nodes"].view(5, 6, *[1] * rank).expand(5, 6, *[2] * rank)
    x = inputs["x"].view(2, 4, *[1] * rank).expand(2, 4, *[3] * rank)
    return function(x, nodes, inputs["bias"], inputs["out"], inputs["in"], backend=backend)


DATAFLOWS = ("materialize", "factored", "fused")
OPERATORS: dict[str, Callable[[Inputs, str | None], Tensor]] = {
    "discretize": discretized,
    **{
        f"integral_linear, {flow}": functools.partial(linear, dataflow=flow)
        for flow in ("materialize", "factored", "fused")
    },
    **{f"integral_conv{rank}d": functools.partial(conv, rank=rank) for rank in (1, 2, 3)},
}


def made(dtype: torch.dtype, device: str) -> Inputs:
    """Operands of every operator, the same numbers in every dtype; points are exact in all of them."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 4), "nodes": (5, 6), "bias": (5,)}
    found = {name: torch.rand(shape, generator=draw).bfloat16().double() for name, shape in shapes.items()}
    found |= {"out": torch.tensor([0.125, 0.3125, 0.90625]), "in": torch.tensor([0.0625, 0.375, 0.625, 0.9375])}
    return {name: value.to(device, dtype) for name, value in found.items()}


def derived(run: Callable[[Inputs], Tensor], inputs: Inputs, derivative: str) -> list[Tensor]:
    """The tensors that a derivative consists of."""
    names = ("out", "in") if derivative == "gradient in points" else ("nodes", "x", "bias")
    if derivative == "value":
        return [run(inputs)]
    if derivative == "forward mode":
        return [torch.func.jvp(lambda n: run(inputs | {"nodes": n}), (inputs["nodes"],), (inputs["nodes"],))[1]]
    if derivative == "vmap":
        both = torch.stack([inputs["nodes"], 2 * inputs["nodes"]])
        return [torch.func.vmap(lambda n: run(inputs | {"nodes": n}))(both)]
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    second = derivative == "second"
    loss = run(inputs | leaves).square().mean()
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=second, allow_unused=True)
    used = [(leaf, grad) for leaf, grad in zip(leaves.values(), first) if grad is not None]
    if not second:
        return [grad for _, grad in used]
    total = torch.stack([grad.square().mean() for _, grad in used]).sum()
    return list(torch.autograd.grad(total, [leaf for leaf, _ in used]))


@functools.cache
def exact(operator: str, derivative: str, device: str) -> list[Tensor]:
    """What the reference returns in float64; of fused, which does not take it, what materialize returns."""
    call = functools.partial(OPERATORS[operator.replace("fused", "materialize")], backend="reference")
    return derived(call, made(torch.float64, device), derivative)


def tried(operator: str, backend: str | None, dtype: torch.dtype, derivative: str, device: str) -> str:
    """YES, UNTRIED, or why not."""
    try:
        got = derived(functools.partial(OPERATORS[operator], backend=backend), made(dtype, device), derivative)
    except RuntimeError as error:
        if "it runs on GPU tensors" in str(error):
            return UNTRIED
        return str(error).rpartition("run here: ")[2].rpartition("run this layer: ")[2]
    for ours, want in zip(got, exact(operator, derivative, device), strict=True):
        allowed = 64 * torch.finfo(dtype).eps * float(want.abs().max())
        if not float((ours.double() - want).abs().max()) <= allowed:
            return f"differs from float64 by more than {allowed:.0e}"
    return YES


def cell(answers: dict[str, str], reasons: list[str]) -> str:
    """What the dtypes of a cell say, reasons by their number."""
    said = list(dict.fromkeys(answers.values()))
    if said in ([YES], [UNTRIED]):
        return said[0]
    for answer in said:
        if answer not in (YES, UNTRIED) and answer not in reasons:
            reasons.append(answer)
    if len(said) == 1:
        return f"no ({reasons.index(said[0]) + 1})"
    return ", ".join(f"{t}: {YES if a == YES else f'no ({reasons.index(a) + 1})'}" for t, a in answers.items())


def render(device: str) -> str:
    """The table and the reasons, in Markdown."""
    reasons: list[str] = []
    lines = ["| | backend | " + " | ".join(DERIVATIVES) + " |", "|---" * (2 + len(DERIVATIVES)) + "|"]
    for operator in OPERATORS:
        for backend in BACKENDS:
            cells = []
            for derivative in DERIVATIVES:
                tries = {str(t).removeprefix("torch."): tried(operator, backend, t, derivative, device) for t in DTYPES}
                cells.append(cell(tries, reasons))
            lines.append(f"| `{operator}` | `{backend}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))])


def redrawn(text: str, device: str = "cpu") -> str:
    """The page's text with its table replaced."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{render(device)}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Rewrite the page, or print the table for another device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cuda: print its table, and leave the page as it is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == "cpu":
        PAGE.write_text(redrawn(PAGE.read_text()))
    else:
        print(render(options.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
