"""A rank that dies or stays away, a run that goes on after it, and what was written until then."""

import datetime
import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.nn.parallel import DistributedDataParallel

import integral_nn as inn
from models import blocks, by_hand, make, whole
from ranks import Ranks
from test_checkpoints import load, optimizer_of, save, steps, values

WRAPS = {"blocks": blocks, "ddp": DistributedDataParallel}
LIMIT = 5.0  # seconds


def train_and_die(rank, folder):
    """Six unbroken steps, then a run of three that are saved, and one in which rank 1 dies."""
    for wrap in WRAPS.values():
        model = make("by hand", True)
        called, optimizer = wrap(model), optimizer_of(model)
        steps(called, model, optimizer, rank, 2, range(6))
        found = values(model, optimizer)
        torch.save(found, f"{folder}/{wrap.__name__}.pt") if rank == 0 else None
    for name, wrap in WRAPS.items():
        model = make("by hand", True)
        called, optimizer = wrap(model), optimizer_of(model)
        steps(called, model, optimizer, rank, 2, range(3))
        save(model, optimizer, f"{folder}/{name}")
    if rank == 1:
        model.net[2].register_forward_hook(lambda *_: os._exit(1))
    before = [p.detach().clone() for p in model.parameters()]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?i)connection|closed|reset|timed out"):
        steps(called, model, optimizer, rank, 2, range(3, 5))
    with pytest.raises(RuntimeError, match="did not tell its sizes"):
        inn.check_sizes(model)
    assert time.monotonic() - start < 3 * LIMIT
    return all(torch.equal(p, old) for p, old in zip(model.parameters(), before))


def go_on(rank, folder, name):
    wrap = WRAPS[name]
    torch.manual_seed(rank)
    model = make("by hand", True)
    called, optimizer = wrap(model), optimizer_of(model)
    inn.check_checkpoint(called, f"{folder}/{name}")
    load(model, optimizer, f"{folder}/{name}")
    steps(called, model, optimizer, rank, 2, range(3, 6))
    expected = torch.load(f"{folder}/{wrap.__name__}.pt")
    found = values(model, optimizer)
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.fixture(scope="module")
def wreck(tmp_path_factory):
    """What a run left behind that lost a rank; and what the other rank saw."""
    folder = tmp_path_factory.mktemp("wreck")
    pair = Ranks(folder, timeout=LIMIT)
    alive, dead = pair.answers(train_and_die, str(folder))
    pair.close()
    return folder, alive, dead


def test_a_rank_that_dies_is_an_error_on_the_other(wreck):
    _, (good, unchanged), (good_too, said) = wreck
    assert good and unchanged, unchanged
    assert not good_too and said == "no answer"


@pytest.mark.parametrize("name", WRAPS)
def test_a_killed_run_goes_on_as_if_unbroken(ranks, wreck, name):
    assert all(ranks(go_on, str(wreck[0]), name))


def load_a_shard(rank):
    """Load what ranks of another number of ranks had each; what is said, and whether anything changed."""
    model = blocks(make("by hand"))
    state = model.state_dict()
    for name, p in make("by hand").named_parameters():
        state[name] = p.detach().chunk(4)[rank] + 1
    before = {name: whole(p).clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    return str(caught.value), all(torch.equal(whole(p), before[name]) for name, p in model.named_parameters())


def test_a_shard_of_another_number_of_ranks_is_refused_on_every_rank(ranks):
    for said, unchanged in ranks(load_a_shard):
        assert "net.0.weight_nodes" in said and "size mismatch" in said and unchanged


def die_while_saving(rank, folder):
    """A checkpoint, then a second one in a folder of its own, before whose end rank 1 dies."""
    model = make("by hand", True)
    called, optimizer = blocks(model), optimizer_of(model)
    steps(called, model, optimizer, rank, 2, range(3))
    save(model, optimizer, f"{folder}/first")
    steps(called, model, optimizer, rank, 2, range(3, 5))
    if rank == 1:
        dcp.FileSystemWriter.write_data = lambda *_: os._exit(1)
    with pytest.raises((RuntimeError, dcp.CheckpointException)):
        save(model, optimizer, f"{folder}/second")
    return True


def go_on_from_the_first(rank, folder):
    model = make("by hand", True)
    called, optimizer = blocks(model), optimizer_of(model)
    with pytest.raises(ValueError, match="finished checkpoint"):
        inn.check_checkpoint(called, f"{folder}/second")
    inn.check_checkpoint(called, f"{folder}/first")
    load(model, optimizer, f"{folder}/first")
    return all(bool(p.isfinite().all()) for p in map(whole, model.parameters()))


def test_a_rank_that_dies_while_it_saves_leaves_the_old_checkpoint(ranks, tmp_path):
    pair = Ranks(tmp_path, timeout=LIMIT)
    (good, said), (good_too, _) = pair.answers(die_while_saving, str(tmp_path))
    pair.close()
    assert good and not good_too, said
    assert all(ranks(go_on_from_the_first, str(tmp_path)))


def stay_away(rank):
    group = dist.new_group(timeout=datetime.timedelta(seconds=2))
    if rank == 1:
        time.sleep(3)
        return "asleep"
    with pytest.raises(RuntimeError) as caught:
        inn.check_sizes(by_hand(), group)
    return str(caught.value)


def test_a_rank_that_stays_away_is_an_error_in_time(ranks):
    said, _ = ranks(stay_away)
    assert "did not tell its sizes" in said
