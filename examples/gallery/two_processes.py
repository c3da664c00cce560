"""Two processes train one network.

An integral network is a module like any other, so DistributedDataParallel wraps it as it stands: what the processes
send each other are the gradients of the nodes, whatever width a step runs at. Both draw the same widths, for those of
`resample(step)` are a function of the step. Two processes with half of the batch each end where one process with the
whole batch does, up to round-off.
"""

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch.nn.parallel import DistributedDataParallel

from examples.gallery.task import data, network


def losses(model, inner, rank: int, processes: int, steps: int) -> list[float]:
    """Train on this process's share of every batch; the loss of the share at each step."""
    x, y, *_ = data()
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    found = []
    for step in range(steps):
        inner.resample(step)
        batch = torch.randint(len(y), (128,), generator=draw).chunk(processes)[rank]
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def work(index: int, folder: str, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """One of two processes, the started one or this; leaves and returns its losses and the state it ends with."""
    torch.set_num_threads(1)
    rank = index + 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    inner = network()
    found = losses(DistributedDataParallel(inner), inner, rank, 2, steps), inner.state_dict()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    return found


def main(quick: bool = False):
    """Two processes, then one; the nodes they end with are compared."""
    steps = 10 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        started = mp.spawn(work, (folder, steps), nprocs=1, join=False)
        first, ours = work(-1, folder, steps)
        while not started.join():
            pass
        second, theirs = torch.load(f"{folder}/1.pt")
    same = all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.manual_seed(0)
    alone = network()
    single = losses(alone, alone, 0, 1, steps)
    nodes = {f"net.{name}_nodes": tensor.detach() for name, tensor in alone.nodes().items()}
    off = max(float((ours[name] - t).abs().max() / t.abs().max()) for name, t in nodes.items())
    print(f"after {steps} steps at random widths: both processes have the same nodes: {same}")
    print(f"largest difference from one process with the whole batch, relative: {off:.0e}")
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    axes.plot(single, label="one process, the whole batch")
    axes.plot([(a + b) / 2 for a, b in zip(first, second)], "--", label="two processes, half each")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main().savefig("two_processes.png")
