"""Packages with plugins, as far as their metadata say so."""

import importlib.metadata

import pytest


class Distribution(importlib.metadata.Distribution):
    """The metadata of a package that registers these entry points; the package itself does not exist."""

    def __init__(self, name, points, version="1.2"):
        self.texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "entry_points.txt": "[neoplug]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()),
        }

    def read_text(self, filename):
        return self.texts.get(filename)

    def locate_file(self, path):
        raise NotImplementedError


@pytest.fixture
def packages(monkeypatch):
    """Return a function that makes the given packages the only ones with plugins."""

    def install(**points):
        found = [Distribution(name.replace("_", "-"), entries) for name, entries in points.items()]
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda group: [p for d in found for p in d.entry_points if p.group == group],
        )

    return install
