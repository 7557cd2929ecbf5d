"""A local server with the part of the hub's HTTP API that a push uses, and with the faults that servers have."""

import base64
import hashlib
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

STEPS = ("create", "preupload", "batch", "put", "validate", "commit", "show")  # in the order of a push


def step_of(method, path):
    """Return the step of a push that a request belongs to."""
    if method == "PUT":
        return "put"
    if method == "GET":
        return "show"
    parts = {"/create": "create", "/batch": "batch", "/validate-yaml": "validate", "/preupload/": "preupload"}
    return next((step for part, step in parts.items() if part in path), "commit")


class Hub(ThreadingHTTPServer):
    """Keeps the files of one repository; `faults` has what goes wrong: step -> function of the handler.

    A fault answers the request itself, or returns True to have it answered well. With `late`, the request is carried
    out before.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.over, self.tokens = folder, threading.Event(), set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reset({})

    def reset(self, faults, late=False):
        """Forget the repository, and have these faults from now on."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.faults, self.late, self.large, self.created = faults, late, {}, []
        self.exists = self.private = False

    @property
    def files(self):
        return {
            file.relative_to(self.folder).as_posix(): file.read_bytes()
            for file in self.folder.rglob("*")
            if file.is_file()
        }

    def answer(self, step, path, body):
        """Return status, headers and answer of the hub."""
        if step != "create" and not self.exists:
            return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        if step == "put":
            self.large[path.rpartition("/")[2]] = body
        elif step == "create":
            self.created.append(json.loads(body))
            if self.exists:
                return 409, {}, {"error": "You already created this model repo"}
            self.exists, self.private = True, self.created[-1].get("visibility") == "private"
            return 200, {}, {"url": f"{self.url}/me/student"}
        elif step == "preupload":
            named = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            return 200, {}, {
                "files": [
                    {"path": name, "uploadMode": modes[name.endswith("safetensors")], "shouldIgnore": False}
                    for name in named
                ]
            }  # fmt: skip
        elif step == "batch":
            objects = [
                {**known, "actions": {"upload": {"href": f"{self.url}/lfs/{known['oid']}"}}}
                for known in json.loads(body)["objects"]
            ]
            return 200, {}, {"transfer": "basic", "objects": objects}
        elif step == "commit":
            if not self.commit([json.loads(line)["value"] for line in body.splitlines()][1:]):
                return 400, {}, {"error": "a file was not uploaded"}
            return 200, {}, {"commitUrl": f"{self.url}/me/student/commit/1", "commitOid": "1", "pullRequestUrl": None}
        elif step == "show":
            return 200, {}, {"id": "me/student", "private": self.private, "siblings": [*map(self.shown, self.files)]}
        return 200, {}, {}

    def commit(self, files):
        """Keep all files, or none where one of them was not uploaded."""
        if not {file["oid"] for file in files if "oid" in file} <= self.large.keys():
            return False
        for file in files:
            target = self.folder / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.large[file["oid"]] if "oid" in file else base64.b64decode(file["content"]))
        return True

    def shown(self, name):
        """Return what the hub shows of a file."""
        content = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        shown = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith("safetensors"):
            known = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
            return shown | {"lfs": known, "blobId": "of the pointer"}
        return shown


class Handler(BaseHTTPRequestHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.tokens.add(self.headers.get("authorization"))
        step = step_of(self.command, urlsplit(self.path).path)
        fault = self.server.faults.get(step)
        early = fault and not self.server.late
        if early and not fault(self):
            return
        answer = self.server.answer(step, urlsplit(self.path).path, body)
        if not fault or early or fault(self):
            self.send(*answer)

    do_GET = do_POST = do_PUT = handle_any

    def send(self, status, headers=(), answer=b""):
        sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(sent)),
            **dict(headers),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


def status(code, headers=(), answer=None):
    """Return the fault of answering with an HTTP status."""
    return lambda handler: handler.send(code, headers, {"error": "no"} if answer is None else answer)


def drop(handler):
    """Close the connection without an answer."""
    handler.close_connection = True


def cut(handler):
    """Close the connection in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"url": ')
    handler.close_connection = True


def hang(handler):
    """Send nothing, until the test is over."""
    handler.server.over.wait()
    handler.close_connection = True


def redirect(handler):
    """Redirect to the same address, for ever."""
    handler.send(307, {"location": handler.path})


@contextmanager
def running(folder, monkeypatch):
    """Yield a hub that huggingface_hub finds; it does not wait before it asks again."""
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
