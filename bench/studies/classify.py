"""The paper's classification study on pictures of digits or clothes: accuracy against compression and width.

    python -m bench.studies.classify --data digits --net vgg        scikit-learn's digits: minutes
    python -m bench.studies.classify --data fashion --net resnet    Fashion-MNIST: apt-get install dataset-fashion-mnist
    python -m bench.studies.classify --quick                        a minute

Pipelines, tables and files: see `study`.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bench.studies.nets import NETS
from bench.studies.options import parse, parser
from bench.studies.pictures import accuracy, batch, digits, fashion
from bench.studies.study import Study, Task


def task(options: argparse.Namespace) -> Task:
    """The study's network and data."""
    data = (digits if options.data == "digits" else fashion)(options.limit)
    x, y = data[:2]
    few = options.samples
    net = NETS[options.net]
    stride = 1 if options.data == "digits" else 2  # of one layer more, for the larger pictures

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return Task(
        name=f"{options.data}-{options.net}",
        metric="test accuracy [%]",
        build=lambda share: net(round(share * options.width), stride),
        draw=partial(batch, data),
        criterion=partial(F.cross_entropy, label_smoothing=0.05),
        score=lambda net: accuracy(net, data),
        loss=loss,
        batches=list(zip(x[:few].split(128), y[:few].split(128))),
        example=x[:2],
        calibration=list(x[:2048].split(256)),
    )


def main() -> None:
    """Parse the options and run the study."""
    options = parser(__doc__)
    options.add_argument("--data", choices=("digits", "fashion"), default="digits")
    options.add_argument("--net", choices=NETS, default="vgg")
    options.add_argument("--width", type=int, default=32, help="channels of the first layer")
    options.add_argument("--limit", type=int, default=60000, help="training pictures used")
    quick = {
        "steps": 100,
        "init_steps": 100,
        "scratch_steps": 100,
        "tuning": 12,
        "width": 8,
        "limit": 1347,
        "samples": 256,
    }
    chosen = parse(options, **quick, compressions=(0.0, 0.4), widths=(0.5, 1.0))
    Study(task(chosen), chosen).run()


if __name__ == "__main__":
    main()
