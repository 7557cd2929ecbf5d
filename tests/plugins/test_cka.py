"""Linear CKA against its definition with Gram matrices over all tokens, in numpy."""

import numpy as np
import pytest
import torch

from neoplug.data.batch import Document, collate
from neoplug.evaluation.probes import probe
from neoplug.models.verify import language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.testing.families import random_model, tokenizer
from neoplug_probes.cka import CKA


def by_gram_matrices(students, teachers):
    """Return HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of linear kernels [N, N] (equations 3 and 4)."""
    centring = np.eye(len(students)) - 1 / len(students)
    kernels = [centring @ (states @ states.T) @ centring for states in (students, teachers)]
    hsic = [[(one * other).sum() for other in kernels] for one in kernels]
    return hsic[0][1] / np.sqrt(hsic[0][0] * hsic[1][1])


def states(model, batch, layers):
    """Replace the core's `states`: a batch is {(model, layer): [N, H]}."""
    return {layer: batch[model, layer] for layer in layers}


def some_batches(sizes=(40, 1, 33, 0, 5), offset=0.0):
    rng = torch.Generator().manual_seed(0)
    batches = []
    for n in sizes:
        shared = torch.randn(n, 4, generator=rng)
        student = torch.cat([shared, torch.randn(n, 2, generator=rng)], 1) + offset
        teacher = torch.cat([shared, torch.randn(n, 5, generator=rng)], 1) @ torch.randn(9, 9, generator=rng) + offset
        batches.append({("s", -1): student, ("t", -1): teacher, ("s", 1): student**2, ("t", 3): teacher + 1})
    return batches


def whole(batches, key):
    return torch.cat([batch[key] for batch in batches]).double().numpy()


@pytest.mark.parametrize("offset", [0.0, 1e3])  # a common mean is not a similarity
def test_it_is_its_definition(offset):
    batches = some_batches(offset=offset)
    found = CKA({-1: -1, 1: 3}).on_evaluate("s", "t", batches, states)
    assert list(found) == ["-1", "1"]
    for layer, paired in ((-1, -1), (1, 3)):
        expected = by_gram_matrices(whole(batches, ("s", layer)), whole(batches, ("t", paired)))
        assert 0.01 < expected < 0.95
        assert found[str(layer)] == pytest.approx(expected, abs=1e-6)


def test_it_does_not_depend_on_the_batches():
    batches = some_batches()
    together = [{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}]
    one, other = (CKA().on_evaluate("s", "t", each, states)["-1"] for each in (batches, together))
    assert one == pytest.approx(other, abs=1e-12)


def test_a_rotation_and_a_scale_change_nothing_and_other_states_do():
    rng = torch.Generator().manual_seed(1)
    student = torch.randn(50, 6, generator=rng, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64)).Q
    for teacher, expected in ((3 * student @ rotation + 7, 1.0), (torch.randn(50, 6, generator=rng), 0.1)):
        found = CKA().on_evaluate("s", "t", [{("s", -1): student, ("t", -1): teacher}], states)["-1"]
        assert found == pytest.approx(expected, abs=1e-9 if expected == 1 else 0.1)


def test_without_teacher_tokens_or_variance_there_is_no_value():
    assert CKA().on_evaluate("s", None, some_batches(), states) == {"-1": None}
    for n in (0, 1):
        assert CKA().on_evaluate("s", "t", some_batches((n,)), states) == {"-1": None}


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match=r"^layers is empty"):
        CKA({})


@torch.no_grad()
def test_of_two_models_it_compares_the_states_of_transformers():
    rng = np.random.default_rng(0)
    documents = [Document(rng.integers(3, 200, n), np.arange(n) > 1, n) for n in (30, 12, 21)]
    modules = [random_model("llama", seed=1), random_model("gpt2", seed=2, num_hidden_layers=3)]
    wanted, rows = {1: 2, -1: 3}, {}
    for module, layers in zip(modules, zip(*wanted.items(), strict=True), strict=True):
        for each in documents:
            hidden = module(input_ids=torch.from_numpy(each.input_ids)[None], output_hidden_states=True).hidden_states
            for layer in layers:
                rows.setdefault((id(module), layer), []).append(hidden[layer][0, 1:-1].double().numpy())
    models = [language_model(module, "lm_head", Vocabulary(module.config.vocab_size)) for module in modules]
    batches = [collate(documents[:2]), collate(documents[2:])]
    found = probe(Plugins({"probes": {"cka": CKA(wanted)}}), *models, batches, tokenizer())["cka"]
    for layer, paired in wanted.items():
        pair = [np.concatenate(rows[id(module), at]) for module, at in zip(modules, (layer, paired), strict=True)]
        assert found[str(layer)] == pytest.approx(by_gram_matrices(*pair), abs=1e-5)
