"""All that only a GPU can show, within a time: python -m bench.gpu --out FOLDER [--deadline SECONDS] [--dry-run]."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from bench.gpu import stages

STAGES = {
    "tests": (stages.tests, 0.42),
    "measurements": (stages.measurements, 0.80),
    "profiles": (stages.profiles, 0.89),
    "constants": (stages.constants, 0.93),
    "sanitizers": (stages.sanitizers, 1.0),
}
"""The most telling first, and the share of the deadline that has passed when each must have ended."""

SWEEP = {"sweep": (stages.sweep, 1.0)}


def main() -> int:
    """Run the stages one after the other; 1 if a program of theirs failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is found: a new or an empty one")
    parser.add_argument("--deadline", type=float, default=540, help="seconds after which nothing is begun")
    parser.add_argument("--only", choices=list(STAGES), action="append", help="only this stage; may be repeated")
    parser.add_argument("-k", default="", help="only measurements whose name holds this text")
    parser.add_argument("--sweep", action="store_true", help="instead, every candidate of the launch configurations")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU, through the same code")
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        raise SystemExit(f"--out must be a new or an empty folder, got {options.out}")
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    session = stages.Session(options.out.resolve(), options.deadline, options.dry_run)
    for name, (stage, share) in (SWEEP if options.sweep else STAGES).items():
        if name in (options.only or (*STAGES, *SWEEP)):
            run = partial(stage, only=options.k) if name == "measurements" else stage
            run(session, share)
    return int(session.failed)


if __name__ == "__main__":
    sys.exit(main())
