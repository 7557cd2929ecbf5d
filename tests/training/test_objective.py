"""The objective against whole logits in float64: equal value and gradient, without logits of all tokens in memory."""

import weakref
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from neoplug.errors import RunError
from neoplug.hookspecs import hookimpl
from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.teachers.signals import StatesSignal
from neoplug.training import objective as module
from neoplug.training.objective import Loss, TokenWeights, log_probabilities, objective
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon
from neoplug_losses.reverse_kl import ReverseKL

HIDDEN = 8
MIX = {"cross_entropy": CrossEntropy(), "forward_kl": ForwardKL(), "jsd": JensenShannon(beta=0.3), "rkl": ReverseKL()}
WEIGHTS = {"cross_entropy": 0.5, "forward_kl": 0.7, "jsd": 2.0, "rkl": 0.1}


def losses(closed=True, names=tuple(MIX)):
    plugins = Plugins({"loss": {name: MIX[name] for name in names}})
    gradients = plugins.functions("token_gradient") if closed else {}
    values = plugins.functions("token_loss")
    return [Loss(name, WEIGHTS[name], values[name], gradients.get(name)) for name in names]


def plugin(**hooks):
    """Return a plugin with these hooks."""
    marked = {name: hookimpl(function) for name, function in hooks.items()}
    return dataclass(eq=False)(type("Odd", (), marked))()


def linear(rows, seed, dtype=torch.float32, bias=False):
    torch.manual_seed(seed)
    layer = nn.Linear(HIDDEN, rows, bias=bias).to(dtype)
    layer.weight.data.mul_(3)
    return layer.requires_grad_(False)


def reference(hidden, weight, bias, teacher_logits, labels, post=lambda z: z, ids=None):
    """Return the sum over tokens of the weighted mix, from whole logits in float64 by torch's functions."""
    logits = post(hidden.double() @ weight.double().t() + (0 if bias is None else bias.double()))
    logits = logits if ids is None else logits[:, ids]
    log_q, log_p = torch.log_softmax(logits, -1), torch.log_softmax(teacher_logits.double(), -1)
    p, q = log_p.exp(), log_q.exp()
    m = 0.3 * p + 0.7 * q
    kl = nn.functional.kl_div
    total = 0.5 * nn.functional.cross_entropy(logits, labels, reduction="sum")
    total = total + 0.7 * kl(log_q, log_p, log_target=True, reduction="sum") + 0.1 * kl(
        log_p, log_q, log_target=True, reduction="sum"
    )  # fmt: skip
    jsd = 0.3 * (p * (log_p - m.log())).sum() + 0.7 * (q * (log_q - m.log())).sum()
    return total + 2.0 * jsd


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "autograd"])
@pytest.mark.parametrize("kind", ["frozen", "trainable", "bias", "cap", "multiplier", "padded rows", "gaps"])
def test_it_equals_whole_logits_in_float64(closed, kind, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5 * 40)
    monkeypatch.setattr(module, "TILE", 2 * 40)
    rows, tokens = 40, 23
    ids = torch.tensor([i for i in range(rows) if i % 7]) if kind == "gaps" else None
    size = {"padded rows": 31, "gaps": 0 if ids is None else len(ids)}.get(kind, rows)
    layer = linear(rows, 1, bias=kind == "bias").requires_grad_(kind in ("trainable", "bias"))
    cap, multiplier = (2.0 if kind == "cap" else None), (0.25 if kind == "multiplier" else 1.0)
    head = Head(layer, Vocabulary(size, ids), multiplier, cap)
    teacher = Head(linear(rows, 2), Vocabulary(size, ids))
    torch.manual_seed(3)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    states = torch.randn(tokens, HIDDEN)
    places = torch.randint(size, (tokens,))
    labels = places if ids is None else ids[places]

    total, values = objective(losses(closed), hidden, head, StatesSignal(states, teacher), labels, 0.0)
    (3 * total).backward()

    expected_hidden = hidden.detach().double().requires_grad_()
    weight = layer.weight.detach().double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().double().requires_grad_()

    def post(z):
        z = z * multiplier
        return z if cap is None else cap * torch.tanh(z / cap)

    keep = torch.arange(size) if ids is None else ids
    expected = reference(expected_hidden, weight, bias, teacher(states), places, post, keep)
    (3 * expected).backward()
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(hidden.grad.double(), expected_hidden.grad, rtol=1e-4, atol=1e-4)
    assert values.shape == (4, tokens)
    if kind in ("trainable", "bias"):
        torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-3)
    else:
        assert layer.weight.grad is None
    if kind == "bias":
        torch.testing.assert_close(layer.bias.grad.double(), bias.grad, rtol=1e-4, atol=1e-3)


@dataclass(eq=False)
class Open:
    """The teacher's entropy: it is not constant, but the weight gets no gradient through it."""

    @hookimpl
    def token_weight(self, teacher):
        return -(teacher.exp() * teacher).sum(-1)


@dataclass(eq=False)
class Hard:
    @hookimpl
    def token_weight(self, student, labels, position, progress):
        assert not student.requires_grad
        assert not torch.is_grad_enabled()
        assert progress == 0.5
        return (1 - student.gather(-1, labels[:, None])[:, 0].exp()) / (1 + position)


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "autograd"])
def test_token_weights_are_factors_of_each_tokens_loss_and_gradient(closed, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5 * 40)
    monkeypatch.setattr(module, "TILE", 2 * 40)
    head, teacher = Head(linear(40, 1).requires_grad_(), Vocabulary(40)), Head(linear(40, 2), Vocabulary(40))
    torch.manual_seed(3)
    hidden, states = torch.randn(23, HIDDEN, requires_grad=True), torch.randn(23, HIDDEN)
    labels, position = torch.randint(40, (23,)), torch.randperm(23)
    functions = Plugins({"token_weights": {"open": Open(), "hard": Hard()}}).functions("token_weight")
    weights = TokenWeights(functions, position)
    total, values = objective(
        losses(closed), hidden, head, StatesSignal(states, teacher), labels, 0.5, token_weights=weights
    )
    total.backward()

    wide, weight = hidden.detach().double().requires_grad_(), head.module.weight.detach().double().requires_grad_()
    expected = 0
    for row in range(23):
        logits, answer = teacher(states)[row : row + 1], labels[row : row + 1]
        p = torch.softmax(logits.double(), -1)
        q = torch.softmax((wide[row] @ weight.t()).detach(), -1)
        factor = -(p * p.log()).sum() * (1 - q[answer]) / (1 + position[row])
        expected = expected + factor * reference(wide[row : row + 1], weight, None, logits, answer)
    expected.sum().backward()
    torch.testing.assert_close(total.double(), expected.sum(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(hidden.grad.double(), wide.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.module.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(values.sum(-1) @ torch.tensor(list(WEIGHTS.values())), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        (lambda labels: labels[:1] * 1.0, "shape"),
        (lambda labels: 1.0, "float"),
        (lambda labels: -1.0 * labels, None),
    ],
)
def test_invalid_token_weights_are_refused_or_make_the_loss_not_finite(weight, fault):
    head, hidden, labels = Head(linear(20, 1), Vocabulary(20)), torch.randn(6, HIDDEN), torch.arange(6)
    odd = plugin(token_weight=lambda self, labels: weight(labels))
    weights = TokenWeights(Plugins({"token_weights": {"odd": odd}}).functions("token_weight"), torch.arange(6))
    only = losses(names=("cross_entropy",))

    def weighted():
        return objective(only, hidden, head, None, labels, 0.0, token_weights=weights)

    if fault:
        with pytest.raises(RunError, match=f"the plugin `odd` answered `token_weight` with .*{fault}"):
            weighted()
    else:
        assert weighted()[1].isnan().tolist() == [[False, *[True] * 5]]


@settings(deadline=None, max_examples=25)
@given(tokens=st.integers(0, 17), block=st.integers(1, 400), tile=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_chunk_size_has_no_effect(tokens, block, tile, seed):
    head, teacher = Head(linear(20, 1), Vocabulary(20)), Head(linear(20, 2), Vocabulary(20))
    torch.manual_seed(seed)
    states = torch.randn(2, tokens, HIDDEN)
    labels = torch.randint(20, (tokens,))

    def value_and_gradient(block, tile):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "BLOCK", block)
            patch.setattr(module, "TILE", tile)
            hidden = states[0].clone().requires_grad_()
            total, _ = objective(losses(), hidden, head, StatesSignal(states[1], teacher), labels, 0.0)
            total.backward()
        return total.detach(), hidden.grad

    for ours, whole in zip(value_and_gradient(block, tile), value_and_gradient(10**6, 10**6), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)


def test_without_answer_tokens_the_loss_is_zero_and_not_nan():
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    head = Head(linear(20, 1).requires_grad_(), Vocabulary(20))
    total, values = objective(
        losses(), hidden, head, StatesSignal(torch.zeros(0, HIDDEN), head), torch.zeros(0, dtype=torch.int64), 0.0
    )
    total.backward()
    assert total == 0
    assert values.shape == (4, 0)
    assert torch.equal(head.module.weight.grad, torch.zeros(20, HIDDEN))


def test_a_tied_head_gets_the_gradient_of_both_its_uses():
    torch.manual_seed(0)
    embedding = nn.Embedding(20, HIDDEN)
    layer = nn.Linear(HIDDEN, 20, bias=False)
    layer.weight = embedding.weight
    tokens, labels = torch.randint(20, (2, 11))
    only = losses(names=("cross_entropy",))
    total, _ = objective(only, torch.tanh(embedding(tokens)), Head(layer, Vocabulary(20)), None, labels, 0.0)
    total.backward()
    weight = embedding.weight.detach().double().requires_grad_()
    logits = torch.tanh(weight[tokens]) @ weight.t()
    (0.5 * nn.functional.cross_entropy(logits, labels, reduction="sum")).backward()
    torch.testing.assert_close(embedding.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-5)


def test_a_bfloat16_head_gives_float32_logits_without_rounding():
    layer = linear(300, 1, torch.bfloat16)
    hidden = torch.randn(64, HIDDEN, dtype=torch.bfloat16)
    logits = Head(layer, Vocabulary(300))(hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, (hidden.double() @ layer.weight.double().t()).float(), rtol=1e-6, atol=1e-6)


def test_the_error_with_bfloat16_states_is_the_rounding_of_their_gradient():
    """Where student and teacher are close, q - p is small: bfloat16 logits or softmax would give rounding errors."""
    head = linear(300, 1, torch.bfloat16)
    teacher = torch.randn(64, HIDDEN, dtype=torch.bfloat16)
    hidden = (teacher + 0.02 * torch.randn_like(teacher)).requires_grad_()
    ours = Head(head, Vocabulary(300))
    total, _ = objective(
        losses(names=("forward_kl",)), hidden, ours, StatesSignal(teacher, ours), torch.zeros(64).long(), 0
    )
    total.backward()

    def gradient(dtype):
        p, q = (
            torch.softmax(states.detach().to(dtype) @ head.weight.to(dtype).t(), -1) for states in (teacher, hidden)
        )
        return 0.7 * ((q - p) @ head.weight.to(dtype)).double()

    exact = gradient(torch.float64)
    assert (hidden.grad.double() - exact).norm() < 3e-3 * exact.norm()
    assert (gradient(torch.bfloat16) - exact).norm() > 5e-2 * exact.norm()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operator returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("closed", [True, False])
def test_logits_of_all_tokens_are_never_in_memory(closed, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2**12)
    vocabulary, tokens = 1000, 64
    head, teacher = (Head(linear(vocabulary, seed), Vocabulary(vocabulary)) for seed in (1, 2))
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))
    with Largest() as largest:
        total, _ = objective(losses(closed), hidden, head, StatesSignal(hidden.detach(), teacher), labels, 0.0)
        total.backward()
    assert largest.elements <= max(2**12, vocabulary * HIDDEN) < tokens * vocabulary


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "autograd"])
def test_the_teachers_log_probabilities_are_moved_to_the_students_device(monkeypatch, closed):
    """The teacher is on the CPU, the student on meta, which raises an error for operations with CPU tensors."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # autocast does not support meta
    vocabulary = Vocabulary(50, torch.arange(0, 100, 2))
    teacher = StatesSignal(torch.randn(4, 8), Head(nn.Linear(8, 100).requires_grad_(False), vocabulary))
    student = Head(nn.Linear(16, 100, device="meta"), vocabulary)
    hidden, labels = (torch.empty(shape, device="meta") for shape in ((4, 16), (4,)))
    total, each = objective(losses(closed), hidden.requires_grad_(), student, teacher, labels.long(), 0.0)
    total.backward()
    ((_, log_q, log_p),) = log_probabilities(student, hidden.detach(), teacher)
    assert all(found.is_meta for found in (each, hidden.grad, student.module.weight.grad, log_q, log_p))


def test_log_probabilities_are_yielded_tile_by_tile_in_order(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 60)
    monkeypatch.setattr(module, "TILE", 2 * 20)
    head, hidden = Head(linear(20, 1), Vocabulary(20)), torch.randn(11, HIDDEN)
    found = list(log_probabilities(head, hidden, StatesSignal(hidden, head)))
    assert torch.equal(torch.cat([torch.arange(11)[rows] for rows, _, _ in found]), torch.arange(11))
    whole = torch.log_softmax(hidden.double() @ head.module.weight.double().t(), -1).float()
    torch.testing.assert_close(torch.cat([log_q for _, log_q, _ in found]), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([log_p for _, _, log_p in found]), whole, rtol=1e-5, atol=1e-5)


def test_a_block_is_freed_before_the_next_is_computed(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5 * 20)
    head, made = Head(linear(20, 1), Vocabulary(20)), []

    class Recording:
        provides = frozenset({"logits"})

        def logits(self, rows):
            assert not [old for old in made if old() is not None]
            logits = torch.randn(rows.stop - rows.start, 20)
            made.append(weakref.ref(logits))
            return logits

    objective(losses(), torch.randn(17, HIDDEN), head, Recording(), torch.randint(20, (17,)), 0.0)
    assert len(made) == 4


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "autograd"])
@pytest.mark.parametrize("name", ["teacher", "labels"])
def test_a_loss_that_writes_into_shared_arguments_is_refused(closed, name):
    def token_loss(self, student, teacher, labels):
        {"teacher": teacher, "labels": labels}[name].add_(1)
        return student.sum(-1)

    def token_gradient(self, student, teacher, labels):
        return token_loss(self, student, teacher, labels), torch.ones_like(student)

    hook = "token_gradient" if closed else "token_loss"
    hooks = {"token_loss": token_loss, **({"token_gradient": token_gradient} if closed else {})}
    plugins = Plugins({"loss": {"odd": plugin(**hooks)}})
    odd = Loss("odd", 1.0, plugins.functions("token_loss")["odd"], plugins.functions("token_gradient").get("odd"))
    head = Head(linear(20, 1), Vocabulary(20))
    hidden, labels = torch.randn(3, HIDDEN, requires_grad=True), torch.arange(3)
    with pytest.raises(RunError, match=f"the plugin `odd` in `{hook}` wrote into `{name}`"):
        objective([odd, *losses()], hidden, head, StatesSignal(hidden.detach(), head), labels, 0.0)


def test_blocks_on_a_gpu_are_by_rows():
    """Their number does not depend on the vocabulary; more rows share the sum into a large weight's gradient."""
    device, vocabulary = torch.device("cuda"), 128_256

    def sizes(trained):
        found = list(module.blocks(5000, vocabulary, device, trained))
        assert [row for part in found for row in range(part.start, part.stop)] == list(range(5000))
        return [part.stop - part.start for part in found]

    assert sizes(0) == [512] * 9 + [392]
    assert sizes(16 * (vocabulary + 2048)) == sizes(0)
    assert sizes(1024 * vocabulary) == [1024] * 4 + [904]
    assert sizes(4096 * vocabulary) == [2048, 2048, 904]
    assert list(module.blocks(0, vocabulary, device)) == []
