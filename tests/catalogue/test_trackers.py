"""Every property of trackers holds for every installed one; those whose package is missing have a stand-in for it."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from neoplug.testing import TRACKER

STAND_IN = ("MLflowTracker", "WandBTracker")  # of accelerate; their packages may be missing


class StandIn:
    """A tracker of accelerate that writes JSON lines into a folder of the run."""

    def __init__(self, project, *, dir=None, logging_dir=None, **options):
        self.folder = Path(logging_dir or f"{dir}/wandb")

    def start(self):
        self.folder.mkdir(exist_ok=True)
        self.file = (self.folder / "lines").open("a", encoding="utf-8")

    def store_init_configuration(self, values):
        self.log(values)

    def log(self, values, step=None):
        assert all(isinstance(value, str | float | int | None) for value in values.values())
        self.file.write(json.dumps([step, values]) + "\n")

    def finish(self):
        self.file.close()


@pytest.fixture(scope="module", autouse=True)
def stand_ins(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))  # read when trackio is imported
        for name in STAND_IN:
            patch.setattr(f"accelerate.tracking.{name}", StandIn, raising=False)
        patch.setattr("neoplug_trackers.accelerate_tracker.find_spec", lambda name: ModuleSpec(name, None))
        yield


@pytest.mark.parametrize("name", TRACKER.properties)
def test_a_property_of_trackers(name, tracker):
    assert TRACKER.absent(tracker) == {}
    TRACKER.properties[name](tracker)
