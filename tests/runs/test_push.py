"""Upload to the hub: a local server takes the files, and plain peft and transformers load them from it."""

import json
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from neoplug.errors import RunError, UsageError
from neoplug.export.hub import push
from neoplug.registry.measures import MEASURES
from neoplug.runs.directory import RunDir
from neoplug.runs.model_card import card
from tests.runs import hub_server

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # huggingface_hub's use of httpx
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # from peft
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.running(tmp_path / "hub", monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def pruned(module_lab):
    """Return a finished run of an adapter on a prepared student."""
    student = {"prepare": {"prune_depth": {"num_hidden_layers": 2}}}
    return module_lab.run("pruned", student=student, train={"max_steps": 2})


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.slow
def test_plain_peft_loads_what_was_pushed(hub, pruned):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert f"of pruned at {hub.url}/me/student in one commit" in push(pruned.path, "me/student", private=True)
    assert hub.created[0]["visibility"] == "private"
    assert "Bearer hf_of_a_test" in hub.tokens
    there = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(hub.folder, subfolder="student"), hub.folder, subfolder="adapter"
    )
    here = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(pruned.path / "student"), pruned.path / "adapter"
    )
    assert torch.equal(logits(there), logits(here))
    assert AutoTokenizer.from_pretrained(hub.folder, subfolder="student").encode("a")
    assert (
        json.loads((hub.folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "me/student"
    )
    public = {name: value for name, value in pruned.result.items() if name != "sample"}  # that is held-out text
    assert json.loads((hub.folder / "result.json").read_text()) == public
    assert len((hub.folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_card_describes_the_run_in_the_hubs_format(hub, pruned, tiny_student):
    push(pruned.path, "me/student")
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.library_name == "peft"
    assert {"neoplug", "lora", "forward_kl"} <= set(card.data.tags)
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {name: pruned.result["after"][name] for name in MEASURES}
    titles = {result.metric_type: result.metric_name for result in card.data.eval_results}
    assert titles == {name: measure.title for name, measure in MEASURES.items()}
    rows = [line.split("|")[1].strip() for line in card.text.splitlines() if line.startswith("| ")]
    assert {"forward KL (nats)", "perplexity", "top-1 agreement (share)"} <= set(rows)
    for part in (
        "subfolder='student'",
        "'me/student'",
        pruned.lock["data"]["fingerprint"],
        pruned.lock["versions"]["peft"],
    ):
        assert part in card.text
    recipe = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["adapter"] == yaml.safe_load((pruned.path / "recipe.yaml").read_text())["adapter"]
    everything = "".join(file.read_text() for file in hub.folder.glob("*.*") if file.suffix != ".safetensors")
    assert str(tiny_student.parent) not in everything  # local paths are private


def test_the_card_names_each_data_set_of_the_hub(pruned, tmp_path):
    for name in ("recipe.yaml", "lock.json"):
        shutil.copy(pruned.path / name, tmp_path)
    run = RunDir.open(tmp_path)
    named = {"b": "me/one", "c": "python:pydoc_data.topics", "d": str(tmp_path), "e": "me/two"}
    recipe = run.resolved | {"data": {"sources": {name: {"source": source} for name, source in named.items()}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert ModelCard(card(run, RunDir.open(pruned.path).result)).data.datasets == ["me/one", "me/two"]


def test_the_runs_own_card_loads_from_the_run(pruned):
    card = ModelCard.load(pruned.path / "adapter" / "README.md")
    assert "from_pretrained('pruned', subfolder='student')" in card.text


def test_a_fully_trained_model_is_pushed_as_a_model(hub, lab):
    from transformers import AutoModelForCausalLM

    run = lab.run("whole", adapter={"full": {}}, train={"max_steps": 1})
    push(run.path, "me/student")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(hub.folder)),
        logits(AutoModelForCausalLM.from_pretrained(run.path / "model")),
    )
    assert ModelCard.load(hub.folder / "README.md").data.library_name == "transformers"


def test_an_upload_that_the_hub_refuses_is_an_error_message(hub, pruned):
    hub.faults = dict.fromkeys(hub_server.STEPS, hub_server.status(403))
    with pytest.raises(RunError, match="nothing was published: me/student was not created"):
        push(pruned.path, "me/student")
    assert not hub.folder.exists()


def test_an_invalid_repository_name_and_an_unfinished_run_are_refused(hub, pruned, tmp_path):
    with pytest.raises(UsageError, match="is not the name of a repository"):
        push(pruned.path, "me/a/b")
    with pytest.raises(UsageError, match="it has no user"):
        push(pruned.path, "student")
    with pytest.raises(UsageError, match="no run directory"):
        push(tmp_path, "me/student")
    assert hub.created == []
