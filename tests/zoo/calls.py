"""Networks that are called, and answer, in other ways than with a tensor; some of them draw random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, features, pictures, tokens


class Autoencoder(nn.Module):
    """A variational autoencoder, which draws its code in eval mode too, and a dropout that is never off."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(6, 20), nn.Linear(20, 4), nn.Linear(20, 4)
        self.decode, self.last, self.out = nn.Linear(4, 18), nn.Linear(18, 14), nn.Linear(14, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encode(x).relu()
        mean, spread = self.mean(x), self.spread(x)
        code = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        x = F.dropout(self.decode(code).tanh(), 0.5, training=True)
        return self.out(self.last(x).relu()), mean


@dataclass
class Answer:
    """What a network answers, in the structures that networks answer in."""

    scores: Tensor
    states: list[Tensor]
    extra: dict[str, Tensor | None]


class ByName(nn.Module):
    """Inputs in dicts, lists and by name; an answer in a dataclass; integers that are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image = nn.Embedding(17, 12), nn.Conv2d(3, 10, 2, 2)
        self.join, self.mix, self.head = nn.Linear(12, 10), nn.Linear(10, 16), nn.Linear(16, 3)

    def forward(
        self, batch: dict[str, Tensor], pictures: list[Tensor], steps: int = 1, *, mask: Tensor, lengths: Tensor
    ) -> Answer:
        x = self.words(batch["words"])
        if bool(mask.all()) and int(lengths.max()) <= x.shape[1]:
            x = x * mask[..., None]
        x = torch.stack([row[:n].mean(0) for row, n in zip(x, lengths.tolist())])
        y = sum(self.image(p).relu().mean((2, 3)) for p in pictures)
        x = self.join(x) + y
        for _ in range(steps):
            x = x.tanh()
        x = self.mix(x).relu()
        return Answer(self.head(x), [x.mean(1), x.amax(1)], {"mask": mask, "nothing": None})


class Masked(nn.Module):
    """Tokens that a mask selects, by a number that is not known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.head = nn.Embedding(17, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        chosen = self.words(x)[x > 8]
        return {"all": self.head(self.up(chosen).relu()).mean(0), "words": x}


FAMILIES = {
    "noise in eval": Family(Autoencoder, features(6), {"encode": 20, "last": 14}),
    "inputs by name, answers in a dataclass": Family(
        ByName,
        lambda batch: ({"words": tokens(5, 17)(batch)[0]}, [pictures(batch)[0], 2 * pictures(batch)[0]], 2),
        {"words": 12, "image": 10, "mix": 16},
        lambda batch: {"mask": torch.ones(batch, 5).long(), "lengths": torch.arange(batch) % 3 + 2},
    ),
    "tokens that a mask selects": Family(Masked, tokens(9, 17), {"words": 12, "up": 16}),
}
