"""Fixtures for complete runs of every family: tiny models, created once, and a recipe for them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neoplug import recipe
from neoplug.data import load_corpus
from neoplug.runs.steps import make_sampler
from neoplug.testing.families import FAMILIES, make

NAMES = sorted(FAMILIES)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return a function that gives the folder of a family's tiny model."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def find(family):
        if family not in made:
            made[family] = make(family, root / family, seed=NAMES.index(family))
        return made[family]

    return find


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """Return a jsonl file of 8 short rows of unequal length; the longest is longer than a window of attention."""
    rows = [
        [
            {"role": "user", "content": f"{n}+{n}?"},
            {"role": "assistant", "content": "It is" + f" {2 * n}" * (n % 4 + 1)},
        ]
        for n in range(8)
    ]
    file = tmp_path_factory.mktemp("data") / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Lab:
    """Runs a recipe around one family; its teacher is the next family, of the same vocabulary."""

    path: Path
    student: Path
    teacher: Path
    chat: Path

    def recipe(self, **sections):
        """Write a recipe in which `sections` replace the defaults."""
        defaults = {
            "teacher": {"model": str(self.teacher), "dtype": "float32"},
            "student": {"model": str(self.student), "dtype": "float32"},
            "data": {"source": str(self.chat), "held_out": 2, "max_length": 96, "packing": True},
            "adapter": {"lora": {"r": 4}},
            "loss": {"cross_entropy": {"weight": 0.7}, "forward_kl": {"weight": 0.3}},
            "train": {
                "max_steps": 2, "save_steps": 1, "logging_steps": 1, "learning_rate": 0.01, "warmup_steps": 0,
                "per_device_train_batch_size": 2, "max_grad_norm": 1e9,
            },
        }  # fmt: skip
        file = self.path / "recipe.yaml"
        file.write_text(json.dumps(defaults | sections), encoding="utf-8")
        return file

    def lines(self, run="run"):
        """Return a run's lines of metrics without clock and memory."""
        lines = map(json.loads, (self.path / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [{k: v for k, v in line.items() if "second" not in k and "memory" not in k} for line in lines]

    def interrupt(self, run="run"):
        """Remove from a finished run of two steps the files that a run killed in its second step does not have."""
        folder = self.path / run
        shutil.rmtree(folder / "checkpoints" / "step-2")
        for left in ("adapter", "model"):
            shutil.rmtree(folder / left, ignore_errors=True)
        (folder / "result.json").unlink()

    def expected(self):
        """Return the first step's losses, from whole logits in float64, a document at a time, and the student.

        Cross-entropy and forward KL are means over answer tokens; both have their graph.
        """
        student, teacher = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, experts_implementation="eager")
            for path in (self.student, self.teacher)
        )
        teacher.requires_grad_(False)
        checked = recipe.load(self.path / "recipe.yaml")
        tokenizer = AutoTokenizer.from_pretrained(self.student)
        corpus, tokens = load_corpus(checked.recipe.data, tokenizer), len(tokenizer)
        rows = [row for rows in make_sampler(checked, corpus, 1).micro_batches(0, 0) for row in rows]
        cross_entropy, divergence, count = 0.0, 0.0, 0
        for document in (document for row in rows for document in corpus.rows[row]):
            ids, scored = torch.from_numpy(document.input_ids)[None], torch.from_numpy(document.loss_mask[1:])
            log_q, log_p = (
                model.eval()(input_ids=ids, use_cache=False).logits[0, :-1][scored][:, :tokens].log_softmax(-1)
                for model in (student, teacher)
            )
            cross_entropy -= log_q.gather(-1, ids[0, 1:][scored, None]).sum()
            divergence += (log_p.exp() * (log_p - log_q)).sum()
            count += int(scored.sum())
        return cross_entropy / count, divergence / count, student


@pytest.fixture
def lab(tmp_path, folder, chat, family):
    """Return a lab for the test's family."""
    return Lab(tmp_path, folder(family), folder(NAMES[(NAMES.index(family) + 1) % len(NAMES)]), chat)
