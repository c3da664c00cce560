"""The architectures of tests/zoo, which every run of the tests converts too."""

from __future__ import annotations

import functools
import importlib
import sys

from bench.harness import ROOT
from bench.zoo.measure import Architecture

ROOMS = (
    "convnets",
    "fields",
    "images",
    "attention",
    "mixers",
    "sequences",
    "recurrent",
    "signals",
    "weights",
    "calls",
    "heads",
)


def ours() -> dict[str, Architecture]:
    """Every family of tests/zoo, its axes those that must be found."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    zoo = importlib.import_module("zoo")
    found = {}
    for room in ROOMS:
        for name, family in importlib.import_module(f"zoo.{room}").FAMILIES.items():
            make = functools.partial(zoo.build, family)
            found[name] = Architecture(
                family.kind or room, make, family.inputs, family.elsewhere, family.kwargs, family.axes
            )
    return found
