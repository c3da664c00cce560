"""What a dimension does by the customs of torch.nn: whether it is summed over, or a channel that a layer makes."""

from __future__ import annotations

from torch import nn

from integral_nn.coupling.equations import Place
from integral_nn.layers.module_sizes import depthwise

_PER_CHANNEL = (nn.Embedding, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)


def usual_role(owner: nn.Module | None, place: Place, rank: int) -> tuple[bool, bool]:
    """Whether a dimension of a tensor of `rank` dimensions is summed over, and whether that is certain."""
    tensor, dim = place
    if tensor.startswith("input:") or "bias" in tensor.rpartition(".")[2]:
        return False, True
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return dim == 0 and not depthwise(owner), True
    if isinstance(owner, (nn.modules.conv._ConvNd, nn.Linear)):
        return dim == 1, True
    if isinstance(owner, nn.Bilinear):
        return dim >= 1, True
    if isinstance(owner, _PER_CHANNEL):
        return False, True
    return rank > 1 and dim == 1, False
