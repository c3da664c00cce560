"""Random sizes without a generator: a function of a seed, a training step and a name, alike wherever it is computed.

Ranks, pipeline stages, a recomputation and a run that goes on from a checkpoint all get the same sizes, whatever was
drawn before and without a word between them.
"""

from __future__ import annotations

import hashlib
from typing import Union

import torch

from integral_nn.functional import checks

Draw = Union[torch.Generator, int, None]
"""Where random sizes come from: a generator (None: PyTorch's own), or the number of a training step."""


def check_draw(generator: object, seed: object) -> None:
    """Raise unless `generator` is a Draw, and `seed` None or that of a step."""
    if isinstance(generator, bool) or not (generator is None or isinstance(generator, (torch.Generator, int))):
        got = type(generator).__name__
        raise TypeError(f"generator must be a torch.Generator or the number of a training step, got {got}")
    if isinstance(generator, int) and generator < 0:
        raise ValueError(f"generator must be a step of at least 0, or a torch.Generator, got {generator}")
    if seed is not None:
        checks.check_seed(seed)
        if not isinstance(generator, int):
            raise ValueError("seed is that of sizes drawn by step: resample(step, seed=..); a generator has its own")


def ratio(generator: Draw, seed: int | None, name: str) -> float:
    """A number in [0, 1): the generator's next one, or that of a seed (default 0), a step and the name of an axis."""
    if isinstance(generator, int):
        digest = hashlib.blake2b(f"{seed or 0} {generator} {name}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
    return float(torch.rand((), generator=generator))
