"""What leaves Python: a plain network of one width compiled ahead of time, and a graph whose width is a symbol."""

import shutil

import pytest
import torch
from torch import nn

import integral_nn as inn

X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_a_snapshot_compiled_ahead_of_time(tmp_path):
    torch.manual_seed(0)
    small = inn.convert(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), X).at(0.75)
    with torch.no_grad():
        program = torch.export.export(small, (X,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(X), small(X))


class AtPoints(nn.Module):
    """Layers built by hand, called through the functions: the points of the axis between them are an input."""

    def __init__(self, up, down):
        super().__init__()
        self.up, self.down = up, down
        axis = up.out_axis
        self.rule = {"quadrature": axis.quadrature, "kernel": axis.basis.kernel, "dataflow": "materialize"}

    def forward(self, x, points):
        up, down = self.up, self.down
        x = inn.integral_linear(x, up.weight_nodes, up.bias_nodes, points, None, **self.rule).relu()
        return inn.integral_linear(x, down.weight_nodes, down.bias_nodes, None, points, scale=down.scale, **self.rule)


@pytest.mark.parametrize("rule", [{"quadrature": "trapezoid", "kernel": "cubic"}, {"quadrature": "trapezoid"}])
def test_a_graph_whose_width_is_a_symbol(rule, tmp_path):
    torch.manual_seed(0)
    axis = inn.Axis(16, 12, **rule)
    up, down = inn.IntegralLinear(4, axis), inn.IntegralLinear(axis, 3)
    width = torch.export.Dim("width", min=3, max=64)
    program = torch.export.export(AtPoints(up, down), (X, axis.partition()), dynamic_shapes=(None, {0: width}))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        for size in (5, 9, 16, 30):
            axis.resize(size)
            torch.testing.assert_close(loaded(X, axis.partition()), down(up(X).relu()), rtol=1e-5, atol=1e-6)
