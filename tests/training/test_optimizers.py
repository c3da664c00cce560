"""Groups of parameters, and the optimizers, averages and clipping that see them."""

import pytest
import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import integral_nn as inn
from models import MAKE, batch, blocks, loss, make, share, whole


def train(model, optimizer, steps, called=None, data=batch, after=lambda: None):
    for step in range(steps) if isinstance(steps, int) else steps:
        model.resample(step)
        optimizer.zero_grad()
        loss(called or model, *data(step)).backward()
        after()
        optimizer.step()
    return {name: whole(p) for name, p in model.named_parameters()}


def close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    return all(float((one[name] - other[name]).norm()) <= tolerance * float(other[name].norm()) for name in one)


@pytest.mark.parametrize("kind", MAKE)
def test_every_parameter_is_in_its_group(kind):
    model = make(kind, True)
    model.net[0].bias_nodes.requires_grad_(False)
    groups = {group["name"]: group for group in inn.parameter_groups(model, 0.1, points_lr=0.5)}
    kinds = {id(p): name for name, group in groups.items() for p in group["params"]}
    for name, p in model.named_parameters():
        expected = "points" if name.endswith("delta") else "weights" if "weight" in name else "vectors"
        assert kinds.pop(id(p), "none") == (expected if p.requires_grad else "none")
    assert not kinds and sum(len(group["params"]) for group in groups.values()) == 7
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert decays == {"weights": 0.1, "vectors": 0.0, "points": 0.0}
    assert groups["points"]["lr"] == 0.5 and "lr" not in groups["weights"]
    assert [group["name"] for group in inn.parameter_groups(make(kind))] == ["weights", "vectors"]


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("how", ["fused", "foreach"])
def test_fused_and_foreach_optimizers(kind, how):
    ends = []
    for options in ({how: True}, {"foreach": False}):
        model = make(kind, True)
        ends.append(train(model, torch.optim.AdamW(inn.parameter_groups(model, 0.1), 1e-3, **options), 4))
    assert close(*ends)


@pytest.mark.parametrize("kind", MAKE)
def test_an_average_is_a_network_of_any_size(kind):
    model = make(kind, True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(inn.parameter_groups(model), 0.1)
    expected = {}
    for _ in range(3):
        train(model, optimizer, 1)
        average.update_parameters(model)
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        expected = {name: p.lerp(expected.get(name, p), 0.5) for name, p in now.items()}
    assert close({name: p.detach() for name, p in average.module.named_parameters()}, expected, 1e-6)
    model.resize(0.5)
    other = average.module
    assert other.sizes != model.sizes
    other.load_state_dict(model.state_dict())
    x, _ = batch(0)
    with torch.no_grad():
        assert torch.equal(average(x), model(x))


def train_with_zero(rank, kind):
    model, alone = make(kind, True), make(kind, True)
    called = DistributedDataParallel(model)
    groups = inn.parameter_groups(model, 0.1, points_lr=1e-2)
    optimizer = ZeroRedundancyOptimizer(groups, torch.optim.AdamW, lr=1e-3)
    kept = sum(t.numel() for state in optimizer.optim.state.values() for t in state.values())
    one = train(model, optimizer, 4, called, lambda step: share(step, rank, 2))
    kept = sum(t.numel() for state in optimizer.optim.state.values() for t in state.values())
    other = train(alone, torch.optim.AdamW(inn.parameter_groups(alone, 0.1, points_lr=1e-2), 1e-3), 4)
    return close(one, other, 1e-4), kept / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", MAKE)
def test_a_sharded_optimizer(ranks, kind):
    (one, part), (other, rest) = ranks(train_with_zero, kind)
    assert one and other and part < 1.9 and rest < 1.9  # two moments of every parameter would be 2


def train_clipped(rank, kind, wrap):
    model, alone = make(kind, True), make(kind, True)
    called, norms = wrap(model), []
    optimizers = [torch.optim.SGD(inn.parameter_groups(net), 0.1) for net in (model, alone)]

    def clip(net):
        return lambda: norms.append(float(whole(clip_grad_norm_(net.parameters(), 0.1))))

    other = train(alone, optimizers[1], 4, after=clip(alone))
    expected, norms = norms, []
    one = train(model, optimizers[0], 4, called, lambda step: share(step, rank, 2), clip(model))
    return close(one, other), torch.allclose(torch.tensor(norms), torch.tensor(expected), rtol=1e-5), min(expected)


@pytest.mark.parametrize("wrap", [DistributedDataParallel, blocks])
@pytest.mark.parametrize("kind", MAKE)
def test_clipped_gradients(ranks, kind, wrap):
    for parameters, norms, least in ranks(train_clipped, kind, wrap):
        assert parameters and norms and least > 0.1


# State in other formats ---------------------------------------------------------------------------------------------


def quantized(x):
    """In 8 bits, each block of 64 with its scale."""
    blocks = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % 64)).view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (blocks / scale).round().to(torch.int8), scale


def restored(codes, scale, like):
    return (codes * scale).flatten()[: like.numel()].view_as(like)


class Quantized(torch.optim.Optimizer):
    """Momentum in 8 bits, kept by parameter as wrappers of optimizers keep it; or, for comparison, by name."""

    def __init__(self, params, lr, names=None):
        super().__init__(params, {"lr": lr})
        self.by_name = None if names is None else {name: {} for name in names}

    @torch.no_grad()
    def step(self):
        pairs = [(p, group["lr"]) for group in self.param_groups for p in group["params"]]
        states = [self.state[p] for p, _ in pairs] if self.by_name is None else self.by_name.values()
        for (p, lr), state in zip(pairs, states):
            moment = p.grad + (0.9 * restored(state["codes"], state["scale"], p) if state else 0)
            state["codes"], state["scale"] = quantized(moment)
            p.sub_(restored(state["codes"], state["scale"], p), alpha=lr)


def train_quantized(rank, kind):
    """Ends of a run, of one whose state is kept by name, and of one that goes on in fresh objects; 8-bit numbers."""
    ends = []
    for how in ("parameter", "name", "resumed"):
        model = make(kind, True)
        names = [name for name, _ in model.named_parameters()] if how == "name" else None
        optimizer, called = Quantized(model.parameters(), 0.05, names), DistributedDataParallel(model)
        train(model, optimizer, range(4), called, lambda step: share(step, rank, 2))
        if how == "resumed":
            saved, model = (model.state_dict(), optimizer.state_dict()), make(kind, True)
            optimizer, called = Quantized(model.parameters(), 0.05), DistributedDataParallel(model)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        ends.append(train(model, optimizer, range(4, 8), called, lambda step: share(step, rank, 2)))
        codes = [state["codes"].numel() for state in optimizer.state.values()]
    return ends, codes, [p.numel() for p in model.parameters()]


@pytest.mark.parametrize("kind", MAKE)
def test_state_of_8_bits_by_parameter(ranks, kind):
    for (one, by_name, resumed), codes, numbers in ranks(train_quantized, kind):
        assert one.keys() == by_name.keys() == resumed.keys()
        assert all(torch.equal(one[name], by_name[name]) and torch.equal(one[name], resumed[name]) for name in one)
        assert codes == [-(-n // 64) * 64 for n in numbers]


def train_low(kind, masters):
    """How far the way that nodes in bfloat16 went is from that of a float32 run, over the latter."""
    model, alone = make(kind, True), make(kind, True)
    model.to(torch.bfloat16)
    own = [p.detach().float() for p in model.parameters()] if masters else list(model.parameters())
    before = [[p.detach().float().clone() for p in parameters] for parameters in (own, alone.parameters())]
    optimizers = [torch.optim.SGD(parameters, 3e-3) for parameters in (own, alone.parameters())]
    for step in range(20):
        for net, optimizer, dtype in ((model, optimizers[0], torch.bfloat16), (alone, optimizers[1], torch.float32)):
            x, y = batch(step)
            net.resample(step)
            net.zero_grad()
            loss(net, x.to(dtype), y).backward()
            if masters and net is model:
                for master, p in zip(own, model.parameters()):
                    master.grad = p.grad.float()
            optimizer.step()
        if masters:
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), own)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    after = own, alone.parameters()
    ways = [torch.cat([(p - old).flatten() for p, old in zip(*pair)]) for pair in zip(after, before)]
    return float((ways[0] - ways[1]).norm() / ways[1].norm())


@pytest.mark.parametrize("kind", MAKE)
def test_nodes_in_bfloat16_with_masters_in_float32(kind):
    assert train_low(kind, True) < 0.1 < train_low(kind, False)
