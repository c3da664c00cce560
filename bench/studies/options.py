"""The command line that studies share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

COMPRESSIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
WIDTHS = (0.25, 0.375, 0.5, 0.75, 1.0)


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Options that every study has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=3000, help="of a discrete network's training")
    options.add_argument(
        "--init-steps", type=int, default=4000, help="of INN-init, and of the discrete network's training on"
    )
    options.add_argument("--scratch-steps", type=int, default=6000, help="of the training of INN from scratch")
    options.add_argument("--lr", type=float, default=3e-3, help="largest learning rate, from scratch")
    options.add_argument("--init-lr", type=float, default=1e-3, help="largest learning rate of INN-init")
    options.add_argument("--smooth", type=float, default=5.0, help="weight of the nodes' roughness in INN's loss")
    options.add_argument("--init-smooth", type=float, default=0.1, help="the same of INN-init")
    options.add_argument("--range", type=float, nargs=2, default=[0.4, 1.0], help="widths that INN is trained at")
    options.add_argument("--init-range", type=float, nargs=2, default=[0.6, 1.0], help="the same of INN-init")
    options.add_argument("--tuning", type=int, default=200, help="steps of each tuning of partitions")
    options.add_argument("--samples", type=int, default=2048, help="training samples the partitions are tuned on")
    options.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    options.add_argument("--folder", type=Path, default=Path("runs"), help="where everything is kept")
    options.add_argument("--results", type=Path, help="where the finished table goes as well")
    options.add_argument("--compressions", type=float, nargs="+", default=COMPRESSIONS, help="shares removed")
    options.add_argument(
        "--widths", type=float, nargs="*", default=WIDTHS, help="shares of the width, beside trained nets"
    )
    options.add_argument("--quick", action="store_true", help="small and short, in a folder of its own")
    options.set_defaults(**defaults)
    return options


def parse(options: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The options of the command line; with --quick, those in `quick` instead."""
    found = options.parse_args()
    if found.quick:
        vars(found).update(quick, folder=found.folder / "quick", results=None)
    torch.set_num_threads(found.threads)
    return found
