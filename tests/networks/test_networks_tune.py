"""Permutation, partition tuning, norms, capacity, counting: on small networks and scikit-learn's digits."""

import copy
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import integral_nn as inn
from integral_nn.networks.permute import apply_orders, axis_features, reorder, shortest_path, total_variation
from networks_zoo import ZOO, build

torch.set_num_threads(1)

POINTS = {"quadrature": "midpoint", "kernel": "cubic"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- permutation ------------------------------------------------------------------------------------------------


def smooth_rows(m, f=12, shuffled=True):
    x = torch.linspace(0, 1, m)[:, None]
    rows = torch.sin(x * (1 + torch.arange(f)) + torch.arange(f))
    return rows[torch.randperm(m, generator=generator())] if shuffled else rows


@pytest.mark.parametrize("m", [2, 3, 7, 20, 64])
def test_a_smooth_order_is_found_again(m):
    rows = smooth_rows(m)
    found = reorder(rows)
    assert found.after <= total_variation(smooth_rows(m, shuffled=False)) * (1 + 1e-6)
    assert found.after == pytest.approx(total_variation(rows[found.order]))
    assert sorted(found.order.tolist()) == list(range(m))


def test_shortest_path_of_few_cities_is_the_shortest():
    from itertools import pairwise, permutations

    points = torch.rand(7, 3, generator=generator())
    d = torch.cdist(points, points, p=1)

    def length(order):
        return sum(float(d[i, j]) for i, j in pairwise(order))

    best = min(length(p) for p in permutations(range(7)))
    assert length(shortest_path(d).tolist()) == pytest.approx(best, rel=1e-3)


def test_equal_channels_and_zero_weights():
    rows = torch.rand(10, 5, generator=generator()).repeat(3, 1)  # each channel three times
    found = reorder(rows)
    twins = (rows[found.order].diff(dim=0).abs().sum(1) == 0).sum()
    assert twins == 20
    same = reorder(torch.ones(30, 4))
    assert same.before == same.after == 0 and same.order.tolist() == list(range(30))


def test_blocks_stay_together():
    rows = torch.rand(24, 6, generator=generator())
    found = reorder(rows, blocks=4)
    assert (found.order // 6).tolist() == sorted((found.order // 6).tolist())
    assert found.after < found.before


def test_seeded():
    d = torch.cdist(*[torch.rand(15, 4, generator=generator())] * 2, p=1)
    assert torch.equal(shortest_path(d, seed=3), shortest_path(d, seed=3))


def test_2048_channels_in_seconds():
    rows = torch.rand(2048, 64, generator=generator())
    start = time.perf_counter()
    found = reorder(rows, time_limit=2.0)
    assert time.perf_counter() - start < 30
    assert found.after < 0.85 * found.before


def test_conversion_reports_what_it_saves():
    """Channels of a smooth network in random order: the order found is as smooth as the one that was lost."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 3))
    with torch.no_grad():
        shuffle = torch.randperm(48, generator=generator())
        net[0].weight.copy_(smooth_rows(48, 5, False)[shuffle])
        net[2].weight.copy_(smooth_rows(48, 3, False)[shuffle].T)
        net[0].bias.zero_()
    report = inn.convert(net, torch.rand(2, 5)).report
    assert report.reordered["0"].after < 0.3 * report.reordered["0"].before
    assert "total variation" in str(report)


def test_features_are_everything_tied():
    net = build("residual")
    found = inn.find_axes(net, ZOO["residual"].inputs)
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    features = axis_features(tensors, found.ties, "conv1")
    assert features.shape == (12, 16 * 9 + 4 + 16 * 9)  # rows, norm (weight, bias, mean, variance), columns
    order = torch.randperm(12, generator=generator())
    moved = apply_orders(tensors, found, {"conv1": order})
    assert torch.equal(axis_features(moved, found.ties, "conv1"), features[order])


# --- tuning -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """A small network trained on digits for a few seconds, and the data."""
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16 - 0.5
    y = torch.tensor(data.target)
    order = torch.randperm(len(y), generator=generator())
    train, test = order[:1347], order[1347:]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1),
        nn.ReLU(), nn.BatchNorm2d(24), nn.Flatten(), nn.Linear(24 * 16, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    draw = generator(1)
    for _ in range(250):
        batch = train[torch.randint(len(train), (64,), generator=draw)]
        loss = F.cross_entropy(net(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), x[train], y[train], x[test], y[test]


def accuracy(net, x, y):
    with torch.no_grad():
        return 100 * float((net.eval()(x).argmax(1) == y).float().mean())


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_tuning_on_digits(digits):
    net, x, y, tx, ty = digits
    full = accuracy(net, tx, ty)
    assert full > 95
    model = inn.convert(net, x[:2])
    assert model.report.folded == ["1"]  # the norm after a ReLU stays
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.resize(0.6)
    untuned = accuracy(model, tx, ty)
    batches = [(x[i : i + 128], y[i : i + 128]) for i in range(0, 512, 128)]
    losses = inn.tune_partitions(model, loss_fn, batches, sizes=0.6, steps=120, lr=0.03)
    tuned = accuracy(model, tx, ty)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert tuned > untuned and tuned > 85
    for name, value in before.items():  # only the points moved
        assert torch.equal(value, dict(model.named_parameters())[name])
    for axis in model.axes.values():
        points = axis.partition().detach()
        assert axis.trainable and bool((points.diff() > 0).all()) and points[0] >= 0 and points[-1] <= 1
    small = model.discretize()
    assert accuracy(small, tx, ty) == pytest.approx(tuned, abs=0.5)
    state = copy.deepcopy(model.state_dict())
    other = inn.convert(net, x[:2], permute=False)
    other.load_state_dict(state)
    assert other.sizes == model.sizes
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(tx), model(tx))
    # Norms and biases too, and by share of the parameters.
    inn.tune_partitions(model, loss_fn, batches, compression=0.5, steps=20, also=["biases", "norms"])
    removed = 1 - model.parameter_count() / sum(p.numel() for p in inn.convert(net, x[:2]).parameters())
    assert removed == pytest.approx(0.5, abs=0.04)
    changed = {n for n, value in before.items() if not torch.equal(value, dict(model.named_parameters())[n])}
    assert {"net.0.bias_nodes", "net.5.weight_nodes", "net.5.bias_nodes", "net.9.bias"} <= changed
    assert not any(n.endswith("weight") and before[n].dim() > 1 for n in changed)
    assert all(p.requires_grad for p in model.parameters())


def test_points_by_curvature(digits):
    net, x, *_ = digits
    model = inn.convert(net, x[:2])
    assert inn.tune_partitions(model, sizes=0.5) == []
    for axis in model.axes.values():
        points = axis.partition().detach()
        assert axis.size == axis.nodes // 2 and bool((points.diff() > 0).all())
    # A function that bends in its first half alone takes most points there.
    for quadrature in ("midpoint", "trapezoid"):
        bent = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))
        s = torch.linspace(0, 1, 40)
        with torch.no_grad():
            bent[0].weight.copy_((torch.sin(12 * s) * (s < 0.5))[:, None])
            bent[0].bias.zero_()
            bent[2].weight.zero_()
        one = inn.convert(bent, torch.rand(2, 1), permute=False, quadrature=quadrature)
        one.resize(0.5)
        points = inn.curvature_partition(one, "0")
        assert points.shape == (20,) and int((points < 0.5).sum()) >= 13
        with torch.no_grad():
            bent[0].weight.copy_(s[:, None])
        flat = inn.convert(bent, torch.rand(2, 1), permute=False, quadrature=quadrature)
        flat.resize(0.5)


def test_tuning_reaches_statistics(digits):
    """Points move norms' running statistics too: gradients against finite differences in float64."""
    net, x, y, *_ = digits
    model = inn.convert(copy.deepcopy(net).double(), x[:2].double(), fold=False).eval()
    model.resize(0.5)
    inn.tune_partitions(model, loss_fn, [(x[:8].double(), y[:8])], sizes=0.5, steps=0)
    axis = model.axes["3"]
    axis.delta.data = axis.delta.data.double()
    batch = (x[:16].double(), y[:16])
    (grad,) = torch.autograd.grad(loss_fn(model, batch), [axis.delta])
    for k in (1, 5):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                axis.delta[k] += step
                values.append(float(loss_fn(model, batch)))
                axis.delta[k] -= step
        assert float(grad[k]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_recalibrate(digits):
    net, x, _, tx, ty = digits
    model = inn.convert(net, x[:2], fold=False).eval()
    full = accuracy(model, tx, ty)
    model.resize(0.7)
    before = accuracy(model, tx, ty)
    inn.recalibrate(model, [x[:400], (x[400:800],)])
    assert not model.training
    after = accuracy(model, tx, ty)
    assert after >= before - 1
    with torch.no_grad():
        torch.testing.assert_close(model.discretize()(tx), model(tx), rtol=1e-4, atol=1e-5)
    norm = model.discretize()[1]
    features = model.discretize()[0](x[:800])
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    model.resize(1.0)
    assert accuracy(model, tx, ty) == full
    with pytest.raises(ValueError, match="at least one batch"):
        inn.recalibrate(model, [])
    with pytest.raises(ValueError, match="no norm"):
        inn.recalibrate(inn.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(2, 4)), [x])


def test_recalibrating_that_fails_changes_nothing(digits):
    net, x, *_ = digits
    model = inn.convert(net, x[:2], fold=False).train()
    model.net[1].eval()  # frozen
    model.net[5].momentum = 0.3
    model.resize(0.7)
    inn.recalibrate(model, [x[:100]])

    def state():
        modes = [(m.training, getattr(m, "momentum", None)) for m in model.modules()]
        return modes, copy.deepcopy(model.state_dict())

    modes, values = state()
    for batches in ([x[:50], x[:50, :, :, 0]], [x[:50], float("nan") * x[:50]], [x[:50], (x[:50], 3)]):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            inn.recalibrate(model, batches)
        assert state()[0] == modes
        for name, value in state()[1].items():
            assert torch.equal(value, values[name]), name
    inn.recalibrate(model, [x[:50]])
    assert state()[0] == modes and not torch.equal(
        state()[1]["net.1.running_mean_calibrated"], values["net.1.running_mean_calibrated"]
    )


def test_tuning_restores_what_it_froze(digits):
    """Modes of single modules, flags and gradients: after tuning that ends well, too."""
    net, x, y, *_ = digits
    model = inn.convert(net, x[:2]).train()
    model.net[5].eval()
    model.net[9].bias.requires_grad_(False)
    model.net[9].bias.grad = torch.ones(10)
    with torch.no_grad():
        inn.tune_partitions(model, loss_fn, [(x[:64], y[:64])], sizes=0.5, steps=3, also="biases")
    assert model.training and not model.net[5].training and not model.net[9].bias.requires_grad
    assert torch.equal(model.net[9].bias.grad, torch.ones(10))
    assert all(axis.delta.requires_grad and axis.delta.grad is None for axis in model.axes.values())


def test_statistics_follow_training(digits):
    net, x, *_ = digits
    model = inn.convert(net, x[:2], fold=False).train()
    old = model.net[1].running_mean_nodes.clone()
    model.resize(0.5)
    model(3 * x[:64])
    moved = model.net[1].running_mean_nodes - old
    assert moved.abs().max() > 0
    reference = model.discretize().train()
    sampled = reference[1].running_mean.clone()
    reference(3 * x[:64])
    change = reference[1].running_mean - sampled
    assert torch.sign(moved.mean()) == torch.sign(change.mean())


def test_bad_tuning_arguments(digits):
    net, x, y, *_ = digits
    model = inn.convert(net, x[:2])
    batch = [(x[:4], y[:4])]
    with pytest.raises(ValueError, match=r"also must name some of .*, got 'weights'"):
        inn.tune_partitions(model, loss_fn, batch, also="weights")
    with pytest.raises(ValueError, match="together"):
        inn.tune_partitions(model, loss_fn)
    with pytest.raises(ValueError, match="not both"):
        inn.tune_partitions(model, loss_fn, batch, compression=0.3, sizes=0.5)
    with pytest.raises(ValueError, match="at least one batch"):
        inn.tune_partitions(model, loss_fn, [])
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1.5"):
        inn.compressed_sizes(model, 1.5)
    with pytest.raises(TypeError, match="compression must be a number"):
        inn.compressed_sizes(model, "half")
    with pytest.raises(ValueError, match="loss_fn returned nan"):
        inn.tune_partitions(model, lambda m, b: m(b[0]).sum() * float("nan"), batch, steps=1)
    assert all(p.requires_grad for p in model.parameters())


# --- measures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quadrature, kernel", [("midpoint", "cubic"), ("cells", "conservative"), ("cells", "bspline")])
def test_capacity(quadrature, kernel):
    """Of the weights, whatever nodes they come from."""
    rule = {"quadrature": quadrature, "kernel": kernel}
    net = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 2))
    position = (torch.arange(64) + 0.5) / 64
    with torch.no_grad():
        net[0].weight.copy_(torch.cos(torch.pi * 6 * position)[:, None].expand(64, 3))
        net[0].bias.zero_()
        net[2].weight.zero_()
    model = inn.convert(net, torch.rand(2, 3), permute=False, **rule)
    power = inn.spectrum(model, "0")
    assert power.shape == (64,) and float(power.sum()) == pytest.approx(1)
    assert int(power.argmax()) == 6 and float(power[6]) == pytest.approx(1, abs=1e-6)
    assert inn.capacity(model) == {"0": 7}
    plain, inputs = ZOO["plain"].make(), ZOO["plain"].inputs
    rough, points = (inn.convert(plain, inputs, permute=False, **how) for how in (rule, POINTS))
    for axis in ("0", "2"):
        torch.testing.assert_close(inn.spectrum(rough, axis), inn.spectrum(points, axis), rtol=0, atol=1e-6)
    assert inn.capacity(rough, 1.0) == {"0": 12, "2": 8}
    with pytest.raises(ValueError, match="share"):
        inn.capacity(model, 0)


def test_count():
    net = build("plain")
    x = ZOO["plain"].inputs[0]
    counted = inn.count(net, x)
    assert counted.parameters == sum(p.numel() for p in net.parameters())
    assert counted.macs == 2 * (64 * 9 * (12 + 12 * 8) + 36 * 9 * 8)
    model = inn.convert(net, x)
    assert inn.count(model, x) == counted
    model.resize(0.5)
    small = inn.count(model, x)
    assert small == inn.count(model.discretize(), x)
    assert small.parameters == model.parameter_count() < counted.parameters / 2


def test_roughness_is_a_penalty():
    model = inn.convert(build("plain"), ZOO["plain"].inputs)
    start = float(model.roughness().detach())
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    for _ in range(20):
        optimizer.zero_grad()
        model.roughness().backward()
        optimizer.step()
    assert float(model.roughness().detach()) < start
    assert float(model.roughness(order=1, power=1).detach()) > 0
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        model.roughness(order=3)


def test_algorithm_1_serves_all_widths(digits):
    """A few steps at random sizes: half width, useless after conversion, becomes nearly as good as full width."""
    net, x, y, tx, ty = digits
    model = inn.convert(net, x[:2])
    model.resize(0.5)
    before = accuracy(model, tx, ty)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    draw = generator(5)
    for _ in range(150):
        batch = torch.randint(len(y), (64,), generator=draw)
        model.resample(draw)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.resize(0.5)
    assert accuracy(model, tx, ty) > max(before, 90)
    model.resize(1.0)
    assert accuracy(model, tx, ty) > 94


def test_little_time_still_finds_a_smooth_order():
    """Distances of a few random sums of features, where there is no time for all."""
    hidden = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    rows = (torch.linspace(0, 3, 96)[:, None] + torch.rand(20000, generator=torch.Generator().manual_seed(1)) * 6).sin()
    found = reorder(rows[hidden], time_limit=0.01)
    assert found.after < 0.1 * found.before
    assert found.after == pytest.approx(total_variation(rows), rel=0.3)
