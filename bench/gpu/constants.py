"""The cost model's constants of a GPU by the graphs' clock: python -m bench.gpu.constants --out FOLDER [--dry-run].

`python -m inn_kernels.dispatch calibrate` times single calls, and on a GPU the host with them. Here that is wanted of
one constant alone, `launch`; the file is what INN_KERNELS_MACHINE may name.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from bench.gpu.clock import timing
from inn_kernels import calibration, cost

TINY = calibration.Sizes(16, 12, 8, 4, (2, 4, 4))


def clock(device: str, seconds: float) -> calibration.Clock:
    """Seconds of a call: of many small ones one after the other, host included; of a large one the device's."""
    eager = calibration.stopwatch(device)

    def measured(run: Callable[[], object], rounds: int, calls: int) -> float:
        if calls > 1:
            return eager(run, rounds, calls)
        return statistics.median(timing(run, device, seconds).seconds)

    return measured


def main() -> None:
    """Measure, print and keep the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of machine.json")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    with torch.no_grad():
        machine = calibration.calibrate(device, TINY if options.dry_run else None, clock(device, 0.1))
    print(cost.save_machine(device, machine, options.out / "machine.json"))
    print(machine)


if __name__ == "__main__":
    main()
