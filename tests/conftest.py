"""Fixtures for all tests: a small BPE tokenizer, random Llamas of two sizes and a chat file, created once a session."""

import gc
import json
import os
import pydoc_data.topics
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that spin slow down other processes

# The results of tests do not depend on the speed of the machine.
settings.register_profile("without clocks", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without clocks")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CUSTOM_CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM

class CustomConfig(LlamaConfig):
    model_type = "custom"

class CustomModel(LlamaForCausalLM):
    config_class = CustomConfig
"""


def pytest_collection_modifyitems(items):
    """Begin with the files that have the most slow tests: a worker takes whole files, and short ones are left last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="session")
def neoplug_home(tmp_path_factory):
    """Isolate the tests from the user's cache, unless NEOPLUG_HOME is set."""
    os.environ.setdefault("NEOPLUG_HOME", str(tmp_path_factory.mktemp("neoplug-home")))
    return Path(os.environ["NEOPLUG_HOME"])


@pytest.fixture(autouse=True, scope="module")
def settings(tmp_path_factory):
    """Isolate each file of tests from what the user, or another file, trusts."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("settings"))


@pytest.fixture(autouse=True, scope="module")
def long_lived_objects():
    """Leave modules and what else exists by now out of garbage collection, which takes a third of a tiny run's time."""
    gc.collect()
    gc.freeze()


def bpe_tokenizer():
    """Return a tokenizer of 384 tokens, learnt from Python's documentation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(list(pydoc_data.topics.topics.values())[:20], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return bpe_tokenizer()


def tiny_llama(folder, tokenizer, *, seed, layers=2, hidden=48, vocab=None, **config):
    """Save a random Llama and its tokenizer to `folder`. Its logits are far from uniform, so that losses differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    options = {
        "vocab_size": vocab or len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | config
    LlamaForCausalLM(LlamaConfig(**options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory, tiny_tokenizer):
    """Return the folder of a 2-layer Llama, hidden size 48, tied head."""
    return tiny_llama(tmp_path_factory.mktemp("student"), tiny_tokenizer, seed=1)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory, tiny_tokenizer):
    """Return the folder of a 4-layer Llama, hidden size 64, untied head, same tokenizer."""
    return tiny_llama(
        tmp_path_factory.mktemp("teacher"), tiny_tokenizer, seed=2, layers=4, hidden=64, tie_word_embeddings=False
    )


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory):
    """Return a jsonl file of 24 `messages` rows of unequal length, some with two assistant turns."""
    rows = []
    for number in range(24):
        messages = [
            {"role": "user", "content": f"What is {number} plus {number}?"},
            {"role": "assistant", "content": f"It is {2 * number}." + " Indeed it is." * (number % 5)},
        ]
        if number % 3 == 0:
            messages += [
                {"role": "user", "content": "Are you sure?"},
                {"role": "assistant", "content": "Yes, I added them twice."},
            ]
        rows.append({"messages": messages})
    file = tmp_path_factory.mktemp("data") / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def frozen_garbage():
    """Keep what is imported out of garbage collections: statsmodels' `multipletests` collects at each call."""
    from statsmodels.regression import linear_model  # noqa: F401
    from statsmodels.stats import multitest  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def neoplug(monkeypatch, capsys):
    """Return a function that runs one command in this process."""
    from neoplug.cli import main

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["neoplug", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Answer(caught.value.code or 0, captured.out, captured.err)

    return command


@pytest.fixture
def custom_code(tmp_path, tiny_student, monkeypatch):
    """Return the folder of a model with a Python file of its architecture, and the file that this code creates."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = shutil.copytree(tiny_student, tmp_path / "custom")
    (folder / "custom.py").write_text(CUSTOM_CODE.format(mark=str(tmp_path / "ran")))
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.CustomModel"}
    config |= {"model_type": "custom", "architectures": ["CustomModel"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, tmp_path / "ran"
