"""A GPU that does nothing: Triton's own just-in-time path and C launcher over a driver of ours, on CPU tensors.

What is left of a call over that driver (no_gpu.c) is what it costs the host. Kernels are compiled for sm_90, arguments
bound and packed, launches counted; nothing runs, so that results are whatever memory held. Calls are replayed by C++
over the same driver, unless INN_KERNELS_LAUNCHER=triton. The process takes CPU tensors for a GPU's from then on.

Not there to be measured: the driver's own launch (2 to 3 us), and what PyTorch asks the CUDA runtime (its allocator,
the current stream).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

PROCESSORS = 132


class Noted(ctypes.Structure):
    """A launch that the driver was asked for."""

    _fields_ = (
        ("function", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("values", ctypes.c_uint64 * 64),
    )


class NoGpu:
    """The stand-in. Where there is one, calls on CPU tensors take the way that those on a GPU's take."""

    def __init__(self) -> None:
        self._driver = _load_driver()
        _pose_as_device(_module("launch"))
        _keep_tables(_module("foreach_table"))
        _take_operators(self._driver._name)
        _look_at_no_values()
        _copy_taps()

    @property
    def launches(self) -> int:
        """Kernels launched so far."""
        return ctypes.c_long.in_dll(self._driver, "launches").value

    def set(self, name: str, value: int) -> None:
        """Let the driver be `capturing`, or answer launches by C++ with `failing`, an error's number."""
        ctypes.c_int.in_dll(self._driver, name).value = value

    def note(self, function: int, count: int) -> None:
        """Let the driver note so many parameters of a kernel's launches."""
        (ctypes.c_uint8 * 4096).in_dll(self._driver, "parameters")[function] = count

    def noted(self, count: int) -> list[Noted]:
        """The last launches, at most 16."""
        ring = (Noted * 16).in_dll(self._driver, "noted")
        return [Noted.from_buffer_copy(ring[n % 16]) for n in range(self.launches - count, self.launches)]


def forget_sizes() -> None:
    """Empty what the package keeps by sizes, taps too: the next call finds its sizes new. (Axes keep those of now.)"""
    importlib.import_module("inn_kernels.taps")._of_ints.clear()
    for kept in size_caches():
        kept.cache_clear()


@functools.cache
def size_caches() -> list[Any]:
    """The package's bounded caches. Those without a bound are not by sizes."""
    names = [name for name in sys.modules if name.startswith(("inn_kernels.", "integral_nn."))]
    kept = [value for name in names for value in vars(sys.modules[name]).values() if hasattr(value, "cache_parameters")]
    return [cache for cache in kept if cache.cache_parameters()["maxsize"]]


def _load_driver() -> ctypes.CDLL:
    """Build and load the driver, and make it Triton's."""
    folder = Path(tempfile.mkdtemp(prefix="no_gpu-"))
    library, source = folder / "libcuda.so.1", Path(__file__).with_suffix(".c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)  # where Triton links its launchers
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver

    class Device:
        """What Triton asks of a device. The rest of a launch is Triton's own."""

        launcher_cls = driver.CudaLauncher
        utils = driver.CudaUtils()
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        allocate_default_profile_scratch = staticmethod(lambda size, align, stream: None)

    triton.runtime.driver.set_active(Device())
    return loaded


# The package's private names -------------------------------------------------------------------------------------


def _module(name: str) -> Any:
    return importlib.import_module(f"inn_kernels.gpu.{name}")


def _pose_as_device(launch: Any) -> None:
    """Before the kernels' files take these names from `launch`: any tensor lies on a GPU of so many processors."""
    device = torch.device("cuda", 0)
    torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = lambda index: index  # type: ignore[assignment]
    launch.guard = lambda x: torch.cuda.device(device)
    launch.processors = lambda device: PROCESSORS


def _keep_tables(foreach_table: Any) -> None:
    """Tables with pointers are written once, as they are for a device."""
    write, kept = foreach_table.on_device, {}

    def on_device(layout: Any, pointers: tuple[int, ...], *rest: Any) -> Any:
        key = (id(layout), pointers)
        if key not in kept:
            kept[key] = layout, write(layout, pointers, *rest)  # the layout, lest another gets its id
        return kept[key][1]

    foreach_table.on_device = on_device


def _take_operators(driver: str) -> None:
    """The Triton kernels for CPU tensors, in place of the compiled library's."""
    from inn_kernels import gpu, ops

    gpu.refusal = lambda device, dtype: None
    with _quiet():  # PyTorch tells that the compiled library's are overridden
        gpu.replays_missing = gpu._take("CPU", driver=driver, posing=True)
    ops.compiled_missing = "this is taken for a GPU"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what C++ writes to the standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _look_at_no_values() -> None:
    """Values are checked where that waits for nothing: not on a GPU."""
    from inn_kernels import quadrature
    from integral_nn.layers.axis_points import Points

    quadrature.is_checked = lambda value: False
    Points._check_delta = lambda self, delta: None  # type: ignore[method-assign]


def _copy_taps() -> None:
    """Taps of ints and tables of axes are made on the host and copied. (Pinned memory takes a GPU.)"""
    from inn_kernels import uniform_taps

    uniform_taps.copies = lambda device: True
    uniform_taps.brought = lambda host, device: host.clone()
