"""What is stored of the teacher, against the exact distribution: unbiased samples, buckets in closed form, states.

N answer tokens, V vocabulary, K entries.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.testing import check_cache
from neoplug.training.objective import Loss, objective
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.reverse_kl import ReverseKL
from neoplug_teachers.compact import code_of, pack_ids, probability_of, unpack_ids
from neoplug_teachers.sampled import Sampled
from neoplug_teachers.states import States
from neoplug_teachers.threshold_sampling import sample
from neoplug_teachers.top_k import TopK

HIDDEN, VOCABULARY, TOKENS = 16, 200, 12


def head(seed: int, size: int = VOCABULARY) -> Head:
    """Return a head with random weights that gives distributions between certain and flat."""
    torch.manual_seed(seed)
    linear = nn.Linear(HIDDEN, size, bias=False).requires_grad_(False)
    nn.init.normal_(linear.weight)
    return Head(linear, Vocabulary(size))


def hidden(seed: int, tokens: int = TOKENS) -> Tensor:
    """Return hidden states whose distributions run from flat (0) to certain."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, HIDDEN, generator=rng) * torch.linspace(0, 4, tokens)[:, None]


def stored(plugin: object, states: Tensor, of: Head, draw: int = 0) -> dict[str, Tensor]:
    """Return what a kind of cache stores of a document."""
    plugins = Plugins({"teacher.cache": {"kind": plugin}})
    fitted = plugins.one("fit_cache", states=states, logits=of) or {}
    rng = torch.Generator().manual_seed(draw)
    found: dict[str, Tensor] = plugins.one("encode_teacher", states=states, logits=of, fitted=fitted, rng=rng)
    return found


def probabilities(plugin: object, states: Tensor, of: Head, draw: int = 0) -> Tensor:
    """Return the distributions [N, V] that a cache of entries decodes to."""
    entries = plugin.decode_teacher([stored(plugin, states, of, draw)], of).sparse(slice(None))
    dense = torch.zeros(len(states), of.vocabulary.size, dtype=torch.float64)
    return dense.scatter_add_(-1, entries.ids, entries.probabilities.double())


ROWS = {
    "one-hot": torch.eye(50)[3],
    "nearly one-hot": (30 * torch.eye(50)[3]).softmax(-1),
    "flat": torch.full((50,), 1 / 50),
    "mixed": torch.randn(50, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1),
    "two equal": torch.tensor([0.5, 0.5] + [0.0] * 48),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("entries", [2, 8, 50])
def test_the_mean_of_many_samples_is_the_distribution(name: str, entries: int) -> None:
    draws, p = 20_000, ROWS[name].double()
    rows = ROWS[name].expand(draws, -1)
    found = sample(rows, torch.full((draws,), entries), torch.Generator().manual_seed(1))
    q = torch.zeros(draws, 50, dtype=torch.float64).scatter_add_(-1, found.ids, found.probabilities().double())
    assert torch.allclose(q.sum(-1), torch.ones(draws, dtype=torch.float64), atol=1e-6)
    error = (q.mean(0) - p).abs()
    # A value drawn with a probability that 20,000 draws may never meet shows no spread: its own size bounds the error.
    assert (error <= 4.5 * q.std(0) / math.sqrt(draws) + 3 / draws * p.sqrt() + 1e-9).all()
    assert (found.ids[:, 0] == p.argmax()).all() or name in ("flat", "two equal")


def test_a_sample_has_distinct_entries_and_the_certain_ones_exactly() -> None:
    p = ROWS["mixed"].expand(500, -1)
    found = sample(p, torch.full((500,), 8), torch.Generator().manual_seed(2))
    assert all(len(set(row.tolist())) == 8 for row in found.ids)
    tau = float((1 - found.probabilities().double().masked_fill(~found.is_head, 0).sum(-1)).mean() / 3)
    heads = {int(id_) for id_ in found.ids[0][: int(found.heads[0])]}
    assert heads >= {int(id_) for id_ in (p[0] > 1.3 * tau).nonzero()}


@pytest.mark.parametrize("kind", [Sampled(), Sampled(entries=4), Sampled(bytes=12)])
def test_the_mean_gradient_of_samples_is_that_of_the_whole_distribution(kind: Sampled) -> None:
    draws, states, teacher, student = 400, hidden(0), head(1), head(2)
    exact = _gradient(None, states, teacher, student)
    found = torch.stack([_gradient(kind, states, teacher, student, draw) for draw in range(draws)])
    z = (found.mean(0) - exact).abs() / (found.std(0) / math.sqrt(draws)).clamp(min=1e-6)
    assert z.max() < 5  # of some 200 numbers


def _gradient(kind: object | None, states: Tensor, teacher: Head, student: Head, draw: int = 0) -> Tensor:
    """Return the gradient of forward KL by the student's hidden states, [N, H]."""
    ours, labels = hidden(3).requires_grad_(), torch.zeros(TOKENS, dtype=torch.int64)
    loss, name = ForwardKL(), "_sparse"
    if kind is None:
        kind, name = States("float32"), ""
    signal = kind.decode_teacher([stored(kind, states, teacher, draw)], teacher)
    functions = Plugins({"loss": {"forward_kl": loss}})
    value = functions.functions(f"token_loss{name}")["forward_kl"]
    gradient = functions.functions(f"token_gradient{name}")["forward_kl"]
    total, _ = objective([Loss("forward_kl", 1.0, value, gradient)], ours, student, signal, labels, 0.0)
    (found,) = torch.autograd.grad(total, ours)
    return found


@pytest.mark.parametrize("size", [2, 3, 200, 49_152, 128_256, 2**17 + 1])
def test_packed_ids_are_read_back(size: int) -> None:
    ids = torch.randint(size, (37,), generator=torch.Generator().manual_seed(size))
    packed = pack_ids(ids, size)
    assert len(packed) == math.ceil(37 * math.ceil(math.log2(size)) / 8)
    assert torch.equal(unpack_ids(packed, 37, size), ids)


def test_codes_are_nearest_and_hit_the_ends() -> None:
    p = torch.linspace(0, 1, 1001, dtype=torch.float64)
    nearest = (torch.arange(256, dtype=torch.float64) / 255).square()
    best = (p[:, None] - nearest).abs().amin(-1)
    torch.testing.assert_close((probability_of(code_of(p, 255), 255) - p).abs(), best, rtol=1e-9, atol=1e-12)
    assert code_of(torch.tensor([0.0, 1.0]), 255).tolist() == [0, 255]


@pytest.mark.parametrize("k", [1, 5, 199, 500])
def test_top_k_has_the_largest_probabilities_and_the_rest(k: int) -> None:
    states, teacher = hidden(0), head(1)
    p = teacher(states).double().softmax(-1)
    found = TopK(k).decode_teacher([stored(TopK(k), states, teacher)], teacher).sparse(slice(None))
    kept = min(k, VOCABULARY - 1)
    expected = p.topk(kept).values
    assert found.ids.shape == (TOKENS, kept)
    torch.testing.assert_close(found.probabilities.double(), p.gather(-1, found.ids), rtol=0, atol=3e-5)
    torch.testing.assert_close(found.probabilities.double(), expected, rtol=0, atol=3e-5)
    assert found.rest is not None
    torch.testing.assert_close(found.rest.double(), 1 - expected.sum(-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.entropy.double(), -(p * p.log()).sum(-1), rtol=1e-3, atol=1e-3)


def test_a_divergence_of_top_k_is_that_of_the_merged_distributions() -> None:
    """Relative entropy over k tokens and one outcome for all others, in float64, and its gradient by autograd."""
    states, ours, teacher, student = hidden(0), hidden(3).double(), head(1), head(2)
    entries = TopK(5).decode_teacher([stored(TopK(5), states, teacher)], teacher).sparse(slice(None))
    assert entries.rest is not None
    p = torch.cat([entries.probabilities, entries.rest[:, None]], -1).double()
    logits = (ours @ student.module.weight.double().t()).requires_grad_()
    q = logits.softmax(-1)
    merged = torch.cat([q.gather(-1, entries.ids), q.scatter(-1, entries.ids, 0).sum(-1, keepdim=True)], -1)
    for loss, expected in ((ForwardKL(), rel_entr(p, merged)), (ReverseKL(), rel_entr(merged, p))):
        arguments = {"student": logits.detach().log_softmax(-1), **entries.arguments()}
        del arguments["teacher_entropy"]
        rest = {"teacher_entropy": entries.entropy} if isinstance(loss, ForwardKL) else {}
        value, gradient = loss.token_gradient_sparse(**arguments, **rest)
        torch.testing.assert_close(value, expected.sum(-1), rtol=1e-5, atol=1e-7)
        (by_autograd,) = torch.autograd.grad(expected.sum(), logits, retain_graph=True)
        torch.testing.assert_close(gradient, by_autograd, rtol=1e-4, atol=1e-7)


def rel_entr(p: Tensor, q: Tensor) -> Tensor:
    return p * (p.clamp(min=1e-38).log() - q.clamp(min=1e-38).log())


def test_states_are_stored_exactly_or_to_their_rounding() -> None:
    states, teacher = hidden(0) * torch.logspace(-3, 3, HIDDEN), head(1)
    exact = States("float32").decode_teacher([stored(States("float32"), states, teacher)], teacher)
    assert torch.equal(exact.states, states)
    half = States("bfloat16").decode_teacher([stored(States("bfloat16"), states, teacher)], teacher)
    torch.testing.assert_close(half.states.float(), states, rtol=2**-8, atol=0)
    wide = torch.randn(3, 150)
    found = States("int8").decode_teacher([stored(States("int8"), wide, teacher)], teacher).select(torch.tensor([2, 0]))
    groups = wide.abs().split(64, -1)
    steps = torch.cat([group.amax(-1, keepdim=True).expand_as(group) for group in groups], -1) / 127
    assert ((found.states - wide[[2, 0]]).abs() <= 0.5001 * steps[[2, 0]]).all()


@pytest.mark.parametrize("size", [12, 20, 40])
def test_a_sample_takes_the_bytes_that_were_asked_for(size: float) -> None:
    states, teacher = hidden(0, 400), head(1)
    kind = Sampled(bytes=size)
    kept = stored(kind, states, teacher)
    used = sum(tensor.numel() * tensor.element_size() for tensor in kept.values()) / 400
    assert size - 2.5 < used <= size + 0.5
    entropy = kept["entropy"].float()
    assert torch.corrcoef(torch.stack([entropy, kept["entries"].float()]))[0, 1] > 0.8


def test_other_documents_change_nothing_of_a_sample() -> None:
    """The threshold is fitted once; a document's random numbers are its own."""
    teacher, kind = head(1), Sampled(bytes=20)
    fitted = kind.fit_cache(hidden(5, 300), teacher)
    drawn = [kind.encode_teacher(hidden(0), teacher, fitted, torch.Generator().manual_seed(9)) for _ in range(2)]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_selected_tokens_are_those_of_the_whole() -> None:
    states, teacher, kept = hidden(0), head(1), torch.tensor([3, 7])
    for kind in (Sampled(), Sampled(bytes=20), TopK(4)):
        parts = [stored(kind, states[:5], teacher), stored(kind, states[5:], teacher)]
        signal = kind.decode_teacher(parts, teacher)
        whole, found = signal.sparse(slice(None)), signal.select(kept).sparse(slice(None))
        assert torch.equal(found.ids, whole.ids[kept])
        assert torch.equal(found.probabilities, whole.probabilities[kept])


@pytest.mark.parametrize(
    "options", [{"entries": 16, "bytes": 40.0}, {"entries": 1}, {"entries": 256}, {"bytes": 2.0}, {"draws": 0}]
)
def test_impossible_samples_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"entries|bytes|draws"):
        Sampled(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind",
    [States("float32"), States("int8"), TopK(1), TopK(5), TopK(500), Sampled(2), Sampled(bytes=12), Sampled(draws=3)],
    ids=repr,
)
def test_other_options_have_the_properties_of_every_cache(kind: object) -> None:
    check_cache(kind)
