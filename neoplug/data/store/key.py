"""The cache key of a token store: the hash of the sources' content, tokenizer, settings, and code of neoplug.data."""

import tempfile
from pathlib import Path
from typing import Any

from neoplug.data.encode.text_encoder import Tokenizer
from neoplug.environment.info import version_of
from neoplug.files import content_hash, sha256_of

PACKAGES = ("jinja2", "tokenizers", "transformers")


def store_key(data: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Return the sha256, in hexadecimal, of everything that the tokens of a recipe depend on.

    data  the recipe's `data` section, with the content of sources (as hashes) and templates in place of their names
    """
    return content_hash(
        {
            "format": 1,
            "data": data,
            "tokenizer": tokenizer_identity(tokenizer),
            "versions": {name: version_of(name) for name in PACKAGES},
            "code": [sha256_of(file) for file in sorted(Path(__file__).parents[1].rglob("*.py"))],
        }
    )


def tokenizer_identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return everything that determines the tokens of a text, in JSON types."""
    return {
        "class": type(tokenizer).__qualname__,
        "model": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else _file_hashes(tokenizer),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "around": tokenizer("a")["input_ids"],
    }


def _file_hashes(tokenizer: Tokenizer) -> dict[str, str]:
    """Return file name -> sha256 of the files that a tokenizer without a fast backend is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: sha256_of(file) for file in sorted(Path(folder).iterdir())}
