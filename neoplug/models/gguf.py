"""Conversion of GGUF files to float32 safetensors with tokenizer and configuration, stored in neoplug's cache."""

import io
import json
import logging
import mmap
import struct
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.errors import RunError
from neoplug.files import cache_root, content_hash, lock, sha256_of, write_atomically
from neoplug.files.contents import intact, recorded_folder
from neoplug.models.reference import RECORD, ResolvedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
CONVERSION = 2  # part of the cache's key: increase it when the result of a conversion changes

# Pre-tokenizers that split off each digit; transformers 5.24 converts these names without it.
SPLIT_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")


def from_gguf(file: Path, source: str) -> ResolvedModel:
    """Return the converted copy of a local GGUF file."""
    folder = cached_conversion({"gguf": sha256_of(file)}, source, lambda target: convert(file, target))
    return ResolvedModel(str(folder), None, source, "gguf")


def cached_conversion(key: dict[str, str], source: str, make: Callable[[Path], str]) -> Path:
    """Return the folder of a converted model in neoplug's cache; convert it first where it is not there, or damaged.

    key     identifies the original file
    source  the model as the recipe names it
    make    writes the converted model to the folder that it is called with, and returns the original file's sha256

    Of several processes that start at the same time, one converts and the others wait.
    """
    folder = cache_root() / "models" / content_hash({"conversion": CONVERSION, **key})
    with lock(folder):
        if not intact(folder, f"{source} is converted again"):
            with recorded_folder(folder) as target:
                record = {"format": 1, "source": source, "sha256": make(target)}
                write_atomically(target / RECORD, json.dumps(record, indent=2) + "\n")
    return folder


def convert(file: Path, folder: Path) -> str:
    """Write `file` to `folder` as a float32 model that plain transformers loads; return the file's sha256."""
    from neoplug.models.quiet import quiet

    logger.info("converting %s to safetensors", file.name)
    with quiet(), _without_progress_bar():
        try:
            model, tokenizer = _read(file)
        except Exception as error:  # transformers and gguf raise many types for an invalid file
            raise RunError(
                f"{file.name} cannot be read as a GGUF model\nwhy: {type(error).__name__}: {error}\n"
                "fix: use a file of an architecture and quantisation that transformers converts"
            ) from error
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return sha256_of(file)


def _without_progress_bar() -> AbstractContextManager[Any]:
    """Discard, except on a terminal, the progress bar that transformers always draws while it reads a GGUF file."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def _read(file: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    source["config"] = AutoConfig.from_pretrained(**source, trust_remote_code=False)  # once: reading takes seconds
    tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, trust_remote_code=False)
    _mark_unquantised(model)
    _complete_tokenizer(tokenizer, file, model.config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _mark_unquantised(model: "PreTrainedModel") -> None:
    """Remove the quantisation marks of a dequantised model, with which transformers refuses to save it."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _complete_tokenizer(tokenizer: "PreTrainedTokenizerBase", file: Path, config: Any) -> None:
    """Add what transformers' conversion of the tokenizer leaves out: digit splitting, padding token, length limit."""
    from tokenizers import pre_tokenizers

    if _pre_tokenizer(file) in SPLIT_DIGITS:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
        tokenizer.backend_tokenizer.pre_tokenizer = split
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    longest = getattr(config, "max_position_embeddings", None)
    if longest:
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)


def _pre_tokenizer(file: Path) -> str | None:
    """Return the name of the file's pre-tokenizer; None where it has none."""
    key, string = b"tokenizer.ggml.pre", 8  # 8: GGUF's type number of strings
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as header:
        at = header.find(key)  # gguf's own reader takes seconds for each pass over the vocabulary
        if at < 0:
            return None
        # After the key: uint32 type, uint64 length, characters.
        kind, length = struct.unpack_from("<IQ", header, at + len(key))
        start = at + len(key) + struct.calcsize("<IQ")
        return header[start : start + length].decode() if kind == string else None
