"""Requests to the Hugging Face hub, counted and limited in time, and what their errors mean."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from neoplug.errors.text import shortened
from neoplug.models.quiet import quiet
from neoplug.runs.publishable import masked

SILENCE = 20.0  # seconds without a byte from the hub after which a request has failed
LONGEST = 300  # characters of an error that are shown
REQUESTS = 10  # to one address; huggingface_hub tries 6 times, but creates a repository for as long as the hub says so
FIXES = {
    401: "store a token with `hf auth login`, or set HF_TOKEN",
    403: "use a token with write access to the repository",
    404: "check the name of the repository, and HF_ENDPOINT",
    409: "wait until nothing else writes to the repository, then push again",
    429: "wait some minutes, then push again",
}


class Requests(Counter[str]):
    """The number of requests to each address of the hub, as "POST /api/repos/create"."""

    last = "the connection"
    answered = False

    @property
    def committed(self) -> bool:
        """Whether a commit was sent."""
        return any("/commit/" in address for address in self)

    def may_have_effect(self, error: BaseException) -> bool:
        """Return whether requests of which the last one failed may have reached the hub."""
        is_unconnected = type(error).__name__.startswith(("Connect", "Unsupported"))  # of httpx, or the client after it
        return bool(self) and (self.answered or not is_unconnected)

    def note(self, request: Any) -> None:
        """Count a request before it is sent, and limit its time, for which huggingface_hub sets no limit.

        Raises RuntimeError for an address that is asked again and again.
        """
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), SILENCE)
        self.last = _named(request)
        self[self.last] += 1
        if self[self.last] > REQUESTS:
            raise RuntimeError(f"the hub demands it more than {REQUESTS} times")

    def note_answer(self, response: Any) -> None:
        """Remove the headers that make huggingface_hub wait before it asks again, for hours if the hub says so."""
        self.answered = True
        for name in ("retry-after", "ratelimit"):
            response.headers.pop(name, None)


def _named(request: Any) -> str:
    return f"{request.method} {request.url.path}"


@contextmanager
def watched_requests() -> Iterator[Requests]:
    """Count the requests of huggingface_hub; let silence end them, and the hub not decide how long to wait."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http, logging

    original, requests, verbosity = _http._GLOBAL_CLIENT_FACTORY, Requests(), logging.get_verbosity()

    def make() -> Any:
        client = original()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], requests.note],
            "response": [*hooks["response"], requests.note_answer],
        }
        return client

    set_client_factory(make)
    logging.set_verbosity(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the hub may send any text as a warning
            yield requests
    finally:
        logging.set_verbosity(verbosity)
        set_client_factory(original)


def status(error: BaseException) -> int | None:
    """Return the HTTP status with which a request was refused; None where it was not answered with one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def address(error: BaseException) -> str:
    """Return the request that was refused, as `Requests` counts it; empty where it was not answered with a status."""
    response: Any = getattr(error, "response", None)
    return _named(response.request) if response is not None else ""


def is_refusal(error: BaseException) -> bool:
    """Return whether the hub answered that it did not do what was asked."""
    return 400 <= (status(error) or 0) < 500 and status(error) != 408  # 408: a proxy gave up


def reason(error: BaseException) -> str:
    """Return why a request failed, in one line: the hub's status and message, or the error of this side."""
    code, said = status(error), getattr(error, "server_message", None)
    if code is not None:
        text = f"HTTP {code}" + (f": {said}" if said else "")
    elif _is_no_hub(error):
        text = f"the answer is not that of a hub ({type(error).__name__}: {error})"
    else:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
    return shortened(masked(" ".join(text.split())), LONGEST)


def _is_no_hub(error: BaseException) -> bool:
    """Return whether an error arose from the content of an answer."""
    return isinstance(error, ValueError | LookupError | TypeError | AttributeError)


def fix(error: BaseException) -> str:
    """Return what a user can do about a failed upload."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    code = status(error)
    if isinstance(error, LocalTokenNotFoundError):
        return FIXES[401]
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE"
    if code is not None:
        return FIXES.get(code, "push again later" if code >= 500 else "see what the hub says")
    if _is_no_hub(error):
        return "check HF_ENDPOINT, and whether a proxy or a login page answers in its place"
    return "check the network and HF_ENDPOINT, then push again; the run is unchanged"
