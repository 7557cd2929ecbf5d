"""A push survives any server: what it says is compared with what the server holds, for each fault at each step."""

import pytest

from neoplug.errors import Interrupted, RunError, UsageError
from neoplug.export.hub import push
from neoplug.export.staging import staged
from tests.runs import hub_server
from tests.runs.hub_server import STEPS, cut, drop, hang, redirect, status

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's use of httpx

HTML = {"content-type": "text/html"}
FAULTS = {
    **{str(code): status(code) for code in (400, 401, 402, 403, 404, 408, 409, 413, 429, 500, 502, 503, 504)},
    "wait an hour": status(429, {"retry-after": "3600", "ratelimit": '"api";r=0;t=3600'}),
    "html": status(200, HTML, b"<html>Sign in</html>"),
    "html error": status(500, HTML, b"<html>\x1b[31m</html>"),
    "half of json": status(200, (), b'{"url": '),
    "no keys": status(200, (), {}),
    "a list": status(200, (), []),
    "null": status(200, (), b"null"),
    "wrong types": status(200, (), {"url": 1, "files": {"a": 1}, "objects": "x", "commitOid": [], "siblings": 3}),
    "not utf-8": status(200, (), b"\xff\xfe\x00"),
    "deeply nested": status(200, (), b"[" * 100_000),
    "redirect": redirect,
    "to nowhere": status(302, {"location": "http://127.0.0.1:1/login"}),
    "no location": status(302),
    "dropped": drop,
    "cut": cut,
    "silent": hang,
}


STATES = ("create", "put", "commit")  # steps that change what the hub holds


@pytest.fixture(scope="module")
def run(module_lab):
    return module_lab.run("run", train={"max_steps": 1}).path


@pytest.fixture
def hub(tmp_path, monkeypatch, run):
    files = staged(run, "me/student")
    monkeypatch.setattr("neoplug.export.hub.staged", lambda *_: files)  # once for all faults
    monkeypatch.setattr("neoplug.export.hub_client.SILENCE", 0.1)
    with hub_server.running(tmp_path / "hub", monkeypatch) as server:
        server.expected = files.keys()
        yield server


def outcome(run):
    """Return whether a push says that it published, and what it says."""
    try:
        return True, push(run, "me/student")
    except RunError as error:
        return False, str(error)


def validate(hub, published, text):
    """Compare what a push says with what the hub holds."""
    first, *more = text.splitlines()
    if published:
        assert hub.files.keys() >= hub.expected
        assert first.startswith("published")
        return
    assert [line.split(":")[0] for line in more] == ["why", "fix"]
    assert first.startswith("nothing was published: ")
    assert not hub.files
    if "is unknown" not in first:
        assert hub.exists is not first.endswith(("was not created", "does not exist"))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_said_is_what_the_hub_holds(hub, run, fault):
    for step in STEPS:
        for late in (False, True)[: 1 + (step in STATES)]:
            hub.reset({step: FAULTS[fault]}, late)
            published, text = outcome(run)
            validate(hub, published, text)
            assert published or step != "show", "a commit that the hub confirmed is published"


@pytest.mark.parametrize("fault", ["500", "dropped", "silent", "html", "no keys"])
def test_a_commit_without_an_answer_on_a_hub_that_shows_nothing_is_unknown(hub, run, fault):
    for late in (False, True):
        hub.reset({"commit": FAULTS[fault], "show": status(503)}, late)
        published, text = outcome(run)
        assert not published
        assert text.startswith("it is unknown whether run was published\n")
        assert f"fix: look at {hub.url}/me/student" in text


@pytest.mark.parametrize("fault", ["403", "silent"])
def test_the_request_that_failed_is_named(hub, run, fault):
    addresses = {"create": "/api/repos/create", "commit": "/api/models/me/student/commit/main"}
    for step, address in addresses.items():
        hub.reset({step: FAULTS[fault]})
        assert f"\nwhy: POST {address}: " in outcome(run)[1]


def test_a_commit_that_the_hub_confirms_and_does_not_have(hub, run, monkeypatch):
    monkeypatch.setattr(hub_server.Hub, "commit", lambda *_: True)
    assert not (answer := outcome(run))[0]
    assert answer[1].startswith("nothing was published\nwhy: the hub confirmed the commit 1, in which")


def test_a_commit_that_lacks_a_file(hub, run, monkeypatch):
    keep = hub_server.Hub.commit
    monkeypatch.setattr(hub_server.Hub, "commit", lambda hub, files: keep(hub, files[1:]))
    assert not (answer := outcome(run))[0]
    assert answer[1].startswith("not all files were published\n")


def test_a_hub_that_cannot_be_reached(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://me:hunter2@127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert not (answer := outcome(run))[0]
    assert answer[1].startswith(
        "nothing was published: me/student was not created\nwhy: POST /api/repos/create: Connect"
    )
    assert "hunter2" not in answer[1]


def test_a_token_that_is_no_header_is_not_shown(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_tëst")
    assert not (answer := outcome(run))[0]
    assert "of_a" not in answer[1]


def test_a_second_push_of_the_same_run_is_one_more_commit(hub, run):
    assert outcome(run)[0]
    assert outcome(run)[0]
    assert len(hub.created) == 2
    hub.faults = {"commit": status(403)}
    (hub.folder / "README.md").write_text("changed")
    assert outcome(run)[1].startswith("nothing was published: me/student is as it was\n")


def test_a_push_that_is_to_be_private_refuses_a_public_repository(hub, run):
    assert outcome(run)[0]
    with pytest.raises(UsageError, match="nothing was published: me/student is public"):
        push(run, "me/student", private=True)
    hub.private = True
    assert push(run, "me/student", private=True).startswith("published")


def test_an_interrupted_push_says_what_it_left(hub, run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.preupload_lfs_files", interrupt)
    with pytest.raises(Interrupted, match="nothing was published: me/student was created, and is empty") as stopped:
        push(run, "me/student")
    assert stopped.value.exit_code == 130
