"""Commands of neoplug in processes forked from a server, which has imported everything once: imports take seconds."""

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import weakref
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import mkdtemp

PRELOADED = [
    "neoplug.runs.execute", "neoplug.cli.run", "neoplug.cli.watch", "neoplug.cli.show", "peft", "accelerate",
    "datasets",
    "transformers.models.llama.modeling_llama",
]  # fmt: skip


class Command(ForkServerProcess):
    """A command of neoplug with this process's environment, in this or another folder, and without stdin.

    Its pid, exitcode, join, kill and terminate are those of any process of multiprocessing.
    """

    def __init__(self, *words, cwd=None, **environment):
        super().__init__()
        self.words = [str(word) for word in words]
        self.cwd = cwd or Path.cwd()
        self.environment = {**os.environ, **environment}
        self.folder = Path(mkdtemp())
        weakref.finalize(self, shutil.rmtree, self.folder)

    def start(self):
        """Start the command, and return it."""
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        super().start()
        return self

    def run(self):
        """Be the command, in the forked process."""
        for number, name in ((1, "out"), (2, "err")):
            with (self.folder / name).open("wb") as file:
                os.dup2(file.fileno(), number)
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.cwd)
        self.main()

    def main(self):
        """Do what the command does."""
        from neoplug.cli import main

        sys.argv = ["neoplug", *self.words]
        main()

    def end(self, timeout=240):
        """Wait for the end, and return the command."""
        self.join(timeout)
        assert self.exitcode is not None, f"after {timeout} seconds: {self.err}"
        return self

    @property
    def out(self):
        """What it has printed on stdout."""
        return self._read("out")

    @property
    def err(self):
        """What it has printed on stderr."""
        return self._read("err")

    def _read(self, name):
        with suppress(FileNotFoundError):
            return (self.folder / name).read_text(encoding="utf-8")
        return ""


class Script(Command):
    """A Python file with arguments, run like a command of neoplug."""

    def main(self):
        """Run the file, as `python FILE ARGUMENTS` does."""
        file, *_ = sys.argv = self.words
        sys.path.insert(0, str(Path(file).resolve().parent))
        runpy.run_path(file, run_name="__main__")


class Runs(Command):
    """One rank of several runs, one after the other. Errors go to stderr.

    runs  (recipe, output, resume, the variables that a launcher sets for this rank) of each
    """

    def __init__(self, runs):
        super().__init__()
        self.runs = runs

    def main(self):
        """Run all; a run that is refused does not end the others."""
        from accelerate.state import AcceleratorState

        import neoplug

        for recipe, output, resume, variables in self.runs:
            os.environ.update(variables)
            try:
                neoplug.run(recipe, output=output, resume=resume)
            except Exception as error:
                print(f"{output}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            AcceleratorState._reset_state(reset_partial_state=True)


def start_ranks(number, *words):
    """Start a command on several ranks, and return them."""
    return [Command(*words, **variables).start() for variables in variables_of_ranks(number)]


def start_runs_on_ranks(number, runs):
    """Start several runs, one after the other, on several ranks: (recipe, output, resume) of each."""
    variables = [variables_of_ranks(number) for _ in runs]
    return [
        Runs([(*run, each[rank]) for run, each in zip(runs, variables, strict=True)]).start() for rank in range(number)
    ]


def variables_of_ranks(number):
    """Return the variables that a launcher sets in the environment of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(number)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(number)]
