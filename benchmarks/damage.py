"""Ways in which a file is damaged: by a disk, a copy that ended early, an editor, or on purpose."""

from collections.abc import Callable
from pathlib import Path


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


WAYS: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": Path.unlink,
    "bit-flipped": _flip_a_bit,
    "map": lambda file: file.write_text("{}"),
    "null": lambda file: file.write_text("null"),
    "list": lambda file: file.write_text("[]"),
    "nested": lambda file: file.write_text("[" * 100_000),
}
