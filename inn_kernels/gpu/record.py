"""What a call of an operator does, noted while it runs, for C++ to do again (`replay`).

A recording stands for calls to come only if nothing else happens in it. So every PyTorch operator that runs meanwhile
is looked at: allocations, views and sums of results are known, any other keeps calls of that kind on the path through
Python. Pointers of launches must lie in an argument, in an allocation of the call or in memory that is kept with the
recording, as tables of taps and workspaces are.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LITERAL, ARGUMENT, VALUE = range(3)  # sources, steps and dtypes as in csrc/launcher/plan.h
MAKE, LAUNCH, SUM, TABLE = range(4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64)

_aten = torch.ops.aten
_MAKE = {_aten.empty.memory_format, _aten.empty_strided.default}
_VIEW = {
    _aten.alias.default, _aten.as_strided.default, _aten.detach.default, _aten.slice.Tensor, _aten.view.default,
    _aten.view.dtype,
}  # fmt: skip


class Unknown(Exception):
    """What happened in a call cannot be replayed."""


class _Here(threading.local):
    recorder: Recorder | None = None


_here = _Here()


def recorder() -> Recorder | None:
    """What records the call that this thread is in, if it is recorded."""
    return _here.recorder


class Recorder(TorchDispatchMode):
    """Notes what a call does."""

    def __init__(self, arguments: Sequence[Any], taps: Sequence[int]) -> None:
        """`taps`: positions of arguments whose values tables may be made of."""
        super().__init__()
        self.why: str | None = None  # there is nothing to replay
        self.tensors: list[Tensor | None] = []  # in order, those of lists one after the other
        for value in arguments:
            if value is None or isinstance(value, Tensor):
                self.tensors.append(value)
            elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
                self.tensors.extend(value)
        self.taps: list[Tensor] = [arguments[at] for at in taps]
        self._spans = [_span(x) for x in self.tensors]
        distinct = sorted({span for span in self._spans if span is not None})
        if any(begin < end for (_, end), (begin, _) in itertools.pairwise(distinct)):
            self.refuse("arguments share memory")
        self._values: list[Tensor] = []  # that the call made
        self._steps: list[list[int]] = []
        self._constants: list[Tensor] = []
        self._paused = False

    def refuse(self, why: str) -> None:
        """The call cannot be replayed."""
        self.why = self.why or why

    def __enter__(self) -> Recorder:
        self._before, _here.recorder = _here.recorder, self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _here.recorder = self._before
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._paused or self.why or func in _VIEW:
            return result
        if func in _MAKE and result.dtype in DTYPES:
            step = [MAKE, DTYPES.index(result.dtype), result.dim(), *result.shape, *result.stride()]
            self._made(result, step)
        elif func == _aten.sum.dim_IntList and args[2:] in ((), (False,)) and not kwargs:
            at = self._value_of(args[0])
            if at is None or args[0].shape != self._values[at].shape:
                self.refuse("a sum of what the call did not make")
            else:
                self._made(result, [SUM, at, *_counted(args[1])])
        else:
            self.refuse(f"it runs {func}")
        return result

    def kept(self, tensors: Iterable[Tensor], *made_of: Tensor) -> None:
        """Launches read these tensors, which go on to hold what they hold, or what launches of a stream leave there.

        Tables of the values of arguments name those as `made_of`.
        """
        self._constants.extend(tensors)
        if not all(any(x is own for own in self.taps) for x in made_of):
            self.refuse("a table is made of what is not an argument")

    def aside(self, make: Callable[[], Any]) -> Any:
        """What `make` returns; a replay does without what it does."""
        before, self._paused = self._paused, True
        try:
            return make()
        finally:
            self._paused = before

    def launched(self, compiled: Any, names: Sequence[str], values: Sequence[Any], grid: Sequence[int]) -> None:
        """A kernel was launched on `values`, constants among them."""
        try:
            self._steps.append([LAUNCH, *self._launch(compiled, dict(zip(names, values)), grid)])
        except Unknown as why:
            self.refuse(str(why))

    def table(self, made: Tensor, words: Sequence[int], pointers: Sequence[int]) -> None:
        """`made` holds these int64 words, pointers to arguments and kept tensors at some positions."""
        try:
            sources = [[at, *self._source(words[at])] for at in pointers]
        except Unknown as why:
            self.refuse(str(why))
        else:
            flat = [number for source in sources for number in source]
            self._made(made, [TABLE, *_counted(words), len(sources), *flat])

    def finish(self, result: Any) -> list[int] | None:
        """The recording, as csrc/launcher/plan.h reads it; None if the call cannot be replayed."""
        try:
            return None if self.why else self._words(result)
        except Unknown as why:
            self.refuse(str(why))
            return None

    @property
    def constants(self) -> list[Tensor]:
        """What is kept with the recording."""
        return list({id(x): x for x in self._constants}.values())

    def _made(self, value: Tensor, step: list[int]) -> None:
        self._values.append(value)
        self._steps.append(step)

    def _words(self, result: Any) -> list[int]:
        if not any(step[0] == LAUNCH for step in self._steps):
            raise Unknown("it launches nothing")
        from inn_kernels.gpu.gemm_configs import fp32_precision

        words = [len(self.taps)]
        for tensor in self.taps:
            words += [tensor._cdata, tensor._version]
        first = self.tensors[0]
        products = bool(self.taps) and first is not None and first.dtype == torch.float32
        words += [int(products and fp32_precision() == "tf32"), len(self._steps)]
        for step in self._steps:
            words += step
        results = [result] if isinstance(result, Tensor) else result
        words += [int(isinstance(result, list)), len(results)]
        for tensor in results:
            words += self._result(tensor)
        return words

    def _result(self, tensor: Tensor) -> list[int]:
        at = self._value_of(tensor)
        if at is None or tensor.dtype != self._values[at].dtype:
            raise Unknown("it returns what it did not allocate")
        value, offset = self._values[at], tensor.storage_offset()
        if offset == 0 and tensor.shape == value.shape and tensor.stride() == value.stride():
            return [at, -1]
        return [at, tensor.dim(), *tensor.shape, *tensor.stride(), offset]

    def _value_of(self, tensor: Tensor) -> int | None:
        storage = tensor.untyped_storage()._cdata
        return next((n for n, x in enumerate(self._values) if x.untyped_storage()._cdata == storage), None)

    def _launch(self, compiled: Any, values: dict[str, Any], grid: Sequence[int]) -> list[int]:
        about = compiled.metadata
        plain = _is_nvidia(compiled.run) and about.num_ctas == 1 and not about.launch_pdl
        plain = plain and not (about.launch_cooperative_grid or about.global_scratch_size or about.profile_scratch_size)
        if not plain:
            raise Unknown("a launch of a kind of its own")
        parameters: list[list[int]] = []
        for name, kind in compiled.src.signature.items():
            if kind[0] == "*":
                pointer = values[name]
                parameters.append(self._source(0 if pointer is None else pointer.data_ptr()))
            elif kind in ("i32", "i64"):
                parameters.append([LITERAL, values[name], 0])
            elif kind != "constexpr":
                raise Unknown(f"an argument of type {kind}")
        parameters += [[LITERAL, 0, 0]] * 2  # memory that Triton gives kernels which ask for it
        flat = [number for parameter in parameters for number in parameter]
        return [compiled.function, *grid, 32 * about.num_warps, about.shared, len(parameters), *flat]

    def _source(self, pointer: int) -> list[int]:
        if pointer == 0:
            return [LITERAL, 0, 0]
        for n, span in enumerate(self._spans):
            if span is not None and span[0] <= pointer < span[1]:
                return [ARGUMENT, n, pointer - span[0]]
        for kind, tensors in ((VALUE, self._values), (LITERAL, self._constants)):
            for n, value in enumerate(tensors):
                span = _span(value)
                if span is not None and span[0] <= pointer < span[1]:
                    return [LITERAL, pointer, 0] if kind == LITERAL else [VALUE, n, pointer - span[0]]
        raise Unknown("a launch reads what is neither an argument nor kept")


def _counted(words: Sequence[int]) -> list[int]:
    return [len(words), *words]


def _span(tensor: Tensor | None) -> tuple[int, int] | None:
    """Where a tensor's memory begins and ends; None if it has none."""
    if tensor is None or tensor.numel() == 0:
        return None
    begin = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return begin, begin + (last + 1) * tensor.element_size()


def _is_nvidia(run: Any) -> bool:
    """Whether Triton's own launcher for NVIDIA is what launches, with nothing between."""
    kind = type(run)
    known = (kind.__module__, kind.__name__) == ("triton.backends.nvidia.driver", "CudaLauncher")
    return known and not getattr(run, "gsan_enabled", False)
