"""One operation between two convolutions: continuous where it may be, discrete where it must be."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import integral_nn as inn
from integral_nn.coupling.calls import Inputs
from integral_nn.coupling.proof import Probe

torch.set_num_threads(1)


class Between(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.first, self.last, self.operation = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), operation

    def forward(self, x):
        return self.last(self.operation(self.first(x)))


@functools.lru_cache
def columns(shape):
    return torch.arange(shape[-1])


CONTINUOUS = {
    "a cache by shapes": lambda x: x + columns(x.shape).to(x),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "upsample": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "instance norm": F.instance_norm,
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "max pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "unfold": lambda x: F.fold(F.unfold(x, 1), x.shape[2:], 1),
    "layer norm over everything": lambda x: F.layer_norm(x, x.shape[1:]),
    "less the channels' mean": lambda x: x - x.mean(1, keepdim=True),
    "less the channels' maximum": lambda x: x - x.amax(1, keepdim=True),
    "pixel unshuffle and back": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "concatenated rectifiers, halved": lambda x: torch.cat([x, -x], 1).relu().chunk(2, 1)[0],
    "spatial attention": lambda x: x @ x.transpose(2, 3),
    "grid sample": lambda x: F.grid_sample(x, torch.zeros(x.shape[0], 4, 4, 2).to(x), align_corners=False),
    "in place": lambda x: x.mul_(2).relu_(),
}
DISCRETE = {
    "softmax over channels": lambda x: x.softmax(1),
    "normalized over channels": lambda x: F.normalize(x, dim=1),
    "standard deviation of channels": lambda x: x / (1 + x.std(1, keepdim=True)),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "reversed": lambda x: x.flip(1),
    "shifted": lambda x: x.roll(1, 1),
    "summed up": lambda x: x.cumsum(1),
    "sorted": lambda x: x.sort(1).values,
    "times the first": lambda x: x * x[:, :1],
    "divided by a number of channels": lambda x: x * x.sum(1, keepdim=True) / 8,
    "a number in the code": lambda x: x.reshape(-1, 8, *x.shape[2:]),
    "interleaved and cut": lambda x: torch.stack([x, -x], 2).flatten(1, 2)[:, :8],
}
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(CONTINUOUS))
def test_continuous(name):
    found = inn.find_axes(Between(CONTINUOUS[name]), X)
    assert {k: (s.nodes, s.multiple_of) for k, s in found.specs.items()} == {"first": (8, 1)}


@pytest.mark.parametrize("name", list(DISCRETE))
def test_discrete(name):
    found = inn.find_axes(Between(DISCRETE[name]), X)
    assert not found.specs
    assert [d.reason for d in found.discrete if (d.tensor, d.dim) == ("first.weight", 0)]


def test_a_mean_by_hand_is_a_mean():
    found = inn.find_axes(Between(lambda x: x - x.sum(1, keepdim=True) / x.shape[1]), X)
    assert set(found.specs) == {"first"}


def test_proofs_tell_right_from_wrong():
    """The proofs pass on the axis as it is, and fail as soon as one tie is missing or misread."""
    from dataclasses import replace

    net = Between(F.relu).eval()
    found = inn.find_axes(net, X)
    probe = Probe(net, Inputs((X,), {}))
    axes = {"first": (8, 1)}
    assert probe.tolerance < 1e-8
    assert probe.permuted(found.ties, axes) <= probe.tolerance
    assert probe.refined(found.ties, axes) <= probe.tolerance
    for i, tie in enumerate(found.ties):
        others = found.ties[:i] + found.ties[i + 1 :]
        assert probe.permuted(others, axes) > 1e-3, tie
        assert probe.refined([*others, replace(tie, integrated=not tie.integrated)], axes) > 1e-3, tie


def test_zero_weights_hide_nothing():
    """A branch whose last weight starts at zero is still proved: the proof draws its own weights."""
    net = Between(F.relu)
    nn.init.zeros_(net.last.weight)
    assert set(inn.find_axes(net, torch.zeros_like(X)).specs) == {"first"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    torch._dynamo.reset()
    model = inn.convert(Between(F.relu), X).eval()
    with torch.no_grad():
        expected = model(X)
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=dynamic)
        torch.testing.assert_close(compiled(X), expected)


def test_one_example_is_enough():
    """Rectifiers that are off on the only example hide no channel from the proof."""
    for seed in range(5):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
        assert set(inn.find_axes(net, torch.zeros(1, 4)).specs) == {"0", "2"}


@pytest.mark.parametrize("seed", range(6))
def test_few_channels_pass_no_proof_by_chance(seed):
    """Channels in groups: of the orders of four, a third leave the groups what they are."""
    net = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv1d(4, 2, 1))
    found = inn.find_axes(net, torch.ones(2, 3, 5), seed=seed)
    assert {name: spec.nodes for name, spec in found.specs.items()} == {"0": 2, "1": 2}


class NormAndRectifier(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_a_norm_that_does_more_than_normalise_is_not_folded():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), NormAndRectifier(8), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
    )
    model = inn.convert(net.eval(), X, permute=False)
    assert model.report.folded == ["3"] and set(model.axes) == {"0", "2"}
