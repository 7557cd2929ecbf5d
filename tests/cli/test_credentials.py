"""Passwords and access tokens in recipes and arguments are refused; no message and no file shows them."""

import json

import pytest

SECRET = "Sw0rdf1shA1b2C3d4E5f6G7h8"
FORMS = [f"https://user:{SECRET}@host/x", f"https://{SECRET}@host/x", f"https://host/x?token={SECRET}", f"hf_{SECRET}"]
KEYS = [
    *("student.model", "student.revision", "teacher.model", "teacher.chat_template", "data.source", "data.revision"),
    *("data.name", "data.chat_template_kwargs.x", "data.columns.prompt", "output_dir", "report_to", "seed"),
    *("adapter.lora.target_modules", "probes.lm_eval.tasks"),
]


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", KEYS)
def test_a_credential_in_a_recipe_is_refused_and_not_shown(neoplug, recipe, tmp_path, monkeypatch, key, form):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"extends: ./tiny.yaml\n{json.dumps(nested(key, form))[1:-1]}\n")
    before = sorted(tmp_path.rglob("*"))
    for arguments in (
        ["run", "r.yaml"],
        ["plan", "tiny.yaml", f"{key}={form}"],
        ["plan", "tiny.yaml", f"{key}=[{form}]"],
    ):
        answer = neoplug(*arguments)
        assert answer.code == 2
        assert SECRET not in answer.out + answer.err
        assert "a recipe cannot hold a password or an access token" in answer.err
        assert ("r.yaml:2:" if "r.yaml" in arguments else "override:1:") in answer.err
    assert SECRET not in neoplug("--traceback", "plan", "r.yaml").err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", FORMS)
def test_a_credential_in_a_key_or_an_argument_is_not_shown(neoplug, recipe, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"extends: ./tiny.yaml\nprobes: {{{json.dumps(form)}: {{}}}}\n")
    (tmp_path / "s.yaml").write_text(f"extends: {json.dumps(form)}\n")
    before = sorted(tmp_path.rglob("*"))
    for arguments in (
        ["plan", "r.yaml"], ["plan", "s.yaml"], ["plan", form], ["plan", "tiny.yaml", f'"{form}".x=1'],
        ["plan", "tiny.yaml", f"{form}"], ["run", "tiny.yaml", "--output", form], ["eval", form, "tiny.yaml"],
        ["export", form, "out"], ["push", form, "user/name"], ["preview", form],
    ):  # fmt: skip
        answer = neoplug(*arguments)
        assert answer.code != 0
        assert SECRET not in answer.out + answer.err, arguments
    assert sorted(tmp_path.rglob("*")) == before
