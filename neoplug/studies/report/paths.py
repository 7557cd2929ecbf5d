"""Paths of the machine that ran a study are not published: a report names files, not the folders that they lie in."""

import re

from neoplug.errors.text import presentable

_FOLDERS = re.compile(r"(?<![\w/.:~])/(?:[^\s/:,;'\"`]+/)+(?=[^\s/:,;'\"`])")


def published(text: str) -> str:
    """Return `text` as a part of a report: presentable, and without the folders of absolute paths."""
    return presentable(_FOLDERS.sub("", text))
