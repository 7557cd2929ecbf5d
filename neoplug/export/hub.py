"""Upload of finished runs to the Hugging Face hub: adapter or model, prepared base, card, recipe, lock and results."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from neoplug.errors import RunError, UsageError
from neoplug.files import write_atomically
from neoplug.runs.directory import RunDir, as_json, as_yaml
from neoplug.runs.model_card import card, without_local_paths
from neoplug.runs.result import RunResult


def push(run: Path, repository: str, *, private: bool = False) -> str:
    """Upload the finished run `run` to `repository` ("user/name") as one commit; return the repository's URL.

    The repository is created where it does not exist; huggingface_hub finds the token (`hf auth login`, or HF_TOKEN).

    Raises:
        UsageError: `run` is not a finished run, or `repository` is not a valid name.
        RunError: the upload failed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    directory, result = open_for_push(run)
    try:
        with TemporaryDirectory() as folder:
            stage(directory, result, Path(folder), repository)
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(folder_path=folder, repo_id=repository, commit_message=f"neoplug: {run.name}")
    except HFValidationError as error:
        raise UsageError(f"{repository} is not the name of a repository: {error}\nfix: write user/name") from error
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:  # also: offline, no connection
        raise RunError(
            f"the upload of {run} failed: {type(error).__name__}: {str(error).strip()}\nfix: {_fix(error)}"
        ) from error
    return str(commit.repo_url)


def _fix(error: Exception) -> str:
    """Return what a user can do about a failed upload."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if isinstance(error, LocalTokenNotFoundError | HfHubHTTPError):
        return "store a token with `hf auth login`; it needs write access to the repository"
    return "check the network, HF_HUB_OFFLINE and HF_ENDPOINT; the run is unchanged"


def open_for_push(run: Path) -> tuple[RunDir, RunResult]:
    """Return a finished run and its result. Raises UsageError where `run` is not a finished run."""
    directory = RunDir.open(run)
    result = directory.result if directory.is_finished else None
    if result is None:
        raise UsageError(f"{run} is not finished\nwhy: its student is not fully trained\nfix: --resume it")
    return directory, result


def stage(run: RunDir, result: RunResult, folder: Path, repository: str) -> None:
    """Write the files to upload to `folder`: the model or the adapter, card, recipe, lock, result and metrics.

    Where the adapter's base is uploaded too, both are in subfolders: transformers would apply an adapter at the root
    of the repository to the base that it loads from there.
    """
    if run.adapter.is_dir() and run.student.is_dir():
        shutil.copytree(run.adapter, folder / "adapter", ignore=shutil.ignore_patterns("README.md"))
        shutil.copytree(run.student, folder / "student")
        _set_base(folder / "adapter" / "adapter_config.json", repository)
    else:
        shutil.copytree(run.adapter if run.adapter.is_dir() else run.model, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text(card(run, result, repository), encoding="utf-8")
    (folder / "recipe.yaml").write_text(as_yaml(without_local_paths(run.resolved)), encoding="utf-8")
    for name, value in (("lock.json", without_local_paths(run.lock)), ("result.json", result.as_dict())):
        write_atomically(folder / name, as_json(value))
    shutil.copy(run.path / "metrics.jsonl", folder)


def _set_base(config: Path, repository: str) -> None:
    """Set the base in a peft configuration to `repository`, where it is uploaded as student/."""
    if not config.is_file():
        return
    values: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    values |= {"base_model_name_or_path": repository, "revision": None}
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
