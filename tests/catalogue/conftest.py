"""Parametrises tests by every installed plugin of some kinds, including new files.

`--packaged FILE` uses four layers of the packaged model in place of the tiny one: about a minute for each adapter. It
writes outcomes to FILE by adapter; outcomes of adapters that are not run stay, so that -k repeats a single one.
"""

import json
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from neoplug import recipe
from neoplug.errors import RecipeError
from neoplug.models.prepared import prepare
from neoplug.registry import answered, installed
from neoplug.runs.preflight import find_model

LAYERS = [0, 10, 20, 29]  # of 30


def pytest_addoption(parser):
    parser.addoption("--packaged", type=Path, metavar="FILE", help="adapters on the packaged model; outcomes to FILE")


def pytest_configure(config):
    file = config.getoption("--packaged", None)
    if file and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(file), "outcomes")


class Outcomes:
    """Writes the outcomes of each adapter's tests: {adapter: {property: passed, skipped or failed}}."""

    def __init__(self, file):
        self.file, self.found = file, defaultdict(dict)
        self.before = json.loads(file.read_text()) if file.exists() else {}

    def pytest_runtest_logreport(self, report):
        named = re.search(r"test_adapters\.py::test_a_property_of_adapters\[(\w+)-(\w+)\]", report.nodeid)
        if named and (report.when == "call" or report.outcome != "passed"):
            adapter, name = named.groups()
            worst = "failed" in (report.outcome, self.found[adapter].get(name))
            self.found[adapter][name] = "failed" if worst else report.outcome
            self.file.write_text(json.dumps(self.before | self.found, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="session")
def packaged(request):
    """Return the folder of the packaged model, pruned to LAYERS layers; None without `--packaged`."""
    if not request.config.getoption("--packaged", None):
        return None
    checked = recipe.load("llm_neo_tiny", changes={"student": {"prepare": {"prune_depth": {"layers": LAYERS}}}})
    return Path(prepare(find_model(checked.recipe.student, "student", checked.consent), checked, None, "").path)


def implementing(hook):
    """Yield (name, class) of the installed plugins that implement a hook, without those that cannot be imported."""
    for entry in installed():
        try:
            plugin = entry.load()
        except RecipeError:
            continue
        if hook in answered(plugin):
            yield entry.name, plugin


def losses():
    for name, plugin in implementing("token_loss"):
        yield pytest.param(plugin(), id=name)


def variants():
    """Yield each loss with its defaults, and with another value of one option, where the constructor accepts it."""
    for name, plugin in implementing("token_loss"):
        yield pytest.param(plugin(), id=name)
        hints = get_type_hints(plugin)
        for field in fields(plugin):
            for value in others(hints[field.name], field.default):
                with suppress(ValueError):
                    yield pytest.param(plugin(**{field.name: value}), id=f"{name}-{field.name}={value}")


def others(hint, default):
    """Return values of an option's type that are not its default."""
    values = {bool: (True, False), float: (0.3, 2.5), int: (1, 3)}.get(hint, get_args(hint))
    return [value for value in values if value != default and not isinstance(value, type)]


def adapters():
    for name, plugin in implementing("add_adapter"):
        yield pytest.param(plugin(), id=name)


def optimizers():
    for name, plugin in implementing("make_optimizer"):
        yield pytest.param(plugin(), id=name)


def token_weights():
    """Yield each token weight in each of its directions, the values of the option `more_on`."""
    for name, plugin in implementing("token_weight"):
        option = get_type_hints(plugin).get("more_on")
        for way in get_args(option) or (None,):
            yield pytest.param(plugin(**({"more_on": way} if way else {})), id=f"{name}-{way}")


def schedules():
    for name, plugin in implementing("rate"):
        yield pytest.param(plugin(), id=name)


REQUIRED = {str: "forward_kl", float: 1.0, int: 1}  # a value for each type of an option without a default


def stops():
    """Yield a function for each plugin that can end training: it makes a new one."""
    for name, plugin in implementing("should_stop"):
        hints = get_type_hints(plugin)
        required = [field.name for field in fields(plugin) if field.init and field.default is field.default_factory]
        options = {option: REQUIRED[hints[option]] for option in required}
        yield pytest.param(lambda plugin=plugin, options=options: plugin(**options), id=name)


def trackers():
    for name, plugin in {**dict(implementing("on_log")), **dict(implementing("on_measured"))}.items():
        yield pytest.param(plugin(), id=name)


def pytest_generate_tests(metafunc):
    for argument, plugins in (
        ("loss", losses),
        ("variant", variants),
        ("adapter", adapters),
        ("optimizer", optimizers),
        ("token_weight", token_weights),
        ("schedule", schedules),
        ("stop", stops),
        ("tracker", trackers),
    ):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(plugins()))
