"""An integral network: any module whose weights are sampled from nodes along the axes they share.

    weight = S_out nodes (S_in diag q)^T        every dimension along an axis, tied dimensions at the same points

The module itself is kept, with nodes in place of its weights and under the same names. A call samples every weight at
the current sizes and runs the module on them, so that its forward method, whatever it does, needs to know nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from inn_kernels import dispatch
from inn_kernels.taps import Taps
from integral_nn import _arguments as arguments
from integral_nn import _checks as checks
from integral_nn import foreach
from integral_nn.axes import AxisSet
from integral_nn.axis import Axis
from integral_nn.discretize import sample
from integral_nn.interpolate import interpolate
from integral_nn.layout import Tie
from integral_nn.sizes import shapes_of, update_sizes

_TINY = 1e-12  # least variance


class Axes(Mapping[str, Axis]):
    """The axes of a network by name; printed, what each ties and why other dimensions are discrete."""

    def __init__(self, axes: dict[str, Axis], found: AxisSet) -> None:
        self._axes = axes
        self.found = found

    def __getitem__(self, name: str) -> Axis:
        if name not in self._axes:
            raise KeyError(f"no axis {name!r}; there are {list(self._axes)}")
        return self._axes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    def ties(self, name: str) -> list[str]:
        """The dimensions along an axis, as "conv1.weight[0]"."""
        return [f"{tie.tensor}[{tie.dim}]" for tie in self.found.ties_of(name)]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {axis.size}/{axis.nodes}" for name, axis in self._axes.items())
        return f"{self.found.summary()}\nsizes now: {sizes}"


class IntegralNetwork(nn.Module):
    """What `convert` returns: called like the network it came from, at any size of its axes.

    `net` holds the nodes, named like the weights they replace; `state_dict` has them as `net.<name>`, and the points of
    tuned partitions as `partitions.<i>.delta`. `partitions[i]` is the i-th axis of `axes`.
    """

    def __init__(self, net: nn.Module, found: AxisSet, axes: dict[str, Axis], scales: dict[str, float]) -> None:
        super().__init__()
        self.net = net
        self.found = found
        self.partitions = nn.ModuleList(axes.values())
        self.backend: str | None = None
        self.report: Any = None
        self._names = list(axes)
        self._scales = dict(scales)
        self._ties: dict[str, list[Tie]] = {}
        for tie in found.ties:
            if not tie.tensor.startswith("input:"):
                self._ties.setdefault(tie.tensor, []).append(tie)
        self._along = {name: _along(ties) for name, ties in self._ties.items()}
        self._places: dict[tuple[str, ...], list[tuple[str, str]]] = {}  # path of a module: names, and names within it
        for name in self._ties:
            *path, leaf = name.split(".")
            self._places.setdefault(tuple(path), []).append((name, leaf))
        buffers = {name for name, _ in net.named_buffers()}
        self._statistics = [name for name in self._ties if name in buffers]
        self._variances = {name for name in self._statistics if name.endswith("running_var")}
        self._calibrated: dict[str, Tensor] = {}
        self._sizes: dict[str, int] | None = None
        self._kept: tuple[tuple, dict[str, Tensor]] | None = None

    # axes ------------------------------------------------------------------------------------------------------

    @property
    def axes(self) -> Axes:
        """The continuous axes by name."""
        axes = {name: axis for name, axis in zip(self._names, self.partitions)}
        return Axes(axes, self.found)  # type: ignore[arg-type]

    @property
    def sizes(self) -> dict[str, int]:
        """The current size of each axis."""
        return {name: axis.size for name, axis in self.axes.items()}

    def resize(self, size: float | Mapping[str, int | float], optimizer: Optimizer | None = None) -> dict[str, int]:
        """Set sizes: one share of every axis's nodes, or {axis: size or share}. Returns all sizes.

        A share is rounded to what the axis allows (`multiple_of`, the quadrature's fewest points). Trainable points of
        another number are a new parameter, which an `optimizer` takes over: see `Axis.resize`.

        Raises:
            ValueError: an unknown axis, a share that is not positive, a size an axis does not allow; no axis changes.
            TypeError: neither a float nor a mapping.

        >>> import torch, integral_nn as inn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> model = inn.convert(net, torch.zeros(1, 4))
        >>> model.resize(0.75)
        {'0': 24}
        """
        checks.check_optional(optimizer, Optimizer, "optimizer")
        axes = self.axes
        for name, wanted in self._wanted(size).items():
            axes[name]._resize(wanted, optimizer)
        return self.sizes

    def _wanted(self, size: float | Mapping[str, int | float], argument: str = "size") -> dict[str, int]:
        """Sizes, or a share, as sizes that the axes can take."""
        axes = self.axes
        if not isinstance(size, Mapping):
            if isinstance(size, bool) or not isinstance(size, (int, float)):
                got = type(size).__name__
                raise TypeError(f"{argument} must be a share or a mapping from axes to sizes, got {got}")
            checks.check_number(size, argument, above=0)
            return {name: axis._wanted(float(size), f"{argument} of axis {name!r}") for name, axis in axes.items()}
        wanted = {}
        for name, value in size.items():
            checks.check_axis_name(name, axes, argument)
            label, step = f"{argument} of axis {name!r}", axes[name].multiple_of
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{label} must be an int or a share, got {type(value).__name__}")
            if isinstance(value, int) and (value < 1 or value % step):
                raise ValueError(f"{label} must be a positive multiple of {step}, got {value}")
            wanted[name] = axes[name]._wanted(value, label)
        return wanted

    def resample(
        self, generator: torch.Generator | None = None, *, common: bool = False, optimizer: Optimizer | None = None
    ) -> dict[str, int]:
        """Draw random sizes for this step (Algorithm 1): each axis its own, or `common`, all at one ratio.

        Sizes come from each axis's `size_range`, in multiples of its `multiple_of`. Returns them. `optimizer`: as in
        `resize`.
        """
        checks.check_optional(generator, torch.Generator, "generator")
        checks.check_optional(optimizer, Optimizer, "optimizer")
        steps = [(axis, *axis._steps()) for axis in self.axes.values()]
        ratio = float(torch.rand((), generator=generator)) if common else None
        for axis, first, last in steps:
            if ratio is None:
                axis.resample(generator, optimizer)
            else:
                count = first + min(int(ratio * (last - first + 1)), last - first)
                axis._resize(axis.multiple_of * count, optimizer)
        return self.sizes

    # sampling --------------------------------------------------------------------------------------------------

    def sampled(self) -> dict[str, Tensor]:
        """Every weight that runs along an axis, at the current sizes, differentiable; by name."""
        made: dict[tuple, Taps] = {}
        axes = self.axes

        def taps(name: str, integrated: bool, tensor: Tensor) -> Taps:
            wide = arguments.working_dtype(tensor, tensor.dtype)
            key = (name, integrated, wide, tensor.device)
            if key not in made:
                scale = self._scales[name] if integrated else 1.0
                made[key] = axes[name].taps(weighted=integrated, scale=scale, dtype=wide, device=tensor.device)
            return made[key]

        def along_dims(name: str, tensor: Tensor) -> list[Taps | None]:
            along = self._along[name]
            assert along is not None
            return [None if side is None else taps(*side, tensor) for side in along]

        values: dict[str, Tensor] = {}
        together: dict[str, tuple[Tensor, list[Taps | None]]] = {}  # by one launch
        vectors: dict[tuple, dict[str, Tensor]] = {}  # alike: the rows of one matrix
        for name, tensor in self._tied().items():
            kept = self._calibrated.get(name)
            plain, geometric = self._along[name] is not None, name in self._variances
            if kept is not None:
                values[name] = kept.to(tensor)
            elif plain and foreach.can_share(tensor, self.backend):
                together[name] = _log(tensor) if geometric else tensor, along_dims(name, tensor)
            elif plain and tensor.dim() == 1:
                alike = (self._along[name], geometric, tensor.dtype, tensor.device, tensor.requires_grad)
                vectors.setdefault(alike, {})[name] = tensor
            else:
                tensor = _log(tensor) if geometric else tensor
                backend = dispatch.select_backend(self.backend, tensor.device, tensor.dtype)
                if plain:
                    values[name] = sample(tensor, along_dims(name, tensor), tensor.dtype, backend)
                else:
                    values[name] = _sample_segments(tensor, self._ties[name], taps, backend)
        if together:
            values |= zip(together, foreach.sample_all(*zip(*together.values())))
        for name in values:
            if name in self._variances and name not in self._calibrated:
                values[name] = values[name].exp()
        for (_, geometric, dtype, device, _), members in vectors.items():
            rows = torch.stack(list(members.values()))
            rows = _log(rows) if geometric else rows
            along = along_dims(next(iter(members)), rows)[0]
            assert along is not None
            rows = interpolate(rows, along, 1, dtype, dispatch.select_backend(self.backend, device, dtype))
            values |= zip(members, (rows.exp() if geometric else rows).unbind())
        return {name: values[name] for name in self._ties}

    def _tied(self) -> dict[str, Tensor]:
        """The parameters and buffers that run along an axis, by name; of the modules that are there now."""
        tensors: dict[str, Tensor] = {}
        for path, names in self._places.items():
            module = self.net
            for part in path:
                module = getattr(module, part)
            tensors |= {name: getattr(module, leaf) for name, leaf in names}
        return tensors

    def _reusable(self) -> dict[str, Tensor]:
        """Sampled weights, kept from the last call in eval mode with gradients off while nothing changed."""
        self._settle()
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.sampled()
        axes = tuple(axis.version for axis in self.partitions)
        tensors = self._tied().values()
        if any(t.is_inference() for t in tensors):
            return self.sampled()
        parts = tuple((t.data_ptr(), t._version, t.device, t.dtype) for t in tensors)
        key = (torch.is_inference_mode_enabled(), self.backend, axes, parts)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self.sampled())
        return self._kept[1]

    def _settle(self) -> None:
        """Follow a change of size: modules' own numbers, and statistics measured at another size."""
        sizes = self.sizes
        if sizes == self._sizes:
            return
        self._sizes = sizes
        self._calibrated = {}
        self._kept = None
        update_sizes(self.net, self.shapes(sizes))

    def shapes(self, sizes: Mapping[str, int] | None = None) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter and buffer at these sizes (default, also of an axis: the current ones)."""
        sizes = {} if sizes is None else sizes
        checks.check_instance(sizes, Mapping, "sizes")
        axes = self.axes
        for name, size in sizes.items():
            checks.check_axis_name(name, axes, "sizes")
            checks.check_count(size, f"sizes[{name!r}]")
        sizes = {**self.sizes, **sizes}
        shapes = shapes_of(dict(self.net.named_parameters()) | dict(self.net.named_buffers()))
        for name, ties in self._ties.items():
            shape = list(shapes[name])
            for tie in ties:
                shape[tie.dim] = tie.layout.resized(sizes)
            shapes[name] = tuple(shape)
        return shapes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = self._reusable()
        track = self.training and bool(self._statistics)
        if track:
            values.update({name: values[name].detach() for name in self._statistics})
        before = {name: values[name].clone() for name in self._statistics} if track else {}
        if torch.is_grad_enabled() and any(values[name].requires_grad for name in self._statistics):
            values = self._statistics_in_affine(values)
        out = functional_call(self.net, values, args, kwargs)
        for name, old in before.items():
            self._move_statistics(name, old, values[name].detach())
        return out

    def _statistics_in_affine(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Norms with  w (x - mean) / sqrt(var + eps) + b  written as  w' x + b'.

        Statistics sampled at trainable points carry gradients, which PyTorch's batch norm does not take through them.
        """
        values = dict(values)
        for name, module in self.net.named_modules():
            mean, var = (f"{name}.{s}".lstrip(".") for s in ("running_mean", "running_var"))
            if mean not in values or not isinstance(module, nn.modules.batchnorm._NormBase):
                continue
            old_mean, old_var = values[mean], values[var]
            if module.training or module.weight is None:
                values[mean], values[var] = old_mean.detach(), old_var.detach()
                continue
            weight, bias = (f"{name}.{s}".lstrip(".") for s in ("weight", "bias"))
            gain = values[weight] / (old_var + module.eps).sqrt()
            values[weight], values[bias] = gain, values[bias] - old_mean * gain
            values[mean] = torch.zeros_like(old_mean)
            values[var] = torch.full_like(old_var, 1 - module.eps)
        return values

    @torch.no_grad()
    def _move_statistics(self, name: str, old: Tensor, new: Tensor) -> None:
        """Bring a change of sampled statistics back to their nodes, read as a function of the channel."""
        nodes = self.net.get_buffer(name)
        if name in self._calibrated:
            self._calibrated[name] = new
            return
        geometric = name in self._variances
        change = (new.clamp(min=_TINY) / old).log() if geometric else new - old
        if change.shape != nodes.shape:
            change = torch.nn.functional.interpolate(change[None, None], nodes.shape[0], mode="linear")[0, 0]
        if geometric:
            nodes.copy_(nodes.clamp(min=_TINY) * change.exp())
        else:
            nodes += change

    # results ---------------------------------------------------------------------------------------------------

    def discretize(self) -> nn.Module:
        """A plain network of the current sizes: the original module with ordinary weights, no trace of axes."""
        self._settle()
        with torch.no_grad():
            values = {name: value.detach() for name, value in self.sampled().items()}
            for name, value in values.items():  # a network of its own memory, none of it kept or shared by others
                if name in self._calibrated or value.untyped_storage().nbytes() > value.nbytes:
                    values[name] = value.clone()
        made: dict[int, Any] = {}  # nodes are not copied only to be replaced
        for name, old in [*self.net.named_parameters(), *self.net.named_buffers()]:
            if name in values:
                parameter = isinstance(old, nn.Parameter)
                made[id(old)] = nn.Parameter(values[name], old.requires_grad) if parameter else values[name]
        plain = copy.deepcopy(self.net, made)
        update_sizes(plain, shapes_of(values))
        return plain.train(self.training)

    def parameter_count(self, sizes: Mapping[str, int] | None = None) -> int:
        """Parameters of the plain network at these sizes (default: the current ones)."""
        shapes = self.shapes(sizes)
        return sum(torch.Size(shapes[name]).numel() for name, _ in self.net.named_parameters())

    def roughness(self, order: int = 2, power: float = 2.0) -> Tensor:
        """How rough the nodes are: the mean |difference|^power between neighbours, summed over axes.

        Add a small multiple of it to the loss to train networks that bear smaller sizes. `order` 1 with `power` 1 is
        total variation; 2 and 2 the bending of a spline.
        """
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        checks.check_number(power, "power", above=0)
        tensors = dict(self.net.named_parameters())
        total: Tensor | None = None
        for tie in self.found.ties:
            for axis in tie.axes if tie.tensor in tensors else ():
                for rows in tie.layout.channels(tensors[tie.tensor], tie.dim, axis):
                    if rows.shape[0] > order:
                        value = rows.diff(n=order, dim=0).abs().pow(power).mean()
                        total = value if total is None else total + value
        if total is None:
            raise ValueError(f"no axis has more than {order} nodes")
        return total

    def train(self, mode: bool = True) -> IntegralNetwork:
        """Set training mode, and forget the weights kept for eval calls."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As that of any module; axes take the sizes of the points they load. A load that fails changes nothing."""
        checks.try_loading(self, state_dict, strict, assign)
        result = super().load_state_dict(state_dict, strict, assign)
        self.partitions.to(next(self.net.parameters()).device)
        return result

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._calibrated, self._kept = {}, None
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={axis.size}/{axis.nodes}" for name, axis in self.axes.items())


def _along(ties: list[Tie]) -> tuple[tuple[str, bool] | None, ...] | None:
    """(axis, integrated) of the first two dimensions, as far as there are any; None if it takes more to say."""
    if not all(tie.layout.plain and tie.dim < 2 for tie in ties):
        return None
    by_dim = {tie.dim: (tie.axes[0], tie.integrated) for tie in ties}
    return tuple(by_dim.get(d) for d in range(2))


def _log(variance: Tensor) -> Tensor:
    """Variances are sampled as a geometric mean: never negative, whatever the kernel overshoots."""
    return variance.clamp(min=_TINY).log()


def _sample_segments(nodes: Tensor, ties: list[Tie], taps: Callable[..., Taps], backend: str) -> Tensor:
    """A tensor of any layout at the points of its axes."""
    wide = arguments.working_dtype(nodes, nodes.dtype)
    value = nodes.to(wide)
    for tie in ties:

        def along_axis(piece: Tensor, dim: int, axis: str, tie: Tie = tie) -> Tensor:
            return interpolate(piece, taps(axis, tie.integrated, nodes), dim, wide, backend)

        value = tie.layout.sample(value, tie.dim, along_axis)
    return value.to(nodes.dtype)
