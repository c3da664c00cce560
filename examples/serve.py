"""Serve a network of any width from one set of nodes: threads answer requests that each ask for a width of their own.

A width is chosen by whoever asks, by how much time there is for an answer, say. Networks are made when a width is first
asked for and kept while there is room (`Snapshots`); what they return is compared with what one thread returns.

    python examples/serve.py             1000 requests of random widths, 8 threads
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from tqdm import tqdm

import integral_nn as inn


def network() -> inn.IntegralNetwork:
    """Some network that was made integral."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return inn.convert(net.eval(), torch.zeros(1, 3, 32, 32), permute=False)


def main() -> None:
    """Answer the requests from many threads, then one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=1.0, help="room for the networks that are kept")
    parser.add_argument("--quick", action="store_true", help="40 requests")
    options = parser.parse_args()
    options.requests = 40 if options.quick else options.requests
    torch.set_num_threads(1)
    snapshots = inn.Snapshots(network(), max_bytes=round(options.megabytes * 1e6))
    generator = torch.Generator().manual_seed(1)
    widths = (0.25 + 0.75 * torch.rand(options.requests, generator=generator)).tolist()
    image = torch.randn(1, 3, 32, 32, generator=generator)

    def answer(width: float) -> Tensor:
        with torch.inference_mode():
            return snapshots.at(width)(image)

    start = time.perf_counter()
    with ThreadPoolExecutor(options.threads) as pool:
        answers = list(tqdm(pool.map(answer, widths), "serving", len(widths), mininterval=1))
    seconds = time.perf_counter() - start
    same = all(torch.equal(got, answer(width)) for got, width in zip(answers, widths))
    print(f"{len(widths) / seconds:.0f} requests a second by {options.threads} threads, {len(set(widths))} widths")
    print(f"{len(snapshots)} networks kept in {snapshots.bytes / 1e6:.2f} MB, at most {options.megabytes:g} MB")
    print(f"the same answers from one thread: {same}")


if __name__ == "__main__":
    main()
