"""References to models and adapters that transformers and peft can load: local folders, or hub ids at a commit."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.files import content_hash, read_json, sha256_of
from neoplug.files.contents import recorded
from neoplug.models.quiet import quiet_peft

if TYPE_CHECKING:
    from peft import PeftConfig

Kind = Literal["hub", "local", "gguf", "pypi", "prepared"]
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in the order in which peft tries them
RECORD = "neoplug.json"  # in the folder of a model in neoplug's cache: what it was made from
CONTENT = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin")  # suffixes of files in a folder's hash


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in peft's file format.

    folder    the folder of its files
    source    the adapter as the recipe names it
    revision  commit on the hub; None for a folder
    path      its key in the recipe, for errors
    """

    folder: Path
    source: str
    revision: str | None
    path: Key

    @cached_property
    def sha256(self) -> str:
        """The hash of its configuration and weights."""
        files = [self.folder / name for name in (CONFIG, *WEIGHTS)]
        return content_hash({file.name: sha256_of(file) for file in files if file.is_file()})

    @property
    def config(self) -> "PeftConfig":
        """Its configuration, read at each access because peft changes the one that it uses.

        Raises RecipeError where peft cannot read it.
        """
        from peft import PeftConfig

        try:
            with quiet_peft():
                return PeftConfig.from_pretrained(str(self.folder))
        except Exception as error:  # of any content of the file
            raise self.error(f"has no {CONFIG} that peft can read", f"{type(error).__name__}: {error}") from error

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its weights on the CPU, by peft's names. Raises RecipeError for files that cannot be read."""
        from peft.utils import load_peft_weights

        try:
            weights: dict[str, Tensor] = load_peft_weights(str(self.folder), device="cpu")
        except Exception as error:  # each file format raises its own
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise self.error("has weights that cannot be read", reason) from error
        return weights

    def error(self, what: str, why: str = "", fix: str = "") -> RecipeError:
        """Return the RecipeError of an adapter that cannot be used."""
        return RecipeError([Problem(f"the adapter `{self.source}` {what}", why, fix, self.path)])


@dataclass(frozen=True)
class ResolvedModel:
    """A model that transformers can load.

    path               local folder, or hub id
    revision           commit on the hub; None for a folder
    source             the model as the recipe names it
    kind               where it comes from; `prepared`: a student changed by `prepare_student` plugins
    trust_remote_code  whether Python files of the model may run
    adapter            a teacher's stored adapter, or the one that a student's training starts from; `sha256` and
                       `identity` do not cover it
    """

    path: str
    revision: str | None
    source: str
    kind: Kind
    trust_remote_code: bool = False
    adapter: StoredAdapter | None = None

    @cached_property
    def sha256(self) -> str | None:
        """The hash of the GGUF file, or of the folder's content; None for a hub id, which `revision` identifies."""
        if self.kind == "hub":
            return None
        record = Path(self.path) / RECORD
        if record.is_file():
            return str(read_json(record, f"remove {self.path}")["sha256"])
        hashed = (*CONTENT, ".py") if self.trust_remote_code else CONTENT
        files = sorted(file for file in Path(self.path).iterdir() if file.suffix in hashed)
        return content_hash({file.name: sha256_of(file) for file in files})

    @cached_property
    def weights_sha256(self) -> str | None:
        """The hash of the recorded weights that neoplug converted or prepared; None for others: `sha256` covers them.

        It is the same for equal weights, whatever version of transformers wrote their configuration.
        """
        if self.kind not in ("gguf", "pypi", "prepared"):
            return None
        files = recorded(Path(self.path))
        return content_hash({name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")})

    @property
    def identity(self) -> dict[str, str | None]:
        """What identifies the weights: the hub id and commit, or the hash. Equal for equal weights."""
        return {"model": self.path, "revision": self.revision} if self.kind == "hub" else {"sha256": self.sha256}
