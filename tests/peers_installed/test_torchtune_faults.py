"""Faults of torchtune 0.6.1, compared with neoplug."""

import importlib.util
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import torchao.quantization
import torchtune
from torch.nn import functional
from torchtune.modules.loss import (
    ForwardKLLoss,
    ForwardKLWithChunkedOutputLoss,
    ReverseKLWithChunkedOutputLoss,
    SymmetricKLWithChunkedOutputLoss,
)
from torchtune.modules.peft import DoRALinear, LoRALinear

from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.reverse_kl import ReverseKL


def test_torchtunes_forward_kl_is_not_zero_where_student_and_teacher_agree(micro, ours, from_logits, replaced):
    equal = replaced(micro, student=micro.teacher, student_head=micro.teacher_head)
    found = from_logits(lambda q, p, y: ForwardKLLoss()(q.flatten(0, 1), p.flatten(0, 1), y.flatten()), equal)
    assert found.loss > 0.5
    assert found.by_states.abs().max() < 1e-6  # this is the minimum, although it is not 0
    assert ours(equal, (1.0, ForwardKL())).loss.abs() < 1e-6


@pytest.mark.parametrize("loss", [ReverseKLWithChunkedOutputLoss, SymmetricKLWithChunkedOutputLoss])
def test_a_micro_batch_without_answer_tokens_gives_nan(micro, ours, from_logits, replaced, loss):
    mute = replaced(micro, labels=torch.full_like(micro.labels, -100))
    found = from_logits(lambda q, p, y: loss(4)(q.chunk(4, 1), p.chunk(4, 1), y), mute)
    assert found.loss.isnan()
    assert found.by_head.isnan().all()
    here = ours(mute, (0.5, ForwardKL()), (0.5, ReverseKL()), tokens=1)
    assert here.loss == 0
    assert torch.count_nonzero(here.by_head) == torch.count_nonzero(here.by_states) == 0


def test_the_forward_kl_of_a_micro_batch_without_answer_tokens_has_no_gradient(micro, from_logits, replaced):
    mute = replaced(micro, labels=torch.full_like(micro.labels, -100))
    with pytest.raises(RuntimeError, match="does not require grad"):
        from_logits(lambda q, p, y: ForwardKLWithChunkedOutputLoss(4)(q.chunk(4, 1), p.chunk(4, 1), y), mute)


@pytest.fixture
def recipe(monkeypatch):
    """Return the class of torchtune's distillation recipe, which is installed next to the package."""
    # The recipe imports these, which torchao 0.16 has removed.
    for name in ("int4_weight_only", "int8_dynamic_activation_int4_weight"):
        monkeypatch.setattr(torchao.quantization, name, None, raising=False)
    path = Path(torchtune.__file__).parents[1] / "recipes" / "knowledge_distillation_single_device.py"
    spec = importlib.util.spec_from_file_location("torchtune_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.KDRecipeSingleDevice


class States(torch.nn.Module):
    """A "model" whose token ids are the row numbers of a table of hidden states."""

    def __init__(self, states, head):
        super().__init__()
        self.states, self.head = states.flatten(0, 1), torch.nn.Parameter(head.clone())

    def forward(self, tokens, mask=None, input_pos=None):
        return self.states[tokens] @ self.head.t()


@pytest.fixture
def recipes_gradient(recipe):
    """Return a function that runs one step of the recipe and returns the gradient of the head in that step."""

    def step(micro, rows_of_a_micro_batch):
        tokens = torch.arange(micro.labels.numel()).reshape(micro.labels.shape)
        before = torch.hstack([torch.full((len(tokens), 1), -100), micro.labels[:, :-1]])  # the recipe shifts them
        count = len(tokens) // rows_of_a_micro_batch
        parts = zip(tokens.chunk(count), before.chunk(count), strict=True)
        self, found = MagicMock(), []
        self._model, self._teacher_model = (
            States(micro.student, micro.student_head),
            States(micro.teacher, micro.teacher_head),
        )
        self._dataloader.__iter__.return_value = [{"tokens": t, "labels": y} for t, y in parts]
        self._loss_fn = lambda logits, labels: functional.cross_entropy(logits, labels, ignore_index=-100)
        self._loss_fn.ignore_index = -100
        self._kd_loss_fn, self._kd_ratio = ForwardKLLoss(), 0.5
        self._device, self.profiler_profile_memory, self._clip_grad_norm = torch.device("cpu"), False, None
        self.ignore_labels_cache = torch.full((len(tokens), 1), -100)
        self.epochs_run, self.total_epochs, self.global_step, self._log_every_n_steps = 0, 1, 0, 99
        self._gradient_accumulation_steps = self._steps_per_epoch = count
        self._loss_step = lambda batch: recipe._loss_step(self, batch)
        self._optimizer.step = lambda: found.append(self._model.head.grad.clone())
        recipe.train(self)
        (gradient,) = found
        return gradient

    return step


def test_the_recipe_divides_by_the_tokens_twice_and_depends_on_the_split(micro, ours, recipes_gradient, replaced):
    labels = micro.labels.clone()
    labels[:, -1] = -100  # its shift drops the prediction of the last position
    micro = replaced(micro, labels=labels)
    whole, split = (recipes_gradient(micro, rows) for rows in (3, 1))
    exact = ours(micro, (0.5, CrossEntropy()), (0.5, ForwardKL())).by_head
    tokens = (labels != -100).sum()
    torch.testing.assert_close(whole * tokens, exact, rtol=1e-4, atol=1e-6)
    assert split.norm() > 1.5 * whole.norm()
    assert torch.cosine_similarity(split.flatten(), whole.flatten(), 0) < 0.99
    masks = torch.eye(3, dtype=torch.bool)
    shares = [replaced(micro, labels=labels.masked_fill(~mask[:, None], -100)) for mask in masks]
    parts = [ours(share, (0.5, CrossEntropy()), (0.5, ForwardKL()), tokens=tokens).by_head for share in shares]
    torch.testing.assert_close(sum(parts), exact, rtol=1e-4, atol=1e-6)


def test_doras_magnitude_is_trained():
    """Fixed (torchtune#2250): it did not change, so DoRA was LoRA. For neoplug see tests/peers/test_dora.py."""
    torch.manual_seed(0)
    dora, lora = (kind(12, 7, rank=2, alpha=4) for kind in (DoRALinear, LoRALinear))
    dora.initialize_dora_magnitude()
    lora.load_state_dict({name: weight for name, weight in dora.state_dict().items() if name != "magnitude"})
    states = torch.randn(5, 12)
    for _ in range(2):
        for layer in (dora, lora):
            layer(states).square().sum().backward()
            torch.optim.SGD(layer.parameters(), 0.01).step()
    assert dora.magnitude.grad.norm() > 0
    assert (dora(states) - lora(states)).abs().max() > 1e-3
