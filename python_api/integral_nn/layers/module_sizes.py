"""Numbers that modules keep beside their weights' shapes: computed from the shapes, or set after a change of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Shape = tuple[int, ...]
_NORM = nn.modules.batchnorm._NormBase
_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_OF_KIND: dict[Any, tuple[str, ...]] = {
    _CONV: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.Bilinear: ("in1_features", "in2_features", "out_features"),
    _NORM: ("num_features",),
    nn.GroupNorm: ("num_channels",),
    (nn.LayerNorm, nn.RMSNorm): ("normalized_shape",),
    nn.PReLU: ("num_parameters",),
    (nn.Embedding, nn.EmbeddingBag): ("num_embeddings", "embedding_dim"),
}


def depthwise(module: nn.Module) -> bool:
    """Whether `module` is a convolution whose groups are its channels."""
    if not isinstance(module, _CONV):
        return False
    own = module.__dict__  # at full size, whatever a sampled module's properties say
    return own["groups"] > 1 and own["groups"] == own["in_channels"]


def _numbers(module: nn.Module, shape: Shape) -> dict[str, Any]:
    """The numbers of a module of torch.nn whose weight (or statistic) has this shape."""
    if isinstance(module, _CONV):
        own = module.__dict__
        groups = own["groups"]
        if depthwise(module):
            groups = shape[0] if isinstance(module, _TRANSPOSED) else shape[0] // (own["out_channels"] // groups)
        first, second = shape[0], shape[1] * groups
        outputs, inputs = (second, first) if isinstance(module, _TRANSPOSED) else (first, second)
        return {"in_channels": inputs, "out_channels": outputs, "groups": groups}
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.Bilinear):
        return dict(zip(("out_features", "in1_features", "in2_features"), shape))
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(shape)}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    for kind, name in ((_NORM, "num_features"), (nn.GroupNorm, "num_channels"), (nn.PReLU, "num_parameters")):
        if isinstance(module, kind):
            return {name: shape[0]}
    return {}


def known_numbers(module: nn.Module) -> set[str]:
    """Attributes of a module of torch.nn that are settled: what no size is, and sizes that follow its own tensors."""
    base = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn."))
    if base is nn.Module:
        return set()
    sized = {name for kind, own in _OF_KIND.items() if isinstance(module, kind) for name in own}
    settled = sized if any(True for _ in (*module.parameters(False), *module.buffers(False))) else set()
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return {"num_layers"}
    return (set(getattr(base, "__constants__", ())) | {"num_groups", "_qkv_same_embed_dim"}) - sized | settled


def _tensor_of(names: Any) -> str | None:
    """The tensor that a module's numbers are read off."""
    return next((name for name in ("weight", "running_mean") if name in names), None)


def size_properties(
    base: type[nn.Module], names: tuple[str, ...], shape_of: Callable[[Any, str], Shape]
) -> dict[str, property]:
    """Properties for the numbers of a class whose tensors `names` have shapes that `shape_of(module, name)` tells."""
    tensor = _tensor_of(names)
    if tensor is None:
        return {}

    def number(name: str) -> property:
        def get(module: Any) -> Any:
            if name == "groups" and not depthwise(module):  # which every call of a convolution reads
                return module.__dict__[name]
            return _numbers(module, shape_of(module, tensor))[name]

        return property(get)

    return {name: number(name) for kind, own in _OF_KIND.items() if issubclass(base, kind) for name in own}


def update_sizes(net: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Make every module of torch.nn agree with the shapes (by name) of its weights."""
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        own = {leaf: shapes[prefix + leaf] for leaf in ("weight", "running_mean") if prefix + leaf in shapes}
        tensor = _tensor_of(own)
        if tensor is not None:
            module.__dict__.update(_numbers(module, own[tensor]))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shape of each tensor."""
    return {name: tuple(t.shape) for name, t in tensors.items()}
