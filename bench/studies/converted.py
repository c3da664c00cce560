"""Ordinary networks made integral, then narrowed: nothing trained or tuned afterwards but the statistics of norms.

The networks are those that `widths` trained at full width alone. Their channels are reordered once, for all rows alike;
beside the ways to sample weights stands the cut that keeps the channels of the largest L1 norm.

    python -m bench.studies.converted --net vgg --results bench/results
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import integral_nn as inn
from bench.studies import widths
from bench.studies.cut import cut
from bench.studies.nets import NETS
from bench.studies.options import parse
from bench.studies.pictures import Data, accuracy, digits, fashion

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of the width
L1 = "l1-cut"
ROWS = (*widths.INTEGRAL, L1)


def trained(options: argparse.Namespace, seed: int, lr: float, full: int) -> nn.Module:
    """The network of full width that `widths` left."""
    kept = widths.path(options.folder, options.net, "alone-100", seed, lr).with_suffix(".pt")
    net = widths.Alone(widths.build(options)(full))
    net.load_state_dict(torch.load(kept, weights_only=True, map_location="cpu")["net"])
    return net.net.to(options.device).eval()


def scores(net: nn.Module, row: str, data: Data) -> dict[str, float]:
    """Test accuracy by width in percent."""
    model = inn.convert(net, data[0][:2], fold=False, permute=False, **widths.INTEGRAL.get(row, {}))
    found = {}
    for share in SHARES:
        sizes = {name: axis.share(share) for name, axis in model.axes.items()}
        narrow = cut(net, model, sizes) if row == L1 else model.discretize(sizes)
        update_bn(data[0][:2048].split(256), narrow)
        found[f"{100 * share:g}"] = round(accuracy(narrow, data), 3)
    return found


def main() -> None:
    """Measure every seed that was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="vgg")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=ROWS, help="what is measured")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the trained networks are")
    parser.add_argument("--results", type=Path, help="where the record goes; default: --folder")
    parser.add_argument("--quick", action="store_true", help="what `widths --quick` trained")
    options = parse(parser)
    full = 8 if options.quick else widths.FULL[options.net]
    _, test = widths.parts(digits(1347) if options.quick else fashion(60000))
    data = tuple(t.to(options.device) for t in test)
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in options.rows}
    for record in widths.tested(options.folder, options.net, "alone-100"):
        net = trained(options, record["seed"], record["lr"], full)
        ordered = inn.convert(net, data[0][:2], fold=False).discretize()
        for row in options.rows:
            measured = scores(net if row == L1 else ordered, row, data)
            found[row].append({"seed": record["seed"], "test": measured})
            print(f"{options.net}, seed {record['seed']}, {row}:", measured, flush=True)
    if not found[options.rows[0]]:
        raise SystemExit(
            f"no tested training in {options.folder}: run widths --net {options.net} --row alone-100 --test"
        )
    widths.keep(f"converted-{options.net}", found, options.results or options.folder)


if __name__ == "__main__":
    main()
