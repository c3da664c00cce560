"""Transformers and mixers as they are published, in their smallest form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, features, pictures, tokens


class Heads(nn.Module):
    """Attention of queries to keys and values, in heads of a fixed size, with a bias on the scores or a mask."""

    def __init__(self, size: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.query, self.key, self.value = (nn.Linear(size, heads * head_size) for _ in range(3))
        self.out = nn.Linear(heads * head_size, size)

    def forward(self, x: Tensor, memory: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        q, k, v = (
            layer(t).unflatten(-1, (-1, self.head_size)).transpose(-2, -3)
            for layer, t in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        scores = q @ k.transpose(-2, -1) / self.head_size**0.5
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return self.out((weights @ v).transpose(-2, -3).flatten(-2))


class FeedForward(nn.Module):
    """Up, a rectifier, down."""

    def __init__(self, size: int, inside: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, inside), nn.Linear(inside, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and feed-forward, norms first or (as BERT has it) last."""

    def __init__(self, size: int, heads: int, inside: int, first: bool = True) -> None:
        super().__init__()
        self.first, self.attend, self.feed = first, Heads(size, heads, 4), FeedForward(size, inside)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.first:
            x = self.norm1(x + self.attend(x, bias=bias))
            return self.norm2(x + self.feed(x))
        x = x + self.attend(self.norm1(x), bias=bias)
        return x + self.feed(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.ModuleList(Block(12, 3, 20) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Windows(nn.Module):
    """Attention in windows, shifted in every second block, with a learned bias by relative position."""

    def __init__(self, size: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift, self.block = shift, Block(size, heads, 20)
        self.table = nn.Parameter(torch.randn(9, heads))
        y, x = (t.flatten() for t in torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
        self.register_buffer("index", (y[:, None] - y + 1) * 3 + x[:, None] - x + 1)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.view(b, h // 2, 2, w // 2, 2, -1).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        x = self.block(x, self.table[self.index].permute(2, 0, 1))
        x = x.view(b, h // 2, w // 2, 2, 2, -1).transpose(2, 3).reshape(b, h, w, -1)
        return x.roll((self.shift, self.shift), (1, 2))


class Swin(nn.Module):
    """Two windows, patches merged, two windows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.first = nn.Sequential(Windows(8, 2, 0), Windows(8, 2, 1))
        self.norm, self.merge = nn.LayerNorm(32), nn.Linear(32, 12, bias=False)
        self.second, self.head = Windows(12, 3, 0), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.embed(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(self.second(self.merge(self.norm(x))).mean((1, 2)))


class Bert(nn.Module):
    """Words, places and kinds; norms last; a mask; a head on all words and one on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(17, 12), nn.Embedding(9, 12), nn.Embedding(2, 12)
        self.norm, self.blocks = nn.LayerNorm(12), nn.ModuleList(Block(12, 3, 20, first=False) for _ in range(2))
        self.pool, self.pair = nn.Linear(12, 10), nn.Linear(10, 2)
        self.mix, self.mix_norm, self.guess = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 17)
        self.guess.weight = self.words.weight

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(x.shape[1]).expand_as(x)
        bias = (1.0 - mask[:, None, None].float()) * -1e4
        x = self.norm(self.words(x) + self.places(places) + self.kinds(places % 2))
        for block in self.blocks:
            x = block(x, bias)
        return self.guess(self.mix_norm(F.gelu(self.mix(x)))), self.pair(self.pool(x[:, 0]).tanh())


class EncoderDecoder(nn.Module):
    """A bias on the scores by bucketed distance, attention to another sequence, a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.near = nn.Embedding(17, 12), nn.Embedding(7, 3)
        self.encoder, self.decoder = Block(12, 3, 20), Block(12, 3, 20)
        self.cross, self.norm3 = Heads(12, 3, 4), nn.RMSNorm(12)
        self.gate, self.up, self.down = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 17, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.encoder(self.words(x), self._bias(x.shape[1]))
        causal = torch.full((y.shape[1], y.shape[1]), -1e4).triu(1)
        y = self.decoder(self.words(y), self._bias(y.shape[1]) + causal)
        y = y + self.cross(self.norm3(y), memory)
        y = y + self.down(F.gelu(self.gate(y)) * self.up(y))
        return self.head(y)

    def _bias(self, length: int) -> Tensor:
        places = torch.arange(length)
        return self.near((places[:, None] - places).clamp(-3, 3) + 3).permute(2, 0, 1)


class Experts(nn.Module):
    """Every word goes to two of four experts, and those to all words that are sent to them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(17, 12), nn.LayerNorm(12)
        self.route, self.experts = nn.Linear(12, 4), nn.ModuleList(FeedForward(12, 10) for _ in range(4))
        self.head = nn.Linear(12, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        y = self.norm(x).flatten(0, 1)
        weights, chosen = self.route(y).softmax(-1).topk(2, -1)
        weights = torch.zeros(len(y), 4).to(y).scatter(1, chosen, weights)
        z = sum(weights[:, i, None] * expert(y) for i, expert in enumerate(self.experts))
        return self.head(x + z.view_as(x))


class StackedExperts(nn.Module):
    """The experts' weights in one tensor each, multiplied in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.route = nn.Linear(6, 12), nn.Linear(12, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 12, 16) / 4), nn.Parameter(torch.randn(3, 16, 12) / 4)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = self.route(x).softmax(-1)
        y = torch.einsum("enf,efd->end", torch.einsum("nd,edf->enf", x, self.up).relu(), self.down)
        return self.head(x + torch.einsum("ne,end->nd", weights, y))


class SortedExperts(nn.Module):
    """Rows in the order of their experts, all of them multiplied by one grouped product."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.route, self.head = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 2)
        self.up, self.down = nn.Parameter(torch.randn(3, 16, 24) / 4), nn.Parameter(torch.randn(3, 24, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weight, chosen = self.route(x).softmax(-1).max(-1)
        order = chosen.argsort()
        ends = (chosen[:, None] == torch.arange(3)).sum(0).cumsum(0).int()
        y = F.grouped_mm(F.grouped_mm(x[order], self.up, offs=ends).relu(), self.down, offs=ends)
        return self.head(x + weight[:, None] * y[order.argsort()])


class Latents(nn.Module):
    """A few learned rows read a long sequence, then one another."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.embed = nn.Parameter(torch.randn(4, 12)), nn.Linear(6, 12)
        self.read, self.block = Heads(12, 3, 4), Block(12, 3, 20)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows.expand(len(x), -1, -1)
        rows = rows + self.read(self.norm(rows), self.embed(x))
        return self.head(self.block(rows).mean(1))


def _masked(batch: int, length: int = 5) -> tuple[Tensor, Tensor]:
    return tokens(length, 17)(batch)[0], (torch.arange(length) < length - 1).expand(batch, -1).long()


def _pair(length: int):
    return lambda batch: (tokens(length, 17)(batch)[0], tokens(length - 2, 17)(batch)[0])


FAMILIES = {
    "ViT": Family(
        VisionTransformer,
        pictures,
        {
            "embed": 12,
            "blocks.0.attend.query": 3,
            "blocks.0.feed.up": 20,
            "blocks.1.attend.query": 3,
            "blocks.1.feed.up": 20,
        },
        kind="ViT",
    ),
    "latents that read": Family(
        Latents,
        features(7, 6),
        {"read.out": 12, "embed": 12, "read.query": 3, "block.attend.query": 3, "block.feed.up": 20},
        kind="ViT",
        elsewhere=features(9, 6),
    ),
    "Swin": Family(
        Swin,
        pictures,
        {
            "embed": 8,
            "first.0.block.attend.query": 2,
            "first.0.block.feed.up": 20,
            "first.1.block.attend.query": 2,
            "first.1.block.feed.up": 20,
            "merge": 12,
            "second.block.attend.query": 3,
            "second.block.feed.up": 20,
        },
        kind="Swin",
        elsewhere=lambda batch: pictures(batch, 16),
    ),
    "BERT": Family(
        Bert,
        _masked,
        {
            "words": 12,
            "blocks.0.attend.query": 3,
            "blocks.0.feed.up": 20,
            "blocks.1.attend.query": 3,
            "blocks.1.feed.up": 20,
            "pool": 10,
        },
        kind="BERT",
        elsewhere=lambda batch: _masked(batch, 7),
    ),
    "T5": Family(
        EncoderDecoder,
        _pair(6),
        {"words": 12, "near": 3, "encoder.feed.up": 20, "decoder.feed.up": 20, "cross.query": 3, "gate": 16},
        kind="T5",
        elsewhere=_pair(8),
    ),
    "experts, chosen": Family(
        Experts,
        tokens(5, 17),
        {"words": 12, "experts.0.up": 10, "experts.1.up": 10, "experts.2.up": 10, "experts.3.up": 10},
        kind="mixture of experts",
        elsewhere=tokens(7, 17),
    ),
    "experts, sorted": Family(SortedExperts, features(6), {"embed": 16, "up": 24}, kind="mixture of experts"),
    "experts, stacked": Family(
        StackedExperts, features(6), {"route": 3, "embed": 12, "up": 16}, kind="mixture of experts"
    ),
}
