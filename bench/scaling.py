"""Fill in docs/scaling.md: python -m bench.scaling trains on two processes what tests/training tests, some two minutes.

It leaves bench/results/scaling.json; with --report the page is written from that file alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from bench import traffic
from bench.harness import RESULTS, ROOT, environment

PAGE, RECORD = ROOT / "docs" / "scaling.md", RESULTS / "scaling.json"
TESTS = ROOT / "tests" / "training"
WORLDS = (1, 8, 64, 1024)
SIZES = {"ResNet-18": 11_689_512, "a network of 1e9 parameters": 10**9}
"""Trained parameters of the networks that the page reckons with."""


def combinations() -> Iterator[tuple[str, str, Callable, tuple]]:
    """(name, what else, function of a rank, its arguments); each returns the largest differences it saw."""
    import test_data_parallel as parallel
    import test_engines as engines
    import test_tensor_parallel as tensor

    names = {
        parallel.ddp: "DistributedDataParallel",
        parallel.static: "DistributedDataParallel, static_graph, gradient_as_bucket_view",
        parallel.blocks: "fully_shard of blocks and root",
        parallel.root: "fully_shard of the root",
        parallel.offloaded: "fully_shard of blocks and root, CPUOffloadPolicy",
    }
    for kind in parallel.MAKE:
        for trainable in (False, True):
            network = f"{kind}, {'trainable' if trainable else 'fixed'} points"
            for wrap, name in names.items():
                yield name, network, parallel.train, (kind, trainable, wrap)
        network = f"{kind}, trainable points"
        yield "gradients gathered over two calls, DDP", network, parallel.accumulate, (kind, parallel.ddp)
        yield "gradients gathered over two calls, fully_shard", network, parallel.accumulate, (kind, parallel.blocks)
        for reentrant in (False, True):
            name = f"activations computed again, use_reentrant={reentrant}, DDP"
            yield name, network, engines.recomputed, (kind, reentrant)
        yield "GPipe over two stages, four micro-batches", network, engines.pipeline, (kind,)
        yield "bfloat16 by MixedPrecisionPolicy, against float32", network, parallel.train_mixed, (kind,)
        yield "bfloat16 by autocast, DDP, against one process's", network, engines.low_precision, (kind,)
        network = f"{kind}, fixed points"
        for wrap, name in ((DistributedDataParallel, "DDP"), (parallel.blocks, "fully_shard")):
            yield f"torch.compile of {name}, 50 steps", network, engines.compiled, (kind, wrap)
    for make in (tensor.by_hand, tensor.converted):
        for trainable in (False, True):
            network = f"{make.__name__.replace('_', ' ')}, {'trainable' if trainable else 'fixed'} points, float64"
            yield "split by points", network, tensor.split_training, (make, "conv", trainable)


def measure() -> dict[str, Any]:
    """Run them all on two processes."""
    sys.path.insert(0, str(TESTS))
    from models import MAKE
    from ranks import Ranks
    from test_traffic import send, send_split

    rows, sent = [], []
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(Path(folder))
        for name, network, function, arguments in tqdm(list(combinations()), "combinations", mininterval=1):
            answers = ranks(function, *arguments)
            first = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
            row = {"name": name, "network": network, "difference": max(first)}
            if function.__name__ == "compiled":
                row["graphs"] = max(graphs for _, graphs in answers)
            rows.append(row)
        for kind in MAKE:
            for how in ("ddp", "blocks"):
                (found, expected), _ = ranks(send, kind, True, how)
                sent.append({"network": kind, "how": how, "counted": found[0], "formula": expected})
            (found, expected), _ = ranks(send_split, kind)
            sent.append({"network": kind, "how": "split", "counted": found[0], "formula": expected[0]})
        ranks.close()
    return {"where": environment(), "differences": rows, "traffic": sent}


def difference_table(record: dict[str, Any]) -> list[str]:
    """A row a combination, a column a kind of network, and how many graphs were compiled."""
    networks = [f"{kind}, {points} points" for kind in ("by hand", "converted") for points in ("fixed", "trainable")]
    rows: dict[str, dict[str, str]] = {}
    for row in record["differences"]:
        network, _, dtype = row["network"].partition(" points")
        graphs = f" ({row['graphs']} graphs)" if "graphs" in row else ""
        cells = rows.setdefault(row["name"] + dtype, {})
        cells[f"{network} points"] = f"{row['difference']:.0e}{graphs}"
    lines = [f"| combination | {' | '.join(networks)} |", "|---" * (1 + len(networks)) + "|"]
    return lines + [f"| {name} | {' | '.join(cells.get(n, '') for n in networks)} |" for name, cells in rows.items()]


def traffic_table(record: dict[str, Any]) -> list[str]:
    """What was counted, beside the formula."""
    names = {"ddp": "DistributedDataParallel", "blocks": "fully_shard of blocks", "split": "two layers split by points"}
    lines = ["| network | how | collective | counted [bytes] | formula [bytes] |", "|---|---|---|---|---|"]
    for row in record["traffic"]:
        for kind, count in row["counted"].items():
            lines.append(f"| {row['network']} | {names[row['how']]} | {kind} | {count:,} | {row['formula'][kind]:,} |")
    return lines


def reckoned_table() -> list[str]:
    """By formula: what a rank sends and keeps."""
    lines = [
        "| network | GPUs | DDP sends [MB] | fully_shard sends [MB] | DDP keeps [MB] | fully_shard keeps [MB] "
        "| weights sampled at 100% / 50% / 25% width, and their gradients [MB] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, count in SIZES.items():
        whole = [torch.Size((count,))]
        for world in WORLDS:
            sends = [traffic.data_parallel(whole), traffic.fully_sharded(whole, world)]
            keeps = [sum(traffic.memory(count, 0, shards).values()) for shards in (1, world)]
            sampled = [traffic.memory(0, int(share * share * count))["sampled weights"] for share in (1, 0.5, 0.25)]
            cells = [traffic.ring(one, world) for one in sends] + keeps
            text = " | ".join(f"{megabytes / 1e6:,.1f}" for megabytes in cells)
            lines.append(f"| {name} | {world:,} | {text} | {' / '.join(f'{s / 1e6:,.1f}' for s in sampled)} |")
    return lines


def write(record: dict[str, Any], page: str) -> str:
    """The page with its tables between their marks."""
    where = record["where"]
    measured = f"Measured on {where['device']}; PyTorch {where['torch']}, commit `{where['commit']}`."
    tables = {
        "differences": [measured, "", *difference_table(record)],
        "traffic": traffic_table(record),
        "reckoned": reckoned_table(),
    }
    for name, lines in tables.items():
        begin, end = f"<!-- {name}: written by bench/scaling.py -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = "\n".join([before + begin, *lines, end + after])
    return page


def main() -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="write the page from the record there is")
    options = parser.parse_args()
    if not options.report:
        RECORD.write_text(json.dumps(measure(), indent=1) + "\n")
    PAGE.write_text(write(json.loads(RECORD.read_text()), PAGE.read_text()))


if __name__ == "__main__":
    main()
