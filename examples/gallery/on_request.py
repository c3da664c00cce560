"""A width for each request.

Who asks decides how much an answer may cost. `Snapshots` copies a model's nodes once and makes plain networks of any
width from the copy when one is first asked for; those asked for lately are kept, within a number of bytes. Here
threads answer requests at random widths. Then one thread answers them again, with the same bits; the time of each of
its answers is drawn against its width.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import torch
from matplotlib import pyplot as plt
from torch import nn

import integral_nn as inn


def network() -> inn.IntegralNetwork:
    """Some network that was made integral."""
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1, stride=2), nn.ReLU()]
    layers += [nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return inn.convert(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 32, 32), permute=False)


def main(quick: bool = False):
    """Answer requests from four threads; time each."""
    requests = 40 if quick else 400
    snapshots = inn.Snapshots(network(), max_bytes=8_000_000)
    draw = torch.Generator().manual_seed(0)
    widths = [round(0.2 + 0.8 * u, 2) for u in torch.rand(requests, generator=draw).tolist()]
    images = torch.randn(requests, 1, 3, 32, 32, generator=draw)

    @torch.inference_mode()
    def answer(i: int) -> tuple[torch.Tensor, float]:
        net = snapshots.at(widths[i])
        start = time.perf_counter()
        return net(images[i]), 1e3 * (time.perf_counter() - start)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, range(requests)))
    alone = [answer(i) for i in range(requests)]
    same = all(torch.equal(a, b) for (a, _), (b, _) in zip(answers, alone))
    print(f"{requests} answers from 4 threads, {len(set(widths))} widths; the same from one thread: {same}")
    print(
        f"{len(snapshots)} networks kept, {snapshots.bytes / 1e6:.1f} MB, of at most {snapshots.max_bytes / 1e6:.0f} MB"
    )
    for low in (0.2, 0.4, 0.6, 0.8):
        found = [ms for width, (_, ms) in zip(widths, alone) if low <= width < low + 0.2]
        print(f"  widths from {low:.0%}: {sorted(found)[len(found) // 2]:.2f} ms an answer, median")
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    axes.plot([100 * width for width in widths], [ms for _, ms in alone], ".", alpha=0.5)
    axes.set(xlabel="width asked for [%]", ylabel="time of an answer [ms]", yscale="log")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main().savefig("on_request.png")
