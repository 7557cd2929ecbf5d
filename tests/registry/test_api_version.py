"""The version of the plugin API: what requires a newer one is refused, and the version is that of the newest hook."""

from dataclasses import dataclass

import pytest
from packaging.version import Version

from neoplug import API_VERSION, hookimpl
from neoplug.answers.rules import version_added, version_changed
from neoplug.registry import SPECS, class_problems


def requiring(version):
    @dataclass(eq=False)
    class Plugin:
        requires_api = version

        @hookimpl
        def token_loss(self, student, an_argument_of_the_future):
            return student.sum(-1)

    return Plugin


@pytest.mark.parametrize("version", ["999.0", "0.1000", f"{API_VERSION}.1"])
def test_a_newer_api_is_refused_alone(version):
    (problem,) = class_problems(requiring(version))
    assert f"needs version {version} of the plugin API, and this neoplug has {API_VERSION}" in problem.what
    assert problem.fix == "pip install --upgrade neoplug"


@pytest.mark.parametrize("version", ["new", 0.1, ("0", "1")])
def test_what_is_no_version_is_refused(version):
    (problem,) = class_problems(requiring(version))
    assert "requires_api" in problem.what


@pytest.mark.parametrize("version", [API_VERSION, "0.0", None])
def test_the_present_api_is_checked_further(version):
    (problem,) = class_problems(requiring(version))
    assert "an_argument_of_the_future" in problem.what


def test_the_version_is_that_of_the_newest_hook_or_change():
    changes = [version for spec in SPECS.values() for version, _ in getattr(spec, "version_changed", ())]
    assert Version(API_VERSION) == max(map(Version, [*changes, *(spec.version_added for spec in SPECS.values())]))


def test_changes_of_a_hook_are_recorded_in_order():
    @version_added("0.1")
    @version_changed("0.3", "gains `labels`")
    @version_changed("0.2", "gains `position`")
    def hook():
        """Return nothing."""

    assert hook.version_added == "0.1"
    assert hook.version_changed == (("0.2", "gains `position`"), ("0.3", "gains `labels`"))
