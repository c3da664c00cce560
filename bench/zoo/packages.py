"""Published architectures, from the packages that have them: torchvision, timm, transformers, where they are installed.

Networks as they are published where that takes seconds, of fewer layers where it does not; weights are random.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import torch

from bench.zoo.language import TRANSFORMERS
from bench.zoo.measure import Architecture
from bench.zoo.vision import TIMM, TORCHVISION

FOLDER = Path(__file__).parents[2] / "build" / "zoo"
"""Where `make zoo` puts packages that must not come with a PyTorch of their own."""


def available() -> dict[str, dict[str, Architecture]]:
    """The architectures of every package that is there."""
    if FOLDER.exists() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    rooms = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": TRANSFORMERS}
    found = {name: table for name, table in rooms.items() if importlib.util.find_spec(name) is not None}
    if "torchvision" in found:
        _declare_operators()
    return found


@functools.lru_cache(None)
def _declare_operators() -> torch.library.Library:
    """The operators that torchvision describes as it is imported, where its library is for another build of PyTorch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # there already
            break
    return library
