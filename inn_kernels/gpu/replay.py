"""A call of an operator is recorded once for each kind of arguments, and replayed by C++ (csrc/launcher) from then on.

A kind is everything that decides what a call does but the values and addresses of tensors: dtypes, sizes, strides,
alignment, integers. The second call of a kind is recorded while it runs (`record`): what it allocates, what it launches
on which arguments, what it returns. A replay does the same, in a tenth of the time, without Python.

Tables of taps are kept with a recording. They stand for the very tensors they were made of, which are part of the kind;
when one of those goes, the recording goes. What depends on a stream belongs to that stream, and calls that read kept
memory while a CUDA graph captures go through Python, which keeps what the graph reads.

Replays are off where the compiled library is missing, on AMD, in Triton's interpreter, and where INN_KERNELS_LAUNCHER
is "triton". Calls that Triton's hooks watch are not recorded; those recorded before are passed by (see `enable`).
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inn_kernels.gpu.record import Recorder

_native: Any = None
_watched: set[int] = set()
refused: dict[str, str | None] = {}
"""By operator, why the last call that was to be recorded could not be, or None."""


def install(key: str = "CUDA", driver: str = "", posing: bool = False) -> str | None:
    """Make C++ the implementation of the operators for a dispatch key. Returns None, or why Python remains it.

    Args:
        driver: path of the CUDA driver, if it is another than the machine's.
        posing: CPU tensors stand for a GPU's, and "CPU" is the key: for measuring without one.
    """
    global _native
    from inn_kernels import ops

    if os.environ.get("INN_KERNELS_LAUNCHER") == "triton":
        return "INN_KERNELS_LAUNCHER=triton"
    if torch.version.hip is not None or os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton launches on an AMD GPU and in its interpreter"
    if ops.compiled_missing is not None:
        return ops.compiled_missing
    path = os.environ.get("INN_KERNELS_LIBRARY") or glob.glob(str(Path(__file__).parents[1] / "_C*.so"))[0]
    library = ctypes.CDLL(path)
    if not hasattr(library, "inn_launcher_install"):
        return "the C++ library is older"
    for name, arguments, result in (
        ("install", [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int], ctypes.c_char_p),
        ("takes", [ctypes.c_char_p], ctypes.c_int),
        ("enable", [ctypes.c_int], None),
        ("failed", [ctypes.c_char_p], None),
        ("forget", [], None),
        ("forget_tensor", [ctypes.c_int64], None),
        ("replays", [], ctypes.c_int64),
        ("plans", [], ctypes.c_int64),
    ):
        function = getattr(library, f"inn_launcher_{name}")
        function.argtypes, function.restype = arguments, result
    missing = library.inn_launcher_install(key.encode(), driver.encode(), int(posing))
    if missing is None:
        _native = library
    return None if missing is None else missing.decode()


def takes(name: str) -> bool:
    """Whether C++ knows an operator."""
    return _native is not None and bool(_native.inn_launcher_takes(name.encode()))


def enable(on: bool) -> None:
    """Whether calls are replayed; if not, all go through Python, as they do when a profiler is to see every launch."""
    if _native is not None:
        _native.inn_launcher_enable(int(on))


def forget() -> None:
    """Drop every recording."""
    if _native is not None:
        _native.inn_launcher_forget()


def replays() -> int:
    """Calls replayed so far."""
    return 0 if _native is None else _native.inn_launcher_replays()


def plans() -> int:
    """Kinds of calls that are known: recorded, or found to be none that can be."""
    return 0 if _native is None else _native.inn_launcher_plans()


def _watch(tensor: Tensor) -> None:
    """Drop the recordings of calls that took a tensor when it goes: another may then have its address."""
    identity = tensor._cdata
    if identity not in _watched:
        _watched.add(identity)
        weakref.finalize(tensor, _gone, identity).atexit = False


def _gone(identity: int) -> None:
    _watched.discard(identity)
    _native.inn_launcher_forget_tensor(identity)


def _store(recorder: Recorder, result: Any) -> str | None:
    """Hand a recording to C++. Returns None, or why the call cannot be replayed."""
    words = recorder.finish(result)
    for tensor in recorder.taps:  # also of a call that is known to be none for a replay
        _watch(tensor)
    if words is None:
        return recorder.why
    store = torch.ops.inn_kernels_launcher.store.default
    return store(torch.tensor(words, dtype=torch.int64), recorder.constants) or None


def told(run: Callable[..., Any], taps: Sequence[int] | None = None) -> Callable[..., Any]:
    """An implementation as C++ calls it: errors are told, and with `taps` (see `Recorder`) the call is recorded."""

    @functools.wraps(run)
    def called(*arguments: Any) -> Any:
        try:
            if taps is None:
                return run(*arguments)
            recorder = Recorder(arguments, taps)
            with recorder:
                result = run(*arguments)
            refused[run.__name__] = _store(recorder, result)
            return result
        except BaseException as error:
            words = str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
            _native.inn_launcher_failed(words.encode())
            raise

    return called
