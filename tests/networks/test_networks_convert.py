"""Conversion of whole networks: every architecture of the zoo, exactly, and what must be refused."""

import copy
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

import integral_nn as inn
from networks_zoo import ZOO, build

torch.set_num_threads(1)


def outputs(net, inputs):
    with torch.no_grad():
        return tree_leaves(net(*inputs))


def error(net, other, inputs):
    pairs = zip(outputs(net, inputs), outputs(other, inputs))
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in pairs)


@pytest.fixture(scope="module", params=list(ZOO))
def case(request):
    net = build(request.param)
    return request.param, net, inn.convert(net, ZOO[request.param].inputs)


def test_axes(case):
    name, _, model = case
    found = {}
    for axis, spec in model.found.specs.items():
        ties = [f"{t.tensor}[{t.dim}] {t.layout.describe()}" + " q" * t.integrated for t in model.found.ties_of(axis)]
        found[axis] = (spec.nodes, ties)
    assert found == ZOO[name].axes
    assert list(found) == list(model.axes)
    steps = {axis: spec.multiple_of for axis, spec in model.found.specs.items() if spec.multiple_of > 1}
    assert steps == (ZOO[name].multiple_of or {})


def test_every_dimension_is_accounted_for(case):
    _, _, model = case
    tensors = dict(model.discretize().named_parameters())
    for name, tensor in tensors.items():
        for dim, size in enumerate(tensor.shape[:2]):
            tied = any((t.tensor, t.dim) == (name, dim) for t in model.found.ties)
            discrete = [d for d in model.found.discrete if (d.tensor, d.dim) == (name, dim)]
            assert size == 1 or tied or discrete, (name, dim)
            assert all(d.reason for d in discrete)


def test_exact(case):
    name, net, model = case
    assert model.report.error <= 1e-5
    assert error(net, model, ZOO[name].inputs) <= 1e-5
    assert error(net, model.discretize(), ZOO[name].inputs) <= 1e-5


@pytest.mark.parametrize("name", list(ZOO))
def test_exact_by_trapezoid(name):
    net = build(name)
    before = copy.deepcopy(net.state_dict())
    model = inn.convert(net, ZOO[name].inputs, quadrature="trapezoid", fold=False, seed=1)
    assert model.report.error <= 1e-5
    assert error(net, model, ZOO[name].inputs) <= 1e-5
    assert error(net, model.discretize(), ZOO[name].inputs) <= 1e-5
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    for r in model.report.reordered.values():
        assert r.after <= r.before
        assert sorted(r.order.tolist()) == list(range(len(r.order)))


def test_discretized_is_plain(case):
    _, net, model = case
    inputs = ZOO[case[0]].inputs
    model = copy.deepcopy(model)
    full = model.parameter_count()
    for share in (0.5, 1.5, 1.0, 0.75):
        model.resize(share)
        small = model.discretize()
        assert type(small) is type(net)
        assert not any(type(m).__module__.startswith(("integral_nn", "inn_kernels")) for m in small.modules())
        assert error(small, model, inputs) <= 1e-6
        assert sum(p.numel() for p in small.parameters()) == model.parameter_count() != full or share == 1
        shapes = {k: tuple(v.shape) for k, v in small.state_dict().items()}
        assert shapes == {k: v for k, v in model.shapes().items() if k in shapes} | {
            k: v for k, v in shapes.items() if k not in model.shapes()
        }
        for module in small.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                fresh = copy.deepcopy(module)
                fresh.__init__(
                    module.in_channels,
                    module.out_channels,
                    module.kernel_size,
                    groups=module.groups,
                    bias=module.bias is not None,
                )
                fresh.load_state_dict(module.state_dict())
            elif isinstance(module, nn.Linear):
                nn.Linear(module.in_features, module.out_features, module.bias is not None).load_state_dict(
                    module.state_dict()
                )


def test_result_survives_everything(case):
    _, _, model = case
    inputs = ZOO[case[0]].inputs
    model = copy.deepcopy(model)
    model.resize(0.5)
    small = model.discretize()
    again = copy.deepcopy(small)
    again.load_state_dict(small.state_dict())
    assert error(small, again, inputs) == 0
    assert error(small, copy.deepcopy(small), inputs) == 0
    if type(small).__module__ != "__main__":
        assert error(small, pickle.loads(pickle.dumps(small)), inputs) == 0
    assert error(model, pickle.loads(pickle.dumps(model)), inputs) == 0
    exported = torch.export.export(small, inputs).module()
    assert error(small, exported, inputs) <= 1e-6


def test_save_reload_resize(case):
    name, net, model = case
    inputs = ZOO[name].inputs
    state = copy.deepcopy(model.state_dict())
    other = inn.convert(net, inputs, permute=False)
    other.load_state_dict(state)
    for share in (0.5, 1.0, 0.75, 1.0):
        model.resize(share), other.resize(share)
        assert error(model, other, inputs) == 0
    assert error(net, other, inputs) <= 1e-5
    names = dict(net.named_parameters())
    keys = [key.removeprefix("net.").removesuffix("_nodes") for key, _ in model.named_parameters()]
    assert all(key in names or key.endswith(".bias") for key in keys)


def test_training_at_random_sizes(case):
    name, _, model = case
    inputs = ZOO[name].inputs
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(0)
    for common in (False, True):
        sizes = model.resample(generator, common=common)
        assert sizes == {axis: model.axes[axis].size for axis in model.axes}
        for axis, size in sizes.items():
            assert size % model.axes[axis].multiple_of == 0
        loss = sum(t.square().mean() for t in tree_leaves(model(*inputs)))
        model.zero_grad()
        loss.backward()
        for axis in model.axes:
            for tie in model.found.ties_of(axis):
                parameter = model.nodes().get(tie.tensor)
                if isinstance(parameter, nn.Parameter) and parameter.dim() > 1:
                    assert parameter.grad is not None and parameter.grad.abs().sum() > 0, tie.tensor


@pytest.mark.parametrize(
    "name", ["residual", "depthwise, squeeze-excitation", "flatten, channel-minor", "conv1d", "transformer with heads"]
)
def test_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    inputs = ZOO[name].inputs
    model = inn.convert(build(name), inputs)
    model.resize(0.5)
    small = model.discretize()
    path = tmp_path / "net.onnx"
    torch.onnx.export(small, inputs, str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)}
    for want, have in zip(outputs(small, inputs), session.run(None, feeds)):
        torch.testing.assert_close(torch.from_numpy(have), want, rtol=1e-4, atol=1e-5)


def test_float64():
    for name in ("residual", "two inputs, two outputs"):
        net = build(name).double()
        inputs = tuple(x.double() if x.is_floating_point() else x for x in ZOO[name].inputs)
        model = inn.convert(net, inputs)
        assert error(net, model, inputs) <= 1e-12


def test_more_and_fewer_nodes():
    net, inputs = build("plain"), ZOO["plain"].inputs
    for quadrature in ("midpoint", "trapezoid"):
        more = inn.convert(net, inputs, nodes={"0": 20, "2": 17}, quadrature=quadrature)
        assert (more.axes["0"].nodes, more.axes["0"].size) == (20, 12)
        assert more.report.error <= 1e-5
        fewer = inn.convert(net, inputs, nodes=0.75, quadrature=quadrature)
        assert fewer.axes["2"].nodes == 6
        assert 1e-5 < fewer.report.error < 2
        nodes = fewer.nodes()["2.weight"]
        best = (fewer.sampled()["2.weight"] - _reordered(net, fewer)["2.weight"]).square().sum()
        with torch.no_grad():  # least squares: no change of the nodes comes nearer
            nodes += 1e-3 * torch.randn(nodes.shape, generator=torch.Generator().manual_seed(0))
        assert (fewer.sampled()["2.weight"] - _reordered(net, fewer)["2.weight"]).square().sum() > best


def _reordered(net, model):
    tensors = {n: t.detach().clone() for n, t in net.named_parameters()}
    one, two = (model.report.reordered[axis].order for axis in ("0", "2"))
    tensors["2.weight"] = tensors["2.weight"][two][:, one]
    return tensors


def test_inputs_and_outputs_continuous():
    net = nn.Sequential(nn.Conv2d(6, 10, 3), nn.ReLU(), nn.Conv2d(10, 8, 3)).eval()
    x = torch.rand(2, 6, 7, 7)
    model = inn.convert(net, x, continuous_inputs=True, continuous_outputs=True, permute=False)
    assert list(model.axes) == ["0", "input:0", "2"]
    model.resize({"2": 4, "input:0": 3})
    assert model(x[:, ::2]).shape == (2, 4, 3, 3)
    reordered = inn.convert(net, x, continuous_inputs=True, continuous_outputs=True)
    assert reordered.report.error <= 1e-5


def test_ignore_and_only():
    net, inputs = build("residual"), ZOO["residual"].inputs
    assert set(inn.convert(net, inputs, ignore="conv1").axes) == {"stem", "conv3"}
    assert set(inn.convert(net, inputs, ignore="conv1.weight").axes) == {"conv3"}
    assert set(inn.convert(net, inputs, ignore=["short", "conv1"]).axes) == {"stem"}
    assert set(inn.convert(net, inputs, only="conv*").axes) == {"conv1", "conv3"}
    with pytest.raises(ValueError, match="'convX' matches no continuous axis"):
        inn.convert(net, inputs, ignore="convX")
    with pytest.raises(TypeError, match="ignore"):
        inn.convert(net, inputs, ignore=[3])


def test_summary_names_reasons():
    text = repr(inn.convert(build("transformer with heads"), ZOO["transformer with heads"].inputs).axes)
    assert "up: 40 channels" in text
    assert "down.weight[1]  up, summed over" in text
    assert "qkv.weight[0]=48" in text and "fixed by view" in text
    assert "a size of the network's outputs" in text


def test_group_norm_resizes_in_multiples():
    name = "group norm, channel shuffle, grouped convolution"
    model = inn.convert(build(name), ZOO[name].inputs)
    assert model.resize(0.6)["conv"] == 16
    with pytest.raises(ValueError, match="multiple of 4, got 18"):
        model.resize({"conv": 18})


def test_parametrized_weights_are_baked():
    net = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 8, 3)), nn.ReLU(), nn.Conv1d(8, 2, 1)
    ).eval()
    x = torch.rand(1, 2, 9)
    assert error(net, inn.convert(net, x), (x,)) <= 1e-5


# --- what must be refused ---------------------------------------------------------------------------------------


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x if x.sum() > 0 else -x)


class Noisy(Branch):
    def forward(self, x):
        return self.b(self.a(x) + torch.randn(8))


class Noise(Branch):
    def forward(self, x):
        x = self.a(x)
        return self.b(x * (1 + torch.rand_like(x)))


class Unseeded(Branch):
    def forward(self, x):
        return self.b(self.a(x) * random.random())


class Softmax(Branch):
    def forward(self, x):
        return self.b(self.a(x).softmax(-1))


class Sum(Branch):
    def forward(self, x):
        x = self.a(x)
        return self.b(x / x.norm(dim=-1, keepdim=True))


class Rolled(Branch):
    def forward(self, x):
        x = self.a(x)
        return self.b(x + x.roll(1, -1))


class First(Branch):
    def forward(self, x):
        x = self.a(x)
        return self.b(x * x[:, :1])


class Numpy(Branch):
    def forward(self, x):
        return self.b(torch.from_numpy(self.a(x).detach().numpy()))


class Fixed(Branch):
    def forward(self, x):
        return self.b(self.a(x).view(-1, 8))


class Tied(nn.Module):
    """An embedding used again as the output layer: its columns are sampled on one side, summed over on the other."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)

    def forward(self, tokens):
        return self.embed(tokens).tanh() @ self.embed.weight.T


class NoInfluence(Branch):
    def forward(self, x):
        return self.b(self.a(x) * 0) + x[:, :2]


X = torch.rand(3, 4)


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (Branch(), X, "after sum in the network itself|after gt in the network"),
        (Noisy(), X, r"a.weight\[0\]=8.*fixed by"),
        (Noise(), X, r"a.weight\[0\]=8.*reordered"),
        (Unseeded(), X, "differ between two runs"),
        (Softmax(), X, r"a.weight\[0\]=8.*sum over its channels"),
        (Sum(), X, r"a.weight\[0\]=8.*sum over its channels"),
        (Rolled(), X, r"a.weight\[0\]=8.*reordered"),
        (First(), X, r"a.weight\[0\]=8.*reordered"),
        (Numpy(), X, "cannot be traced"),
        (Fixed(), X, r"a.weight\[0\]=8.*fixed by view"),
        (Tied(), torch.arange(5), r"embed.weight\[1\]=8"),
        (NoInfluence(), X, "depend"),
        (nn.Linear(4, 2), X, "no continuous axis"),
        (nn.LSTM(4, 8), X, "no continuous axis"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_refused(net, x, message):
    with pytest.raises(inn.ConversionError, match="(?s)" + message):
        inn.convert(net, x)


def test_bad_arguments():
    net = build("plain")
    x = ZOO["plain"].inputs[0]
    with pytest.raises(TypeError, match=r"net must be an nn.Module, got function"):
        inn.convert(F.relu, x)
    with pytest.raises(TypeError, match="example_inputs must be a tensor or a tuple"):
        inn.convert(net, [x])
    with pytest.raises(ValueError, match=r"quadrature must be one of .*, got 'simpson'"):
        inn.convert(net, x, quadrature="simpson")
    with pytest.raises(ValueError, match="size_range"):
        inn.convert(net, x, size_range=(0.9, 0.5))
    with pytest.raises(ValueError, match="nodes names an unknown axis 'x'"):
        inn.convert(net, x, nodes={"x": 3})
    model = inn.convert(net, x)
    with pytest.raises(TypeError, match="discretize it first"):
        inn.convert(model, x)
    with pytest.raises(ValueError, match="unknown axis 'y'"):
        model.resize({"y": 3})
    with pytest.raises(TypeError, match="size must be a share or a mapping from axes to sizes, got str"):
        model.resize("small")
    with pytest.raises(ValueError, match="positive multiple"):
        model.resize({"0": 0})
    with pytest.raises(KeyError, match="no axis"):
        model.axes["zzz"]


def test_outputs_that_are_nan_are_refused():
    class Half(nn.Module):
        """The head's own output, and another that is NaN for some inputs."""

        def __init__(self):
            super().__init__()
            self.net = build("plain")

        def forward(self, x):
            y = self.net(x)
            return y, (y - y.detach().amax() - 1).log()

    net = Half()
    for bad in (net, build("plain")):
        if bad is not net:
            with torch.no_grad():
                next(bad.parameters()).fill_(float("nan"))
        with pytest.raises(inn.ConversionError, match="NaN for example_inputs"):
            inn.convert(bad, *ZOO["plain"].inputs)


def test_attention_with_fast_path():
    layer = nn.TransformerEncoderLayer(16, 4, 48, batch_first=True, dropout=0.0).eval()
    net = nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 2)).eval()
    x = torch.rand(2, 6, 5)
    model = inn.convert(net, x)
    assert {name: spec.nodes for name, spec in model.found.specs.items()} == {"0": 4, "1.linear1": 48}
    model.resize(0.5)
    assert error(model, model.discretize(), (x,)) <= 1e-5


def test_a_module_replaced_after_the_conversion_is_the_one_that_runs():
    """What was there at the conversion must not be sampled on."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 2, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    model = inn.convert(net, x, fold=False, permute=False).eval()
    other = copy.deepcopy(model.net[1])
    torch.nn.init.normal_(other.weight_nodes)
    other.running_mean_nodes = torch.randn(8)
    model.net[1] = other
    want = copy.deepcopy(net)
    want[1].load_state_dict({name.removesuffix("_nodes"): t for name, t in other.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(model(x), want(x), rtol=1e-5, atol=1e-5)
