"""The paper's three pipelines on pictures of digits or clothes: accuracy against compression, nothing fine-tuned.

    A   an integral network trained at random widths (Algorithm 1), from the converted discrete one ("INN-init") and
        from scratch ("INN"); then re-discretized
    B   the discrete network converted and cut, only the points of its partitions tuned on a few batches; with and
        without reordering its channels first
    C   the discrete network cut by the L1 norm of its filters, or at random

Compression is the share of parameters removed. Every finished training and every cell of the table is kept in --folder,
and a later run goes on from there.

    python examples/classify.py --data digits --net vgg             scikit-learn's digits: minutes
    python examples/classify.py --data fashion --net resnet         Fashion-MNIST: apt-get install dataset-fashion-mnist
    python examples/classify.py --quick                             a minute
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import integral_nn as inn
from integral_nn.permute import apply_orders

FASHION = Path("/usr/share/datasets/fashion-mnist")
COMPRESSIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(limit: int) -> Data:
    """Training and test images [N, 1, 8, 8] and labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16 - 0.5
    y = torch.tensor(data.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]
    return x[train][:limit], y[train][:limit], x[test], y[test]


def fashion(limit: int) -> Data:
    """Training and test images [N, 1, 28, 28] and labels of Fashion-MNIST."""
    if not FASHION.exists():
        sys.exit(f"There is no {FASHION}. On Debian and Ubuntu: apt-get install dataset-fashion-mnist")

    def read(name: str, offset: int) -> Tensor:
        with gzip.open(FASHION / name) as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=offset).copy())

    def part(prefix: str, count: int) -> tuple[Tensor, Tensor]:
        x = read(f"{prefix}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)[:count]
        return x.float() / 255 - 0.5, read(f"{prefix}-labels-idx1-ubyte.gz", 8)[:count].long()

    return *part("train", limit), *part("t10k", max(limit // 6, 1000))


def block(i: int, o: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU())


def vgg(width: int) -> nn.Module:
    """Convolutions and strides, then two linear layers."""
    w = width
    layers = [block(1, w), block(w, 2 * w, 2), block(2 * w, 2 * w), block(2 * w, 4 * w, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * w, 4 * w), nn.ReLU(),
                         nn.Linear(4 * w, 10))  # fmt: skip


def nin(width: int) -> nn.Module:
    """Network in network: each convolution followed by two of 1 x 1, the last averaged."""
    w, layers = width, []
    for i, o, stride in ((1, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2)):
        layers += [block(i, o, stride), block(o, o, 1, 1), block(o, o, 1, 1)]
    return nn.Sequential(*layers, nn.Conv2d(4 * w, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.first = block(i, o, stride)
        self.second = nn.Sequential(nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o))
        short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.short = short if stride > 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.short(x))


def resnet(width: int) -> nn.Module:
    """Three stages of two residual blocks."""
    w, layers, i = width, [block(1, width)], width
    for o, stride in ((w, 1), (2 * w, 2), (4 * w, 2)):
        layers += [Residual(i, o, stride), Residual(o, o, 1)]
        i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10))


def train(net: nn.Module, data: Data, steps: int, lr: float, title: str, sizes: bool = False) -> None:
    """Adam with a one-cycle rate and shifts by a pixel; `sizes`: random widths at each step (Algorithm 1)."""
    x, y = data[:2]
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    net.train()
    for _ in tqdm(range(steps), title, mininterval=2):
        batch = torch.randint(len(y), (128,), generator=draw)
        dx, dy = torch.randint(-1, 2, (2,), generator=draw).tolist()
        if sizes:
            net.resample(draw)  # type: ignore[operator]
        shifted = torch.roll(F.pad(x[batch], (1, 1, 1, 1), value=-0.5), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]
        loss = F.cross_entropy(net(shifted), y[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    """Share of right answers on the test set, in percent."""
    right = sum(int((net.eval()(x).argmax(1) == y).sum()) for x, y in zip(data[2].split(500), data[3].split(500)))
    return 100 * right / len(data[3])


def cut(net: nn.Module, model: inn.IntegralNetwork, sizes: dict[str, int], random: bool) -> nn.Module:
    """The discrete network with so many channels of each axis: of the largest L1 norm, or random ones."""
    draw = torch.Generator().manual_seed(0)
    net = copy.deepcopy(net)
    tensors = {name: t.detach() for name, t in [*net.named_parameters(), *net.named_buffers()]}
    orders = {}
    for name, size in sizes.items():
        makers = [t for t in model.found.ties_of(name) if not t.integrated and tensors[t.tensor].dim() > 1]
        rows = sum(t.layout.channels(tensors[t.tensor], t.dim, name)[0].abs().sum(1) for t in makers)
        score = torch.rand(rows.shape, generator=draw) if random else rows
        orders[name] = score.topk(size).indices.sort().values
    kept = apply_orders(tensors, model.found, orders)
    for name, old in [*net.named_parameters(), *net.named_buffers()]:
        old.data = kept[name]
    return net


class Study:
    """The table of one network, its trained weights, and where both are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{options.data}-{options.net}"
        self.path = self.folder / f"{self.name}.json"
        self.cells: dict[str, float] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.data = (digits if options.data == "digits" else fashion)(options.limit)
        torch.manual_seed(0)
        self.net = {"vgg": vgg, "nin": nin, "resnet": resnet}[options.net](options.width).eval()
        self.fresh = copy.deepcopy(self.net)

    def trained(self, key: str, net: nn.Module, lr: float, sizes: bool) -> nn.Module:
        """The network after training, or as an earlier run left it."""
        path = self.folder / f"{self.name}-{key}.pt"
        if path.exists():
            net.load_state_dict(torch.load(path, weights_only=True))
            return net.eval()
        train(net, self.data, self.options.steps, lr, f"training {key}", sizes)
        torch.save(net.state_dict(), path)
        return net

    def cell(self, way: str, compression: float, make: Callable[[], nn.Module]) -> None:
        """Fill one cell of the table, unless an earlier run did."""
        key = f"{way} {compression:.2f}"
        if key not in self.cells:
            self.cells[key] = accuracy(make(), self.data)
            self.path.write_text(json.dumps(self.cells, indent=1) + "\n")

    def run(self) -> None:
        """All pipelines."""
        x, y = self.data[:2]
        self.trained("discrete", self.net, 3e-3, False)
        convert = {"example_inputs": x[:2], "size_range": (0.4, 1.0)}
        models = {
            "A: INN-init": self.trained("inn-init", inn.convert(self.net, fold=False, **convert), 3e-3, True),
            "A: INN": self.trained("inn", inn.convert(self.fresh, fold=False, **convert), 3e-3, True),
        }
        tuned = {
            "B: tuned": inn.convert(self.net, quadrature="trapezoid", **convert),
            "B: tuned, not permuted": inn.convert(self.net, quadrature="trapezoid", permute=False, **convert),
        }
        folded = inn.convert(self.net, permute=False, **convert).discretize()  # C has the same layers as A and B
        batches = list(zip(x[: self.options.samples].split(128), y[: self.options.samples].split(128)))

        def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        first = tuned["B: tuned"]
        for compression in self.options.compressions:
            sizes = inn.compressed_sizes(first, compression)  # type: ignore[arg-type]

            def resized(model: nn.Module, sizes: dict[str, int] = sizes) -> nn.Module:
                model.resize(sizes)  # type: ignore[operator]
                return self.recalibrated(model)

            tuning = self.options.tuning if compression > 0 else 0

            def retuned(model: nn.Module, sizes: dict[str, int] = sizes, steps: int = tuning) -> nn.Module:
                asked = {"sizes": sizes, "steps": steps, "lr": 0.02}
                inn.tune_partitions(model, loss_fn, batches, progress=True, **asked)  # type: ignore[arg-type]
                return model

            for way, model in models.items():
                self.cell(way, compression, lambda model=model: resized(model))
            for way, model in tuned.items():
                self.cell(way, compression, lambda model=model: retuned(model))
            for way, random in (("C: L1 norm", False), ("C: random", True)):
                self.cell(way, compression, lambda random=random, sizes=sizes: cut(folded, first, sizes, random))
        self.show([*models, *tuned, "C: L1 norm", "C: random"])

    def recalibrated(self, model: nn.Module) -> nn.Module:
        """The network with its norms' statistics, where it has any, measured at its size."""
        if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
            inn.recalibrate(model, self.data[0][:2048].split(256))  # type: ignore[arg-type]
        return model

    def show(self, ways: list[str]) -> None:
        """Print the table and draw it."""
        columns = self.options.compressions
        print(f"\n{self.name}: test accuracy [%] against the share of parameters removed; no weight is fine-tuned")
        print(f"discrete network: {accuracy(self.net, self.data):.2f}")
        print(f"{'':26}" + "".join(f"{c:>8.0%}" for c in columns))
        for way in ways:
            print(f"{way:26}" + "".join(f"{self.cells[f'{way} {c:.2f}']:>8.1f}" for c in columns))
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, plot = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
        for way in ways:
            style = {"A": "o-", "B": "s--", "C": "x:"}[way[0]]
            plot.plot([100 * c for c in columns], [self.cells[f"{way} {c:.2f}"] for c in columns], style, label=way)
        plot.set(xlabel="parameters removed [%]", ylabel="test accuracy [%]", ylim=(0, 102), title=self.name)
        plot.grid(alpha=0.3)
        plot.legend(frameon=False, fontsize=8)
        figure.savefig(self.folder / f"{self.name}.png", dpi=150)


def main() -> None:
    """Parse the options and run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "fashion"), default="digits")
    parser.add_argument("--net", choices=("vgg", "nin", "resnet"), default="vgg")
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--tuning", type=int, default=400, help="steps of each tuning of partitions")
    parser.add_argument("--samples", type=int, default=1024, help="training pictures the partitions are tuned on")
    parser.add_argument("--limit", type=int, default=60000, help="training pictures used")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where everything is kept")
    parser.add_argument("--compressions", type=float, nargs="+", default=COMPRESSIONS, help="shares removed")
    parser.add_argument("--quick", action="store_true", help="small, short, two columns, in a folder of its own")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.tuning, options.width = 100, 12, 8
        options.limit, options.samples, options.compressions = 1347, 256, (0.0, 0.4)
        options.folder = options.folder / "quick"
    torch.set_num_threads(options.threads)
    Study(options).run()


if __name__ == "__main__":
    main()
