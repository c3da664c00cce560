"""Train an integral network on several processes: every step at random widths, the same on every rank.

    torchrun --nproc-per-node 2 examples/train_distributed.py
    torchrun --nproc-per-node 2 examples/train_distributed.py --shard --folder runs/clothes     # goes on from there

Pictures are Fashion-MNIST where Debian's dataset-fashion-mnist is installed, else scikit-learn's digits. Widths are a
function of the step: ranks draw the same ones without a word, and so does a run that goes on from a checkpoint.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import integral_nn as inn

FASHION = Path("/usr/share/datasets/fashion-mnist")
WIDTHS = (1.0, 0.75, 0.5, 0.25)


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, H, W] in [-0.5, 0.5] and labels [N], to train and to test on."""

    def read(name: str, *shape: int) -> Tensor:
        with gzip.open(FASHION / f"{name}-ubyte.gz") as file:
            return torch.from_numpy(
                np.frombuffer(file.read(), np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy()
            )

    if FASHION.exists():
        x, test_x = [read(f"{part}-images-idx3", -1, 28, 28)[:, None].float() / 255 - 0.5 for part in ("train", "t10k")]
        return x, read("train-labels-idx1", -1).long(), test_x, read("t10k-labels-idx1", -1).long()
    from sklearn.datasets import load_digits

    x, y = torch.tensor(load_digits().images).float()[:, None] / 16 - 0.5, torch.tensor(load_digits().target)
    return x[:1347], y[:1347], x[1347:], y[1347:]


def network(side: int) -> inn.IntegralNetwork:
    """Two convolutions and two linear layers; the three hidden widths are continuous axes."""
    a, b, c = [inn.Axis(m, size_range=(m // 4, m)) for m in (16, 32, 64)]
    first = nn.Sequential(inn.IntegralConv2d(1, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(inn.IntegralConv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    third = nn.Sequential(inn.IntegralLinear(b, c, taps=(side // 4) ** 2), nn.ReLU())
    return inn.IntegralNetwork(nn.Sequential(first, second, third, inn.IntegralLinear(c, 10)))


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent."""
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500)))
    return 100 * right / len(labels)


def main() -> None:
    """Train, save, and print the accuracy at every width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--shard", action="store_true", help="fully_shard in place of DistributedDataParallel")
    parser.add_argument("--folder", type=Path, help="a checkpoint to go on from, and to leave behind")
    options = parser.parse_args()
    dist.init_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    device = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    images, labels, test_images, test_labels = load()
    torch.manual_seed(0)
    model = network(images.shape[-1]).to(device)
    if options.shard:
        for block in model.net[:3]:
            fully_shard(block)
    called = fully_shard(model) if options.shard else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(inn.parameter_groups(model, 0.01), 3e-3)
    start = 0
    if options.folder and options.folder.exists():
        inn.check_checkpoint(model, options.folder)
        saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)), step=0)
        dcp.load(saved, checkpoint_id=options.folder)
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        start = saved["step"]
    for step in tqdm(range(start, options.steps), "training", disable=rank > 0, mininterval=1):
        model.resample(step)
        draw = torch.Generator().manual_seed(step)
        own = torch.randint(len(labels), (128,), generator=draw).chunk(world)[rank]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / options.steps)
        loss = F.cross_entropy(called(images[own].to(device)), labels[own].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if options.folder:
        saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)), step=options.steps)
        dcp.save(
            saved, checkpoint_id=f"{options.folder}.new"
        )  # beside the old one, which stays whole if a process dies
        if rank == 0:
            shutil.rmtree(options.folder, ignore_errors=True)
            os.rename(f"{options.folder}.new", options.folder)
    nodes = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        whole = network(images.shape[-1])
        whole.load_state_dict(nodes)
        for width in WIDTHS:
            print(f"width {width:4.0%}: accuracy {accuracy(whole.at(width), test_images, test_labels):.1f}%")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
