"""A reference to a model that transformers can load: a local folder, or a hub id pinned to a commit."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from neoplug.files import content_hash, sha256_of

if TYPE_CHECKING:
    from neoplug.models.stored_adapter import StoredAdapter

Kind = Literal["hub", "local", "gguf", "pypi", "prepared"]
RECORD = "neoplug.json"  # next to a model in neoplug's cache: what it was made from
CONTENT = (
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".safetensors",
    ".bin",
)  # of the files that a folder's hash covers


@dataclass(frozen=True)
class ResolvedModel:
    """A model that transformers can load.

    path               local folder, or hub id
    revision           commit on the hub; None for a folder
    source             the model as the recipe names it
    kind               where it comes from; `prepared`: a student changed by `prepare_student` plugins
    trust_remote_code  whether Python files of the model may run
    adapter            the stored adapter of a teacher, or the one that a student starts from; not in hash or identity
    """

    path: str
    revision: str | None
    source: str
    kind: Kind
    trust_remote_code: bool = False
    adapter: "StoredAdapter | None" = None

    @cached_property
    def sha256(self) -> str | None:
        """The hash of the GGUF file, or of the folder's content; None on the hub, where `revision` identifies it."""
        if self.kind == "hub":
            return None
        record = Path(self.path) / RECORD
        if record.is_file():
            return str(json.loads(record.read_text(encoding="utf-8"))["sha256"])
        hashed = (*CONTENT, ".py") if self.trust_remote_code else CONTENT
        files = sorted(file for file in Path(self.path).iterdir() if file.suffix in hashed)
        return content_hash({file.name: sha256_of(file) for file in files})

    @property
    def identity(self) -> dict[str, str | None]:
        """What identifies the weights: the hub id and commit, or the hash. Equal for equal weights."""
        return {"model": self.path, "revision": self.revision} if self.kind == "hub" else {"sha256": self.sha256}
