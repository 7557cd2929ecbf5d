"""The choice of an executor by its name in a study file."""

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from neoplug.errors import UsageError
from neoplug.studies.directory import StudyDir
from neoplug.studies.executors.base import Executor, Memory


def make_executor(kind: str, options: Mapping[str, Any], directory: StudyDir, memory: Memory) -> Executor:
    """Return the executor that a study names.

    options  its options in the study file
    memory   bytes that the run of a job needs

    Raises:
        UsageError: its package is not installed, or does not know an option.
    """
    command = [sys.executable, "-P", "-m", "neoplug.studies.worker", str(directory.path)]
    if kind == "local":
        from neoplug.studies.executors.local import Local

        return Local(command, directory.path / "logs", memory=memory, **options)
    if kind == "print":
        from neoplug.studies.executors.printed import Printed

        return Printed(directory.path)
    package = {"slurm": "submitit", "ray": "ray"}[kind]
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"the executor `{kind}` needs the package {package}, which is not installed\n"
            f"fix: pip install 'neoplug[{kind}]'; or use another executor, as `executor: {{local: {{workers: 1}}}}`"
        )
    from neoplug.studies.worker import Worker

    if kind == "slurm":
        from neoplug.studies.executors.slurm import Slurm

        return Slurm(Worker(directory.path), directory.path / "slurm", options)
    from neoplug.studies.executors.ray import Ray

    return Ray(Worker(directory.path), options)
