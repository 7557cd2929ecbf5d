"""Bytes of living tensors, against sizes that are known."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from neoplug.distributed.pretended import PretendedWorld, pretended_ranks
from neoplug.distributed.sharding import shard_layers, shard_root
from neoplug.environment.fake_floats import FakeFloats
from neoplug.environment.storage_tracker import StorageTracker

FLOATS = 1000 * 4  # bytes


def steps_of(tracker):
    """Do what allocates, views, grows and frees; return the bytes after each."""
    seen = []
    vector = torch.ones(1000)
    seen.append(tracker.now["cpu"])
    part = vector[:10]
    seen.append(tracker.now["cpu"])
    del vector
    seen.append(tracker.now["cpu"])  # the view keeps the whole
    part = part + 1
    seen.append(tracker.now["cpu"])
    grown = torch.empty(0).set_(torch.empty(5).untyped_storage()).resize_(1000)
    seen.append(tracker.now["cpu"])
    del part, grown
    return [*seen, tracker.now["cpu"]]


@pytest.mark.parametrize("has_data", [True, False])
def test_a_storage_counts_once_until_its_last_view_is_gone(has_data):
    tracker = StorageTracker()
    if has_data:
        with tracker:
            seen = steps_of(tracker)
    else:
        with FakeFloats(), tracker:
            seen = steps_of(tracker)
    assert seen == [FLOATS, FLOATS, FLOATS, 40, 40 + FLOATS, 0]
    assert tracker.total_peak == tracker.peak["cpu"] == FLOATS + 40


def test_a_resized_storage_counts_what_it_holds():
    """FSDP frees a gathered weight so, and gathers into it again."""
    vector, tracker = torch.ones(1000), StorageTracker()
    tracker.count([vector])
    with tracker:
        vector.untyped_storage().resize_(0)
        assert tracker.now["cpu"] == 0
        vector.untyped_storage().resize_(FLOATS)
    assert tracker.now["cpu"] == tracker.peak["cpu"] == FLOATS


def test_of_sharded_layers_each_rank_holds_its_part_and_what_is_gathered():
    """Two layers of 4 MB on four ranks: FSDP frees a buffer after the next layer is copied out of its own.

    So the second layer's buffer, its weight, and the first layer's buffer are there at a time.
    """
    whole, tracker = 4 * 1000**2, StorageTracker()
    with pretended_ranks(4), FakeFloats(), tracker:
        layers = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False) for _ in range(2)))
        assert tracker.now["cpu"] == 2 * whole
        mesh = PretendedWorld("cpu", 4).mesh
        shard_layers(layers.requires_grad_(False), mesh)
        shard_root(layers, mesh)
        assert tracker.count(layers.parameters()) == 0
        assert tracker.now["cpu"] == pytest.approx(2 * whole / 4, abs=100)
        tracker.reset_peak()
        layers(torch.ones(1, 1000))
        assert tracker.peak["cpu"] - 2 * whole / 4 == pytest.approx(3 * whole, rel=0.01)
    assert not torch.distributed.is_initialized()


def test_what_backward_keeps_counts_until_it_has_run():
    """The sigmoid's output is kept for its gradient; the product keeps both factors."""
    weight = torch.ones(1000, requires_grad=True)
    tracker = StorageTracker()
    assert tracker.count([weight, weight[:3]]) == FLOATS
    with tracker:
        loss = (weight.sigmoid() * weight.exp()).sum()
        assert tracker.now["cpu"] == 3 * FLOATS + 4
        loss.backward()
        assert weight.grad is not None
        assert tracker.now["cpu"] == 2 * FLOATS + 4


def test_floats_have_no_data_and_small_integers_keep_theirs():
    with FakeFloats():
        floats, numbers = torch.randn(10**9), torch.tensor([3, 4])
        assert isinstance(floats, FakeTensor)
        assert numbers.cumsum(0).tolist() == [3, 7]
        assert float(torch.tensor(2.5) + 1) == 3.5
        layer = torch.nn.Linear(10**5, 10**5).to(torch.bfloat16)  # 20 GB
        assert (layer.weight.dtype, tuple(layer.weight[numbers].shape)) == (torch.bfloat16, (2, 10**5))
