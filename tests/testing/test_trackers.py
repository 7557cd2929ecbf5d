"""`check_tracker`: it passes correct trackers, and names what is wrong with others by the smallest run."""

import csv
import json
import os
import random
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from neoplug import Problem, hookimpl
from neoplug.testing import TRACKER, check_tracker, examine

# A tracker that fails is not called again, in a run and here, so those below leave files open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def broken(plugin):
    """Return {property: how it fails} of those that do not hold."""
    return {finding.name: finding.why for finding in examine(plugin, TRACKER) if finding.verdict == "does not hold"}


@dataclass(eq=False)
class Lines:
    """A correct tracker: JSON lines in a folder of its own."""

    @hookimpl
    def open_tracker(self, path, config, group):
        self.folder = path / "trackers" / "lines"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / "lines.jsonl").open("a", encoding="utf-8")
        self.write({"group": group, **config})

    @hookimpl
    def on_log(self, line):
        self.write(line)

    @hookimpl
    def on_measured(self, step, measured, whose):
        self.write({"step": step, whose: measured})

    @hookimpl
    def close_tracker(self):
        self.file.close()

    def write(self, values):
        self.file.write(json.dumps(values) + "\n")


@dataclass(eq=False)
class Counts:
    """A correct tracker without files: it has one hook alone."""

    seen: int = field(default=0, init=False)

    @hookimpl
    def on_measured(self):
        self.seen += 1


class FloatsAlone(Lines):
    @hookimpl
    def on_log(self, line):
        self.write({name: float(value) for name, value in line.items() if name != "losses"})


class OneLevel(Lines):
    @hookimpl
    def on_log(self, line):
        self.write({name: float(value) for name, value in line["losses"].items()})
        for name, value in line.items():
            if isinstance(value, dict):
                self.write({f"{name}/{inner}": f"{number:.4g}" for inner, number in value.items()})


class FileForEachName(Lines):
    @hookimpl
    def on_log(self, line):
        for name in [name for value in line.values() if isinstance(value, dict) for name in value]:
            (self.folder / name).touch()


class SmallIntegers(Lines):
    @hookimpl
    def on_log(self, line):
        self.write({name: int(np.array(value, np.int32)) for name, value in line.items() if isinstance(value, int)})


class Columns(Lines):
    @hookimpl
    def on_log(self, line):
        if not hasattr(self, "table"):
            self.table = csv.DictWriter(self.file, line)
        self.table.writerow(line)


class NeedsDivergence(Lines):
    @hookimpl
    def on_measured(self, measured):
        self.write({"jsd": measured["jsd"]})


class ClosesWithALine(Lines):
    @hookimpl
    def on_log(self, line):
        self.last = line["step"]

    @hookimpl
    def close_tracker(self):
        self.write({"last": self.last})
        self.file.close()


class NeedsAGroup(Lines):
    @hookimpl
    def open_tracker(self, path, config, group):
        Lines.open_tracker(self, path, config, group.strip())


class Answers(Lines):
    @hookimpl
    def on_log(self, line):
        return {"logged": line["step"]}


class OpensOnce(Lines):
    @hookimpl
    def open_tracker(self, path):
        folder = path / "trackers" / "lines"
        folder.mkdir(parents=True)
        self.file = (folder / "lines.jsonl").open("w", encoding="utf-8")


class Overwrites(Lines):
    @hookimpl
    def open_tracker(self, path, config):
        Lines.open_tracker(self, path, config, None)
        self.file.close()
        self.file = (self.folder / "lines.jsonl").open("w", encoding="utf-8")


class StepsRise(Lines):
    @hookimpl
    def open_tracker(self, path, config):
        Lines.open_tracker(self, path, config, None)
        steps = [json.loads(line).get("step", 0) for line in (self.folder / "lines.jsonl").read_text().splitlines()]
        self.last = max([0, *steps])

    @hookimpl
    def on_log(self, line):
        if line["step"] <= self.last:
            raise ValueError(f"step {line['step']} after {self.last}")
        self.write(line)


class SharedList(Lines):
    rows: ClassVar[list] = []

    def write(self, values):
        self.rows.append(values)
        (self.folder / "rows.json").write_text(json.dumps(self.rows))


class SharedFile(Lines):
    opened: ClassVar[dict] = {}

    @hookimpl
    def open_tracker(self, path, config):
        if not self.opened:
            Lines.open_tracker(self, path, config, None)
            self.opened["file"] = self.file.name

    def write(self, values):
        with Path(self.opened["file"] if self.opened else self.file.name).open("a") as file:
            file.write(json.dumps(values))

    @hookimpl
    def close_tracker(self):
        pass


class NeverCloses(Lines):
    @hookimpl
    def close_tracker(self):
        pass


class AmongTheFilesOfTheRun(Lines):
    @hookimpl
    def on_log(self, line):
        (self.folder.parents[1] / "lines.txt").write_text(f"{line['step']}")


class AmongTheFoldersOfTrackers(Lines):
    @hookimpl
    def on_log(self, line):
        (self.folder.parent / "lines.txt").write_text(f"{line['step']}")


class AppendsToMetrics(Lines):
    @hookimpl
    def on_log(self, line):
        with (self.folder.parents[1] / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class InTheCurrentFolder(Lines):
    @hookimpl
    def on_log(self, line):
        with Path("lines.txt").open("a", encoding="utf-8") as file:
            file.write(f"{line['step']}\n")


class OnPurpose(InTheCurrentFolder):
    exempt: ClassVar = {"current_folder": "another program reads it there"}


class Draws(Lines):
    @hookimpl
    def open_tracker(self, path, config):
        Lines.open_tracker(self, path, {**config, "id": random.getrandbits(32)}, None)


class Seeds(Lines):
    @hookimpl
    def on_log(self):
        torch.manual_seed(3)


FAILING = "run that fails while it loads its models"


@pytest.mark.parametrize(
    ("tracker", "faults"),
    [
        (Lines, {}),
        (Counts, {}),
        (OnPurpose, {}),
        (FloatsAlone, {"records": "a line with None: the plugin `FloatsAlone` failed in `on_log`: TypeError"}),
        (OneLevel, {"records": "a line with maps in maps: the plugin `OneLevel` failed in `on_log`: TypeError"}),
        (FileForEachName, {"records": "a line with the name of a plugin in a file: "}),
        (SmallIntegers, dict.fromkeys(set(TRACKER.properties), "OverflowError")),
        (Columns, {"records": "a line that has more than the one before: the plugin `Columns` failed in `on_log`"}),
        (NeedsDivergence, {"records": "an evaluation of the teacher: the plugin `NeedsDivergence` failed"}),
        (ClosesWithALine, {"records": FAILING, "resumed": FAILING}),
        (NeedsAGroup, dict.fromkeys(set(TRACKER.properties), "AttributeError: 'NoneType'")),
        (Answers, dict.fromkeys(set(TRACKER.properties), "the plugin `Answers` answered `on_log` with a dict")),
        (OpensOnce, {"resumed": f"{FAILING}: the plugin `OpensOnce` failed in `open_tracker`: FileExistsError"}),
        (Overwrites, {"resumed": "`trackers/lines/lines.jsonl` has "}),
        (StepsRise, {"resumed": "a run that is resumed after step 1 of 3: the plugin `StepsRise` failed in `on_log`"}),
        (SharedList, {"separate": "`trackers/lines/rows.json` of the second of two runs has `"}),
        (NeverCloses, {"closed": "`trackers/lines/lines.jsonl` is not complete"}),
        (AmongTheFilesOfTheRun, {"directory": "it writes `lines.txt` among the files of the run"}),
        (AmongTheFoldersOfTrackers, {"directory": "it writes `trackers/lines.txt` among the folders of trackers"}),
        (AppendsToMetrics, {"directory": "it changes `metrics.jsonl`, a file of the run"}),
        (InTheCurrentFolder, {"current_folder": "it writes `lines.txt` into the current folder"}),
        (Draws, {"generators": "it draws from the generator of random, or seeds it"}),
        (Seeds, {"generators": "it draws from the generator of torch, or seeds it"}),
    ],
)
def test_faults_of_trackers(tracker, faults):
    found = broken(tracker())
    assert found.keys() == faults.keys()
    assert all(part in found[name] for name, part in faults.items()), found


def test_a_tracker_that_goes_on_with_the_file_of_an_earlier_run_is_found():
    assert "separate" in broken(SharedFile())


def test_check_tracker_raises_with_the_fault():
    check_tracker(Lines())
    check_tracker(OnPurpose())
    with pytest.raises(AssertionError, match="a line with None: the plugin `FloatsAlone` failed"):
        check_tracker(FloatsAlone())
    with pytest.raises(TypeError, match="neither `on_log` nor `on_measured`"):
        check_tracker(NoTracker())


@dataclass(eq=False)
class NoTracker:
    @hookimpl
    def open_tracker(self):
        pass


@dataclass(eq=False)
class Missing(Lines):
    """A tracker whose package is not installed."""

    @hookimpl
    def check(self):
        return [Problem("the package cloud is not installed", fix="`pip install cloud`")]


def test_a_tracker_that_cannot_be_used_here_is_not_tried():
    found = {(finding.verdict, finding.why) for finding in examine(Missing(), TRACKER)}
    assert found == {("not tried", "the package cloud is not installed")}


@dataclass(eq=False)
class Connects(Lines):
    """A tracker that sends to a server; no test reaches it, whose name is reserved (RFC 2606)."""

    server: str = "api.tracker.invalid"

    @hookimpl
    def open_tracker(self, path, config, group):
        if "TRACKER_MODE" not in os.environ:
            with socket.create_connection((self.server, 443), timeout=1):
                pass
        Lines.open_tracker(self, path, config, group)


class ConnectsByAddress(Connects):
    @hookimpl
    def open_tracker(self, path, config, group):
        with socket.socket() as connection:
            connection.connect_ex(("192.0.2.1", 443))  # what it swallows is found too; an address of RFC 5737
        Lines.open_tracker(self, path, config, group)


class HasAnOfflineMode(Connects):
    offline: ClassVar = {"TRACKER_MODE": "{folder}/here", "TRACKER_SERVER": None}

    @hookimpl
    def close_tracker(self):
        assert "TRACKER_SERVER" not in os.environ
        assert Path(os.environ["TRACKER_MODE"]).parent.is_dir()
        Lines.close_tracker(self)


class HasNoOfflineMode(Connects):
    exempt: ClassVar = {"offline": "the server is the record"}


@pytest.mark.parametrize(("tracker", "host"), [(Connects, "api.tracker.invalid"), (ConnectsByAddress, "192.0.2.1")])
def test_a_tracker_that_connects_to_another_machine_is_found_and_reaches_none(tracker, host):
    findings = {finding.name: finding for finding in examine(tracker(), TRACKER)}
    assert findings.pop("offline").verdict == "does not hold"
    assert {finding.verdict for finding in findings.values()} == {"not tried"}
    assert all(f"it connects to {host}" in finding.why for finding in findings.values())
    with pytest.raises(AssertionError, match=f"it connects to {host}"):
        check_tracker(tracker())


def test_what_a_tracker_declares_keeps_it_off_the_network(monkeypatch):
    monkeypatch.setenv("TRACKER_SERVER", "https://api.tracker.invalid")
    check_tracker(HasAnOfflineMode())
    assert "TRACKER_MODE" not in os.environ
    assert os.environ["TRACKER_SERVER"] == "https://api.tracker.invalid"
    verdicts = {finding.name: finding.verdict for finding in examine(HasNoOfflineMode(), TRACKER)}
    assert verdicts.pop("offline") == "exempt"
    assert set(verdicts.values()) == {"not tried"}


@dataclass(eq=False)
class ConnectsHere(Lines):
    port: int

    @hookimpl
    def open_tracker(self, path, config, group):
        socket.create_connection(("localhost", self.port)).close()
        Lines.open_tracker(self, path, config, group)


def test_a_server_on_this_machine_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_tracker(ConnectsHere(server.getsockname()[1]))


@pytest.mark.parametrize("tracker", [Lines, Columns, InTheCurrentFolder])
def test_the_current_folder_and_the_generators_are_restored(tracker):
    folder, generator, state = Path.cwd(), torch.random.get_rng_state(), random.getstate()
    broken(tracker())
    assert Path.cwd() == folder
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert random.getstate() == state
