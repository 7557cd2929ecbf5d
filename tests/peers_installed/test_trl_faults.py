"""Faults of TRL 1.16.0, and faults that it has fixed, compared with neoplug."""

import json
import multiprocessing
import os
import shutil
import socket
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer
from trl.experimental.gold.gold_trainer import ULDLoss

from neoplug.errors import RecipeError
from neoplug.models.vocabulary import shared
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon


def jsd(**options):
    return lambda student, teacher, labels: GKDTrainer.generalized_jsd_loss(student, teacher, labels, **options)


def as_transformers(labels):
    """Return the labels as in transformers: at the token's own position, one after the position that predicts it."""
    return torch.hstack([torch.full((len(labels), 1), -100), labels[:, :-1]])


def test_gkds_temperature_is_only_for_sampling(micro, ours, from_logits):
    def at(temperature):
        def loss(student, teacher, labels):
            self = MagicMock(beta=0.5, temperature=temperature, generalized_jsd_loss=GKDTrainer.generalized_jsd_loss)
            self.teacher_model.return_value.logits = teacher
            model = lambda **_: SimpleNamespace(logits=student)  # noqa: E731
            return GKDTrainer.compute_loss(self, model, MagicMock(__getitem__=lambda _, key: as_transformers(labels)))

        return from_logits(loss, micro)

    assert torch.equal(at(1.0).loss, at(4.0).loss)
    assert torch.equal(at(1.0).by_head, at(4.0).by_head)
    cold, hot = (ours(micro, (1.0, JensenShannon(t))) for t in (1.0, 4.0))
    assert (hot.by_head - cold.by_head).norm() > 0.1 * cold.by_head.norm()


def test_the_gradient_vanishes_at_high_temperature(micro, ours, from_logits):
    """No T^2: at T = 100 a ten-thousandth of the gradient remains, so the learning rate has another effect."""
    cold, hot = (from_logits(jsd(beta=0, temperature=t), micro).by_head.norm() for t in (1.0, 100.0))
    assert hot < 2e-4 * cold
    cold, hot = (ours(micro, (1.0, ForwardKL(t))).by_head.norm() for t in (1.0, 100.0))
    assert 0.3 * cold < hot < 3 * cold


def test_beta_no_longer_weights_the_student(micro, ours, from_logits):
    """Fixed in 2025 (trl#3043), see tests/peers/test_swapped_beta.py."""
    found = from_logits(jsd(beta=0.1), micro)
    ours(micro, (1.0, JensenShannon(beta=0.1))).agrees_with(found)
    swapped = ours(micro, (1.0, JensenShannon(beta=0.9)))
    assert (swapped.by_states - found.by_states).norm() > 0.1 * found.by_states.norm()


def test_the_loss_is_discontinuous_at_beta_0(micro, from_logits):
    """From 0.001 to 0 the loss grows a thousandfold; neoplug refuses 0 and 1 and names forward_kl and reverse_kl."""
    near, at = (from_logits(jsd(beta=beta), micro).loss for beta in (0.001, 0))
    assert at > 300 * near
    with pytest.raises(ValueError, match="forward_kl and reverse_kl"):
        JensenShannon(beta=0.0)


def test_a_step_without_answer_tokens_gives_nan(micro, ours, from_logits, replaced):
    unanswered = replaced(micro, labels=torch.full_like(micro.labels, -100))
    assert from_logits(jsd(num_items_in_batch=torch.tensor(0)), unanswered).loss.isnan()
    assert ours(unanswered, (1.0, JensenShannon()), tokens=1).loss == 0


@pytest.mark.parametrize("strategy", ["observed", "bayesian"])
def test_golds_uld_trains_on_positions_that_predict_no_answer_token(micro, ours, from_logits, strategy):
    """`observed`, the default, is off by one; both strategies train on the gap between two turns."""
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0, uld_distillation_weight=1.0, uld_student_temperature=1.0,
        uld_teacher_temperature=1.0, uld_skip_student_eos=False, uld_skip_teacher_eos=False, use_extended_uld=False,
        uld_token_merge_strategy=strategy,
    )  # fmt: skip

    def loss(student, teacher, labels):
        shifted = as_transformers(labels)
        return ULDLoss(config)(student, teacher, shifted, shifted, shifted, shifted)

    trained = from_logits(loss, micro).by_states.norm(dim=-1) > 0
    right = micro.labels != -100
    assert torch.equal(trained[1], right[1].roll(1) if strategy == "observed" else right[1])
    two_turns = trained[0].nonzero()[:, 0]
    assert two_turns[-1] - two_turns[0] == len(two_turns) - 1  # no gap
    assert torch.equal(ours(micro, (1.0, ForwardKL())).by_states.norm(dim=-1) > 0, right)


@pytest.fixture
def first_step(tmp_path, tiny_student, tiny_teacher, tiny_chat):
    """Return a function that trains for one step of four rows, and returns its loss and gradient norm."""
    rows = [json.loads(line) for line in tiny_chat.read_text().splitlines()]
    rows = [{"messages": row["messages"][:2]} for row in rows]

    def train(trainer, config, rows_of_a_micro_batch, teacher=tiny_teacher, world=1, **options):
        args = config(
            str(tmp_path / "trl"), per_device_train_batch_size=rows_of_a_micro_batch, seed=0, max_steps=1,
            gradient_accumulation_steps=4 // rows_of_a_micro_batch // world, logging_steps=1, lmbda=0.0, report_to=[],
            save_strategy="no", max_length=256, use_cpu=True, max_grad_norm=1e9, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, teacher_model_init_kwargs={"dtype": "float32"}, **options,
        )  # fmt: skip
        student = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(tiny_student)
        trainer = trainer(
            student, str(teacher), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    return train


def test_accumulation_no_longer_changes_gkds_loss(first_step):
    """Fixed (trl#4719) for training without sampling."""
    assert first_step(GKDTrainer, GKDConfig, 4) == pytest.approx(first_step(GKDTrainer, GKDConfig, 1), rel=1e-4)


def test_accumulation_multiplies_the_loss_of_golds_uld(first_step, tiny_teacher):
    """By four for four micro-batches. For neoplug see tests/peers/test_accumulation.py."""
    uld = {"use_uld_loss": True, "teacher_tokenizer_name_or_path": str(tiny_teacher)}
    whole, split = (first_step(GOLDTrainer, GOLDConfig, rows, **uld) for rows in (4, 1))
    assert split == pytest.approx([4 * number for number in whole], rel=0.05)


def rank_of_two(rank, port, train, results):
    """Train as one of two ranks, in a forked process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    results.put(train(GKDTrainer, GKDConfig, 2, world=2, ddp_backend="gloo"))


def test_two_ranks_halve_gkds_loss(first_step):
    """For the same four rows. For neoplug see tests/runs/test_ranks.py."""
    alone = first_step(GKDTrainer, GKDConfig, 4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    ranks = [fork.Process(target=rank_of_two, args=(rank, port, first_step, results)) for rank in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(240)
    assert [each.exitcode for each in ranks] == [0, 0]
    both = results.get()
    assert both == pytest.approx([number / 2 for number in alone], rel=1e-4)


def test_vocabularies_of_one_size_with_different_tokens_are_accepted(
    first_step, tmp_path, tiny_teacher, tiny_tokenizer
):
    """GKD compares the sizes of two vocabularies and does not read the teacher's tokenizer."""
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    content = json.loads((teacher / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    (teacher / "tokenizer.json").write_text(json.dumps(content))
    assert first_step(GKDTrainer, GKDConfig, 4, teacher=teacher)[0] > 0
    theirs = AutoTokenizer.from_pretrained(teacher)
    assert len(theirs) == len(tiny_tokenizer)
    with pytest.raises(RecipeError, match="do not share a vocabulary"):
        shared(tiny_tokenizer, theirs, len(theirs), len(theirs))


def test_the_magnitude_of_a_4_bit_dora_stays_float32(tmp_path, tiny_student, tiny_teacher):
    """Fixed (trl#7268): bfloat16 never changed; the rest is bfloat16. For neoplug see tests/peers/test_dora.py."""
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = GKDTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_student, quantization_config=nf4),
        AutoModelForCausalLM.from_pretrained(tiny_teacher),
        GKDConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=64, report_to=[], gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"messages": []}]),
        processing_class=AutoTokenizer.from_pretrained(tiny_student),
        peft_config=LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
    )
    trained = {name: each.dtype for name, each in trainer.model.named_parameters() if each.requires_grad}
    assert {dtype for name, dtype in trained.items() if "magnitude" in name} == {torch.float32}
    assert {dtype for name, dtype in trained.items() if "magnitude" not in name} == {torch.bfloat16}
