"""Two processes of one gloo group, started once, that run whatever functions a test hands to both.

A function is of a module of the tests, takes its rank first, and returns something that can be pickled.
"""

from __future__ import annotations

import datetime
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = 20.0  # seconds


class Ranks:
    """`ranks(function, *arguments)` runs it on every rank and returns what each returned, or raises what one raised."""

    def __init__(self, folder: Path, world: int = 2, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        context = mp.get_context("spawn")
        pipes = [context.Pipe() for _ in range(world)]
        self._ends = [mine for mine, _ in pipes]
        store = f"file://{folder / 'store'}"
        self._processes = [
            context.Process(target=_serve, args=(rank, world, store, theirs, timeout), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()  # so that a process that dies closes its pipe

    def __call__(self, function: Any, *arguments: Any) -> list[Any]:
        answers = self.answers(function, *arguments)
        for rank, (good, said) in enumerate(answers):
            assert good, f"rank {rank}: {said}"
        return [said for _, said in answers]

    def answers(self, function: Any, *arguments: Any) -> list[tuple[bool, Any]]:
        """Of every rank, whether it returned, and what; or else how it failed."""
        for end in self._ends:
            end.send((function, arguments))
        return [self._answer(end) for end in self._ends]

    def _answer(self, end: Any) -> tuple[bool, Any]:
        try:
            return end.recv() if end.poll(30 + 4 * self._timeout) else (False, "no answer")
        except EOFError:
            return False, "no answer"

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(5)
            process.kill()


def _serve(rank: int, world: int, store: str, pipe: Any, seconds: float) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((True, function(rank, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()
