"""Every public function under every transform of torch.func, forward-mode differentiation and batched gradients.

Float64, against the same call outside of the transform: its kernels, plain autograd, a loop over the batch.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import common
import integral_nn as inn
from common import DATAFLOWS, QUADRATURES, rand
from inn_kernels import taps, uniform_taps
from inn_kernels.quadrature import gauss_legendre_partition


class Call(NamedTuple):
    """A public function of tensors alone."""

    run: object
    inputs: dict[str, Tensor]


def points(n, seed):
    """Points off the nodes, where the kernel's second derivative jumps."""
    return common.partition("random", n, seed)


def convolution(rank, dataflow):
    function = {1: inn.integral_conv1d, 2: inn.integral_conv2d, 3: inn.integral_conv3d}[rank]
    inputs = {
        "x": rand(2, 4, *[3] * rank),
        "nodes": rand(5, 6, *[2] * rank, seed=1),
        "bias": rand(5, seed=2),
        "out_partition": points(3, 1),
        "in_partition": points(4, 2),
    }
    return Call(lambda **z: function(**z, padding=1, stride=2, dataflow=dataflow), inputs)


def linear(dataflow, **sizes):
    inputs = {"x": rand(2, 4), "nodes": rand(5, 6, seed=1), "bias": rand(5, seed=2)}
    if not sizes:
        inputs |= {"out_partition": points(3, 1), "in_partition": points(4, 2), "quadrature": rand(4, seed=3)}
    return Call(lambda **z: inn.integral_linear(**z, **sizes, dataflow=dataflow), inputs)


CALLS = {
    "discretize": Call(
        lambda nodes, p, q, weights: inn.discretize(nodes, p, q, quadrature=weights, scale=3.0),
        {"nodes": rand(5, 6, 2), "p": points(3, 1), "q": points(4, 2), "weights": rand(4, seed=3)},
    ),
    "discretize_sizes": Call(lambda nodes: inn.discretize(nodes, 3, 4, scale=3.0), {"nodes": rand(5, 6)}),
    "discretize_spatial": Call(
        lambda nodes, s: inn.discretize(nodes, None, 3, spatial_partitions=[s], boundary="keys"),
        {"nodes": rand(2, 5, 6), "s": points(4, 2)},
    ),
    "discretize_bias": Call(lambda nodes, p: inn.discretize(nodes, p), {"nodes": rand(5), "p": points(3, 1)}),
    "linear_taps": Call(
        lambda x, nodes, p: inn.integral_linear(x, nodes, None, None, p, dataflow="factored"),
        {"x": rand(2, 8), "nodes": rand(3, 6, 2), "p": points(4, 2)},
    ),
    "depthwise": Call(
        lambda x, nodes, p: inn.integral_conv1d(x, nodes, None, p, groups=3),
        {"x": rand(2, 3, 5), "nodes": rand(6, 1, 2), "p": points(3, 1)},
    ),
    "integrate": Call(
        lambda c, p: inn.integrate(lambda x, y: c[0] * x + (c[1] * y).exp() * x, [p, 6], quadrature="simpson"),
        {"c": rand(2), "p": points(5, 1)},
    ),
    "partition_from_deltas": Call(inn.partition_from_deltas, {"delta": 1 + rand(4).abs()}),
    **{f"linear_{flow}": linear(flow) for flow in DATAFLOWS},
    **{f"linear_{flow}_sizes": linear(flow, out_partition=3, in_partition=4) for flow in DATAFLOWS},
    **{f"conv{rank}d_{flow}": convolution(rank, flow) for rank in (1, 2, 3) for flow in DATAFLOWS},
    **{
        f"quadrature_{rule}": Call(
            lambda p, rule=rule: inn.quadrature_weights(rule, p),
            {"p": inn.uniform_partition(3, dtype=torch.float64) * 0.9 + 0.05},
        )
        for rule in QUADRATURES
    },
}
every_call = pytest.mark.parametrize("name", CALLS)
CHEAP = [name for name in CALLS if not name.startswith(("conv2d", "conv3d"))]


def opened(name):
    """A function of positional tensors, and the tensors."""
    run, inputs = CALLS[name]
    return lambda *z: run(**dict(zip(inputs, z))), tuple(inputs.values())


def loss(f):
    return lambda *z: f(*z).cos().sum()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def places(inputs):
    return tuple(range(len(inputs)))


def plain_gradients(f, inputs):
    leaves = tuple(z.clone().requires_grad_() for z in inputs)
    return torch.autograd.grad(f(*leaves), leaves)


def batch(inputs, only=None):
    """Three of each input (of one alone), a little apart, and how they are batched."""
    chosen = [only is None or i == only for i in places(inputs)]
    stacked = [torch.stack([z * (1 - 0.02 * b) for b in range(3)]) if c else z for z, c in zip(inputs, chosen)]
    return stacked, tuple(0 if c else None for c in chosen)


def loop(f, stacked, dims):
    results = [f(*(z if d is None else z[b] for z, d in zip(stacked, dims))) for b in range(3)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(z) for z in zip(*results))


@every_call
def test_grad(name):
    f, inputs = opened(name)
    close(grad(loss(f), places(inputs))(*inputs), plain_gradients(loss(f), inputs))


@every_call
def test_vjp(name):
    f, inputs = opened(name)
    value, pull = vjp(f, *inputs)
    cotangent = rand(*value.shape, seed=5)
    close(value, f(*inputs))
    close(pull(cotangent), plain_gradients(lambda *z: (f(*z) * cotangent).sum(), inputs))


@every_call
def test_jvp(name):
    f, inputs = opened(name)
    tangents = tuple(rand(*z.shape, seed=5) for z in inputs)
    got = jvp(f, inputs, tangents)
    close(got, torch.autograd.functional.jvp(f, inputs, tangents))
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(f(*map(forward_ad.make_dual, inputs, tangents)))
    close((value, tangent), got)


@every_call
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_jacobian(transform, name):
    f, inputs = opened(name)
    close(transform(f, places(inputs))(*inputs), torch.autograd.functional.jacobian(f, inputs))


@pytest.mark.parametrize("name", CHEAP)
def test_hessian(name):
    f, inputs = opened(name)
    want = torch.autograd.functional.hessian(loss(f), inputs)
    close(hessian(loss(f), places(inputs))(*inputs), want)


@every_call
def test_vmap(name):
    """Over each input alone and over all together."""
    f, inputs = opened(name)
    for only in (None, *places(inputs)):
        stacked, dims = batch(inputs, only)
        close(vmap(f, dims)(*stacked), loop(f, stacked, dims))


@every_call
def test_vmap_of_grad(name):
    f, inputs = opened(name)
    stacked, dims = batch(inputs)
    got = vmap(grad(loss(f), places(inputs)), dims)(*stacked)
    close(got, loop(lambda *z: plain_gradients(loss(f), z), stacked, dims))


@every_call
def test_batch_dimensions(name):
    """A batch along another dimension than the first, and a batch of a batch."""
    f, inputs = opened(name)
    stacked, dims = batch(inputs)
    last = [z.movedim(0, -1) for z in stacked]
    close(vmap(f, -1)(*last), loop(f, stacked, dims))
    twice = [torch.stack([z, z.flip(0)]) for z in stacked]
    close(vmap(vmap(f))(*twice), torch.stack([loop(f, [z[b] for z in twice], dims) for b in range(2)]))


@every_call
def test_batched_gradients(name):
    """Of a graph recorded outside: autograd's own batches, and torch.func's."""
    f, inputs = opened(name)
    leaves = tuple(z.clone().requires_grad_() for z in inputs)
    y = f(*leaves)
    grads = rand(3, *y.shape, seed=5)

    def pull(g, **options):
        return torch.autograd.grad(y, leaves, g, retain_graph=True, **options)

    want = loop(pull, [grads], (0,))
    close(pull(grads, is_grads_batched=True), want)
    close(vmap(pull)(grads), want)
    close(pull(grads, is_grads_batched=True, create_graph=True), want)
    close(vmap(lambda g: pull(g, create_graph=True))(grads), want)


@every_call
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobian(strategy, name):
    f, inputs = opened(name)
    want = torch.autograd.functional.jacobian(f, inputs)
    close(torch.autograd.functional.jacobian(f, inputs, vectorize=True, strategy=strategy), want)


# What the transforms must leave alone, and what they refuse ---------------------------------------------------


def dual(f, x):
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(x, torch.ones_like(x)))


UNDER = {
    "grad": lambda f, x: grad(lambda z: f(z).sum())(x),
    "vmap": lambda f, x: vmap(f)(x[None]),
    "jvp": lambda f, x: jvp(f, (x,), (x,)),
    "forward_ad": dual,
    "jit.trace": lambda f, x: torch.jit.trace(f, x, check_trace=False),
}
under = pytest.mark.parametrize("transform", UNDER)


@under
def test_a_backend_by_name_is_refused(transform, cpp):
    """It is never replaced; the message says by what it can be."""
    x, nodes = rand(2, 4), rand(5, 6)
    functions = (
        lambda z: inn.discretize(z, 3, 4, backend=cpp),
        lambda z: inn.integral_linear(x, z, None, 3, 4, backend=cpp),
        lambda z: inn.integral_conv1d(x[:, :, None], z[:, :, None], None, 3, 4, backend=cpp),
    )
    for f in functions:
        with pytest.raises(RuntimeError, match=r"backend 'cpp' cannot run here: .*use backend=None or 'reference'"):
            UNDER[transform](f, nodes)
        assert f(nodes).isfinite().all()


@under
def test_taps_kept_are_ordinary_tensors(transform, monkeypatch):
    """Taps made under a transform serve the calls after it; those of a transformed partition are not kept."""
    monkeypatch.setattr(taps, "_of_ints", {})
    monkeypatch.setattr(taps, "_of_tensors", {})
    nodes, fixed, p = rand(5, 6), points(4, 2), points(4, 3)
    UNDER[transform](lambda z: inn.discretize(z, 3, 4) + inn.discretize(z, 3, fixed), nodes)
    UNDER[transform](lambda z: inn.discretize(nodes, None, z), p)
    kept = [taps._of_ints, *taps._of_tensors.values()]
    # Those of two ints, where PyTorch makes them one without its quadrature too, and of `fixed`; a tracer keeps none.
    ints = 2 if uniform_taps.AVAILABLE else 3
    assert [len(table) for table in kept] == ([0] if transform == "jit.trace" else [ints, 1])
    for table in kept:
        for found in table.values():
            for tensor in (found.start, found.weight):
                assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    for given in (4, fixed, p):
        got = inn.discretize(nodes, 3, given)
        with monkeypatch.context() as without:
            without.setattr(taps, "_of_ints", {})
            without.setattr(taps, "_of_tensors", {})
            assert common.same_bits(got, inn.discretize(nodes, 3, given))


def test_a_partition_is_checked_unless_it_is_batched():
    nodes, falling = rand(5, 6), torch.tensor([0.5, 0.2])
    calls = (
        lambda: grad(lambda z: inn.discretize(z, None, falling).sum())(nodes),
        lambda: vmap(lambda z: inn.discretize(z, None, falling))(nodes[None]),
        lambda: grad(lambda p: inn.discretize(nodes, None, p).sum())(falling),
        lambda: jvp(lambda p: inn.discretize(nodes, None, p), (falling,), (falling,)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="in_partition must be strictly increasing"):
            call()
    with pytest.raises(ValueError, match="in_partition must have shape"):  # what needs no values is always said
        vmap(lambda p: inn.discretize(nodes, None, p))(falling.expand(2, 1, 2))


def test_legendres_points_have_tangents():
    """At its own points the rule's weights are known, but not their derivative."""
    p = gauss_legendre_partition(3, dtype=torch.float64)

    def f(p):
        return inn.quadrature_weights("gauss-legendre", p)

    want = torch.autograd.functional.jacobian(f, p)
    assert want.abs().max() > 0.1
    close(jacfwd(f)(p), want)
    close(dual_jacobian(f, p), want)
    close(vmap(f)(torch.stack([p, p * 0.9])), torch.stack([f(p), f(p * 0.9)]))


def dual_jacobian(f, x):
    with forward_ad.dual_level():
        columns = [forward_ad.unpack_dual(f(forward_ad.make_dual(x, e))).tangent for e in torch.eye(len(x)).to(x)]
    return torch.stack(columns, -1)


@pytest.mark.parametrize("training", [True, False])
def test_layers(training):
    """An ensemble of layers, and a layer's gradient, by functional_call."""
    width, image = inn.Axis(6, 4, trainable=True), inn.Axis(5, 3)
    net = torch.nn.Sequential(inn.IntegralConv1d(2, image, 2), inn.IntegralConv1d(image, width, 1), torch.nn.Flatten())
    net = net.append(inn.IntegralLinear(width, 3, taps=4)).double().train(training)
    x = rand(2, 2, 5)

    def call(parameters):
        return torch.func.functional_call(net, parameters, (x,))

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    want = dict(zip(parameters, torch.autograd.grad(net(x).cos().sum(), list(net.parameters()))))
    close(grad(lambda p: call(p).cos().sum())(parameters), want)
    stacked = {name: torch.stack([p, p * 1.1, p * 0.9]) for name, p in parameters.items()}
    with torch.no_grad():
        before = net(x)
        got = vmap(call)(stacked)
        close(got, torch.stack([call({name: p[b] for name, p in stacked.items()}) for b in range(3)]))
        close(net(x), before)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_transforms_compile(dataflow, fresh_compiler):
    f, inputs = opened(f"linear_{dataflow}_sizes")
    transformed = vmap(grad(loss(f), (0, 1)), (0, None, None))
    stacked = (torch.stack([inputs[0], inputs[0] * 0.9]), *inputs[1:])
    close(torch.compile(transformed, fullgraph=True, backend="aot_eager")(*stacked), transformed(*stacked))
