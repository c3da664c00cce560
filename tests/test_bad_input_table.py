"""Bad values of every argument of every public call: the error, its message, and that nothing has changed."""

import inspect
import re

import pytest
import torch

import integral_nn as inn
from bad_input_cases import BAD, Late, World, calls

# Taken by their truth: whatever is given means something.
FLAGS = {"bias", "trainable", "weighted", "permute", "fold", "progress", "continuous_outputs", "common", "keep"}
FLAGS |= {"strict", "assign"}  # of nn.Module.load_state_dict
FLAGS |= {"group"}  # a process group, which torch.distributed checks
LAYERS = ("IntegralLinear", "IntegralConv1d", "IntegralConv2d", "IntegralConv3d")
UNCHECKED = {
    "AxisSet": "a record that find_axes makes",
    "ConversionError": "an exception",
    "Count": "a record that count makes",
    "LayerChange": "a record that convert makes",
    "LayerChanges": "a record that convert makes",
    "Report": "a record that convert makes",
    "Axis.get_extra_state": "nn.Module asks",
    "Axis.set_extra_state": "nn.Module asks",
    **{f"{layer}.{kind}_extra_state": "nn.Module asks" for layer in LAYERS for kind in ("get", "set")},
    "IntegralNetwork.forward": "the arguments are those of the network that was converted",
}
NAMED = {("quadrature_weights", "name"): "quadrature"}  # what messages call an argument


@pytest.fixture(scope="module")
def world():
    return World()


def same(x, y):
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("name, argument", [(name, argument) for name in BAD for argument in BAD[name]])
def test_bad_values(name, argument, world):
    for error, values in BAD[name][argument].items():
        for value in values:
            value = value.make(world) if isinstance(value, Late) else value
            function, good = calls(world)[name]
            before = world.state()
            with pytest.raises(error) as caught:
                function(**{**good, argument: value})
                pytest.fail(f"{name} takes {argument}={value!r}")
            said = NAMED.get((name, argument), argument)
            assert re.search(rf"\b{said}\b", str(caught.value)), f"{value!r}: {caught.value}"
            after = world.state()
            changed = [key for key in before if key not in after or not same(before[key], after[key])]
            assert not changed and after.keys() == before.keys(), f"{argument}={value!r} changed {changed}"


def test_the_good_calls_are_good():
    world = World()
    for name in calls(world):
        function, good = calls(world)[name]
        function(**good)


def public():
    """(name, parameters) of every public function, class and method."""
    for name in inn.__all__:
        thing = getattr(inn, name)
        yield name, [] if name in UNCHECKED else list(inspect.signature(thing).parameters)
        for cls in thing.__mro__ if inspect.isclass(thing) else ():
            if cls.__module__.startswith("integral_nn"):
                for method, function in vars(cls).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{name}.{method}", list(inspect.signature(function).parameters)[1:]


def test_every_argument_of_every_public_name_is_here():
    missing, there = [], set()
    for name, parameters in public():
        there.add(name)
        if name not in UNCHECKED:
            tested = BAD.get(name, {})
            public_ones = (p for p in parameters if not p.startswith("_"))
            missing += [f"{name}({p})" for p in public_ones if p not in tested and p not in FLAGS]
    assert not missing
    assert set(BAD) <= there and set(UNCHECKED) <= there
