"""The modules of a network that sample, found once and then again only when the tree of modules has changed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from integral_nn.layers.sampled import Sampled


class _Found(NamedTuple):
    modules: list[nn.Module]
    classes: list[type]
    children: list[dict[str, nn.Module | None]]
    sampling: list[tuple[str, Any]]


class Tree:
    """Looks over all modules below a root in microseconds. A copy has found nothing yet: it is another network's."""

    _found: _Found | None = None

    def __reduce__(self) -> tuple:
        return Tree, ()

    def sampling(self, root: nn.Module) -> list[tuple[str, Any]]:
        """Every module that samples, once, with the prefix of its tensors' names."""
        if torch.compiler.is_compiling():
            return _sampling(root)
        found = self._found
        if (
            found is None
            or found.modules[0] is not root
            or found.children != [module._modules for module in found.modules]
            or found.classes != [type(module) for module in found.modules]
        ):
            modules = list(root.modules())
            children = [dict(module._modules.items()) for module in modules]
            found = self._found = _Found(modules, [type(module) for module in modules], children, _sampling(root))
        return found.sampling


def _sampling(root: nn.Module) -> list[tuple[str, Any]]:
    return [(f"{path}." if path else "", m) for path, m in root.named_modules() if isinstance(m, Sampled)]
