"""Networks for sequences: transformers of several makes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, features, tokens


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


class Transposed(nn.Module):
    """A linear layer whose weight lies the other way round and whose outputs are counted by a number."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class SplitHeads(nn.Module):
    """Queries, keys and values of one layer, split at a number, then into heads of a fixed size."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.split_size, self.head_dim = size, size // heads
        self.attend, self.project = Transposed(3 * size, size), Transposed(size, size)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attend(x).split(self.split_size, 2)
        q, k, v = (t.view(*t.shape[:2], -1, self.head_dim).transpose(1, 2) for t in parts)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.project(x.reshape(*x.shape[:2], -1))


class SplitDecoder(nn.Module):
    """Learned positions, layer norms first, linear layers the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(17, 16), nn.Embedding(9, 16)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention, self.up, self.down = SplitHeads(16, 4), Transposed(40, 16), Transposed(16, 40)
        self.head = nn.Linear(16, 17, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places(torch.arange(x.shape[1]))
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return self.head(self.norm(x))


class NumberedHeads(nn.Module):
    """A number of heads, whose size is a share of the features, with a bias for every head."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (size // heads) ** -0.5
        self.qkv, self.project = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.table = nn.Parameter(torch.randn(5, 5, heads))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q * self.scale @ k.transpose(-2, -1) + self.table[:n, :n].permute(2, 0, 1)).softmax(-1)
        return self.project((weights @ v).transpose(1, 2).reshape(b, n, c))


class NumberedEncoder(nn.Module):
    """A block of such attention, residual, with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 24), NumberedHeads(24, 3)
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24, elementwise_affine=False)
        self.up, self.down, self.head = nn.Linear(24, 32), nn.Linear(32, 24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class FusedHeads(nn.Module):
    """Attention by one fused operation, which does not compare the heads that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.out = nn.Linear(6, 10), nn.Linear(10, 12), nn.Linear(12, 3)
        self.key, self.value = nn.Linear(10, 12, bias=False), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).tanh()
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).flatten(2))


class TiedDecoder(GatedDecoder):
    """The embedding's table is the head's weight."""

    def __init__(self) -> None:
        super().__init__(1)
        self.head.weight = self.embed.weight


def _encoder_of_torch() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(6, 16), layers, nn.Linear(16, 2))


FAMILIES = {
    "fused attention": Family(FusedHeads, features(5, 6), {"embed": 10, "query": 3}),
    "an embedding tied to the head": Family(
        TiedDecoder, tokens(5, 17), {"embed": 16, "blocks.0.attend.query": 3, "blocks.0.gate": 20}
    ),
    "weights the other way round": Family(SplitDecoder, tokens(5, 17), {"attention.attend": 4, "up": 40, "words": 16}),
    "a number of heads": Family(NumberedEncoder, features(5, 6), {"embed": 3, "up": 32}),
    "attention of torch.nn": Family(
        _encoder_of_torch, features(5, 6), {"0": 4, "1.layers.0.linear1": 24, "1.layers.1.linear1": 24}
    ),
    "norms in float32, grouped queries": Family(
        GatedDecoder,
        tokens(5, 17),
        {"embed": 16}
        | {f"blocks.{i}.{name}": size for i in (0, 1) for name, size in (("attend.query", 3), ("gate", 20))},
    ),
}
