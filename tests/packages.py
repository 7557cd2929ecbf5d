"""Packages of plugins on the path with their entry points, as pip installs them, without pip."""

import sys
import tomllib


def install(project, monkeypatch):
    """Make the package in a folder with `pyproject.toml` and `src` importable; return its metadata.

    project  the folder; a folder with the package's metadata is written next to its modules
    """
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = project / "src" / f"{metadata['name'].replace('-', '_')}-{metadata['version']}.dist-info"
    info.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {metadata['name']}", f"Version: {metadata['version']}"]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in metadata["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(project / "src"))
    own = {path.name for path in (project / "src").iterdir()}
    for module in [name for name in sys.modules if name.partition(".")[0] in own]:  # of another copy of the package
        del sys.modules[module]
    return metadata
