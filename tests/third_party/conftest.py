"""A venv with neoplug and the example distribution installed from wheels, independent of this checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).parent / "kept"  # wheels of the example package, each as it was built for a version of neoplug
SOURCES = (
    "LICENSE",
    "README.md",
    "neoplug",
    "plugins",
    "pyproject.toml",
    "recipes",
)  # the sources of a wheel of neoplug


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Installation:
    """A venv with both wheels."""

    folder: Path

    def __call__(self, program: str, *arguments: object, cwd: Path | None = None) -> Answer:
        """Run one of the venv's programs with nothing of this checkout on its path."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def neoplug(self, *arguments: object, cwd: Path | None = None) -> Answer:
        """Run the `neoplug` command."""
        return self("neoplug", *arguments, cwd=cwd)


def pip(*arguments: object) -> None:
    """Run pip without a network."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build_wheel(source: Path, wheels: Path) -> None:
    """Build a wheel of a copied source folder, so that the checkout gets no build output."""
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", wheels, source)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Return a folder with both wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    copy = tmp_path_factory.mktemp("neoplug-source")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    build_wheel(copy, folder)
    example = tmp_path_factory.mktemp("example-source") / "package"
    shutil.copytree(Path(__file__).parent / "package", example, ignore=ignore)
    build_wheel(example, folder)
    return folder


@pytest.fixture(scope="session")
def installation(wheels, tmp_path_factory):
    """Return a fresh venv with both wheels, which finds all other packages in this Python's environment."""
    return installed(tmp_path_factory.mktemp("venv"), *wheels.glob("*.whl"))


def installed(folder: Path, *packages: Path) -> Installation:
    """Return a fresh venv in `folder` with these wheels; it finds all other packages in this Python's environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "-q", "--no-deps", "--no-index", *sorted(packages))
    site = next((folder / "lib").glob("python*/site-packages"))
    paths = sysconfig.get_paths()
    # Plain paths: Python reads no .pth file there, so an editable neoplug of this environment is not on the path.
    (site / "dependencies.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n", encoding="utf-8")
    return Installation(folder)


@pytest.fixture(scope="session")
def with_new_package(installation, wheels, tmp_path_factory):
    """Return a venv with neoplug, a package that `neoplug new` wrote, and the example package as built for 0.1."""
    folder = tmp_path_factory.mktemp("new")
    answer = installation.neoplug("new", "loss", "my_loss", "--output", folder / "package")
    assert answer.code == 0, answer.err
    build_wheel(folder / "package", folder)
    packages = (*folder.glob("*.whl"), *KEPT.glob("*.whl"))
    return installed(tmp_path_factory.mktemp("venv_new"), *wheels.glob("neoplug-*.whl"), *packages)
