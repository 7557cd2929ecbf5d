"""Conversion of GGUF files, compared with the model that the file was written from."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from neoplug.errors import RunError
from neoplug.files import sha256_of
from neoplug.models import gguf as conversion
from neoplug.models.resolve import locate

from .conftest import write_gguf

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from damage import WAYS

IDS = torch.arange(3, 43).view(2, 20)
TEXT = "Hello  World!  x  12345\n 12 äöü 日本語 🙂\n\n\tdef f(x): return x <|im_end|> don't"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_the_converted_model_computes_what_the_original_does(tiny_gguf, tiny_student):
    located = locate(str(tiny_gguf))
    ours, original = (AutoModelForCausalLM.from_pretrained(folder) for folder in (located.path, tiny_student))
    torch.testing.assert_close(logits(ours), logits(original), rtol=1e-5, atol=1e-5)
    assert ours.dtype == torch.float32
    assert not hasattr(ours.config, "quantization_config")
    assert (located.kind, located.revision, located.sha256) == ("gguf", None, sha256_of(tiny_gguf))


def test_the_tokenizer_round_trips_and_keeps_its_special_tokens(tiny_gguf, tiny_tokenizer):
    ours = AutoTokenizer.from_pretrained(locate(str(tiny_gguf)).path)
    assert ours.decode(ours(TEXT)["input_ids"]) == TEXT
    assert ours.get_vocab() == tiny_tokenizer.get_vocab()
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert getattr(ours, name) == getattr(tiny_tokenizer, name)
    assert ours.model_max_length == 512
    chat = [{"role": "user", "content": "Hi"}]
    assert ours.apply_chat_template(chat, tokenize=False) == tiny_tokenizer.apply_chat_template(chat, tokenize=False)


def test_digits_are_split_where_the_pre_tokenizer_splits_them(tiny_gguf):
    """As the tokenizers library splits with Digits(individual_digits=True) before ByteLevel."""
    ours = AutoTokenizer.from_pretrained(locate(str(tiny_gguf)).path)
    pieces = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_begin_token_is_added_where_the_file_requests_it(tmp_path, tiny_student, tiny_tokenizer, add_bos):
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    file = write_gguf(tmp_path / "bos.gguf", model, tiny_tokenizer, add_bos=add_bos)
    ours = AutoTokenizer.from_pretrained(locate(str(file)).path)
    assert (ours("Hi")["input_ids"][0] == tiny_tokenizer.bos_token_id) is add_bos


def test_the_generation_configuration_has_the_end_token(tmp_path, tiny_student, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    folder = locate(str(write_gguf(tmp_path / "a.gguf", model, tiny_tokenizer, pad=False))).path
    config, tokenizer = GenerationConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.eos_token_id == tiny_tokenizer.eos_token_id
    assert tokenizer.pad_token == tiny_tokenizer.eos_token
    assert config.pad_token_id == tokenizer.pad_token_id


def test_a_file_is_converted_once(tiny_gguf, monkeypatch):
    first = locate(str(tiny_gguf))
    monkeypatch.setattr(conversion, "convert", None)
    assert locate(str(tiny_gguf)) == first


def test_a_failed_conversion_leaves_no_folder(tmp_path, home):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF, then no header")
    with pytest.raises(RunError, match=r"broken\.gguf cannot be read"):
        locate(str(file))
    assert [path.name for path in (home / "models").iterdir() if path.is_dir()] == []


def test_no_progress_bar_is_drawn_except_on_a_terminal(tiny_gguf, capfd):
    locate(str(tiny_gguf))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_of_two_processes_one_converts(tiny_gguf, tmp_path):
    code = "import sys; from neoplug.models import locate; print(locate(sys.argv[1]).path)"
    command = [sys.executable, "-c", code, str(tiny_gguf)]
    environment = os.environ | {"NEOPLUG_HOME": str(tmp_path / "two")}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert len(paths) == 1
    record = json.loads((Path(paths.pop()) / "neoplug.json").read_text())
    assert record["sha256"] == sha256_of(tiny_gguf)


@pytest.mark.parametrize("way", ["bit-flipped", "truncated", "deleted", "nested"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "neoplug.json", "contents.json"])
def test_a_damaged_conversion_is_made_again_with_a_warning(tiny_gguf, way, name, caplog):
    located = locate(str(tiny_gguf))
    before = {file.name: file.read_bytes() for file in Path(located.path).iterdir()}
    WAYS[way](Path(located.path) / name)
    again = locate(str(tiny_gguf))
    assert again == located
    assert {file.name: file.read_bytes() for file in Path(located.path).iterdir()} == before
    assert (again.sha256, again.weights_sha256) == (located.sha256, located.weights_sha256)
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"is damaged: {name} " in message
    assert message.endswith(f"; {tiny_gguf} is converted again")


def test_the_hash_of_weights_is_that_of_their_file(tiny_gguf):
    """Not of the configuration, which names the version of transformers."""
    located = locate(str(tiny_gguf))
    folder = Path(located.path)
    expected = json.dumps({"model.safetensors": sha256_of(folder / "model.safetensors")}, separators=(",", ":"))
    assert located.weights_sha256 == hashlib.sha256(expected.encode()).hexdigest()
