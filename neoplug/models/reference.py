"""A model in reach of transformers: a folder, or a hub id pinned to a commit."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from neoplug.files import content_hash, sha256_of

if TYPE_CHECKING:
    from neoplug.models.stored_adapter import StoredAdapter

Kind = Literal["hub", "local", "gguf", "pypi", "prepared"]
RECORD = "neoplug.json"  # beside a model in neoplug's cache: what it was made from
CONTENT = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin")  # what a model's folder is judged by


@dataclass(frozen=True)
class ResolvedModel:
    """A model that transformers can load.

    path      local folder, or hub id
    revision  commit on the hub; None for a folder
    source    as in the recipe
    kind      what it was; `prepared` is a student that neoplug made
    trust_remote_code  Python files that the model brings may run
    adapter            what a teacher has on top, or a student starts from; no part of hash and identity
    """

    path: str
    revision: str | None
    source: str
    kind: Kind
    trust_remote_code: bool = False
    adapter: "StoredAdapter | None" = None

    @cached_property
    def sha256(self) -> str | None:
        """The hash of the GGUF file, or of the folder's content; None on the hub, where `revision` says as much."""
        if self.kind == "hub":
            return None
        record = Path(self.path) / RECORD
        if record.is_file():
            return str(json.loads(record.read_text(encoding="utf-8"))["sha256"])
        counted = (*CONTENT, ".py") if self.trust_remote_code else CONTENT
        files = sorted(file for file in Path(self.path).iterdir() if file.suffix in counted)
        return content_hash({file.name: sha256_of(file) for file in files})

    @property
    def identity(self) -> dict[str, str | None]:
        """What two runs compare to know that they mean the same weights."""
        return {"model": self.path, "revision": self.revision} if self.kind == "hub" else {"sha256": self.sha256}
