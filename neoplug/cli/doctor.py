"""`neoplug doctor`: installed versions, the machine, and which features work."""

from typing import Any

from neoplug.cli.arguments import AsJson
from neoplug.cli.screen import echo_json, heading, size, table


def doctor(as_json: AsJson = False) -> None:
    """Show versions and devices, and test which features work on this machine."""
    from neoplug.environment.doctor import examine

    report = examine()
    if as_json:
        echo_json(report)
    else:
        print_report(report)


def print_report(report: dict[str, Any]) -> None:
    """Print what `examine` returned."""
    heading("versions")
    table([[f"  {name}", version or "not installed"] for name, version in report["versions"].items()])
    heading("machine")
    table([[f"  {name}", value] for name, value in machine_rows(report)])
    heading("what works")
    table([[f"  {name}", "yes" if trial["ok"] else "no", trial["note"]] for name, trial in report["works"].items()])


def machine_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows (name, value): cpu, cores, memory, gpus, devices and cache.

    A value that could not be determined is replaced by the reason.
    """
    rows = []
    hardware = report["hardware"]
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
    devices = report["devices"]
    rows.append(("devices", ", ".join(devices) if isinstance(devices, list) else str(devices)))
    return [*rows, ("cache", str(report["cache"]))]
