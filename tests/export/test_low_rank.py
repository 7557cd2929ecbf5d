"""The difference of two models: its rank, its largest components and their error, against numpy in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from neoplug.errors import UsageError
from neoplug.export import low_rank as difference
from neoplug.export.low_rank import Layer, Product, changed_layers, decompose, fidelity, largest_saving_rank


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(rank, outputs=20, inputs=30, size=1.0):
    before = drawn(outputs, inputs)
    change = size * drawn(outputs, rank, seed=1) @ drawn(rank, inputs, seed=2)
    return Layer(before, before + change, False)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_the_rank_is_found_despite_the_rounding_of_a_merge(size):
    product = decompose(layer(3, size=size), most=20)
    assert product.rank == 3
    assert product.left.shape == (20, 3)
    found = fidelity({"a": layer(3, size=size)}, {"a": product}, 3, torch.float32)
    assert found.exact
    assert found.error < 1e-6 / size


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_the_error_is_that_of_the_eckart_young_theorem(rank):
    layers = {"a": layer(8), "b": layer(8, outputs=12, inputs=9)}
    found = fidelity(layers, {name: decompose(each, 20) for name, each in layers.items()}, rank, torch.float32)
    spectra = {
        name: np.linalg.svd((each.after.double() - each.before.double()).numpy(), compute_uv=False)
        for name, each in layers.items()
    }
    for name, sizes in spectra.items():
        assert found.layers[name] == (8, pytest.approx(np.linalg.norm(sizes[rank:]) / np.linalg.norm(sizes), rel=1e-5))
    lost, whole = (np.concatenate([sizes[start:] for sizes in spectra.values()]) for start in (rank, 0))
    assert found.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(whole), rel=1e-5)
    assert not found.exact
    assert found.needed == 8
    assert found.layers[found.worst][1] == max(error for _, error in found.layers.values())


def test_rounding_to_16_bits_is_part_of_the_error():
    layers = {"a": layer(3)}
    products = {"a": decompose(layers["a"], 20)}
    whole, half = (fidelity(layers, products, 3, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert whole.error < 1e-6
    assert 1e-3 < half.error < 1e-2  # eight bits


def test_a_random_projection_finds_the_components_of_the_full_decomposition(monkeypatch):
    wide = layer(5, outputs=60, inputs=70)
    exact = decompose(wide, 60)
    monkeypatch.setattr(difference, "SKETCHES", (3, 12, 50))
    called = []
    svd = torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda matrix, **options: called.append(matrix.shape) or svd(matrix, **options)
    )
    sketched = decompose(wide, 60)
    assert called == [(12, 70)]
    assert sketched.rank == exact.rank == 5
    torch.testing.assert_close(sketched.left @ sketched.right, exact.left @ exact.right, rtol=0, atol=1e-4)
    assert decompose(layer(30, outputs=60, inputs=70), 60).rank == 30  # more than the width of the sketch
    assert called[1:] == [(60, 70)]


def test_a_smaller_rank_is_padded_with_zeros():
    up, down = Product(drawn(4, 2), drawn(2, 6), 2).padded(5, torch.float16)
    assert (up.shape, down.shape, up.dtype) == ((4, 5), (5, 6), torch.float16)
    assert not up[:, 2:].any()
    assert not down[2:].any()


def test_the_largest_saving_rank_is_no_larger_than_the_weights():
    layers = {"a": layer(1, 64, 64), "b": layer(1, 64, 128)}
    rank = largest_saving_rank(layers)
    assert rank * (64 + 64 + 64 + 128) <= 64 * 64 + 64 * 128 < (rank + 1) * (64 + 64 + 64 + 128)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(4, 6), nn.Linear(6, 4), nn.LayerNorm(4)


@pytest.fixture
def pair():
    before, after = Small(), Small()
    after.load_state_dict(before.state_dict())
    return before, after.requires_grad_(False)


def test_only_layers_that_differ_are_named(pair):
    before, after = pair
    after.up.weight += 1
    (found,) = changed_layers(after, before).items()
    assert found[0] == "up"
    torch.testing.assert_close(found[1].change, torch.ones(6, 4, dtype=torch.float64))


@pytest.mark.parametrize("elsewhere", ["norm.weight", "norm.bias", "up.bias"])
def test_a_change_elsewhere_is_refused_by_name(pair, elsewhere):
    before, after = pair
    after.up.weight += 1
    after.get_parameter(elsewhere).add_(1)
    with pytest.raises(UsageError, match=f"{elsewhere} changed, and a LoRA changes"):
        changed_layers(after, before)


def test_two_equal_models_are_refused(pair):
    with pytest.raises(UsageError, match="no change to export"):
        changed_layers(*pair)
