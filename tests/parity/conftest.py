"""Fixtures for complete runs of neoplug, with their micro-batches and initial weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import neoplug
from neoplug import recipe
from neoplug.data import load_corpus
from neoplug.runs.steps import make_sampler
from neoplug.runs.trainer import Trainer


@dataclass
class Run:
    """A finished run: its lines of metrics, its folder, and the initial weights."""

    lines: list
    path: Path
    start: dict

    def documents(self, step):
        """Return the micro-batches of a step, each a list of documents."""
        from transformers import AutoTokenizer

        checked = recipe.load(self.path.parent / "recipe.yaml")
        corpus = load_corpus(checked.recipe.data, AutoTokenizer.from_pretrained(checked.recipe.student.model))
        sampler = make_sampler(checked, corpus, 1)
        return [[d for row in rows for d in corpus.rows[row]] for rows in sampler.micro_batches(step, 0)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs a recipe given as nested maps, and records the initial weights."""
    start = {}
    own = Trainer.add_adapter

    def add_adapter(session, bare, total_steps):
        model, names_of_base = own(session, bare, total_steps)
        start.update({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        return model, names_of_base

    def finish(output="run", **sections):
        (tmp_path / "recipe.yaml").write_text(json.dumps(sections))
        neoplug.run(tmp_path / "recipe.yaml", output=tmp_path / output)
        lines = [json.loads(line) for line in (tmp_path / output / "metrics.jsonl").read_text().splitlines()]
        return Run(lines, tmp_path / output, start)

    monkeypatch.setattr(Trainer, "add_adapter", add_adapter)
    return finish


@pytest.fixture(scope="session")
def tiny_llama_folder(tiny_student, tiny_tokenizer):
    """Return a function that saves a random Llama like `tiny_student`, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(folder, *, seed, vocab, hidden=48, **options):
        config = AutoConfig.from_pretrained(tiny_student)
        changes = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 2 * hidden, **options}
        changes["head_dim"] = hidden // config.num_attention_heads
        config.update(changes)
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make
