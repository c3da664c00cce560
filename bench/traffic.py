"""Bytes that ranks send and keep: counted where PyTorch calls a collective, and by formula.

Of P parameters (nodes and all else that is trained), S sampled weights, w ranks, in bytes a rank and step:

    DistributedDataParallel    all-reduce of P
    fully_shard                all-gather of P forward and again backward, reduce-scatter of P
    split layers               all-reduce of their outputs, of the inputs' gradients, of the nodes' gradients

A collective's bytes are those of its whole tensor. In a ring a rank sends (w - 1) / w of them in an all-gather or a
reduce-scatter, twice that in an all-reduce.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_KINDS = {"allreduce_": "all-reduce", "_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter"}


class Traffic(TorchDispatchMode):
    """Counts the bytes of collectives, by kind: those of the tensor that all ranks have together."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kind = _KINDS.get(func._opname) if func.namespace == "c10d" else None
        if kind is not None:
            tensors = [t.nbytes for t in tree_flatten(args[:2])[0] if isinstance(t, Tensor)]
            self.bytes[kind] += sum(tensors) if kind == "all-reduce" else max(tensors)
        return func(*args, **(kwargs or {}))


def padded(shape: torch.Size, world: int) -> int:
    """Elements of a parameter whose rows are dealt out evenly, as `fully_shard` does."""
    rows, rest = shape[0], shape[1:].numel()
    return -(-rows // world) * world * rest


def data_parallel(shapes: Iterable[torch.Size]) -> dict[str, int]:
    """Bytes of float32 gradients that DistributedDataParallel adds up."""
    return {"all-reduce": 4 * sum(shape.numel() for shape in shapes)}


def fully_sharded(shapes: Iterable[torch.Size], world: int, points: int = 0) -> dict[str, int]:
    """Bytes of parameters gathered twice and of gradients dealt out; replicated points are added up beside them."""
    whole = 4 * sum(padded(shape, world) for shape in shapes)
    return {"all-gather": 2 * whole, "reduce-scatter": whole} | ({"all-reduce": 4 * points} if points else {})


def split(nodes: int, outputs: int, inputs: int = 0) -> dict[str, int]:
    """Bytes of layers split by their points: `nodes` of them, whole outputs and the gradients of whole inputs."""
    return {"all-reduce": 4 * (nodes + outputs + inputs)}


def ring(collectives: dict[str, int], world: int) -> float:
    """Bytes a rank sends for collectives of so many bytes."""
    return sum((2 if kind == "all-reduce" else 1) * n * (world - 1) / world for kind, n in collectives.items())


def sharded_peak(blocks: Sequence[int], sampled: int, others: int, world: int) -> dict[str, float]:
    """Float32 bytes that a rank keeps at most while it trains by blocks of so many nodes, one after the other.

    Of one block, and of no more: nodes gathered, those of the block that is fetched ahead, gradients of nodes as they
    are and as they are dealt out, and the sampled weights, `sampled` at most, with their gradients.
    `others` are activations, their gradients and what else does not depend on nodes.
    """
    largest = max(blocks)
    return {
        "shards and their gradients": 2 * 4 * sum(blocks) / world,
        "nodes of a block": 4 * 4 * largest,
        "sampled weights of a block": 2 * 4 * sampled,
        "others": 4 * others,
    }


def memory(parameters: int, sampled: int, world: int = 1, moments: int = 2) -> dict[str, float]:
    """Float32 bytes a rank keeps; `world` is that of shards, 1 where nothing is sharded.

    Sampled weights and their gradients live during a step, and belong to an integral network alone.
    """
    share = 4 * parameters / world
    return {"nodes": share, "gradients": share, "optimizer": moments * share, "sampled weights": 4 * 2 * sampled}
