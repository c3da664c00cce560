"""The operator and its quadratures.

A layer with a continuous dimension is an integral, y(x_out) = ∫ F(x_out, x_in) f(x_in) dx_in. Its width is the number
of points of a quadrature, so a wider layer is a more exact one of the same integral. Left, the error of F(x_out,
x_in) = cos(2 x_out x_in) against f(x) = exp(x) by points of the rule; the orders printed are the slopes between its
last two points above round-off. Right, the error of a weight function itself, away from the ends, by the number of
nodes it is kept in: Keys' cubic convolution (a = -0.5, boundary "keys") is of third order, the kernel of image
libraries (a = -0.75, "clamp") of first, cubic B-splines are of fourth.
"""

import math

import torch
from matplotlib import pyplot as plt

import integral_nn as inn

RULES = ("left", "trapezoid", "midpoint", "simpson", "gauss-legendre")
BASES = {
    "cubic, a = -0.75": {"kernel": "cubic"},
    "cubic, a = -0.5, keys": {"kernel": "cubic", "a": -0.5, "boundary": "keys"},
    "bspline": {"kernel": "bspline"},
}


def integral(rule: str, points: int) -> float:
    """The layer's output at x_out = 1."""
    return float(inn.integrate(lambda x: torch.cos(2 * x) * torch.exp(x), points, quadrature=rule))


def weight_error(nodes: int, basis: dict) -> float:
    """The largest error of a weight function in the middle of the square, kept in nodes on each side."""
    x = inn.uniform_partition(nodes, dtype=torch.float64)
    values = torch.sin(3 * x[:, None] + 2 * x)
    where = {"out_partition": x, "in_partition": x, "scale": 1.0, "quadrature": torch.ones(nodes, dtype=torch.float64)}
    kept = inn.nodes_from(values, **where, **basis)
    fine = torch.linspace(0.3, 0.7, 301, dtype=torch.float64)
    ones = torch.ones(301, dtype=torch.float64)
    seen = inn.discretize(kept, fine, fine, quadrature=ones, scale=1.0, **basis)
    return float((seen - torch.sin(3 * fine[:, None] + 2 * fine)).abs().max())


def order(counts: list[int], errors: list[float]) -> float:
    """The slope of the last two errors that round-off does not touch."""
    (n, first), (more, last) = [pair for pair in zip(counts, errors) if pair[1] > 1e-13][-2:]
    return math.log(first / last) / math.log(more / n)


def main(quick: bool = False):
    """Both panels, and the orders."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    exact = (math.e * (math.cos(2) + 2 * math.sin(2)) - 1) / 5
    counts = [3, 5, 9, 17, 33, 65, 129]
    for rule, marker in zip(RULES, "osv^D"):
        errors = [abs(integral(rule, n) - exact) for n in counts]
        left.loglog(counts, [max(e, 1e-16) for e in errors], marker + "-", label=rule)
        print(f"{rule:16} order {order(counts, errors):4.1f}, error at {counts[-1]} points {errors[-1]:.0e}")
    nodes = [9, 17, 33, 65, 129]
    for (name, basis), marker in zip(BASES.items(), "osv"):
        errors = [weight_error(n, basis) for n in nodes]
        right.loglog(nodes, errors, marker + "-", label=name)
        print(f"{name:22} order {order(nodes, errors):4.1f}")
    left.set(xlabel="points", ylabel="error of the integral", title="quadratures")
    right.set(xlabel="nodes along each axis", ylabel="error of the weight", title="bases")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main().savefig("quadratures.png")
