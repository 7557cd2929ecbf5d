"""The command line, one module for each command; torch and transformers are imported only by commands that need them.

Imported by `__main__` and the console script. Does not belong here: what a command computes (the layers below); modules
here parse arguments and print.
"""

import errno
import io
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from traceback import format_exception
from typing import Any

import typer
from typer.exceptions import TyperException

from neoplug import __version__
from neoplug.cli import (
    cache,
    check,
    doctor,
    eval,
    export,
    import_,
    new,
    pack,
    plan,
    plugins,
    preview,
    push,
    recipes,
    report,
    reproduce,
    run,
    schema,
    study,
    tasks,
)
from neoplug.cli.screen import json_alone
from neoplug.errors import NeoplugError, UsageError
from neoplug.errors.text import TextRecord, escaped, redacted
from neoplug.registry.confinement import exits_refused

NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EEXIST)
UNESCAPED_WARNING = warnings.formatwarning
WAIT = 20.0  # seconds, enough for a machine's first process to find and print the same error
UNLIMITED = 1_000_000  # columns of a help text that is not on a terminal, where nothing is wrapped or cut
app = typer.Typer(
    name="neoplug",
    help="Distil language models with parameter-efficient adapters: a run is a recipe, variants are plugins.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
COMMANDS: tuple[Callable[..., None], ...] = (
    run.run,
    study.study,
    plan.plan,
    preview.preview,
    cache.cache,
    plugins.plugins,
    check.check,
    new.new,
    recipes.recipes,
    import_.import_,
    schema.schema,
    eval.eval,
    tasks.tasks,
    export.export,
    push.push,
    pack.pack,
    reproduce.reproduce,
    report.report,
    doctor.doctor,
)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that code of a plugin cannot end as if it were done; JSON that it prints is alone on stdout."""

    @wraps(command)
    def run_guarded(**arguments: Any) -> None:
        with exits_refused(), json_alone() if arguments.get("as_json") else nullcontext():
            command(**arguments)

    return run_guarded


for command in COMMANDS:
    app.command()(guarded(command))


@app.callback(invoke_without_command=True)
def neoplug(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    traceback: bool = typer.Option(False, "--traceback", help="Show the traceback of an error."),
) -> None:
    """Distil language models with parameter-efficient adapters: a run is a recipe, variants are plugins."""
    context.ensure_object(dict)["traceback"] = traceback
    if version:
        typer.echo(f"neoplug {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an expected error ends it with a message and an exit code, without a traceback."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # printing must not fail where stdout has no Unicode
    warnings.formatwarning = format_warning
    logging.setLogRecordFactory(TextRecord)
    # Threads of GNU OpenMP spin while they wait: with one other busy process, that made a forward pass 4 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    options = {"traceback": False}
    unwrapped = {} if sys.stdout.isatty() else {"terminal_width": UNLIMITED}
    try:
        with path_errors(), usage_errors():
            sys.exit(app(prog_name="neoplug", obj=options, standalone_mode=False, **unwrapped) or 0)
    except NeoplugError as error:
        if options["traceback"]:
            print(escaped(redacted("".join(format_exception(error)))), file=sys.stderr)
        wait_for_first_process(error)
        columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
        print(error.message(columns), file=sys.stderr)
        sys.exit(error.exit_code)


def open_closed_streams() -> None:
    """Open the null device as each standard stream that is closed (`>&-`).

    Python has None there, and the next file that is opened would have the stream's number, and all that is printed.
    """
    for number, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            stream = os.fdopen(number, mode, encoding="utf-8")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


@contextmanager
def path_errors() -> Iterator[None]:
    """Raise UsageError in place of an OSError about a path that cannot exist: the system says why."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PATH:
            raise
        raise UsageError(
            f"{error.filename} is no path that can be used: {error.strerror}\nfix: name another"
        ) from error


@contextmanager
def usage_errors() -> Iterator[None]:
    """Raise UsageError in place of typer's error about a command line, which it would print as it is."""
    try:
        yield
    except TyperException as error:
        shown = io.StringIO()
        error.show(shown)  # type: ignore[attr-defined]  # typer raises subclasses, and each has it
        raise UsageError(shown.getvalue().strip()) from error


def format_warning(*warning: Any, **line: Any) -> str:
    """Return the text of a Python warning, escaped and without credentials."""
    return escaped(redacted(UNESCAPED_WARNING(*warning, **line)))


def wait_for_first_process(error: NeoplugError) -> None:
    """After a usage error, wait in every process but a machine's first, so that only the first prints the error.

    All processes find the same usage error. torchrun ends the others as soon as one exits: without this wait, possibly
    before the first has printed. If torchrun does not end the process during the wait, the first process did not fail;
    this one then prints its error.
    """
    if isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(WAIT)
