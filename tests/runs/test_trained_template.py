"""The chat template that a student was trained with goes with its adapter, its exports and its uploads."""

import copy
import logging
import shutil

import pytest
from transformers import AutoTokenizer

from neoplug.export.lora import export_lora
from neoplug.export.merge import export
from neoplug.export.staging import staged

TRAINED = (
    "Be brief.\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [{"role": "user", "content": "a?"}]


def reads(folder):
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(TURNS, tokenize=False)


@pytest.fixture(scope="module")
def trained(module_lab):
    template = module_lab.folder / "brief.jinja"
    template.write_text(TRAINED)
    return module_lab.run("trained", data={"chat_template": str(template)}, train={"max_steps": 2})


def expected(tokenizer):
    return tokenizer.apply_chat_template(TURNS, chat_template=TRAINED, tokenize=False)


def test_the_adapter_and_the_upload_have_the_trained_template(trained, tmp_path, tiny_tokenizer):
    assert reads(trained.path / "adapter") == expected(tiny_tokenizer)
    for name, content in staged(trained.path, "me/student").items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert reads(tmp_path) == expected(tiny_tokenizer)
    card = (tmp_path / "README.md").read_text()
    assert "another chat template than that of its base; `AutoTokenizer.from_pretrained('me/student')` has it" in card


def test_exports_have_the_trained_template_and_it_is_logged(module_lab, trained, tmp_path, tiny_tokenizer, caplog):
    (module_lab.folder / "brief.jinja").unlink(missing_ok=True)  # the recipe's file is not needed any more
    with caplog.at_level(logging.INFO, "neoplug"):
        export(trained.path, tmp_path / "whole")
    assert "the student's chat template is data.chat_template, which is not that of" in caplog.text
    export_lora(trained.path, tmp_path / "lora")
    assert reads(tmp_path / "whole") == reads(tmp_path / "lora") == expected(tiny_tokenizer)


def test_a_model_that_is_trained_whole_has_the_trained_template(lab, tmp_path, tiny_tokenizer):
    run = lab.run("full", data={"chat_template": TRAINED}, adapter={"full": {}}, train={"max_steps": 1})
    export(run.path, tmp_path / "whole")
    assert reads(run.path / "model") == reads(tmp_path / "whole") == expected(tiny_tokenizer)


def test_the_base_of_an_adapter_that_changes_it_has_the_trained_template(lab, tiny_tokenizer):
    pissa = {"pissa": {"r": 4, "target_modules": ["q_proj"]}}
    run = lab.run("pissa", data={"chat_template": TRAINED}, adapter=pissa, train={"max_steps": 1})
    assert reads(run.path / "adapter") == expected(tiny_tokenizer)
    if (run.path / "student").is_dir():
        assert reads(run.path / "student") == expected(tiny_tokenizer)


def test_a_template_that_is_the_bases_is_not_stored_again(lab, tiny_tokenizer, tmp_path):
    run = lab.run("same", data={"chat_template": tiny_tokenizer.chat_template}, train={"max_steps": 1})
    assert not (run.path / "adapter" / "tokenizer_config.json").exists()
    export(run.path, tmp_path / "whole")
    assert reads(tmp_path / "whole") == tiny_tokenizer.apply_chat_template(TURNS, tokenize=False)


def test_a_template_that_the_tokenizer_has_under_a_name(lab, tmp_path, tiny_tokenizer, tiny_student):
    named = copy.deepcopy(tiny_tokenizer)
    named.chat_template = {"default": tiny_tokenizer.chat_template, "brief": TRAINED}
    student = shutil.copytree(tiny_student, tmp_path / "student")
    named.save_pretrained(student)
    run = lab.run("named", student={"model": str(student)}, data={"chat_template": "brief"}, train={"max_steps": 1})
    assert reads(run.path / "adapter") == expected(tiny_tokenizer)
