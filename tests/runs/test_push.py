"""Upload to the hub: a local server takes the files, and plain peft and transformers load them from it."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from neoplug.errors import RunError, UsageError
from neoplug.export.hub import push
from neoplug.registry.measures import MEASURES
from neoplug.runs.directory import RunDir
from neoplug.runs.model_card import card

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # huggingface_hub's use of httpx
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # from peft
]


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP API that takes a commit; keeps the uploaded files."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.refuse = folder, False
        self.large, self.created, self.tokens = {}, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, method, path, body):
        if method == "PUT":
            self.large[path.rpartition("/")[2]] = body
        elif path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/me/student"}
        elif "/preupload/" in path:
            named = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {"path": name, "uploadMode": modes[name.endswith("safetensors")], "shouldIgnore": False}
                    for name in named
                ]
            }
        elif path.endswith("/objects/batch"):
            objects = [
                {**known, "actions": {"upload": {"href": f"{self.url}/lfs/{known['oid']}"}}}
                for known in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        elif "/commit/" in path:
            self.commit([json.loads(line)["value"] for line in body.splitlines()][1:])
            return {"commitUrl": f"{self.url}/me/student/commit/1", "commitOid": "1", "pullRequestUrl": None}
        return {}

    def commit(self, files):
        for file in files:
            target = self.folder / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.large[file["oid"]] if "oid" in file else base64.b64decode(file["content"]))


class Handler(BaseHTTPRequestHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.tokens.add(self.headers.get("authorization"))
        status = 404 if self.command == "GET" else 403 if self.server.refuse else 200
        answer = self.server.answer(self.command, self.path, body) if status == 200 else {"error": "no"}
        sent = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_PUT = handle_any

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()


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

    assert push(pruned.path, "me/student", private=True) == f"{hub.url}/me/student"
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
    assert json.loads((hub.folder / "result.json").read_text()) == pruned.result
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
    hub.refuse = True
    with pytest.raises(RunError, match=r"the upload of .* failed"):
        push(pruned.path, "me/student")
    assert not hub.folder.exists()


def test_an_invalid_repository_name_and_an_unfinished_run_are_refused(hub, pruned, tmp_path):
    with pytest.raises(UsageError, match="is not the name of a repository"):
        push(pruned.path, "me/a/b")
    with pytest.raises(UsageError, match="no run directory"):
        push(tmp_path, "me/student")
    assert hub.created == []
