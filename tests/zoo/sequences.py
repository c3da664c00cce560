"""Networks for sequences: transformers of several makes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, tokens


class RootMeanSquare(nn.Module):
    """The norm of large language models, computed in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class GroupedQueries(nn.Module):
    """Attention in which two heads of queries share keys and values; the number of heads is read off the weights."""

    def __init__(self, size: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.head_size, self.shared = head_size, 2
        self.query = nn.Linear(size, 2 * heads * head_size, bias=False)
        self.key, self.value = (nn.Linear(size, heads * head_size, bias=False) for _ in range(2))
        self.out = nn.Linear(2 * heads * head_size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        k, v = (t[:, :, None].expand(-1, -1, self.shared, -1, -1).flatten(1, 2) for t in (k, v))
        weights = (q @ k.transpose(2, 3) / self.head_size**0.5).softmax(-1, dtype=torch.float32).to(q.dtype)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class GatedDecoder(nn.Module):
    """Blocks with norms in float32, grouped queries and a gated feed-forward."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 16)
        block = {"norm1": lambda: RootMeanSquare(16), "attend": lambda: GroupedQueries(16, 3, 4)}
        block |= {"norm2": lambda: RootMeanSquare(16), "gate": lambda: nn.Linear(16, 20)}
        block |= {"up": lambda: nn.Linear(16, 20), "down": lambda: nn.Linear(20, 16)}
        self.blocks = nn.ModuleList(nn.ModuleDict({n: make() for n, make in block.items()}) for _ in range(depth))
        self.norm, self.head = RootMeanSquare(16), nn.Linear(16, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["attend"](block["norm1"](x))
            y = block["norm2"](x)
            x = x + block["down"](F.silu(block["gate"](y)) * block["up"](y))
        return self.head(self.norm(x))


FAMILIES = {
    "norms in float32, grouped queries": Family(
        GatedDecoder,
        tokens(5, 17),
        {"embed": 16}
        | {f"blocks.{i}.{name}": size for i in (0, 1) for name, size in (("attend.query", 3), ("gate", 20))},
    ),
}
