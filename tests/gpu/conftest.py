"""Kernels run in Triton's interpreter on CPU tensors where there is no GPU; the tests are the same on one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "functional"))  # random calls are checked as they are there
torch.backends.cudnn.allow_tf32 = False  # convolutions to compare with are float32

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def nan_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output and scratch tensor of a kernel starts as NaN, so that an element left unwritten shows."""
    from inn_kernels.gpu import launch

    def full(shape: list[int], **options: object) -> torch.Tensor:
        return torch.empty(shape, **options).fill_(float("nan"))  # type: ignore[call-overload]

    monkeypatch.setattr(launch, "allocate", full)
