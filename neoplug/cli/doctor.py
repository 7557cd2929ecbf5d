"""`neoplug doctor`: what is installed here, and what of it works."""

import json
from typing import Any

from neoplug.cli.arguments import AsJson
from neoplug.cli.screen import heading, say, size, table


def doctor(as_json: AsJson = False) -> None:
    """Show versions and devices, and try what works here."""
    from neoplug.environment.doctor import examine

    found = examine()
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    heading("versions")
    table([[f"  {name}", version or "not installed"] for name, version in found["versions"].items()])
    heading("machine")
    table([[f"  {name}", value] for name, value in machine(found)])
    heading("what works")
    table([[f"  {name}", "yes" if trial["ok"] else "no", trial["note"]] for name, trial in found["works"].items()])


def machine(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of each part; a part that could not be asked is the reason why."""
    rows = []
    hardware = found["hardware"]
    if isinstance(hardware, dict):
        memory = hardware["memory_bytes"]
        rows = [
            ("cpu", hardware["cpu"]),
            ("cores", str(hardware["cores"])),
            ("memory", size(memory) if memory else "unknown"),
            ("gpus", ", ".join(hardware["gpus"]) or "none"),
        ]
    else:
        rows = [("hardware", str(hardware))]
    named = found["devices"]
    rows.append(("devices", ", ".join(named) if isinstance(named, list) else str(named)))
    return [*rows, ("cache", str(found["cache"]))]
