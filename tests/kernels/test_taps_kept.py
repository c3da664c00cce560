"""What is kept of taps, and what they are under transforms and in threads."""

import gc
import random
import sys
import threading
import weakref

import pytest
import torch
from torch.autograd import forward_ad

import common
from inn_kernels import taps
from inn_kernels.taps import Basis, make_taps, taps_for


def test_taps_of_fixed_partitions_are_kept():
    p = common.partition("random", 5)
    assert taps_for(p, 7).weight is taps_for(p, 7).weight
    assert taps_for(6, 7).weight is taps_for(6, 7).weight
    assert taps_for(p, 7).weight is not taps_for(p, 7, Basis(-0.5)).weight
    for other in ({"weighted": True}, {"dtype": torch.float64}, {"quadrature": "midpoint"}):
        assert taps_for(p, 7).weight is not taps_for(p, 7, **other).weight
    assert not torch.equal(taps_for(p, 7, weighted=True).weight, taps_for(p, 7, weighted=True, scale=2.0).weight)


def test_a_partition_written_in_place_gets_new_taps():
    p = common.partition("random", 5)
    before = taps_for(p, 7).weight
    p.mul_(0.5)
    torch.testing.assert_close(taps_for(p, 7, dtype=torch.float64).weight, make_taps(p, 7).weight, rtol=0, atol=0)
    assert not torch.equal(taps_for(p, 7).weight, before)


def test_trainable_partitions_are_not_kept():
    p = common.partition("random", 5).requires_grad_()
    first, second = taps_for(p, 7).weight, taps_for(p, 7).weight
    assert first is not second and first.requires_grad


def test_kept_taps_go_with_their_partition():
    gc.collect()
    before = len(taps._of_tensors)
    for seed in range(20):
        taps_for(common.partition("random", 9, seed), 7)
    gc.collect()
    assert len(taps._of_tensors) <= before


def test_a_partition_written_in_every_step_leaves_nothing_behind():
    p = common.partition("random", 5)
    for _ in range(200):
        p.mul_(0.99)
        for settings in ({}, {"weighted": True}, {"basis": Basis(-0.5)}):
            taps_for(p, 7, **settings)
    assert weakref.getweakrefcount(p) == 1
    assert len(taps._of_tensors[id(p)]) == 3


def test_tables_stay_small(monkeypatch):
    monkeypatch.setattr(taps, "_KEPT", 8)
    monkeypatch.setattr(taps, "_of_ints", {})
    monkeypatch.setattr(taps, "_of_tensors", {})
    partitions = [common.partition("random", 5, seed) for seed in range(30)]
    for p in partitions:
        for n in range(2, 32):
            taps_for(p, n), taps_for(n, 7)
    assert len(taps._of_ints) <= 8 and len(taps._of_tensors) <= 8
    assert all(len(table) <= 8 for table in taps._of_tensors.values())


def in_eight_threads(work):
    """Runs work(i) in eight threads that switch all the time, and raises what they raise."""
    errors, start = [], threading.Barrier(8)

    def run(i):
        start.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors, errors


def test_threads_share_what_is_kept(monkeypatch):
    monkeypatch.setattr(taps, "_KEPT", 6)  # so that threads make room for, and throw out, each other's all the time
    shared = [common.partition("random", 5, seed) for seed in range(8)]
    expected = {n: taps_for(n, 9).weight.clone() for n in range(2, 22)}
    expected |= {-i: make_taps(p, 9, dtype=torch.float32).weight for i, p in enumerate(shared)}

    def work(i):
        draw = random.Random(i)
        for _ in range(400):
            n = draw.randrange(-7, 22)
            if n in (0, 1):
                passing = shared[0].clone()  # its table goes while others are read
                assert torch.equal(taps_for(passing, 9).weight, expected[0])
            else:
                assert torch.equal(taps_for(n if n > 0 else shared[-n], 9).weight, expected[n])

    in_eight_threads(work)


def test_threads_fill_one_table(monkeypatch):
    monkeypatch.setattr(taps, "_KEPT", 6)
    table = {}

    def work(i):
        for k in range(20_000):
            taps._put(table, (i, k), k)
            assert table.get((i, k), k) == k

    in_eight_threads(work)
    assert len(table) <= 6 + 8


def test_a_bool_is_no_int():
    taps_for(1, 7)
    with pytest.raises(TypeError, match=r"partition .* bool"):
        taps_for(True, 7)


def test_what_is_kept_is_a_plain_tensor():
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    p = common.partition("random", 5)

    def sampled(x):
        made = [taps_for(29, 17), taps_for(p, 17), taps_for(29, 17, weighted=True)]
        return sum((m.weight.double() * x).sum() for m in made)

    x = torch.ones((), dtype=torch.float64)
    torch.func.vmap(torch.func.grad(sampled))(x.expand(2))
    torch.func.jvp(sampled, (x,), (x,))
    kept = [*taps._of_ints.values(), *(t for table in taps._of_tensors.values() for t in table.values())]
    assert not any(wrapped(t.start) or wrapped(t.weight) for t in kept)
    assert not any(wrapped(table.points) for table in taps._of_tensors.values())
    assert taps_for(29, 17) is taps_for(29, 17) and taps_for(p, 17) is taps_for(p, 17)


def test_transforms_of_a_partition():
    p = common.partition("random", 5)
    batch = torch.stack([p, common.partition("clustered", 5), p / 2])

    def value(p):
        start, weight, _ = taps_for(p, 7, quadrature="simpson", weighted=True, dtype=torch.float64)
        return (weight * (start[:, None] + torch.arange(4)).cos()).sum()

    leaf = p.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(value)(p), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.func.jacrev(value)(p), expected, rtol=0, atol=1e-13)
    along = torch.ones_like(p)
    torch.testing.assert_close(torch.func.jvp(value, (p,), (along,))[1], expected @ along, rtol=0, atol=1e-12)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(value(forward_ad.make_dual(p, along))).tangent
        torch.testing.assert_close(tangent, expected @ along, rtol=0, atol=1e-12)
    each = torch.stack([value(row) for row in batch])
    torch.testing.assert_close(torch.func.vmap(value)(batch), each, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="partition must be strictly increasing"):
        torch.func.grad(value)(p.flip(0))


def test_meta_partitions_have_meta_taps():
    points = torch.empty(5, device="meta")
    for _ in range(2):
        made = taps_for(points, 7, quadrature="simpson", weighted=True, device="meta")
        assert made.weight.is_meta and made.weight.shape == (5, 4)


def test_taps_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        made = taps_for(23, 19)
    nodes = common.rand(19, dtype=torch.float32).requires_grad_()
    assert taps_for(23, 19).weight is made.weight
    (common.dense_taps(*taps_for(23, 19)) @ nodes).sum().backward()
    assert nodes.grad is not None
    p = common.partition("random", 5)
    with torch.inference_mode():
        made = taps_for(p, 19)
    assert taps_for(p, 19) is made and not made.weight.is_inference()


def test_a_fixed_partition_written_through_data_gets_new_taps():
    partition = torch.linspace(0, 1, 5)
    before = taps_for(partition, 9)
    assert taps_for(partition, 9) is before
    partition.data.copy_(torch.tensor([0.0, 0.1, 0.2, 0.3, 1.0]))
    after = taps_for(partition, 9)
    assert not torch.equal(after.weight, before.weight)
    assert torch.equal(after.weight, taps_for(partition.clone(), 9).weight)
