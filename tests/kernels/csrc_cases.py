"""Taps of random weights, dense matrices of them, and the bound on errors that sums have: n terms in precision eps err
by at most n * eps * (the sum of absolute values), and storing adds half a unit in the last place."""

from __future__ import annotations

import numpy as np
import torch

# (M_out, K, M_in, L): equal, prime, one to five, many more points than nodes and the other way round, empty
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 3, 2),
    (3, 1, 5, 7),
    (4, 4, 4, 4),
    (5, 0, 7, 3),
    (7, 13, 17, 5),
    (31, 29, 61, 47),
    (17, 53, 23, 101),
    (64, 9, 130, 11),
    (10, 7, 300, 30),
    (11, 50, 40, 160),
    (9, 0, 8, 0),
    (6, 5, 150, 450),
]
KINDS = ["uniform", "random", "clustered"]
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
]


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_taps(points, nodes, kind="uniform", dtype=torch.float32, seed=0, taps=4):
    """Taps with random weights (no kernel function is special) at points of the given kind; clustered: in one cell."""
    rng = np.random.default_rng(seed)
    position = {
        "uniform": lambda: np.linspace(0, 1, points),
        "random": lambda: np.sort(rng.random(points)),
        "clustered": lambda: np.sort(0.41 + 1e-4 * rng.random(points)),
    }[kind]()
    start = np.clip(np.floor(position * (nodes - 1)) - (taps - 1) // 2, 0, max(0, nodes - taps)).astype(np.int32)
    weight = rng.standard_normal((points, taps))
    weight[start[:, None] + np.arange(taps) >= nodes] = 0
    return torch.from_numpy(start), torch.from_numpy(weight).to(dtype)


def dense(start, weight, nodes):
    """S [K, M] of the taps, float64."""
    points, taps = weight.shape
    matrix = np.zeros((points, nodes + taps))
    for t in range(taps):
        matrix[np.arange(points), start.numpy() + t] += weight.double().numpy()[:, t]
    return matrix[:, :nodes]


def values(*shape, dtype, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_float64(tensor, *shape):
    return tensor.double().numpy().reshape(shape)


def check(got, want, absolute, terms):
    """`absolute` is the same sum over absolute values, of at most `terms` terms."""
    assert tuple(got.shape) == want.shape
    eps = torch.finfo(accumulator(got.dtype)).eps
    stored = torch.finfo(got.dtype)
    bound = terms * eps * absolute + stored.eps * np.abs(want) + stored.tiny * stored.eps
    error = np.abs(got.double().numpy() - want)
    assert np.all(error <= bound), (
        f"error {error.max():.3g} where {bound.flat[np.argmax(error - bound)]:.3g} is allowed"
    )


def terms_of(matrix):
    return int((matrix != 0).sum(1).max(initial=0)) + 1
