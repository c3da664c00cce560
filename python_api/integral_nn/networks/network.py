"""An integral network: modules that sample their weights along shared axes, seen as one thing with sizes.

    weight = S_out nodes (S_in diag q)^T        every dimension along an axis, tied dimensions at the same points

Each module computes its own weights (`sampled`). What the network adds: all of them by one operation a call, sizes that
change in one place, statistics of norms brought back together, and plain networks of any size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inn_kernels import transforms
from inn_kernels.taps import taps_ahead
from integral_nn.coupling.axis_set import AxisSet
from integral_nn.functional import checks
from integral_nn.layers.axis import Axis
from integral_nn.layers.axis_part import has_parts
from integral_nn.layers.base import IntegralLayer
from integral_nn.layers.draws import Draw, check_draw, ratio
from integral_nn.layers.held import CALIBRATED, held, sample_modules
from integral_nn.layers.module_sizes import update_sizes
from integral_nn.layers.rule import Sizes
from integral_nn.layers.sampled import Resized, ordinary, shape_of
from integral_nn.layers.scheme import NODES, Kept, nodes_of
from integral_nn.networks.hand_built import axes_of_layers
from integral_nn.networks.loading import finish_loading, level_names
from integral_nn.networks.named_axes import AxisTable
from integral_nn.networks.tree import Tree

Size = Union[float, Mapping[str, Union[int, float]]]


class IntegralNetwork(nn.Module):
    """A network with integral layers, or what `convert` made of one: called like the module in it, at any size.

    `net` is that module. `state_dict` has its tensors as `net.<name>`, nodes as `net.<name>_nodes`; the sizes and tuned
    points of a converted network's axes as `partitions.<i>`, in the order of `axes`.

    Args:
        net: a module whose integral layers share axes. (`convert` gives `found` and `axes` too.)

    >>> import torch, integral_nn as inn
    >>> width = inn.Axis(32)
    >>> layers = torch.nn.Sequential(inn.IntegralLinear(8, width), torch.nn.ReLU(), inn.IntegralLinear(width, 2))
    >>> model = inn.IntegralNetwork(layers)
    >>> model.resize(0.5)
    {'0': 16}
    >>> model.at(0.25)
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """

    def __init__(self, net: nn.Module, found: AxisSet | None = None, axes: Mapping[str, Axis] | None = None) -> None:
        super().__init__()
        checks.check_module(net)
        checks.check_optional(found, AxisSet, "found")
        checks.check_optional(axes, Mapping, "axes")
        self.net = net
        if axes is None or found is None:
            found, axes = axes_of_layers(net)
        else:
            self.partitions = nn.ModuleList(axes.values())
        self.found = found
        self.report: Any = None
        self._axes = dict(axes)
        self._tree = Tree()
        self._scheme = Kept()
        self.register_load_state_dict_post_hook(finish_loading)

    # axes ------------------------------------------------------------------------------------------------------

    @property
    def axes(self) -> AxisTable:
        """The continuous axes by name."""
        return AxisTable(self._axes, self.found)

    @property
    def sizes(self) -> dict[str, int]:
        """The current size of each axis."""
        return {name: axis.size for name, axis in self._axes.items()}

    def resize(self, size: Size, optimizer: Optimizer | None = None) -> dict[str, int]:
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
        sizes = self._sizes_at(size)
        taps_ahead([settings for axis, points in sizes.items() for settings in axis._fixed_settings(points)])
        for axis, points in sizes.items():
            axis.resize(points, optimizer)
        return self.sizes

    def _sizes_at(self, size: Size, argument: str = "size") -> dict[Axis, int]:
        """The sizes that `resize` would set, by axis, all checked."""
        if not isinstance(size, Mapping):
            checks.check_share(size, argument)
            return {a: a._size_at(float(size), f"{argument} of axis {name!r}") for name, a in self._axes.items()}
        sizes = {axis: axis.size for axis in self._axes.values()}
        for name, value in size.items():
            checks.check_axis_name(name, self._axes, argument)
            axis, label = self._axes[name], f"{argument} of axis {name!r}"
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{label} must be an int or a share, got {type(value).__name__}")
            if isinstance(value, int) and (value < 1 or value % axis.multiple_of):
                raise ValueError(f"{label} must be a positive multiple of {axis.multiple_of}, got {value}")
            sizes[axis] = axis._size_at(value, label)
        return sizes

    def resample(
        self,
        generator: Draw = None,
        *,
        seed: int | None = None,
        common: bool = False,
        optimizer: Optimizer | None = None,
    ) -> dict[str, int]:
        """Draw random sizes for this step (Algorithm 1). Returns all sizes.

        They come from each axis's `size_range`, in multiples of its `multiple_of`. `resample(step)` with the number of
        the training step draws the same sizes on every rank and pipeline stage, in a recomputation and after a restart:
        they are a function of `seed`, the step and the name of the axis, whatever else was drawn.

        Args:
            generator: where they are drawn from (default: PyTorch's global one), or the number of the training step.
            seed: of sizes drawn by step; default 0.
            common: all axes at one ratio, in place of each its own.
            optimizer: as in `resize`.

        >>> import torch, integral_nn as inn
        >>> width = inn.Axis(32)
        >>> layers = torch.nn.Sequential(inn.IntegralLinear(8, width), torch.nn.ReLU(), inn.IntegralLinear(width, 2))
        >>> model = inn.IntegralNetwork(layers)
        >>> [model.resample(step)["0"] for step in (0, 1, 2, 0)]
        [23, 18, 31, 23]
        """
        check_draw(generator, seed)
        checks.check_optional(optimizer, Optimizer, "optimizer")
        for axis in self._axes.values():
            axis._steps()
        together = ratio(generator, seed, "") if common else None
        for name, axis in self._axes.items():
            if together is not None:
                axis.resize(axis._between(together), optimizer)
            elif isinstance(generator, int):
                axis.resize(axis._between(ratio(generator, seed, name)), optimizer)
            else:
                axis.resample(generator, optimizer)
        return self.sizes

    # calls -----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or transforms.transforming():
            return self.net(*args, **kwargs)  # each module samples its own
        with held([module for module in self._sampling() if module.joins], self._scheme):
            return self.net(*args, **kwargs)

    def _sampling(self) -> list[Any]:
        return [module for _, module in self._tree.sampling(self.net)]

    def sampled(self) -> dict[str, Tensor]:
        """Every tensor that runs along an axis, at the current sizes, differentiable; by name in the plain network."""
        values = sample_modules(self._sampling(), kept=self._scheme)
        return {name: values[id(module)][leaf] for name, module, leaf in self._places()}

    def nodes(self) -> dict[str, Tensor]:
        """The nodes of every tensor that runs along an axis, by its name in the plain network."""
        return {name: getattr(module, leaf + NODES) for name, module, leaf in self._places()}

    def _places(self) -> Iterator[tuple[str, Any, str]]:
        """(name in the plain network, module, name within it) of every sampled tensor, each tensor once."""
        seen = set()
        for prefix, module in self._tree.sampling(self.net):
            for leaf in module._rules:
                nodes = nodes_of(module, leaf + NODES)
                if nodes is not None and id(nodes) not in seen:
                    seen.add(id(nodes))
                    yield prefix + leaf, module, leaf

    # plain networks ----------------------------------------------------------------------------------------------

    def discretize(self, size: Size | None = None) -> nn.Module:
        """A plain network of the current sizes (or of others): ordinary modules and weights, no trace of axes."""
        return self._plain_at(None if size is None else self._sizes_at(size), {}).train(self.training)

    def at(self, size: Size) -> nn.Module:
        """A plain network of these sizes to call from any number of threads: in eval mode, its weights fixed.

        It shares nothing with this model, which stays as it is; see `Snapshots` to serve many sizes.
        """
        return self._plain_at(self._sizes_at(size), {}).eval().requires_grad_(False)

    @torch.no_grad()
    def _plain_at(self, sizes: Sizes, memo: dict[int, Any]) -> nn.Module:
        """A copy of `net` with ordinary weights. `memo` has what is not to be copied, as `copy.deepcopy` wants it."""
        memo |= {id(axis): axis for axis in self._axes.values()}
        if any(hasattr(nodes, "device_mesh") for nodes in self.nodes().values()):
            raise RuntimeError("a plain network needs whole parameters, got shards: gather them first")
        sampling = self._sampling()
        if any(has_parts(list(module._rules.values())) for module in sampling):
            raise RuntimeError("a plain network needs whole layers, got parts: load their state into a whole model")
        converted = [module for module in sampling if not isinstance(module, IntegralLayer)]
        memo |= {id(m): m.discretize(sizes) for m in sampling if isinstance(m, IntegralLayer)}
        with torch.autocast(next(iter(self.net.parameters())).device.type, enabled=False):
            values = sample_modules(converted, sizes, training=False)
        made_of: dict[int, Tensor] = {}
        apart: list[tuple[nn.Module, str, Tensor]] = []
        for module in converted:
            memo[id(module._rules)] = module._rules
            for name, value in values[id(module)].items():
                old = getattr(module, name + NODES)
                if value.untyped_storage().nbytes() > value.nbytes or value is module._buffers.get(name + CALIBRATED):
                    value = value.clone()  # a network of its own memory, none of it kept or shared by others
                made = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
                if id(old) in made_of and not torch.equal(made_of[id(old)], made):
                    apart.append((module, name + NODES, made))  # a tensor that two modules sample in their own ways
                memo[id(old)] = made_of.setdefault(id(old), made)
        plain = copy.deepcopy(self.net, memo)
        for module, name, made in apart:
            memo[id(module)]._parameters[name] = made
        shapes: dict[str, tuple[int, ...]] = {}
        for path, module in plain.named_modules():
            for name, child in list(module.named_children()):
                if isinstance(child, Axis):
                    delattr(module, name)
            if isinstance(module, Resized):
                ordinary(module, sizes)
                own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
                shapes |= {f"{path}.{leaf}".lstrip("."): tuple(tensor.shape) for leaf, tensor in own}
        update_sizes(plain, shapes)
        return plain

    def shapes(self, sizes: Size | None = None) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter and buffer of the plain network at these sizes (default: the current ones)."""
        at = None if sizes is None else self._sizes_at(sizes, "sizes")
        found = {name: shape_of(module, leaf, at) for name, module, leaf in self._places()}
        sampled = {name + NODES for name in found}
        others = [*self.net.named_parameters(), *self.net.named_buffers()]
        found |= {n: tuple(t.shape) for n, t in others if n not in sampled and not n.endswith(CALIBRATED)}
        return found

    def parameter_count(self, sizes: Size | None = None) -> int:
        """Parameters of the plain network at these sizes (default: the current ones)."""
        shapes = self.shapes(sizes)
        names = (name.removesuffix(NODES) for name, _ in self.net.named_parameters())
        once = sum(torch.Size(shapes[name]).numel() for name in names if name in shapes)
        return once + sum(torch.Size(shape).numel() for shape in self._apart(sizes))

    def _apart(self, sizes: Size | None) -> Iterator[tuple[int, ...]]:
        """Shapes of tensors that part at these sizes from those of other modules with which they share nodes."""
        at = None if sizes is None else self._sizes_at(sizes, "sizes")
        seen: dict[int, Any] = {}
        for _, module in self._tree.sampling(self.net):
            for leaf, rule in module._rules.items():
                ties = seen.setdefault(id(nodes_of(module, leaf + NODES)), rule.ties)
                if [t.integrated for t in ties] != [t.integrated for t in rule.ties] and not rule.full(at):
                    yield shape_of(module, leaf, at)

    def roughness(self, order: int = 2, power: float = 2.0) -> Tensor:
        """How rough the nodes are: the mean |difference|^power between neighbours, summed over axes.

        Add a small multiple of it to the loss to train networks that bear smaller sizes. `order` 1 with `power` 1 is
        total variation; 2 and 2 the bending of a spline.
        """
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        checks.check_number(power, "power", above=0)
        tensors = {name: nodes for name, nodes in self.nodes().items() if isinstance(nodes, nn.Parameter)}
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

    # state -------------------------------------------------------------------------------------------------------

    def load_discrete(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a checkpoint of the ordinary network at full width: nodes are made of its weights.

        Raises:
            TypeError: not a mapping.
            ValueError: names and shapes that do not fit, all of them; the model is as it was.

        >>> import torch, integral_nn as inn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> model = inn.convert(net, torch.zeros(1, 4))
        >>> torch.nn.init.ones_(net[0].weight).shape  # trained on, say
        torch.Size([32, 4])
        >>> model.load_discrete(net.state_dict())
        >>> bool(torch.allclose(model(torch.ones(1, 4)), net(torch.ones(1, 4)), atol=1e-5))
        True
        """
        from integral_nn.networks.nodes import load_discrete

        checks.check_instance(state_dict, Mapping, "state_dict")
        load_discrete(self, state_dict)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As that of any module; axes take the sizes and points they load. A load that fails changes nothing.

        The names of nodes before they were `.._nodes` load too.
        """
        checks.check_instance(state_dict, Mapping, "state_dict")
        state_dict = self._renamed(state_dict)
        checks.try_loading(self, state_dict, strict, assign)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: list
    ) -> None:
        level_names(self, state_dict, prefix)
        if not checks.is_shell(self):  # within another module, too, before anything of the network is written
            own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
            checks.try_loading(self, own, False, local_metadata.get("assign_to_params_buffers", False))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def _renamed(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        old = {f"net.{name}": f"net.{name}{NODES}" for name in self.nodes()}
        if not any(name in state_dict for name in old):
            return state_dict
        return {old.get(name, name): value for name, value in state_dict.items()}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={axis.size}/{axis.nodes}" for name, axis in self._axes.items())
