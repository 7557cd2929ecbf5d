"""`train.full_determinism`: torch's settings hold in the run alone, and an operator that it refuses is explained."""

import os

import pytest
import torch

from neoplug.environment.determinism import VARIABLES, deterministic
from neoplug.errors import RunError

OBSERVER = """
@dataclass(eq=False)
class Observer:
    '''Records torch's settings in each step.'''

    @hookimpl
    def on_step_end(self):
        cudnn = torch.backends.cudnn
        return {
            "algorithms": torch.are_deterministic_algorithms_enabled(), "cudnn": cudnn.deterministic,
            "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG") == ":4096:8",
        }
"""
OVERWRITER = """
@dataclass(eq=False)
class Overwriter:
    '''Puts several values in one place, of which any may be the last.'''

    @hookimpl
    def token_loss(self, student, labels):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return -student.gather(-1, labels[:, None])[:, 0]
"""
ASKED = {"train": {"full_determinism": True, "logging_steps": 1}}


def settings():
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic, cudnn.benchmark, *(os.environ.get(name) for name in VARIABLES),
    )  # fmt: skip


def test_the_settings_hold_in_the_run_and_not_after(lab):
    lab.plugin("observer", OBSERVER)
    before = settings()
    probes = {"./observer.py:Observer": {}}
    plain, run = lab.run("plain", probes=probes, train={"logging_steps": 1}), lab.run("run", probes=probes, **ASKED)
    assert settings() == before
    kinds = ("algorithms", "cudnn", "workspace")
    observed = [[line[kind] for kind in kinds] for line in (plain.lines[0], *run.lines)]
    assert observed == [[0, 0, 0], *([[1, 1, 1]] * len(run.lines))]
    assert [line["loss"] for line in run.lines] == [line["loss"] for line in plain.lines]


def test_a_plugin_that_calls_what_torch_refuses_is_named(lab):
    lab.plugin("overwriter", OVERWRITER)
    before = settings()
    with pytest.raises(RunError) as caught:
        lab.run("run", loss={"./overwriter.py:Overwriter": {}}, **ASKED)
    what, place, *_ = str(caught.value).splitlines()
    assert what == (
        "the plugin `./overwriter.py:Overwriter` in `token_loss` calls put_, which has no deterministic algorithm here"
    )
    assert "overwriter.py:" in place
    assert lab.at("run").result["reason"].splitlines()[0] == what
    assert settings() == before


def test_outside_of_plugins_the_line_is_named():
    with pytest.raises(RunError, match=r"^`torch.zeros\(4\).put_.* calls put_") as caught, deterministic(True):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    assert f"at: {__file__}:" in str(caught.value)


def test_other_errors_and_settings_of_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before, inside = settings(), []

    def run():
        with deterministic(True):
            inside.append(os.environ["CUBLAS_WORKSPACE_CONFIG"])
            raise ValueError("another")

    with pytest.raises(ValueError, match="another"):
        run()
    assert inside == [":16:8"]
    assert settings() == before
