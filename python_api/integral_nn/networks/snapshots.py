"""Networks of many sizes from one set of nodes, to serve: made when they are asked for, kept while there is room."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from integral_nn.networks.network import IntegralNetwork


class Snapshots:
    """Plain networks of any size, all from the nodes that a model has now.

    The nodes are copied once, here: training the model further changes none of the networks, and none is ever stale.
    What no axis runs along is shared by all of them. Any number of threads may ask for networks and call them.

    Args:
        model: an integral network.
        max_bytes: of the sampled weights that are kept; the networks asked for least recently go first. The newest
            stays, whatever its size. A network in use lives on with its user.

    Raises:
        TypeError: `model` is not an IntegralNetwork.
        ValueError: `max_bytes` is negative.

    >>> import torch, integral_nn as inn
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> snapshots = inn.Snapshots(inn.convert(net, torch.zeros(1, 4)))
    >>> snapshots.at(0.5)(torch.zeros(3, 4)).shape, snapshots.at({"0": 9})[0]
    (torch.Size([3, 2]), Linear(in_features=4, out_features=9, bias=True))
    """

    def __init__(self, model: IntegralNetwork, max_bytes: int = 1 << 30) -> None:
        if not isinstance(model, IntegralNetwork):
            raise TypeError(f"model must be an IntegralNetwork, got {type(model).__name__}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes must be an int, got {type(max_bytes).__name__}")
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._shared: dict[int, Tensor] = {
            id(t): t for t in [*self._model.net.parameters(), *self._model.net.buffers()]
        }  # for networks to have in place of copies
        self._kept: OrderedDict[tuple[int, ...], tuple[nn.Module, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of the sampled weights that are kept now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def at(self, size: float | Mapping[str, int | float]) -> nn.Module:
        """The network of these sizes, as `IntegralNetwork.resize` takes them: in eval mode, its weights fixed.

        Raises:
            ValueError, TypeError: sizes that `resize` refuses.
        """
        sizes = self._model._sizes_at(size)
        key = tuple(sizes.values())
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found[0]
        made = self._model._plain_at(sizes, dict(self._shared))
        own = sum(t.nbytes for t in [*made.parameters(), *made.buffers()] if id(t) not in self._shared)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:  # another thread was first
                return found[0]
            while self._kept and self._bytes + own > self.max_bytes:  # first, so that there is never more
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed
            self._kept[key] = made, own
            self._bytes += own
            return made
