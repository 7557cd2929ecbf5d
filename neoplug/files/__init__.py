"""Files: atomic writes, records of contents that are verified before they are read, JSON, locks, the cache's location.

Imported by all layers above `errors`. Does not belong here: what the files of a checkpoint, a run or a model mean.
"""

from neoplug.files.atomic import (
    cache_root,
    config_root,
    content_hash,
    discarded_folder,
    disk_errors,
    exclusive_lock,
    file_atomically,
    folder_atomically,
    lock,
    remove_abandoned,
    sha256_of,
    write_atomically,
)
from neoplug.files.json_reader import parse_map, read_json, read_text
from neoplug.files.regular import read_regular

__all__ = [
    "cache_root",
    "config_root",
    "content_hash",
    "discarded_folder",
    "disk_errors",
    "exclusive_lock",
    "file_atomically",
    "folder_atomically",
    "lock",
    "parse_map",
    "read_json",
    "read_regular",
    "read_text",
    "remove_abandoned",
    "sha256_of",
    "write_atomically",
]
