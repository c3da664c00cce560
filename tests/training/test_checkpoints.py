"""torch.distributed.checkpoint: shards of 1, 2 and 4 processes, sizes and points with them; runs that go on."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

import integral_nn as inn
from models import MAKE, blocks, by_hand, converted, loss, make, share, whole

WORLDS = (1, 2, 4)


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), 0.01)


def steps(called, model, optimizer, rank, world, numbers):
    for step in numbers:
        model.resample(step)
        optimizer.zero_grad()
        loss(called, *share(step, rank, world)).backward()
        optimizer.step()


def values(model, optimizer):
    """Everything that a run goes on from, whole."""
    found = {name: whole(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {(name, key): whole(value) for key, value in optimizer.state[p].items()}
    found["sizes"] = torch.tensor(list(model.sizes.values()))
    return found | {name: axis.partition().detach() for name, axis in model.axes.items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def save(model, optimizer, folder, group=None, asynchronous=False):
    own, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": own, "optimizer": of_optimizer}
    if asynchronous:
        dcp.async_save(state, checkpoint_id=folder, process_group=group).result()
    else:
        dcp.save(state, checkpoint_id=folder, process_group=group)


def load(model, optimizer, folder, group=None):
    own, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": own, "optimizer": of_optimizer}
    dcp.load(state, checkpoint_id=folder, process_group=group)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def reshard(rank, kind, folder):
    """Save by each number of processes, load by each; returns what differs."""
    meshes = {world: DeviceMesh("cpu", list(range(world))) for world in WORLDS}
    wrong = []
    for wrote, mesh in meshes.items():
        if rank < wrote:
            model = blocks(make(kind, True), mesh)
            optimizer = optimizer_of(model)
            steps(model, model, optimizer, rank, wrote, range(2))
            save(model, optimizer, f"{folder}/{wrote}", mesh.get_group())
            saved = values(model, optimizer)
            torch.save(saved, f"{folder}/{wrote}.pt") if rank == 0 else None
        dist.barrier()
        expected = torch.load(f"{folder}/{wrote}.pt")
        for reads, other in meshes.items():
            if rank < reads:
                model = blocks(make(kind, True), other)
                optimizer = optimizer_of(model)
                load(model, optimizer, f"{folder}/{wrote}", other.get_group())
                if not same(values(model, optimizer), expected):
                    wrong.append((wrote, reads))
            dist.barrier()
    return wrong


@pytest.mark.parametrize("kind", MAKE)
def test_shards_of_other_numbers_of_processes(four, kind, tmp_path):
    assert four(reshard, kind, str(tmp_path)) == [[]] * 4


def go_on(rank, kind, wrap, folder):
    """An unbroken run, and one that is saved on the way and goes on in fresh objects."""
    found = []
    for broken in (False, True):
        model = make(kind, True)
        called, optimizer = wrap(model), optimizer_of(model)
        steps(called, model, optimizer, rank, 2, range(3))
        if broken:
            save(_named(called, kind), optimizer, folder, asynchronous=True)
            torch.manual_seed(7 + rank)
            model = make(kind, True)
            called, optimizer = wrap(model), optimizer_of(model)
            load(_named(called, kind), optimizer, folder)
        steps(called, model, optimizer, rank, 2, range(3, 6))
        found.append(values(model, optimizer))
    return same(*found)


def _named(called, kind):
    """In DistributedDataParallel, set_state_dict does not rename modules that have two names, as axes by hand do."""
    return called.module if kind == "by hand" and isinstance(called, DistributedDataParallel) else called


@pytest.mark.parametrize("wrap", [blocks, DistributedDataParallel])
@pytest.mark.parametrize("kind", MAKE)
def test_a_run_that_goes_on_equals_an_unbroken_one(ranks, kind, wrap, tmp_path):
    assert all(ranks(go_on, kind, wrap, str(tmp_path)))


def gather_and_spread(rank, kind):
    """Sharded -> one whole state -> an ordinary model; and the whole state of rank 0 into shards without memory."""
    model = blocks(make(kind, True))
    model.resample(5)
    optimizer = optimizer_of(model)
    steps(model, model, optimizer, rank, 2, range(2))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    truth = {name: whole(p) for name, p in model.named_parameters()}
    if rank == 0:
        alone = make(kind)
        alone.load_state_dict(state)
        assert alone.sizes == model.sizes
        assert all(torch.equal(p, truth[name]) for name, p in alone.named_parameters())
    late = make(kind, True).to("meta")
    blocks(late).to_empty(device="cpu")
    inn.replicate_points(late)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(late, state if rank == 0 else {}, options=options)
    found = {name: whole(p) for name, p in late.named_parameters()}
    return late.sizes == model.sizes and same(found, truth)


@pytest.mark.parametrize("kind", MAKE)
def test_whole_states(ranks, kind):
    assert all(ranks(gather_and_spread, kind))


def load_another(rank, folder, what):
    """Load a checkpoint of another rule, shape or network; what is said, and whether anything changed."""
    saved = by_hand(kernel="linear") if what == "rule" else converted() if what == "network" else by_hand()
    if what == "scale":
        saved.net[2].scale = 2.5
    if what == "shape":
        saved.net[0] = inn.IntegralConv2d(3, saved.axes["0"], 5)
    dcp.save({"model": get_model_state_dict(blocks(saved))}, checkpoint_id=folder)
    model = blocks(by_hand())
    before = {name: whole(p).clone() for name, p in model.named_parameters()}
    sizes = model.sizes
    with pytest.raises(ValueError) as caught:
        inn.check_checkpoint(model, folder)
    inn.check_checkpoint(saved, folder)
    after = {name: whole(p) for name, p in model.named_parameters()}
    return str(caught.value), same(before, after) and model.sizes == sizes


@pytest.mark.parametrize(
    "what, words",
    [
        ("rule", "net.0.out_axis: kernel='linear' in the state_dict, 'bspline' here"),
        ("shape", "net.0.weight_nodes is [16, 3, 5, 5] there, [16, 3, 3, 3] here"),
        ("scale", "net.2: scale=2.5 in the state_dict, 16.0 here"),
        ("network", "there is no axis net.0.out_axis"),
    ],
)
def test_another_checkpoint_is_refused_on_every_rank(ranks, what, words, tmp_path):
    for said, unchanged in ranks(load_another, str(tmp_path), what):
        assert words in said and unchanged


def test_an_unfinished_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="finished checkpoint"):
        inn.check_checkpoint(by_hand(), tmp_path)


def test_an_old_checkpoint_says_how_to_load_it(tmp_path):
    model = by_hand()
    state = model.state_dict()
    for name in state:
        if name.endswith("axis._extra_state"):
            state[name] = torch.tensor(7)
    dcp.save(state, checkpoint_id=tmp_path / "old", no_dist=True)
    with pytest.raises(ValueError, match="dcp_to_torch_save"):
        inn.check_checkpoint(model, tmp_path / "old")
    dcp_to_torch_save(tmp_path / "old", tmp_path / "old.pt")
    with pytest.warns(UserWarning, match="by which rule"):
        model.load_state_dict(torch.load(tmp_path / "old.pt"))
    assert set(model.sizes.values()) == {7}
