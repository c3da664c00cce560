"""Training steps as CUDA graphs: one for each of a few sizes, replayed in any order.

    built    for each size:  resize, a few passes on a side stream, one pass captured
    called   inputs copied into place, the graph of the model's present size replayed: loss, gradients in `.grad`

A replay costs the host microseconds whatever the network, where a step at random sizes asks it for every launch. All
graphs read the same parameters, inputs and buffers, add into the same gradients, and share one pool of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from integral_nn.functional import checks
from integral_nn.layers.axis import Axis
from integral_nn.networks.network import IntegralNetwork
from integral_nn.networks.sizes import Size

WARM_PASSES = 3
"""Before a capture: kernels compile, the libraries' workspaces and what is kept by size are made."""


class _Graph(NamedTuple):
    graph: Any  # torch.cuda.CUDAGraph
    loss: Tensor  # where its replays leave it


class CapturedSteps:
    """Forward and backward passes of a model at a few sizes, each captured once as a CUDA graph and then replayed.

    A training at random sizes::

        sizes = [0.5, 0.625, 0.75, 1.0]
        step = inn.CapturedSteps(model, lambda x, y: F.cross_entropy(model(x), y), (x, y), sizes)
        for n, (x, y) in enumerate(batches):
            model.resample(n, palette=sizes)
            loss = step(x, y)  # gradients are in `.grad`, those of this call alone
            optimizer.step()

    What is captured is fixed: the devices, dtypes and shapes of inputs, autocast, train or eval mode. `loss_fn` must be
    fit for a graph: nothing in it waits for the GPU, and random numbers come from PyTorch's generator of the device. On
    a CPU there are no graphs; calls give the same, pass by pass.

    Args:
        model: an integral network on one device. Capturing changes neither its size nor its buffers.
        loss_fn: inputs -> a scalar, differentiable in the model's parameters. A scaled one leaves scaled gradients.
        inputs: an example of what calls will get.
        sizes: shares of the nodes, or mappings from axes to sizes, as `resize` takes them.

    Raises:
        TypeError: an argument of another kind.
        ValueError: no sizes, a size that an axis does not allow, or one at which trainable points are another number:
            they would be another parameter; parameters on several devices; inputs elsewhere.
    """

    def __init__(
        self,
        model: IntegralNetwork,
        loss_fn: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        sizes: Iterable[Size],
    ) -> None:
        self._model, self._loss_fn = model, loss_fn
        modes = _checked(model, loss_fn, inputs, sizes)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self._restore_grads()
        self._inputs = [x.detach().clone() for x in inputs]
        self._graphs: dict[tuple[int, ...], _Graph | None] = dict.fromkeys(tuple(mode.values()) for mode in modes)
        if self._parameters[0].is_cuda:
            self._capture(modes)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The loss of these inputs at the model's present size, its gradients in `.grad` of the parameters.

        Raises:
            ValueError: a size that was not captured, or inputs of another number, shape, dtype or device.
        """
        sizes = self._model.sizes
        at = tuple(sizes.values())
        if at not in self._graphs:
            raise ValueError(f"the model's sizes must be among those captured, got {sizes}")
        if len(inputs) != len(self._inputs):
            raise ValueError(f"inputs must be {len(self._inputs)} tensors as those captured, got {len(inputs)}")
        for n, (kept, given) in enumerate(zip(self._inputs, inputs)):
            checks.check_instance(given, Tensor, f"inputs[{n}]")
            if (given.shape, given.dtype, given.device) != (kept.shape, kept.dtype, kept.device):
                raise ValueError(f"inputs[{n}] must be as captured, {_kind(kept)}, got {_kind(given)}")
        for kept, given in zip(self._inputs, inputs):
            kept.copy_(given, non_blocking=True)
        self._restore_grads()
        captured = self._graphs[at]
        if captured is None:
            return self._pass()
        captured.graph.replay()
        return captured.loss.clone()

    def _restore_grads(self) -> None:
        """Gradients lie where graphs write them, whatever let go of them: `zero_grad` does."""
        for parameter, grad in zip(self._parameters, self._grads):
            if parameter.grad is not grad:
                parameter.grad = grad

    def _pass(self) -> Tensor:
        """One pass over the inputs in place."""
        torch._foreach_zero_(self._grads)
        loss = self._loss_fn(*self._inputs)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return a scalar tensor, got {got}")
        loss.backward()
        return loss.detach()

    def _capture(self, modes: Sequence[dict[Axis, int]]) -> None:
        """A graph for each size; the model is left as it was."""
        model, device = self._model, self._parameters[0].device
        sizes, buffers = model.sizes, {name: b.clone() for name, b in model.named_buffers()}
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        try:
            for mode in modes:
                for axis, size in mode.items():
                    axis.resize(size)
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    for _ in range(WARM_PASSES):
                        self._pass()
                torch.cuda.current_stream(device).wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    loss = self._pass()
                self._graphs[tuple(mode.values())] = _Graph(graph, loss)
        finally:
            model.resize(sizes)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def _checked(model: Any, loss_fn: object, inputs: Any, sizes: Any) -> list[dict[Axis, int]]:
    """The sizes of every axis at each of `sizes`, all arguments checked."""
    checks.check_instance(model, IntegralNetwork, "model")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a callable of the inputs, got {type(loss_fn).__name__}")
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"inputs must be a tuple of tensors, got {type(inputs).__name__}")
    devices = {p.device for p in model.parameters() if p.requires_grad}
    if len(devices) != 1:
        raise ValueError(f"model must have trainable parameters on one device, got {sorted(map(str, devices))}")
    for n, x in enumerate(inputs):
        checks.check_instance(x, Tensor, f"inputs[{n}]")
        if x.device not in devices:
            raise ValueError(f"inputs[{n}] must be on the model's device, {devices.pop()}, got {x.device}")
    if not isinstance(sizes, Iterable) or isinstance(sizes, (str, bytes)):
        raise TypeError(f"sizes must be an iterable of shares and mappings from axes to sizes, got {sizes!r}")
    modes = [model._sizes_at(size, "sizes") for size in sizes]
    if not modes:
        raise ValueError("sizes must be at least one share or mapping from axes to sizes, got none")
    names = {axis: name for name, axis in model._axes.items()}
    for axis, size in (item for mode in modes for item in mode.items()):
        if axis.delta is not None and size != axis.size:
            raise ValueError(
                f"sizes must leave axis {names[axis]!r} at its {axis.size} trainable points, got {size}: other points "
                "are another parameter"
            )
    return modes


def _kind(x: Tensor) -> str:
    return f"{list(x.shape)} of {x.dtype} on {x.device}"


__all__ = ["CapturedSteps"]
