"""Recurrent networks."""

import torch
from torch import Tensor, nn

from zoo import Family, features, tokens


class Recurrent(nn.Module):
    """Words through a recurrent module, both ways or one, to a head."""

    def __init__(self, make, both: bool = False) -> None:
        super().__init__()
        self.words, self.recur = nn.Embedding(17, 8), make(8, 10)
        self.head = nn.Linear(20 if both else 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recur(self.words(x))[0])


class Cells(nn.Module):
    """Cells called step by step, their states made in the network."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 12
        self.first, self.second, self.head = nn.LSTMCell(6, 12), nn.GRUCell(12, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = tuple(torch.zeros(len(x), self.hidden_size) for _ in range(2))
        other = None
        for step in x.unbind(1):
            state = self.first(step, state)
            other = self.second(state[0], other)
        return self.head(other)


def _lstm(inputs: int, size: int) -> nn.Module:
    return nn.LSTM(inputs, size, num_layers=2, batch_first=True)


def _projected(inputs: int, size: int) -> nn.Module:
    return nn.LSTM(inputs, 14, batch_first=True, proj_size=size)


FAMILIES = {
    "LSTM": Family(lambda: Recurrent(_lstm), tokens(5, 17), {"words": 8, "recur": 10}),
    "GRU, both ways": Family(
        lambda: Recurrent(lambda i, n: nn.GRU(i, n, 2, batch_first=True, bidirectional=True), both=True),
        tokens(5, 17),
        {"words": 8, "recur": 10},
    ),
    "LSTM with a projection": Family(
        lambda: Recurrent(_projected), tokens(5, 17), {"words": 8, "recur": 14, "recur#2": 10}
    ),
    "recurrence without gates or biases": Family(
        lambda: Recurrent(lambda i, n: nn.RNN(i, n, bias=False)), tokens(5, 17), {"words": 8, "recur": 10}
    ),
    "cells": Family(Cells, features(5, 6), {"first": 12, "second": 8}),
}
