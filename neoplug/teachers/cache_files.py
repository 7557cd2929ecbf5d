"""The files of a teacher's cache: what is stored of its output for each document, found by the document's content.

    header.json       what the records mean: the teacher, the kind of cache and its options, the fitted numbers
    head.safetensors  `weight` [rows, H] and, if any, `bias` [rows] of the teacher's output head
    teacher/          the teacher's configuration and tokenizer, without weights
    source.json       where the teacher came from
    contents.json     the hashes of the files above
    train/            shards of training documents, in the recipe's kind
    held_out/         shards of held-out documents, whose records have one tensor, `exact` [N, H]: float32 states
    probes/           results of the recipe's probes for the teacher

A shard is a safetensors file whose name is the sha256 of its content. It is written at once, when it is full, and never
changed; its metadata name the header by its hash, so that a shard of another cache is not read.

    documents  [D, 32] uint8: the content hash of each document as the teacher reads it, ascending
    starts     [D, draws + 1] int64: where the record of each draw starts in `records`, and where the last one ends
    records    [bytes] uint8: for each document and draw, the tensors that `encode_teacher` returned, as safetensors

D documents of a shard, H the teacher's hidden size. Shards are mapped into memory, so only what is read is resident.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as tensors_from
from safetensors.torch import save as bytes_of
from torch import Tensor

from neoplug.errors import DamageError
from neoplug.files import content_hash, read_json, sha256_of, write_atomically

FORMAT = 1
HEADER, HEAD, TEACHER, SOURCE = "header.json", "head.safetensors", "teacher", "source.json"
TRAIN, HELD_OUT, PROBES = "train", "held_out", "probes"
EXACT = "exact"  # the tensor in a record of a held-out document
DIGEST = 32  # bytes of a content hash
SHARD_BYTES, SHARD_TOKENS = 2**26, 2**18  # of the records, and answer tokens: a shard that reaches one of them is full
FIX = "start the run again: what is missing is computed"
DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "U8": np.dtype("u1")}  # of shards, by safetensors' names


@dataclass(frozen=True)
class Header:
    """What the records of a cache mean. Its hash is equal for caches whose records can be mixed.

    parts        everything that the records depend on, by name; the cache's key is the hash of it
    kind         name and options of the plugin that encoded them
    draws        records of each training document
    fitted       numbers that `fit_cache` returned
    hidden_size  of the teacher's last hidden states
    multiplier   of its logits, as `Head.multiplier`
    cap          of its logits, as `Head.cap`
    """

    parts: dict[str, Any]
    kind: dict[str, Any]
    draws: int
    fitted: dict[str, float]
    hidden_size: int
    multiplier: float
    cap: float | None
    format: int = FORMAT

    @property
    def key(self) -> str:
        """The hash of everything that the records depend on: the name of the cache's folder."""
        return key_of(self.parts)

    @property
    def sha256(self) -> str:
        """The hash of the header, which shards name."""
        return content_hash(asdict(self))

    def write(self, folder: Path) -> None:
        """Write header.json atomically."""
        write_atomically(folder / HEADER, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Header":
        """Return the header of a cache. Raises DamageError."""
        record = read_json(folder / HEADER, FIX)
        if record.get("format") != FORMAT:
            what = f"has format {record.get('format')}, and this neoplug reads format {FORMAT}"
            raise DamageError(folder / HEADER, what, FIX)
        try:
            return cls(**record)
        except TypeError as error:
            raise DamageError(folder / HEADER, f"is no header of a cache ({error})", FIX) from error


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of a cache whose records depend on `parts`."""
    return content_hash({"format": FORMAT, **parts})


class Shard:
    """A shard, mapped into memory. Raises DamageError where the file is cut short, no shard, or of another cache."""

    def __init__(self, file: Path, header: str) -> None:
        self.file = file
        try:
            size = file.stat().st_size
            self._bytes = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
            start = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
            described = json.loads(self._bytes[8:start].tobytes())
            self._documents = self._array(described["documents"], start).reshape(-1, DIGEST).view(f"S{DIGEST}")[:, 0]
            self._starts = self._array(described["starts"], start).reshape(described["starts"]["shape"])
            self._records = self._array(described["records"], start)
            of_cache = described["__metadata__"]["header"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DamageError(file, f"is no complete shard ({type(error).__name__})", FIX) from error
        if of_cache != header:
            raise DamageError(file, "is a shard of another cache", FIX)

    def __len__(self) -> int:
        return len(self._documents)

    def _array(self, described: Mapping[str, Any], start: int) -> np.ndarray:
        """Return a tensor of the file, as a view [elements]; `start` is where the data begin."""
        first, last = (start + offset for offset in described["data_offsets"])
        if last > len(self._bytes):
            raise ValueError("the file ends before its data")
        values: np.ndarray = self._bytes[first:last].view(DTYPES[described["dtype"]])
        return values

    def find(self, documents: np.ndarray) -> np.ndarray:
        """Return [n] int64: the place of each content hash [n] in this shard, -1 where it is absent."""
        places = np.searchsorted(self._documents, documents).clip(max=len(self) - 1)
        return np.where(self._documents[places] == documents, places, -1)

    def record(self, place: int, draw: int) -> dict[str, Tensor]:
        """Return the tensors of a document's draw. Raises DamageError."""
        first, last = self._starts[place, draw : draw + 2]
        try:
            return tensors_from(self._records[first:last].tobytes())
        except Exception as error:  # safetensors raises its own, which is an Exception
            raise DamageError(self.file, f"has a record that cannot be read ({error})", FIX) from error

    def validate(self) -> None:
        """Raise DamageError where the content does not match the file's name."""
        if sha256_of(self.file) != self.file.stem:
            raise DamageError(self.file, "does not match its hash", FIX)


class Shards:
    """The shards of a folder, opened for reading. A document is found by binary search in each of them.

    damaged  shards that cannot be opened
    """

    def __init__(self, folder: Path, header: str) -> None:
        self.damaged: list[DamageError] = []
        self._shards: list[Shard] = []
        for file in sorted(folder.glob("*.safetensors")):
            try:
                self._shards.append(Shard(file, header))
            except DamageError as error:
                self.damaged.append(error)

    def __len__(self) -> int:
        return len(self._shards)

    def file(self, number: int) -> Path:
        """Return the file of a shard."""
        return self._shards[number].file

    @property
    def documents(self) -> int:
        """The number of documents; one that is in two shards counts twice."""
        return sum(map(len, self._shards))

    def find(self, documents: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard and the place in it, each [n] int64, of each content hash; -1 where there is no record."""
        wanted = np.array([bytes.fromhex(document) for document in documents], dtype=f"S{DIGEST}")
        shard, place = np.full(len(wanted), -1), np.full(len(wanted), -1)
        for number, candidate in enumerate(self._shards):
            left = np.flatnonzero(shard < 0)
            if not len(left):
                break
            found = candidate.find(wanted[left])
            shard[left[found >= 0]] = number
            place[left] = np.where(found >= 0, found, place[left])
        return shard, place

    def records(self, documents: Sequence[str], draw: int) -> list[dict[str, Tensor]]:
        """Return the records of documents, by content hash. Raises KeyError for one that is absent, DamageError."""
        found = []
        for document, shard, place in zip(documents, *self.find(documents), strict=True):
            if shard < 0:
                raise KeyError(document)
            found.append(self._shards[shard].record(int(place), draw))
        return found

    def validate(self, numbers: Iterable[int] | None = None) -> list[DamageError]:
        """Return the damage of these shards, or of all, after reading them whole, several at once."""
        chosen = self._shards if numbers is None else [self._shards[number] for number in sorted(set(numbers))]
        with ThreadPoolExecutor() as threads:
            return [error for error in threads.map(_damage, chosen) if error]


def _damage(shard: Shard) -> DamageError | None:
    try:
        shard.validate()
    except DamageError as error:
        return error
    except OSError as error:
        return DamageError(shard.file, f"cannot be read ({error.strerror})", FIX)
    return None


class ShardWriter:
    """Collects records of documents, and writes a shard whenever one is full.

    header  hash of the cache's header
    """

    def __init__(self, folder: Path, header: str) -> None:
        self.folder, self.header = folder, header
        self._clear()

    def _clear(self) -> None:
        self._records: dict[str, list[bytes]] = {}
        self._bytes = self._tokens = 0

    def add(self, document: str, draws: Sequence[Mapping[str, Tensor]], tokens: int) -> None:
        """Add a document: its content hash, a record for each draw, and its number of answer tokens."""
        records = [bytes_of({name: part.detach().cpu().contiguous() for name, part in draw.items()}) for draw in draws]
        self._records[document] = records
        self._bytes += sum(map(len, records))
        self._tokens += tokens
        if self._bytes >= SHARD_BYTES or self._tokens >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write the collected records as a shard, if there are any."""
        if not self._records:
            return
        documents = sorted(self._records)
        records = [self._records[document] for document in documents]
        ends = np.cumsum([0, *(len(record) for draws in records for record in draws)])
        draws = len(records[0])
        starts = np.stack([ends[number : number + len(documents) * draws : draws] for number in range(draws + 1)], -1)
        digests = np.frombuffer(b"".join(map(bytes.fromhex, documents)), np.uint8).reshape(-1, DIGEST)
        whole = np.frombuffer(b"".join(record for draws in records for record in draws), np.uint8)
        tensors = {"documents": digests, "starts": starts.astype("<i8"), "records": whole}
        content = bytes_of(
            {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}, {"header": self.header}
        )
        write_atomically(self.folder / f"{sha256(content).hexdigest()}.safetensors", content)
        self._clear()
