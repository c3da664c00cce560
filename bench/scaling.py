"""Fill in docs/scaling.md: python -m bench.scaling runs on two and four processes what tests/training tests.

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
from bench.serving import serve

PAGE, RECORD = ROOT / "docs" / "scaling.md", RESULTS / "scaling.json"
TESTS = ROOT / "tests" / "training"
WORLDS = (1, 8, 64, 1024)
DEPTHS = (4, 8, 16)
SHARDS = "shards and their gradients"
SIZES = {"ResNet-18": 11_689_512, "a network of 1e9 parameters": 10**9}
"""Trained parameters of the networks that the page reckons with."""


def combinations() -> Iterator[tuple[str, str, Callable, tuple]]:
    """(name, what else, function of a rank, its arguments); each returns the largest differences it saw."""
    from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

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
        for schedule, name in ((ScheduleGPipe, "GPipe"), (Schedule1F1B, "1F1B")):
            yield f"{name} over two stages, four micro-batches", network, engines.pipeline, (kind, schedule)
        again = "1F1B over two stages, four micro-batches, activations computed again"
        yield again, network, engines.pipeline, (kind, Schedule1F1B, True)
        yield "join: a rank with fewer batches, parameters after six steps", network, parallel.joined, (kind,)
        yield "bfloat16 by MixedPrecisionPolicy, against float32", network, parallel.train_mixed, (kind,)
        yield "bfloat16 by autocast, DDP, against one process's", network, engines.low_precision, (kind,)
        network = f"{kind}, fixed points"
        yield "torch.compile of DDP, 200 steps", network, engines.compiled, (kind, DistributedDataParallel, 200)
        yield "torch.compile of fully_shard, 50 steps", network, engines.compiled, (kind, parallel.blocks, 50)
    for trainable in (False, True):
        points = "trainable" if trainable else "fixed"
        for dtype in (torch.float32, torch.float64):
            name = "" if dtype == torch.float32 else ", float64"
            for make, kind in ((tensor.by_hand, "by hand"), (tensor.converted, "converted")):
                network = f"{kind}, {points} points{name}"
                yield "split by points", network, tensor.split_training, (make, "conv", trainable, dtype)
            for make, kind in ((tensor.tokens_by_hand, "by hand"), (tensor.tokens_converted, "converted")):
                network = f"{kind}, {points} points{name}"
                arguments = make, trainable, dtype
                yield "split by points, norms on parts of a sequence", network, tensor.sequence_parts, arguments


def combinations_of_four() -> Iterator[tuple[str, str, Callable, tuple]]:
    """The same on four processes."""
    import test_data_parallel as parallel
    import test_tensor_parallel as tensor

    for trainable in (False, True):
        points = "trainable" if trainable else "fixed"
        for kind in parallel.MAKE:
            for wrap, name in ((parallel.ddp, "DistributedDataParallel"), (parallel.blocks, "fully_shard of blocks")):
                arguments = kind, trainable, wrap, 4
                yield f"four ranks: {name}", f"{kind}, {points} points", parallel.train, arguments
        for wrap, name in ((tensor.blocks, "fully_shard"), (tensor.ddp, "DDP")):
            for dtype in (torch.float32, torch.float64):
                for make, kind in ((tensor.by_hand, "by hand"), (tensor.converted, "converted")):
                    network = f"{kind}, {points} points" + ("" if dtype == torch.float32 else ", float64")
                    arguments = make, trainable, wrap, dtype
                    yield f"two by two ranks: split by points, {name}", network, tensor.split_and_sharded, arguments


def measure() -> dict[str, Any]:
    """Run them all."""
    sys.path.insert(0, str(TESTS))
    import test_memory as memory
    from models import MAKE
    from ranks import Ranks
    from test_traffic import send, send_split

    where = environment()
    rows, sent, kept = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(Path(folder), timeout=60)
        rows += [one_difference(ranks, *job) for job in tqdm(list(combinations()), "combinations", mininterval=1)]
        for kind in MAKE:
            for how in ("ddp", "blocks"):
                (found, expected), _ = ranks(send, kind, True, how)
                sent.append({"network": kind, "how": how, "counted": found[0], "formula": expected})
            (found, expected), _ = ranks(send_split, kind)
            sent.append({"network": kind, "how": "split", "counted": found[0], "formula": expected[0]})
        for kind in ("by hand", "converted"):
            for depth, (found, expected) in zip(DEPTHS, ranks(memory.peaks, kind, False, DEPTHS)[0]):
                kept.append({"network": kind, "blocks": depth, "counted": found["Total"], "formula": expected})
        for depth in DEPTHS:
            found = ranks(memory.peak_of_ordinary, depth)[0]
            kept.append({"network": "ordinary, at full width", "blocks": depth, "counted": found["Total"]})
        ranks.close()
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(Path(folder), 4, timeout=60)
        jobs = list(combinations_of_four())
        rows += [one_difference(ranks, *job) for job in tqdm(jobs, "on four", mininterval=1)]
        ranks.close()
    torch.set_num_threads(1)
    return {"where": where, "differences": rows, "traffic": sent, "memory": kept, "serving": serve()}


def one_difference(ranks: Any, name: str, network: str, function: Callable, arguments: tuple) -> dict[str, Any]:
    """The largest difference that any rank saw, and how many graphs were compiled after one step and after all."""
    answers = ranks(function, *arguments)
    first = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    row = {"name": name, "network": network, "difference": max(first)}
    if function.__name__ == "compiled":
        row["graphs"] = max(graphs for _, graphs in answers)
        row["graphs of one step"] = max(graphs for _, graphs in ranks(function, *arguments[:-1], 1))
    return row


def difference_table(record: dict[str, Any]) -> list[str]:
    """A row a combination, a column a kind of network, and how many graphs were compiled."""
    networks = [f"{kind}, {points} points" for kind in ("by hand", "converted") for points in ("fixed", "trainable")]
    rows: dict[str, dict[str, str]] = {}
    for row in record["differences"]:
        network, _, dtype = row["network"].partition(" points")
        graphs = f" ({row['graphs']} graphs, {row['graphs of one step']} in step 1)" if "graphs" in row else ""
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


def memory_table(record: dict[str, Any]) -> list[str]:
    """The peak of a step beside the formula."""
    lines = [
        "| network | blocks | peak, counted [bytes] | of which shards and their gradients | formula, at most |",
        "|---|---|---|---|---|",
    ]
    for row in record["memory"]:
        formula = row.get("formula")
        shards, most = ("", "") if formula is None else (f"{formula[SHARDS]:,.0f}", f"{sum(formula.values()):,.0f}")
        lines.append(f"| {row['network']} | {row['blocks']} | {row['counted']:,} | {shards} | {most} |")
    return lines


def serving_table(record: dict[str, Any]) -> list[str]:
    """Requests a second of the processor, and over those of networks kept ready."""
    lines = [
        "| memory for snapshots, over all networks' | bytes kept / allowed | requests | ready [1/s] | snapshots [1/s] "
        "| ratio | ratio by the clock |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["serving"]:
        lines.append(
            f"| {row['room']:.0%} | {row['bytes']:,} / {row['max_bytes']:,} | {row['requests']:,} | {row['ready']:.0f} "
            f"| {row['snapshots']:.0f} | {row['ratio']:.2f} | {row['ratio of the clock']:.2f} |"
        )
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
        "memory": memory_table(record),
        "serving": serving_table(record),
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
