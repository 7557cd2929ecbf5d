"""The command line: a file a command. Torch and transformers are imported only when a command needs them.

Imported by `__main__` and the console script. Does not belong here: what a command computes (the rooms below), only how
it is asked for and shown.
"""

import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from traceback import print_exception

import typer

from neoplug import __version__
from neoplug.cli import check, doctor, eval, export, plan, plugins, preview, push, recipes, run, schema, tasks
from neoplug.errors import NeoplugError, UsageError

PATIENCE = 20.0  # seconds for a machine's first process to find what is wrong as well
UNLIMITED = 1_000_000  # columns of a help text that goes into a pipe: nothing is wrapped or cut there
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
    plan.plan,
    preview.preview,
    plugins.plugins,
    check.check,
    recipes.recipes,
    schema.schema,
    eval.eval,
    tasks.tasks,
    export.export,
    push.push,
    doctor.doctor,
)
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def neoplug(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    traceback: bool = typer.Option(False, "--traceback", help="Show the traceback of what goes wrong."),
) -> None:
    """Distil language models with parameter-efficient adapters: a run is a recipe, variants are plugins."""
    context.ensure_object(dict)["traceback"] = traceback
    if version:
        typer.echo(f"neoplug {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; what people got wrong ends in a message and an exit code, not in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a run's text must not fail on a terminal without Unicode
    # GNU OpenMP's threads spin while they wait: beside one other busy process that made a forward 4 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    wishes = {"traceback": False}
    unwrapped = {} if sys.stdout.isatty() else {"terminal_width": UNLIMITED}
    try:
        app(prog_name="neoplug", obj=wishes, **unwrapped)
    except NeoplugError as error:
        if wishes["traceback"]:
            print_exception(error)
        let_the_first_tell(error)
        columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
        print(error.shown(columns), file=sys.stderr)
        sys.exit(error.exit_code)


def let_the_first_tell(error: NeoplugError) -> None:
    """Wait, unless this is a machine's first process: what all were asked alike it tells, and torchrun ends the others.

    An end of one's own would let torchrun end the first before it has spoken. Who is still here has other trouble.
    """
    if isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE)
