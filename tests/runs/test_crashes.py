"""An exception in any hook ends the command with the names of plugin and hook; the traceback is kept."""

import sys

import pytest

from neoplug.cli import main
from neoplug.registry import SPECS

CRASH = """
@dataclass(eq=False)
class Crash:
    @hookimpl
    def {fit}(self):
        pass

    @hookimpl
    def {hook}(self):
        return {{}}["gone"]
"""
SAVES = """
    @hookimpl
    def save_adapter(self, path):
        (path / "adapter.txt").write_text("")
"""
INHERITS = """
from {module} import {parent}

@dataclass(eq=False)
class Crash({parent}):
    @hookimpl
    def {hook}(self):
        return {{}}["gone"]
"""
PARENTS = {  # of hooks that are called of a class with others
    **dict.fromkeys(("fit_cache", "encode_teacher", "decode_teacher"), ("neoplug_teachers.sampled", "Sampled")),
    "token_gradient_sparse": ("neoplug_losses.forward_kl", "ForwardKL"),
}
SPARSE = """
@dataclass(eq=False)
class Crash:
    reads_teacher = "buckets"

    @hookimpl
    def token_loss(self, student, teacher):
        pass

    @hookimpl
    def token_loss_sparse(self):
        return {}["gone"]
"""
STATE = """
@dataclass(eq=False)
class Crash:
    @hookimpl
    def on_step_end(self):
        pass

    def state_dict(self):
        return {}["gone"]

    def load_state_dict(self, state):
        pass
"""
WHOLE = {"state_dict": STATE, "token_loss_sparse": SPARSE}
SECTIONS = {  # the section of the plugin by hook; all others are treatments
    "prepare_student": lambda: {"student": {"prepare": CRASHING}},
    "load_kwargs": lambda: {"student": {"load": CRASHING}},
    "add_adapter": lambda: {"adapter": CRASHING},
    "load_adapter": lambda: {"adapter": {"lora": {"r": 2}, **CRASHING}},
    "make_optimizer": lambda: {"optimizer": CRASHING},
    "token_loss": lambda: {"loss": CRASHING},
    "token_gradient": lambda: {"loss": CRASHING},
    "on_evaluate": lambda: {"probes": CRASHING},
    "open_source": lambda: {"data": {"source": CRASHING}},
    "rate": lambda: {"schedule": CRASHING},
    "should_stop": lambda: {"stops": CRASHING, "train": {"max_steps": 3, "logging_steps": 1}},
    **dict.fromkeys(("fit_cache", "encode_teacher", "decode_teacher", "cache_folder"), lambda: taught(CRASHING)),
    **dict.fromkeys(("token_loss_sparse", "token_gradient_sparse"), lambda: taught({"top_k": {}}) | {"loss": CRASHING}),
}
CRASHING = {"./crash.py:Crash": {}}
BEFORE_THE_DIRECTORY = {"check", "prepare_student", "load_kwargs", "add_adapter", "param_groups", "make_optimizer"}
BEFORE_THE_DIRECTORY |= {"fit_cache", "encode_teacher", "cache_folder", "open_source", "rate"}
TRACKERS = {"open_tracker", "on_log", "on_measured", "close_tracker"}  # these never end a run (test_trackers.py)


def taught(cache):
    """Return the sections of a recipe whose teacher is stored by a plugin."""
    return {"teacher": {"cache": cache}, "loss": {"forward_kl": {}}}


@pytest.fixture
def command(lab, monkeypatch, capsys):
    """Return a function that runs `neoplug ... run RECIPE` and returns its exit code and stderr."""

    def run(recipe, *options):
        line = ["neoplug", *options, "run", str(recipe), "--output", str(lab.folder / "run")]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, capsys.readouterr().err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("hook", [*sorted(SPECS.keys() - {"merge_adapter"} - TRACKERS), "state_dict"])
def test_a_crash_names_plugin_and_hook(lab, command, hook):
    fit = {"token_gradient": "token_loss", "load_adapter": "on_step_end"}.get(
        hook, "on_train_end" if hook != "on_train_end" else "after_load"
    )
    if hook in PARENTS:
        module, parent = PARENTS[hook]
        body = INHERITS.format(hook=hook, module=module, parent=parent)
    else:
        body = WHOLE.get(hook) or CRASH.format(hook=hook, fit=fit)
    lab.plugin("crash", body + (SAVES if hook == "load_adapter" else ""))  # these two go together
    sections = SECTIONS.get(hook, lambda: {"treatments": CRASHING})()
    recipe = lab.recipe(**{"teacher": None, "loss": {"cross_entropy": {}}, "train": {"max_steps": 1}} | sections)
    code, stderr = command(recipe)
    assert code == (2 if hook == "check" else 1)
    assert f"`./crash.py:Crash` failed in `{hook}`: KeyError: 'gone'" in stderr
    lines = (lab.folder / "crash.py").read_text().splitlines()
    line = 1 + lines.index('        return {}["gone"]')
    assert f"{lab.folder / 'crash.py'}:{line}" in stderr
    assert "Traceback" not in stderr
    if hook in BEFORE_THE_DIRECTORY:
        assert not (lab.folder / "run").exists()
        assert "Traceback" in command(recipe, "--traceback")[1]
    else:
        log = lab.folder / "run" / "log.txt"
        assert f"{log} holds the traceback" in stderr
        assert "Traceback" in log.read_text()
        assert lab.at("run").result["status"] == "failed"
