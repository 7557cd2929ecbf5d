"""Upload of a finished run to the Hugging Face hub: one commit of all files, and one sentence for each outcome.

Any server may answer, or none. The outcome follows from whether a commit was sent, and from what the hub shows then:

    no commit was sent, or the hub refused it   nothing was published
    the hub confirmed the commit                published, unless it shows that files are missing
    any other answer, or none                   published if it shows all files, not if it shows otherwise; else unknown
"""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neoplug.errors import Interrupted, NeoplugError, RunError, UsageError
from neoplug.export.hub_client import Requests, address, fix, is_refusal, reason, status, watched_requests
from neoplug.export.staging import digest, size, staged
from neoplug.runs.public_files import Content
from neoplug.runs.publishable import masked

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from huggingface_hub.hf_api import RepoSibling

EXISTS = 409  # HTTP status: a repository of this name exists
NOT_ALLOWED = (401, 402, 403)  # to create a repository; one that exists may still accept a commit


def push(run: Path, repository: str, *, private: bool = False) -> str:
    """Upload the finished run `run` to `repository` ("user/name") as one commit; return a sentence that says so.

    The repository is created where it does not exist, public unless `private` is True; huggingface_hub finds the token
    (`hf auth login`, or HF_TOKEN).

    Raises:
        UsageError: `run` is not a finished run; or `repository` is not a valid name, or public where `private` is True.
        RunError: nothing was published, or it is unknown whether; the message says which.
        Interrupted: as RunError, after Ctrl-C.
    """
    validate_repository(repository)
    files = staged(run, repository)
    with watched_requests() as requests:
        return _Upload(run, repository, files, requests).publish(private)


def dry_run(run: Path, repository: str, *, private: bool = False) -> tuple[dict[str, int], str]:
    """Return the files that `push` would publish with their sizes in bytes, and a sentence that says where.

    Raises:
        UsageError: `run` is not a finished run, or `repository` is not a valid name.
    """
    from huggingface_hub import HfApi

    validate_repository(repository)
    files = staged(run, repository)
    where = masked(f"{HfApi().endpoint}/{repository}")
    created = f"made {'private' if private else 'public'} where it does not exist"
    sentence = f"nothing was published: these {_amount(files)} would be one commit at {where}, {created}"
    return {name: size(content) for name, content in files.items()}, sentence


def validate_repository(repository: str) -> None:
    """Raise UsageError for a name that is not "user/name"."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"{repository} is not the name of a repository: {error}\nfix: write user/name") from error
    if "/" not in repository:
        raise UsageError(f"{repository} is not the name of a repository: it has no user\nfix: write user/name")


class _Upload:
    """One push: its files, and what is known of the repository.

    left    what the push leaves of the repository where no commit is made; empty until it is there
    exists  whether the hub shows the repository; None where it shows nothing
    """

    def __init__(self, run: Path, repository: str, files: Mapping[str, Content], requests: Requests) -> None:
        from huggingface_hub import HfApi

        self.name, self.repository, self.files, self.requests = run.absolute().name, repository, files, requests
        self.api = HfApi()
        self.url = masked(f"{self.api.endpoint}/{repository}")
        self.left = ""
        self.exists: bool | None = None

    def publish(self, private: bool) -> str:
        """Create the repository where it is missing, and send the commit; return a sentence on what was published."""
        from huggingface_hub import CommitOperationAdd

        try:
            self._create(private)
            added = [CommitOperationAdd(name, content) for name, content in self.files.items()]
            commit = self.api.create_commit(self.repository, added, commit_message=f"neoplug: {self.name}")
        except UsageError:
            raise
        except BaseException as error:  # of huggingface_hub, its HTTP client, or its uploader, which is in Rust
            return self._unconfirmed(error)
        return self._confirmed(commit)

    def _create(self, private: bool) -> None:
        """Create the repository. Raises UsageError where it exists and is public, but is to be private."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self.api.create_repo(self.repository, private=private)
            self.left = f"{self.repository} was created, and is empty"
            return
        except HfHubHTTPError as error:
            if status(error) != EXISTS and not (status(error) in NOT_ALLOWED and self._missing() and self.exists):
                raise
        self.left = f"{self.repository} is as it was"
        if private and not self.api.model_info(self.repository).private:
            raise UsageError(
                f"nothing was published: {self.repository} is public\n"
                "why: --private makes a new repository private, and leaves one that exists as it is\n"
                "fix: make it private on the hub, or name another"
            )

    def _confirmed(self, commit: "CommitInfo") -> str:
        """Return a sentence on a commit that the hub confirmed. Raises RunError where the hub lacks files of it."""
        missing = self._missing(commit.oid)
        if not missing:
            unseen = "" if missing is not None else "; the hub did not show its files, so look there"
            return f"published {_amount(self.files)} of {self.name} at {self.url} in one commit, {commit.oid}{unseen}"
        what = "nothing was published" if len(missing) == len(self.files) else "not all files were published"
        why = f"the hub confirmed the commit {commit.oid}, in which {', '.join(missing)} are missing or differ"
        raise RunError(f"{what}\nwhy: {why}\nfix: look at {self.url}, and at the .gitignore there")

    def _unconfirmed(self, error: BaseException) -> str:
        """Return a sentence on a commit that the hub shows, although it did not confirm it.

        Raises RunError, or Interrupted, where it does not show it.
        """
        why = f"{address(error) or self.requests.last}: {reason(error)}"
        is_sent = self.requests.may_have_effect(error)
        missing = self._missing() if is_sent else None
        if self.requests.committed and missing == []:
            return f"published {_amount(self.files)} of {self.name} at {self.url}; the hub did not confirm the commit"
        then = fix(error)
        what = f"nothing was published: {self._state(is_known=not is_sent or is_refusal(error))}"
        if self.requests.committed and not is_refusal(error):
            then = f"look at {self.url}, since the hub may still be at work: it has all files or none; then push again"
            if missing is None:
                what, why = f"it is unknown whether {self.name} was published", f"{why}; {self.url} shows nothing"
        raise _failure(what, why, then, error) from error

    def _state(self, is_known: bool) -> str:
        """Return a sentence on the repository after a push that failed.

        is_known  whether it is certain that a repository was not created where none is known to be there
        """
        if self.exists is False:
            return f"{self.repository} does not exist"
        if self.left:
            return self.left
        if self.exists:
            return f"{self.repository} exists"
        return f"{self.repository} was not created" if is_known else f"whether {self.repository} exists is unknown"

    def _missing(self, revision: str | None = None) -> list[str] | None:
        """Return the files that the repository lacks or has with other contents; None where the hub shows nothing."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            shown = self.api.model_info(self.repository, revision=revision, files_metadata=True).siblings
            there = {file.rfilename: file for file in shown or ()}
            self.exists = True
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if status(error) != 404:  # 401 hides whether it is there
                return None
            there, self.exists = {}, isinstance(error, RevisionNotFoundError)
        except Exception:
            return None
        return [name for name, content in self.files.items() if not _is_same(there.get(name), content)]


def _is_same(there: "RepoSibling | None", content: Content) -> bool:
    """Return whether a file of the hub has this content, by all that the hub shows of it."""
    if there is None:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == digest(content, "sha256")
    if there.blob_id is not None:
        return there.blob_id == digest(content, "sha1", f"blob {size(content)}\0".encode())  # that of git
    return there.size in (None, size(content))


def _amount(files: Mapping[str, Content]) -> str:
    return f"{len(files)} files ({sum(map(size, files.values())):,} bytes)"


def _failure(what: str, why: str, fix: str, error: BaseException) -> NeoplugError:
    message = f"{what}\nwhy: {why}\nfix: {fix}"
    return Interrupted(signal.SIGINT, message) if isinstance(error, KeyboardInterrupt) else RunError(message)
