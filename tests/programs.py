"""Calls of the public functions, each kept as the text of a program: what runs is what a failure prints."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PREAMBLE = {
    "randn": '''
def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
''',
    "rand": '''
def rand(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
''',
    "step": '''
def step(p, by):  # the representable number so many places further, from 0 to 1
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[p.element_size()]
    last = torch.ones(1, dtype=p.dtype).view(integer)
    return (p.view(integer) + torch.as_tensor(by, dtype=integer)).clamp(torch.zeros_like(last), last).view(p.dtype)
''',
    "channels_last": '''
def channels_last(y):
    return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y
''',
    "beside": '''
def beside(p):  # each point, and those one unit in the last place to its left and right
    return torch.cat([step(p, -1), p, step(p, 1)]).unique()
''',
}  # fmt: skip
HEAD = "import torch\nimport integral_nn as inn\n"


class Call(NamedTuple):
    """One call, as the expressions of its arguments by name."""

    function: str
    tensors: dict[str, str]  # names of their own in the program
    options: dict[str, str]  # the rest of the keyword arguments
    trained: tuple[str, ...]  # tensors that ask for a gradient
    grad: str  # the incoming gradient, an expression of y
    threads: int = 1
    head: str = HEAD

    def lines(self) -> list[str]:
        """The program's statements up to the call."""
        made = [f"{name} = {expression}" for name, expression in self.tensors.items()]
        trained = [f"{name}.requires_grad_()" for name in self.trained]
        return [*made, *trained, f"torch.set_num_threads({self.threads})"]

    def with_value(self, name: str, index: int, bad: str) -> Call:
        """With element `index`, counted row by row, of a tensor or of the incoming gradient replaced."""
        change = f".flatten().index_fill(0, torch.tensor([{index}]), {bad})"
        if name == "grad":
            return self._replace(grad=f"({self.grad}){change}.view(y.shape)")
        old = self.tensors[name]
        new = f"({old}){change}.view({list(value(old).shape)})"
        return self._replace(tensors={**self.tensors, name: new})

    def call(self) -> str:
        """The call itself."""
        named = [f"{name}={name}" for name in self.tensors if not name[-1].isdigit()]  # numbered: in an option
        named += [f"{name}={expression}" for name, expression in self.options.items()]
        return f"y = inn.{self.function}({', '.join(named)})"

    def backward(self) -> str:
        """The gradients, one a trained tensor."""
        return f"gradients = torch.autograd.grad(y, [{', '.join(self.trained)}], grad, retain_graph=True)"

    def program(self) -> str:
        """A program to paste: plain PyTorch and integral_nn."""
        body = [*self.lines(), self.call()]
        body += [f"grad = {self.grad}", self.backward()] if self.trained else []
        text = "\n".join(body)
        return self.head + helpers(text) + "\n" + text

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis prints this; the program is in the error."""
        printer.text(f"a call of {self.function}: see the program")


def helpers(text: str) -> str:
    """The functions that a program uses."""
    used = text + (PREAMBLE["beside"] if "beside(" in text else "")
    return "".join(source for name, source in PREAMBLE.items() if f"{name}(" in used)


def namespace() -> dict[str, Any]:
    """What an expression may use."""
    scope: dict[str, Any] = {}
    exec(HEAD + "".join(PREAMBLE.values()), scope)
    return scope


_SCOPE = namespace()


def value(expression: str, **names: object) -> Any:
    """An expression's value."""
    return eval(expression, {**_SCOPE, **names})


@contextlib.contextmanager
def reported(program: Callable[[], str]) -> Iterator[None]:
    """Errors inside carry the program. It lies in a file while it runs: a crash of the process leaves it there."""
    path = Path(tempfile.gettempdir()) / f"inn_kernels_fuzz_{os.getpid()}.py"
    path.write_text(program())
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("hypothesis"):
            raise
        what = f"{type(error).__name__}: {error}".partition("\nassert ")[0]  # without what pytest adds to a message
        raise AssertionError(f"{what}\n\n{program()}\n") from None
    finally:
        path.unlink(missing_ok=True)
