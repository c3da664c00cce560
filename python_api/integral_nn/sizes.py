"""Numbers that modules keep beside their weights' shapes: set them right after a change of size."""

from __future__ import annotations

from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._NormBase,)


def depthwise(module: nn.Module) -> bool:
    """Whether `module` is a convolution whose groups are its channels."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    return module.groups > 1 and module.groups == module.in_channels


def update_sizes(net: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """Make every module of torch.nn agree with the shapes (by name) of its weights."""
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        shape = shapes.get(f"{prefix}weight")
        if shape is None:
            shape = shapes.get(f"{prefix}running_mean")
        if shape is not None:
            _update(module, shape)


def _update(module: nn.Module, shape: tuple[int, ...]) -> None:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        if depthwise(module):
            module.groups = shape[0]
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        if depthwise(module):
            module.groups = shape[0] // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = shape
    elif isinstance(module, _NORMS):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = shape


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(t.shape) for name, t in tensors.items()}
