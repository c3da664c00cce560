"""Every public call of `integral_nn`: how it is called well, and what each of its arguments must refuse.

`calls(world)[name]` is a function and arguments that it takes. `BAD[name][argument]` lists values by the error they
raise; `Late` ones are made of the world.
"""

import tempfile
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import integral_nn as inn

NAN, INF = float("nan"), float("inf")
MANY = 2**31  # one more than kernels count to
SPARSE, FLOAT8 = torch.eye(5).to_sparse(), torch.ones(5, 5).to(torch.float8_e5m2)
META, FALLING = torch.ones(5, device="meta"), torch.tensor([0, 0.5, 0.4, 1])
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LAST = 2 * IMAGES


class Net(nn.Module):
    """Two continuous axes, a batch norm along one of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.last(self.norm(self.conv(x)).relu()).mean((2, 3)))


class World:
    """What the calls work on: a network and its conversion, an axis with trainable points, layers, an optimizer."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = Net()
        self.model = inn.convert(Net(), IMAGES, fold=False, permute=False).train()
        self.model.net.norm.eval()  # modes, flags and gradients that a call might level
        self.model.net.head.bias.requires_grad_(False)
        self.model.net.head.weight_nodes.grad = torch.ones(2, 8)
        self.model.resize({"conv": 9})
        self.model.axes["last"].make_trainable()
        inn.recalibrate(self.model, [IMAGES])
        self.axis = inn.Axis(12, 9, size_range=(4, 9), trainable=True)
        self.axis.delta.grad = torch.ones(9)
        self.layers = {"IntegralLinear": inn.IntegralLinear(self.axis, 3)}
        for rank in (1, 2, 3):
            self.layers[f"IntegralConv{rank}d"] = getattr(inn, f"IntegralConv{rank}d")(self.axis, 3, 3)
        self.parts = nn.ModuleList([self.net, self.model, self.axis, *self.layers.values()])
        self.optimizer = torch.optim.Adam(self.parts.parameters())
        self.generator = torch.Generator().manual_seed(0)
        self.checkpoint = tempfile.mkdtemp()
        dcp.save(self.net.state_dict(), checkpoint_id=self.checkpoint, no_dist=True)

    def state(self):
        """Everything that a refused call must leave as it is."""
        found = {"rng": torch.get_rng_state(), "own rng": self.generator.get_state(), "sizes": self.model.sizes}
        for name, module in self.parts.named_modules():
            found[name, "mode"], found[name, "text"] = module.training, module.extra_repr()
            found[name, "momentum"] = getattr(module, "momentum", None)
            if isinstance(module, inn.Axis):
                found[name, "points"] = module.partition().detach()
        for name, p in self.parts.named_parameters():
            found[name] = id(p), p.requires_grad, id(p.grad)
            found[name, "gradient"] = torch.zeros(0) if p.grad is None else p.grad.clone()
        found |= {(name, "value"): value.clone() for name, value in self.parts.state_dict().items()}
        found["optimizer"] = [id(p) for p in self.optimizer.param_groups[0]["params"]], len(self.optimizer.state)
        return found


def loss(network, batch):
    return network(batch).square().mean()


def broken():
    yield IMAGES
    raise ValueError("batches that break off")


def layer_arguments(name):
    return {"in_axis": 6, "out_axis": 8} | ({} if name == "IntegralLinear" else {"kernel_size": 3})


def calls(w):
    """{name: (function, good arguments)}."""
    found = {
        "discretize": (inn.discretize, {"nodes": torch.ones(7, 6, 3), "out_partition": 4, "in_partition": 5}),
        "nodes_from": (inn.nodes_from, {"weight": torch.ones(7, 6, 3), "out_partition": 7, "in_partition": 6}),
        "quadrature_weights": (inn.quadrature_weights, {"name": "left", "partition": torch.linspace(0, 1, 5)}),
        "integrate": (inn.integrate, {"function": torch.exp, "partitions": 5}),
        "uniform_partition": (inn.uniform_partition, {"n": 5}),
        "midpoint_partition": (inn.midpoint_partition, {"n": 5}),
        "gauss_legendre_partition": (inn.gauss_legendre_partition, {"n": 5}),
        "partition_from_deltas": (inn.partition_from_deltas, {"delta": torch.ones(5)}),
        "Axis": (inn.Axis, {"nodes": 8, "size": 6, "quadrature": "trapezoid"}),  # of at least 2 points
        "Axis.resize": (w.axis.resize, {"size": 9}),
        "Axis.share": (w.axis.share, {"part": 0.5}),
        "Axis.resample": (w.axis.resample, {"generator": w.generator}),
        "Axis.make_trainable": (w.axis.make_trainable, {"partition": torch.linspace(0, 1, 6)}),
        "Axis.partition": (w.axis.partition, {"size": 6}),
        "Axis.taps": (w.axis.taps, {"weighted": True}),
        "Axis.load_state_dict": (w.axis.load_state_dict, {"state_dict": {"delta": torch.ones(6)}}),
        "replicate_points": (inn.replicate_points, {"model": w.net}),
        "parameter_groups": (inn.parameter_groups, {"model": w.model}),
        "check_checkpoint": (inn.check_checkpoint, {"model": w.net, "checkpoint_id": w.checkpoint}),
        "check_sizes": (inn.check_sizes, {"model": w.model}),
        "convert": (inn.convert, {"net": w.net, "example_inputs": IMAGES}),
        "find_axes": (inn.find_axes, {"net": w.net, "example_inputs": IMAGES}),
        "AxisSet.ties_of": (w.model.found.ties_of, {"name": "conv"}),
        "AxisSet.draw": (w.model.found.draw, {"path": "/dev/null"}),
        "IntegralNetwork.resize": (w.model.resize, {"size": {"conv": 6, "last": 5}}),
        "IntegralNetwork.resample": (w.model.resample, {"generator": w.generator}),
        "IntegralNetwork": (inn.IntegralNetwork, {"net": w.layers["IntegralLinear"]}),
        "IntegralNetwork.discretize": (w.model.discretize, {"size": {"conv": 6}}),
        "IntegralNetwork.load_discrete": (w.model.load_discrete, {"state_dict": w.net.state_dict()}),
        "IntegralNetwork.at": (w.model.at, {"size": 0.5}),
        "Snapshots": (inn.Snapshots, {"model": w.model, "max_bytes": 100}),
        "Snapshots.at": (inn.Snapshots(w.model).at, {"size": 0.5}),
        "IntegralNetwork.shapes": (w.model.shapes, {"sizes": {"conv": 6}}),
        "IntegralNetwork.parameter_count": (w.model.parameter_count, {"sizes": {"conv": 6}}),
        "IntegralNetwork.roughness": (w.model.roughness, {"order": 1, "power": 1.0}),
        "IntegralNetwork.load_state_dict": (w.model.load_state_dict, {"state_dict": w.model.state_dict()}),
        "recalibrate": (inn.recalibrate, {"model": w.model, "batches": [IMAGES, LAST]}),
        "warmup": (inn.warmup, {"model": w.model, "sizes": [0.5, {"conv": 6}]}),
        "CapturedSteps": (
            inn.CapturedSteps,
            {"model": w.model, "loss_fn": lambda x: w.model(x).sum(), "inputs": (IMAGES,), "sizes": [{"conv": 6}]},
        ),
        "tune_partitions": (
            inn.tune_partitions,
            {"model": w.model, "loss_fn": loss, "batches": [IMAGES, LAST], "also": ["biases", "norms"], "steps": 3},
        ),
        "compressed_sizes": (inn.compressed_sizes, {"model": w.model, "compression": 0.4}),
        "curvature_partition": (inn.curvature_partition, {"model": w.model, "name": "conv"}),
        "capacity": (inn.capacity, {"model": w.model, "share": 0.9}),
        "spectrum": (inn.spectrum, {"model": w.model, "axis": "conv"}),
        "count": (inn.count, {"net": w.model, "example_inputs": IMAGES}),
    }
    for name, layer in w.layers.items():
        rank = 0 if name == "IntegralLinear" else int(name[-2])
        x, nodes = torch.ones(2, 5, *[6] * rank), torch.ones(7, 6, *[3] * rank)
        function = f"integral_conv{rank}d" if rank else "integral_linear"
        good = {"x": x, "nodes": nodes, "bias": torch.ones(7), "out_partition": 4, "in_partition": 5}
        found[function] = (getattr(inn, function), good)
        found[name] = (getattr(inn, name), layer_arguments(name))
        found[f"{name}.forward"] = (layer.forward, {"x": torch.ones(2, layer.in_axis.size, *[6] * rank)})
        for method in ("taps", "sampled"):
            found[f"{name}.{method}"] = (getattr(layer, method), {"dtype": torch.float32})
        found[f"{name}.discretize"] = (layer.discretize, {"sizes": None})
    return found


class Late(NamedTuple):
    """A value made of the world."""

    make: object


# What each argument refuses --------------------------------------------------------------------------------------

COUNT = {TypeError: [2.0, "2", True, None], ValueError: [0, -1, MANY]}
POINTS = {
    TypeError: [2.5, "uniform", True, [0.0, 1.0], torch.arange(5), torch.ones(5).cfloat()],
    ValueError: [0, -1, FALLING, torch.tensor([0, NAN, 1]), torch.tensor([0, 2.0]), torch.ones(1, 5), META],
}
RULE = {
    "quadrature": {TypeError: [3, None, torch.ones(5).long()], ValueError: ["gauss", torch.ones(4), torch.ones(5, 1)]},
    "scale": {TypeError: ["1", None, True], ValueError: [NAN, INF]},
    "a": {TypeError: ["x", None, True], ValueError: [NAN, INF]},
    "boundary": {ValueError: ["zero", None, 3]},
    "kernel": {ValueError: ["quintic", None, 3]},
}
RUN = {"dataflow": {ValueError: ["eager", None, 1]}, "backend": {ValueError: ["cuda", 3]}}
TENSOR = {TypeError: [SPARSE, FLOAT8, torch.ones(5, 5).long(), torch.ones(5, 5).cfloat(), [1.0], True]}
DTYPE = {TypeError: [torch.int64, torch.complex64, torch.float8_e5m2, "float32", 3]}
DEVICE = {RuntimeError: ["nowhere"]}
OPERATOR = RULE | {
    "nodes": {**TENSOR, ValueError: [torch.ones(()), torch.ones(0, 6), torch.ones(7, 0, 3)]},
    "out_partition": POINTS,
    "in_partition": POINTS,
}
LAYERED = OPERATOR | RUN | {
    "x": {**TENSOR, ValueError: [torch.ones(()), torch.ones(2, 4, 6, 6), META]},
    "bias": {**TENSOR, ValueError: [torch.ones(6), torch.ones(7, 1), torch.ones(7, device="meta")]},
}  # fmt: skip
LAYER = RUN | {
    "in_axis": {TypeError: ["8", 2.0, True, None], ValueError: [0, -1, MANY]},
    "out_axis": {TypeError: ["8", 2.0, True, None], ValueError: [0, -1, MANY]},
    "scale": {TypeError: ["1", True], ValueError: [NAN, INF]},
    "device": DEVICE,
    "dtype": DTYPE,
}
SIZE = {TypeError: ["8", True, None], ValueError: [0, -1, -0.5, 0.0, NAN, INF, 1e30, MANY]}
SIZES = {
    TypeError: ["8", True, {"conv": "8"}, {"conv": 6, "last": True}],
    ValueError: [0, -1, 6, NAN, INF, 1e30, {"x": 4}, {3: 4}, {"conv": 6, "last": NAN}, {"conv": 6, "last": 0},
                 {"last": 4, "conv": INF}, {"last": 4, "conv": MANY}],
}  # fmt: skip
EXTENT = {TypeError: ["8", True, 0.5], ValueError: [0, -1, MANY]}
OPTIMIZER = {TypeError: ["adam", 0.1]}
GENERATOR = {TypeError: [0.5, "seed", True], ValueError: [-1]}
STEP_SEED = {TypeError: [0.5, "0", True], ValueError: [2**70, 3]}  # 3: beside a generator
MODEL = {TypeError: [Late(lambda w: w.net), None, 3]}
NETWORK = {TypeError: [3, None, "net"]}
INPUTS = {TypeError: [3, None, [IMAGES], "x", (1, 3, 8, 8)]}
NAMES = {TypeError: [3, ["conv", 3]], ValueError: ["absent", ["conv", "absent*"]]}
CLASSES = {TypeError: [*NAMES[TypeError], dict, [Net, int]], ValueError: [*NAMES[ValueError], nn.LSTM]}
SEED = {TypeError: [0.5, "0", None, True], ValueError: [2**70]}
CONTINUOUS = {
    TypeError: ["x", 3, None, {0: "1"}, {0: True}],
    ValueError: [{1: 1}, {"x": 1}, {0: 4}, {0: -1}],
}
NUMBER = {TypeError: ["x", True], ValueError: [-1, -0.01, NAN, INF]}
CONVERT = {
    "net": {TypeError: [*NETWORK[TypeError], Late(lambda w: w.model), Late(lambda w: w.layers["IntegralLinear"])]},
    "example_inputs": INPUTS,
    "kwargs": {TypeError: [3, "x", [IMAGES], {3: IMAGES}]},
    "ignore": CLASSES,
    "only": CLASSES,
    "continuous_inputs": CONTINUOUS,
    "seed": SEED,
}
BAD = {
    "discretize": OPERATOR | {"dtype": {TypeError: [torch.int64, "float32", 3]},
                              "backend": RUN["backend"],
                              "spatial_partitions": {ValueError: [3, [3, 3], 2.5, torch.ones(1)]}},
    "nodes_from": RULE | {"weight": OPERATOR["nodes"], "spatial_partitions": {ValueError: [3, [3, 3], 2.5]}} | {
        f"{side}_partition": {**POINTS, ValueError: [*POINTS[ValueError], 4, torch.ones(1), torch.linspace(0, 1, 9)]}
        for side in ("out", "in")},
    "integral_linear": LAYERED,
    "quadrature_weights": {"name": RULE["quadrature"], "partition": {TypeError: [5, None, [0.0, 1.0]], **{
        ValueError: [FALLING, torch.tensor([0, NAN]), torch.ones(1, 5)]}}},
    "integrate": {"function": {TypeError: [3, lambda x: 1.0], ValueError: [lambda x: x[1:]]},
                  "partitions": {TypeError: [[2.5], ["x"]], ValueError: [0, [], FALLING]},
                  "quadrature": {TypeError: [torch.ones(5).long()], ValueError: ["gauss", "cells", torch.ones(4)]}},
    "partition_from_deltas": {"delta": {TypeError: [[1.0], torch.arange(5), None],
                                        ValueError: [torch.ones(1), torch.ones(2, 2)]}},
    "Axis": {
        "nodes": COUNT,
        "size": {TypeError: [2.5, "2", True], ValueError: [0, 1, -1, MANY]},
        "quadrature": {TypeError: [3, None, torch.ones(8)], ValueError: ["gauss"]},
        "size_range": {TypeError: [4, (4,), (4, 8, 9), ("4", "8"), (4.5, 8)],
                       ValueError: [(0, 4), (5, 4), (1, 4), (4, MANY)]},
        "multiple_of": COUNT,
        "a": RULE["a"],
        "boundary": RULE["boundary"],
        "kernel": RULE["kernel"],
    },
    "Axis.resize": {"size": SIZE, "optimizer": OPTIMIZER},
    "Axis.share": {"part": {TypeError: ["x", None, True], ValueError: [-1, NAN, INF]}},
    "Axis.resample": {"generator": GENERATOR, "seed": STEP_SEED, "optimizer": OPTIMIZER},
    "Axis.make_trainable": {"partition": {
        TypeError: [5, 2.5, "uniform", [0.0, 1.0], torch.arange(5), torch.linspace(0, 1, 5).cfloat()],
        ValueError: [FALLING, torch.tensor([0, NAN, 1]), torch.tensor([-0.5, 1]), torch.tensor([0, 1.5]), META,
                     torch.zeros(1), torch.zeros(0), torch.ones(1, 5)],
    }},
    "Axis.taps": {"scale": RULE["scale"], "dtype": DTYPE, "device": DEVICE, "size": EXTENT},
    "Axis.partition": {"size": EXTENT},
    "Axis.load_state_dict": {"state_dict": {
        TypeError: [3, None],
        RuntimeError: [{}, {"delta": torch.ones(6), "other": torch.ones(1)}, {"delta": torch.ones(2, 3)},
                       {"delta": torch.ones(1)}, {"delta": torch.zeros(6)}, {"delta": torch.full((6,), NAN)},
                       {"delta": [1.0, 2.0]}, {"delta": torch.arange(6)}],
    }},
    "replicate_points": {"model": {**NETWORK, ValueError: [Late(lambda w: w.model)]}, "mesh": {TypeError: [3, "all"]}},
    "check_sizes": {"model": NETWORK},
    "parameter_groups": {"model": NETWORK, "weight_decay": NUMBER, "points_lr": NUMBER},
    "check_checkpoint": {"model": NETWORK, "checkpoint_id": {TypeError: [3, None], ValueError: ["absent"]}},
    "convert": CONVERT | {
        "quadrature": {ValueError: ["simpson", None, 3]},
        "nodes": {TypeError: ["x", True, {"conv": "x"}],
                  ValueError: [0, -1, 0.0, -0.5, NAN, INF, MANY, {"conv": 0}, {"absent": 4}]},
        "size_range": {TypeError: [("a", "b"), (0.5, None)],
                       ValueError: [0.5, (0.5,), (0.9, 0.5), (0.0, 1.0), (0.5, INF), (NAN, 1.0), None]},
        "multiple_of": COUNT,
        "kernel": RULE["kernel"],
        "a": RULE["a"],
        "boundary": RULE["boundary"],
        "tolerance": {TypeError: ["x", True], ValueError: [-1e-3, NAN]},
        "time_limit": {TypeError: ["x", None, True], ValueError: [0, -1.0, NAN, INF]},
    },
    "find_axes": CONVERT,
    "AxisSet.ties_of": {"name": {ValueError: ["absent", 3, None]}},
    "AxisSet.draw": {"path": {TypeError: [3, None, ["a.svg"]], ValueError: ["/absent/a.svg", "/"]}},
    "IntegralNetwork.resize": {"size": {**SIZES, TypeError: [*SIZES[TypeError], None]}, "optimizer": OPTIMIZER},
    "IntegralNetwork.resample": {
        "generator": GENERATOR, "seed": STEP_SEED, "optimizer": OPTIMIZER,
        "palette": {TypeError: [3, "x", 0.5, ["x"]], ValueError: [[], [0.5, 0.0], [{"absent": 4}]]}},
    "IntegralNetwork": {"net": {TypeError: [3, None], ValueError: [Late(lambda w: w.net)]},
                        "found": {TypeError: [3, "x"]}, "axes": {TypeError: [3, "x"]}},
    "IntegralNetwork.shapes": {"sizes": SIZES},
    "IntegralNetwork.discretize": {"size": SIZES},
    "IntegralNetwork.load_discrete": {"state_dict": {TypeError: [3, None], ValueError: [
        {}, Late(lambda w: {**w.net.state_dict(), "other": torch.ones(1)}),
        Late(lambda w: {**w.net.state_dict(), "head.bias": torch.ones(3)})]}},
    "IntegralNetwork.at": {"size": {**SIZES, TypeError: [*SIZES[TypeError], None]}},
    "Snapshots": {"model": {TypeError: [3, None, Late(lambda w: w.net)]},
                  "max_bytes": {TypeError: ["x", None, 0.5], ValueError: [-1]}},
    "Snapshots.at": {"size": {**SIZES, TypeError: [*SIZES[TypeError], None]}},
    "IntegralNetwork.roughness": {"order": {ValueError: [0, 3, "x", None]},
                                  "power": {TypeError: ["x", None, True], ValueError: [0, -1, NAN, INF]}},
    "IntegralNetwork.load_state_dict": {"state_dict": {
        TypeError: [3, None],
        RuntimeError: [{}, Late(lambda w: {**w.model.state_dict(), "other": torch.ones(1)}),
                       Late(lambda w: {**w.model.state_dict(), "net.head.bias": torch.ones(3)}),
                       Late(lambda w: {**w.model.state_dict(), "partitions.0.delta": torch.zeros(4)}),
                       Late(lambda w: {**w.model.state_dict(), "partitions.0.delta": torch.ones(4), "other": META})],
    }},
    "warmup": {"model": MODEL, "sizes": {
        TypeError: [3, None, "x", [0.5, "x"]], ValueError: [[0.5, 0.0], [{"absent": 4}]]}},
    "CapturedSteps": {"model": MODEL, "loss_fn": {TypeError: [3, None]},
                      "inputs": {TypeError: [3, None, IMAGES, (3,), [IMAGES, None]], ValueError: [(META,)]},
                      "sizes": {TypeError: [3, None, "x", [0.5, "x"]], ValueError: [[], [0.5, 0.0], [{"absent": 4}]]}},
    "recalibrate": {"model": MODEL, "batches": {
        TypeError: [3, None], ValueError: [[], Late(lambda w: broken()), [IMAGES, NAN * IMAGES]]}},
    "tune_partitions": {
        "model": MODEL,
        "loss_fn": {TypeError: [3, lambda network, batch: 1.0],
                    ValueError: [None, lambda network, batch: loss(network, batch) * NAN,
                                 lambda network, batch: loss(network, batch) * (INF if batch is LAST else 1),
                                 lambda network, batch: network(batch), lambda network, batch: torch.ones(())]},
        "batches": {TypeError: [3], ValueError: [None, [], Late(lambda w: broken())]},
        "compression": {TypeError: ["x", True], ValueError: [1, 1.5, -0.1, NAN, INF]},
        "sizes": SIZES,
        "also": {TypeError: [3, ["biases", 3], None], ValueError: ["weights", ["biases", "x"]]},
        "steps": {TypeError: [2.5, "3", True], ValueError: [-1]},
        "lr": {**NUMBER, TypeError: [*NUMBER[TypeError], None]},
        "extra_lr": {**NUMBER, TypeError: [*NUMBER[TypeError], None]},
        "start": {ValueError: ["x", None, 3]},
    },
    "compressed_sizes": {"model": MODEL, "compression": {TypeError: ["x", None, True],
                                                         ValueError: [1, 1.5, -0.1, NAN, INF]}},
    "curvature_partition": {"model": MODEL, "name": {ValueError: ["absent", 3, None]},
                            "floor": {TypeError: ["x", None, True], ValueError: [-0.1, NAN, INF]}},
    "capacity": {"model": MODEL, "share": {TypeError: ["x", None, True], ValueError: [0, -1, 1.5, NAN, INF]}},
    "spectrum": {"model": MODEL, "axis": {ValueError: ["absent", 3, None]}},
    "count": {"net": NETWORK, "example_inputs": INPUTS},
}  # fmt: skip
BAD["IntegralNetwork.parameter_count"] = BAD["IntegralNetwork.shapes"]
for make in ("uniform", "midpoint", "gauss_legendre"):
    BAD[f"{make}_partition"] = {"n": {TypeError: [3.0, "3", True, None], ValueError: [0, -1]}, "device": DEVICE}
    BAD[f"{make}_partition"]["dtype"] = DTYPE
for rank in range(4):
    layer = f"IntegralConv{rank}d" if rank else "IntegralLinear"
    BAD[layer] = LAYER | {"taps": COUNT}
    if rank:
        several = [(), (1,) * (rank + 1), [1] * (rank + 1)]
        step = {TypeError: [None, 1.5, "1", True, (1.5,) * rank], ValueError: [0, -1, (0,) * rank, *several]}
        pad = {TypeError: [None, 1.5, True, (1.5,) * rank], ValueError: [-1, "x", *several]}
        window = {"stride": step, "padding": pad, "dilation": step, "groups": COUNT}
        BAD[layer] = LAYER | window | {"kernel_size": step}
        extent = {"spatial_partitions": {ValueError: [3, [3] * (rank + 1), 2.5, torch.ones(rank)]}}
        BAD[f"integral_conv{rank}d"] = LAYERED | window | extent
    BAD[f"{layer}.forward"] = {"x": LAYERED["x"]}
    BAD[f"{layer}.taps"] = {"dtype": DTYPE}
    BAD[f"{layer}.sampled"] = {"dtype": DTYPE, "sizes": {TypeError: [3, "x", 0.5]}}
    BAD[f"{layer}.discretize"] = {"sizes": {TypeError: [3, "x", 0.5]}}
