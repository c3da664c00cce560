"""Which of many fail a test that is passed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def failing(items: Sequence[Item], passes: Callable[[Sequence[Item]], bool]) -> Iterator[Item]:
    """Those that fail on their own, by halving a group that fails together."""
    if not items or passes(items):
        return
    if len(items) == 1:
        yield items[0]
        return
    middle = len(items) // 2
    yield from failing(items[:middle], passes)
    yield from failing(items[middle:], passes)
